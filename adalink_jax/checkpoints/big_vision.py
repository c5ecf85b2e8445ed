"""Vision towers of big_vision: one `.npz` file whose names are `/`-joined paths of its own ViT (`vision/` here).

A two-tower model (SigLIP) has its image tower under `img/`. Heads are apart, [width, H, K]; layers are stacked in a scanned
file. A class token has no position there; here its position is zero. Nothing is unpickled.
"""

import re
import zipfile
from collections.abc import Mapping

import numpy as np
from etils import epath

from adalink_jax.checkpoints.positions import BILINEAR
from adalink_jax.checkpoints.source import Source
from adalink_jax.errors import CheckpointError
from adalink_jax.files.leaves import Leaf, computed, layer

SUFFIX = ".npz"
_ROOTS = re.compile(r"(?:params/)?(?:img/)?(.*)")
_ATTENTION = "MultiHeadDotProductAttention_0"
_LAYER = {  # within a layer: theirs -> ours
    "LayerNorm_0/scale": "pre_attention_layer_norm/scale",
    "LayerNorm_0/bias": "pre_attention_layer_norm/bias",
    "LayerNorm_1/scale": "pre_mlp_layer_norm/scale",
    "LayerNorm_1/bias": "pre_mlp_layer_norm/bias",
    **{f"{_ATTENTION}/{name}/{leaf}": f"attention/{name}/{leaf}"
       for name in ("query", "key", "value", "out") for leaf in ("kernel", "bias")},
    **{f"MlpBlock_0/Dense_{i}/{leaf}": f"mlp/{name}/{leaf}" for i, name in ((0, "wi"), (1, "wo")) for leaf in ("kernel", "bias")},
}  # fmt: skip
_WHOLE = {
    "embedding/kernel": "patch_embedding/kernel",
    "embedding/bias": "patch_embedding/bias",
    "pos_embedding": "pos_embedding",
    "cls": "class_token",
    "Transformer/encoder_norm/scale": "encoder_norm/scale",
    "Transformer/encoder_norm/bias": "encoder_norm/bias",
}


def open_file(file: epath.Path, path: str) -> Source:
    """Opens a `.npz` of big_vision.

    Raises:
      CheckpointError: for a file that is damaged, holds pickled objects, or no vision tower.
    """
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as e:
        raise CheckpointError(f"{path} is damaged, or no plain .npz of arrays ({str(e).splitlines()[0][:120]}).") from e
    leaves: dict[str, Leaf] = {}
    for name, array in arrays.items():
        leaves |= _translated(name, array)
    if "vision/pos_embedding" not in leaves:
        raise CheckpointError(f"{path} holds no vision tower of big_vision: it has no pos_embedding.")
    if "vision/class_token" in leaves:
        table = leaves["vision/pos_embedding"]
        shape = (table.shape[0] + 1, table.shape[1])
        leaves["vision/pos_embedding"] = computed((table,), shape, lambda x: np.concatenate([np.zeros_like(x[:1]), x]))
    settings = {"vision": {"activation": "gelu", "layer_norm_epsilon": 1e-6, "num_heads": _heads(arrays)}}
    return Source(
        "big_vision file", path, file.name.removesuffix(SUFFIX), dict(sorted(leaves.items())), file.parent,
        part_settings=settings, position_rule=BILINEAR,
    )  # fmt: skip


def _translated(name: str, array: np.ndarray) -> dict[str, Leaf]:
    own = _ROOTS.fullmatch(name)[1]
    leaf = Leaf(array.shape, array.dtype, name, lambda index: array[index], array.shape)
    if own in _WHOLE:
        shape = (-1, array.shape[-1])  # [1, N, width], [p, p, channels, width]
        shape = np.reshape(array, shape).shape if array.ndim > 1 else array.shape
        return {f"vision/{_WHOLE[own]}": computed((leaf,), shape, lambda x: x)}
    match = re.fullmatch(r"Transformer/encoderblock(?:_(\d+))?/(.*)", own)
    if not match or match[2] not in _LAYER:
        return {name: leaf}
    ours, scanned = _LAYER[match[2]], match[1] is None
    one = array.shape[1:] if scanned else array.shape
    if "/attention/" in f"/{ours}" and not ours.endswith("out/bias"):
        if ours.endswith("kernel"):
            one = (one[0] * one[1], one[2]) if "out/" in ours else (one[0], one[1] * one[2])
        else:
            one = (one[0] * one[1],)
    if not scanned:
        return {f"vision/layers_{match[1]}/{ours}": computed((leaf,), one, lambda x: x)}
    return {f"vision/layers_{i}/{ours}": layer(leaf, i, 0, one) for i in range(len(array))}


def _heads(arrays: Mapping[str, np.ndarray]) -> int:
    """From a query kernel, [width, H, K] (or stacked)."""
    found = next((x for name, x in arrays.items() if name.endswith(f"{_ATTENTION}/query/kernel")), None)
    if found is None:
        raise CheckpointError("The .npz has no attention layer; it is no vision tower of big_vision.")
    return found.shape[-2]
