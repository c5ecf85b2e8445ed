"""PaliGemma in a `.npz` of big_vision: the tower under `img/`, the projection as its `head`, the language model under `llm/`.

Layers are stacked on axis 0, heads are apart, and tensors that are read together are one: keys and values, the two MLP inputs.
"""

import re
from collections.abc import Callable, Mapping

import numpy as np

from adalink_jax.checkpoints.families.family import LANGUAGE, Translation
from adalink_jax.checkpoints.families.vit_family import ViTFamily
from adalink_jax.errors import CheckpointError
from adalink_jax.files.leaves import Leaf, computed, layer

_TABLE, _NORM = "token_embedder/embedding", "decoder/decoder_norm/scale"
_LLM = re.compile(r"(?:params/)?llm/(.*)")
_HEAD = re.compile(r"(?:params/)?img/head/(kernel|bias)")
_WHOLE = {"embedder/input_embedding": _TABLE, "final_norm/scale": _NORM}
# Of a layer: big_vision's name -> this package's, and what makes a matrix of each of its parts.
_heads_out: Callable[[np.ndarray], np.ndarray] = lambda x: x.transpose(1, 0, 2)  # [H, D, K] -> [D, H, K]
_as_it_is: Callable[[np.ndarray], np.ndarray] = lambda x: x
_BIG_VISION = {
    "attn/q_einsum/w": (("self_attention/query/kernel",), _heads_out),
    "attn/kv_einsum/w": (("self_attention/key/kernel", "self_attention/value/kernel"), _heads_out),
    "attn/attn_vec_einsum/w": (("self_attention/out/kernel",), _as_it_is),
    "mlp/gating_einsum": (("mlp/wi_0/kernel", "mlp/wi_1/kernel"), _as_it_is),
    "mlp/linear": (("mlp/wo/kernel",), _as_it_is),
    **{f"{tensor}_norm/scale": ((f"{name}_layer_norm/scale",), _as_it_is)
       for tensor, name in {"pre_attention": "pre_self_attention", "pre_ffw": "pre_mlp",
                            "post_attention": "post_self_attention", "post_ffw": "post_mlp"}.items()},
}  # fmt: skip


def translated(tensors: Mapping[str, Leaf], path: str) -> Translation | None:
    """The model in this package's terms; None if the file has no language model.

    Args:
      tensors: by the file's names.
      path: the file, for errors.

    Raises:
      CheckpointError: for a file that lacks a part of the model.
    """
    language = {match[1]: leaf for name, leaf in tensors.items() if (match := _LLM.fullmatch(name))}
    if "embedder/input_embedding" not in language:
        return None
    heads = {match[1]: name for name in tensors if (match := _HEAD.fullmatch(name))}
    tower = {name: x for name, x in tensors.items() if not _LLM.fullmatch(name) and name not in heads.values()}
    vision = ViTFamily().from_big_vision(tower, path)
    if vision is None:
        raise CheckpointError(f"{path} has a language model and no vision tower; give the .npz of a PaliGemma.")
    leaves = vision.leaves | {f"projection/{kind}": tensors[name] for kind, name in heads.items()}
    for name, leaf in language.items():
        leaves |= _from_big_vision(name, leaf)
    query, kv = (language.get(f"layers/attn/{kind}_einsum/w") for kind in ("q", "kv"))
    if query is None or kv is None:
        raise CheckpointError(f"{path} has no attention of a Gemma; give the .npz of a PaliGemma.")
    settings = {"num_heads": query.shape[1], "num_kv_heads": kv.shape[2], "head_dim": query.shape[3]}
    return Translation(leaves, {LANGUAGE: settings, **vision.settings})


def _from_big_vision(name: str, leaf: Leaf) -> dict[str, Leaf]:
    """A tensor of big_vision's language model, its layers and parts apart; one that is not known keeps its name."""
    if name in _WHOLE:
        return {_WHOLE[name]: leaf}
    names, make = _BIG_VISION.get(name.removeprefix("layers/"), ((), _as_it_is))
    if not names:
        return {f"llm/{name}": leaf}
    leaves = {}
    for i in range(leaf.shape[0]):
        whole = layer(leaf, i, 0, leaf.shape[1:])
        for j, part_name in enumerate(names):
            part = whole if len(names) == 1 else layer(whole, j, 0, whole.shape[1:])
            shape = _matrix(part.shape, part_name)
            leaves[f"decoder/layers_{i}/{part_name}"] = computed((part,), shape, make)
    return leaves


def _matrix(shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    """The shape of a leaf whose heads are apart in `shape`: [H, D, K], or [H, K, D] of the output."""
    if len(shape) < 3:
        return shape
    heads, a, b = shape
    return (heads * a, b) if name.endswith("out/kernel") else (a, heads * b)
