"""Vision towers (SigLIP, ViT, EVA as in BLIP-2) in files; their leaves are under `vision/`.

Hugging Face: kernels are transposed, and the patch embedding is a convolution [width, channels, p, p]. big_vision: heads are
apart, [width, H, K]; layers are stacked in a scanned file; a class token has no position, so here its position is zero.
Tensors that belong to no vision tower (a text tower, a pooling head, a classifier) keep the file's names.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import pydantic
from etils import epath

from adalink_jax.checkpoints import positions
from adalink_jax.checkpoints.families import image_processors
from adalink_jax.checkpoints.families.family import VISION, Family, Shapes, Translation, depth
from adalink_jax.checkpoints.source import Source
from adalink_jax.errors import CheckpointError
from adalink_jax.files.leaves import Leaf, computed, layer, rows, transposed
from adalink_jax.files.typed_json import Form, as_form
from adalink_jax.models.vit import ViTConfig

SIGLIP, VIT = ("siglip", "siglip_vision_model"), ("vit",)
_WITH_SIGLIP = ("paligemma", "t5gemma2")  # models whose `vision_config` is SigLIP's where it states no `model_type`
POSITIONS, CLASS_TOKEN = "vision/pos_embedding", "vision/class_token"
_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu", "gelu": "gelu_exact"}
_BUFFERS = re.compile(r".*position_ids")

# A regular expression for a module's name in Hugging Face, this package's name, and the kind of module, which says how its
# `weight` and `bias` are stored.
NameTable = Sequence[tuple[str, str, str]]
_TOWER = r"(?:vision_model\.)?"  # transformers 5 saves a SiglipVisionModel without it
_S = _TOWER + r"encoder\.layers\.(\d+)"
SIGLIP_NAMES: NameTable = [
    (_TOWER + r"embeddings\.patch_embedding", "vision/patch_embedding", "patches"),
    (_TOWER + r"embeddings\.position_embedding", POSITIONS, "table"),
    (_TOWER + r"embeddings\.class_embedding", CLASS_TOKEN, "table"),
    (_TOWER + r"post_layernorm", "vision/encoder_norm", "norm"),
    (_S + r"\.layer_norm1", r"vision/layers_\1/pre_attention_layer_norm", "norm"),
    (_S + r"\.layer_norm2", r"vision/layers_\1/pre_mlp_layer_norm", "norm"),
    (_S + r"\.self_attn\.q_proj", r"vision/layers_\1/attention/query", "dense"),
    (_S + r"\.self_attn\.k_proj", r"vision/layers_\1/attention/key", "dense"),
    (_S + r"\.self_attn\.v_proj", r"vision/layers_\1/attention/value", "dense"),
    (_S + r"\.self_attn\.qkv", r"vision/layers_\1/attention", "qkv"),
    (_S + r"\.self_attn\.(?:out_proj|projection)", r"vision/layers_\1/attention/out", "dense"),
    (_S + r"\.mlp\.fc1", r"vision/layers_\1/mlp/wi", "dense"),
    (_S + r"\.mlp\.fc2", r"vision/layers_\1/mlp/wo", "dense"),
]
_PATCHES = "vision/patch_embedding"
_SIGLIP_MODULES = {  # this package's module -> SigLIP's, for writing; {} is the number of a layer
    _PATCHES: "embeddings.patch_embedding",
    POSITIONS: "embeddings.position_embedding",
    "vision/encoder_norm": "post_layernorm",
    **{f"vision/layers_{{}}/{name}": f"encoder.layers.{{}}.{tensor}" for name, tensor in {
        "pre_attention_layer_norm": "layer_norm1", "pre_mlp_layer_norm": "layer_norm2", "mlp/wi": "mlp.fc1", "mlp/wo": "mlp.fc2",
        "attention/query": "self_attn.q_proj", "attention/key": "self_attn.k_proj", "attention/value": "self_attn.v_proj",
        "attention/out": "self_attn.out_proj",
    }.items()},
}  # fmt: skip
_V = r"(?:vit\.)?encoder\.layer\.(\d+)"
_VIT_NAMES: NameTable = [
    (r"(?:vit\.)?embeddings\.patch_embeddings\.projection", "vision/patch_embedding", "patches"),
    (r"(?:vit\.)?embeddings\.position_embeddings", POSITIONS, "table"),
    (r"(?:vit\.)?embeddings\.cls_token", CLASS_TOKEN, "table"),
    (r"(?:vit\.)?layernorm", "vision/encoder_norm", "norm"),
    (_V + r"\.layernorm_before", r"vision/layers_\1/pre_attention_layer_norm", "norm"),
    (_V + r"\.layernorm_after", r"vision/layers_\1/pre_mlp_layer_norm", "norm"),
    (_V + r"\.attention\.attention\.(query|key|value)", r"vision/layers_\1/attention/\2", "dense"),
    (_V + r"\.attention\.output\.dense", r"vision/layers_\1/attention/out", "dense"),
    (_V + r"\.intermediate\.dense", r"vision/layers_\1/mlp/wi", "dense"),
    (_V + r"\.output\.dense", r"vision/layers_\1/mlp/wo", "dense"),
]
_PARAMETERS = {
    "dense": {"weight": "kernel", "bias": "bias"},
    "patches": {"weight": "kernel", "bias": "bias"},
    "norm": {"weight": "scale", "bias": "bias"},
}

_BIG_VISION_ROOTS = re.compile(r"(?:params/)?(?:img/)?")  # a two-tower model has its image tower under img/
_ATTENTION = "MultiHeadDotProductAttention_0"
_BIG_VISION_WHOLE = {
    "embedding/kernel": "vision/patch_embedding/kernel",
    "embedding/bias": "vision/patch_embedding/bias",
    "pos_embedding": POSITIONS,
    "cls": CLASS_TOKEN,
    "Transformer/encoder_norm/scale": "vision/encoder_norm/scale",
    "Transformer/encoder_norm/bias": "vision/encoder_norm/bias",
}
_BIG_VISION_LAYER = {  # within a layer: big_vision's name -> this package's
    "LayerNorm_0/scale": "pre_attention_layer_norm/scale",
    "LayerNorm_0/bias": "pre_attention_layer_norm/bias",
    "LayerNorm_1/scale": "pre_mlp_layer_norm/scale",
    "LayerNorm_1/bias": "pre_mlp_layer_norm/bias",
    **{f"{_ATTENTION}/{name}/{leaf}": f"attention/{name}/{leaf}"
       for name in ("query", "key", "value", "out") for leaf in ("kernel", "bias")},
    **{f"MlpBlock_0/Dense_{i}/{leaf}": f"mlp/{name}/{leaf}" for i, name in ((0, "wi"), (1, "wo")) for leaf in ("kernel", "bias")},
}  # fmt: skip


class _Vision(Form):
    model_type: str | None = None
    hidden_act: str | None = None
    num_attention_heads: Annotated[int, pydantic.Field(ge=1, lt=2**31)] | None = None
    layer_norm_eps: Annotated[float, pydantic.Field(gt=0, lt=1)] | None = None


class _Config(_Vision):
    """What `config.json` states and shapes do not show, at its top or of its `vision_config`."""

    vision_config: _Vision | None = None


class ViTFamily(Family):
    """Vision towers, alone or beside a text tower."""

    name = "ViT"
    part = VISION
    config = ViTConfig
    deciding = ("num_heads", "activation", "layer_norm_epsilon", *image_processors.SETTINGS)
    model_types = (*SIGLIP, *VIT)

    def from_hugging_face(
        self, tensors: Mapping[str, Leaf], config: Mapping[str, Any], folder: epath.Path, path: str
    ) -> Translation:
        """See `Family`."""
        names = _VIT_NAMES if config["model_type"] in VIT else SIGLIP_NAMES
        return Translation(translated(tensors, names), {VISION: vision_settings(config, folder, path)})

    def from_big_vision(self, tensors: Mapping[str, Leaf], path: str) -> Translation | None:
        """See `Family`."""
        leaves: dict[str, Leaf] = {}
        for name, leaf in tensors.items():
            leaves |= _from_big_vision(name, leaf)
        if POSITIONS not in leaves:
            return None
        query = next((leaf for name, leaf in tensors.items() if name.endswith(f"{_ATTENTION}/query/kernel")), None)
        if query is None:
            raise CheckpointError(f"{path} has no attention layer, so it is not a vision tower of big_vision.")
        if CLASS_TOKEN in leaves:
            table = leaves[POSITIONS]
            shape = (table.shape[0] + 1, table.shape[1])
            leaves[POSITIONS] = computed((table,), shape, lambda x: np.concatenate([np.zeros_like(x[:1]), x]))
        settings = {"activation": "gelu", "layer_norm_epsilon": 1e-6, "num_heads": query.shape[-2]}
        return Translation(leaves, {VISION: settings})

    def resized(
        self, leaves: Mapping[str, Leaf], wanted: Shapes, config: ViTConfig, source: Source
    ) -> tuple[dict[str, Leaf], str]:
        """Resamples the positions for another resolution, by the rule of the checkpoint's origin."""
        leaves = dict(leaves)
        table, shape = leaves.get(POSITIONS), wanted.get(POSITIONS)
        if table is None or shape is None or table.shape[0] == shape[0]:
            return leaves, ""
        rule = source.position_rule
        leaves[POSITIONS] = positions.for_grid(table, config.grid, config.class_token, rule, source.path)
        return leaves, f", positions resampled ({rule})"


def _reshaped(leaf: Leaf, shape: tuple[int, ...]) -> Leaf:
    return leaf if leaf.shape == shape else computed((leaf,), shape, lambda values: values)


def translated(tensors: Mapping[str, Leaf], names: NameTable) -> dict[str, Leaf]:
    """`tensors` of a Hugging Face folder under this package's names; buffers are left out."""
    leaves = {}
    for tensor, leaf in tensors.items():
        if not _BUFFERS.fullmatch(tensor):
            leaves |= _translated(tensor, leaf, names)
    return leaves


def _translated(tensor: str, leaf: Leaf, names: NameTable) -> dict[str, Leaf]:
    module, _, parameter = tensor.rpartition(".")
    for pattern, our_name, kind in names:
        if kind == "table" and (match := re.fullmatch(pattern + r"(?:\.weight)?", tensor)):
            return {our_name: _reshaped(leaf, leaf.shape[-2:])}  # [1, rows, width] or [rows, width]
        if not (match := re.fullmatch(pattern, module)):
            continue
        name = match.expand(our_name)
        if kind == "qkv":
            width = leaf.shape[0] // 3
            parts = {part: rows(leaf, i * width, (i + 1) * width) for i, part in enumerate(("query", "key", "value"))}
            if parameter == "bias":
                return {f"{name}/{part}/bias": bias for part, bias in parts.items()}
            return {f"{name}/{part}/kernel": transposed(kernel) for part, kernel in parts.items()}
        if parameter not in _PARAMETERS.get(kind, {}):
            continue
        if kind == "patches" and parameter == "weight":
            width, size = leaf.shape[0], leaf.size // leaf.shape[0]
            leaf = computed((leaf,), (size, width), lambda x: x.transpose(2, 3, 1, 0))
        elif kind == "dense" and parameter == "weight":
            leaf = transposed(leaf)
        return {f"{name}/{_PARAMETERS[kind][parameter]}": leaf}
    return {tensor: leaf}


def siglip_tensors(leaves: Mapping[str, Leaf], prefix: str) -> dict[str, Leaf]:
    """The tower among `leaves` under the names of Hugging Face's SigLIP: the inverse of `translated`.

    Args:
      leaves: by this package's names; those that are not under `vision/` are left out.
      prefix: of the tensors' names, such as `vision_model.`.

    Raises:
      CheckpointError: for a leaf that SigLIP does not have.
    """
    tensors = {}
    for name, leaf in leaves.items():
        if not name.startswith("vision/"):
            continue
        module, parameter = (name, "table") if name == POSITIONS else name.rsplit("/", 1)
        number = re.search(r"(?<=/layers_)\d+", name)
        tensor = _SIGLIP_MODULES.get(module if number is None else module.replace(number[0], "{}", 1))
        if tensor is None:
            raise CheckpointError(
                f"A Hugging Face SigLIP has no place for {name}; convert this model to native instead."
            )
        if module == _PATCHES and parameter == "kernel":
            side, width = math.isqrt(leaf.shape[0] // 3), leaf.shape[1]
            as_pixels = lambda x, p=side: x.reshape(p, p, 3, -1).transpose(3, 2, 0, 1)
            leaf = computed((leaf,), (width, 3, side, side), as_pixels)
        elif parameter == "kernel":
            leaf = transposed(leaf)
        tensors[f"{prefix}{tensor.format(number and number[0])}.{'bias' if parameter == 'bias' else 'weight'}"] = leaf
    return tensors


def siglip_config(source: Source) -> dict[str, Any]:
    """`vision_config` of a Hugging Face model, for a SigLIP tower of a source that has none.

    Args:
      source: its `settings` state the tower's `deciding` fields.
    """
    shapes, settings = source.shapes, source.settings[VISION]
    size, width = shapes[f"{_PATCHES}/kernel"]
    side = math.isqrt(size // 3)
    activations = {name: stated for stated, name in _ACTIVATIONS.items()}
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": width,
        "intermediate_size": shapes["vision/layers_0/mlp/wi/kernel"][1],
        "num_hidden_layers": depth(shapes, "vision"),
        "num_attention_heads": settings["num_heads"],
        "patch_size": side,
        "image_size": side * math.isqrt(shapes[POSITIONS][0]),
        "hidden_act": activations[settings["activation"]],
        "layer_norm_eps": settings["layer_norm_epsilon"],
        "vision_use_head": False,
    }


def vision_settings(config: Mapping[str, Any], folder: epath.Path, path: str) -> dict[str, Any]:
    """Fields of `ViTConfig` that a Hugging Face folder states and shapes do not show.

    Args:
      config: the contents of `config.json`; its `vision_config` where it has one.
      folder: the folder, for the file of its image processor.
      path: the folder as the user gave it, for errors.

    Raises:
      CheckpointError: for an activation, or an image processor, that this package does not implement.
    """
    stated = as_form(config, _Config, f"{path}/config.json", error=CheckpointError)
    vision = stated.vision_config or stated
    model_type = vision.model_type or stated.model_type
    activation = vision.hidden_act or ("gelu_pytorch_tanh" if model_type in SIGLIP + _WITH_SIGLIP else "gelu")
    if activation not in _ACTIVATIONS:
        raise CheckpointError(
            f"{path} has hidden_act {activation!r}; this package supports {', '.join(_ACTIVATIONS)} in vision towers."
        )
    settings = {"activation": _ACTIVATIONS[activation]} | image_processors.settings(folder, path, config)
    if vision.num_attention_heads is not None:
        settings["num_heads"] = vision.num_attention_heads
    usual = 1e-12 if model_type in VIT else 1e-6
    return settings | {"layer_norm_epsilon": usual if vision.layer_norm_eps is None else vision.layer_norm_eps}


def _from_big_vision(name: str, leaf: Leaf) -> dict[str, Leaf]:
    inner = _BIG_VISION_ROOTS.sub("", name, count=1)
    if inner in _BIG_VISION_WHOLE:
        # [1, N, width] and [p, p, channels, width] become matrices.
        shape = (leaf.size // leaf.shape[-1], leaf.shape[-1]) if len(leaf.shape) > 1 else leaf.shape
        return {_BIG_VISION_WHOLE[inner]: _reshaped(leaf, shape)}
    match = re.fullmatch(r"Transformer/encoderblock(?:_(\d+))?/(.*)", inner)
    if not match or match[2] not in _BIG_VISION_LAYER:
        return {name: leaf}
    our_name, is_stacked = _BIG_VISION_LAYER[match[2]], match[1] is None
    shape = leaf.shape[1:] if is_stacked else leaf.shape
    if our_name == "attention/out/kernel":  # join the heads, here and below
        shape = (shape[0] * shape[1], shape[2])
    elif our_name.startswith("attention/") and our_name != "attention/out/bias":
        shape = (*shape[:-2], shape[-2] * shape[-1])
    if is_stacked:
        return {f"vision/layers_{i}/{our_name}": layer(leaf, i, 0, shape) for i in range(leaf.shape[0])}
    return {f"vision/layers_{match[1]}/{our_name}": _reshaped(leaf, shape)}
