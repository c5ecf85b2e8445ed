"""The vision side of Hugging Face folders: SigLIP, ViT, BLIP-2 and InstructBLIP (`vision/`, `qformer/`, `projection/`).

Kernels stand the other way round there, and the patch embedding is a convolution [width, channels, p, p]. What belongs to
no vision tower (a text tower, a pooling head, a classifier) keeps its own name.
"""

import json
import re

from etils import epath

from adalink_jax.errors import CheckpointError
from adalink_jax.files.leaves import Leaf, computed, rows, transposed

SIGLIP, VIT, BLIP2 = ("siglip", "siglip_vision_model"), ("vit",), ("blip-2", "instructblip")
TYPES = SIGLIP + VIT + BLIP2
LANGUAGE_PREFIX = "language_model."
_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu", "gelu": "gelu_exact"}
_BUFFERS = re.compile(r".*position_ids")

# A module's name there -> ours. Its `weight` and `bias` are a dense layer's, a norm's, or as the last column says.
_SIGLIP_NAMES = [
    (r"vision_model\.embeddings\.patch_embedding", "vision/patch_embedding", "patches"),
    (r"vision_model\.embeddings\.position_embedding", "vision/pos_embedding", "table"),
    (r"vision_model\.embeddings\.class_embedding", "vision/class_token", "table"),
    (r"vision_model\.post_layernorm", "vision/encoder_norm", "norm"),
    (r"vision_model\.encoder\.layers\.(\d+)\.layer_norm1", r"vision/layers_\1/pre_attention_layer_norm", "norm"),
    (r"vision_model\.encoder\.layers\.(\d+)\.layer_norm2", r"vision/layers_\1/pre_mlp_layer_norm", "norm"),
    (r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.q_proj", r"vision/layers_\1/attention/query", "dense"),
    (r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.k_proj", r"vision/layers_\1/attention/key", "dense"),
    (r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.v_proj", r"vision/layers_\1/attention/value", "dense"),
    (r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.qkv", r"vision/layers_\1/attention", "qkv"),
    (r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.(?:out_proj|projection)", r"vision/layers_\1/attention/out", "dense"),
    (r"vision_model\.encoder\.layers\.(\d+)\.mlp\.fc1", r"vision/layers_\1/mlp/wi", "dense"),
    (r"vision_model\.encoder\.layers\.(\d+)\.mlp\.fc2", r"vision/layers_\1/mlp/wo", "dense"),
]  # fmt: skip
_VIT_NAMES = [
    (r"(?:vit\.)?embeddings\.patch_embeddings\.projection", "vision/patch_embedding", "patches"),
    (r"(?:vit\.)?embeddings\.position_embeddings", "vision/pos_embedding", "table"),
    (r"(?:vit\.)?embeddings\.cls_token", "vision/class_token", "table"),
    (r"(?:vit\.)?layernorm", "vision/encoder_norm", "norm"),
    (r"(?:vit\.)?encoder\.layer\.(\d+)\.layernorm_before", r"vision/layers_\1/pre_attention_layer_norm", "norm"),
    (r"(?:vit\.)?encoder\.layer\.(\d+)\.layernorm_after", r"vision/layers_\1/pre_mlp_layer_norm", "norm"),
    (r"(?:vit\.)?encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)", r"vision/layers_\1/attention/\2", "dense"),
    (r"(?:vit\.)?encoder\.layer\.(\d+)\.attention\.output\.dense", r"vision/layers_\1/attention/out", "dense"),
    (r"(?:vit\.)?encoder\.layer\.(\d+)\.intermediate\.dense", r"vision/layers_\1/mlp/wi", "dense"),
    (r"(?:vit\.)?encoder\.layer\.(\d+)\.output\.dense", r"vision/layers_\1/mlp/wo", "dense"),
]  # fmt: skip
_Q = r"qformer\.encoder\.layer\.(\d+)"
_QFORMER_NAMES = [
    (r"query_tokens", "qformer/query_tokens", "table"),
    (r"qformer\.(?:embeddings\.)?layernorm", "qformer/embedding_layer_norm", "norm"),
    (r"qformer\.embeddings\.word_embeddings", "qformer/token_embedder/embedding", "table"),
    (r"qformer\.embeddings\.position_embeddings", "qformer/pos_embedding", "table"),
    (_Q + r"\.attention\.attention\.(query|key|value)", r"qformer/layers_\1/self_attention/\2", "dense"),
    (_Q + r"\.attention\.output\.dense", r"qformer/layers_\1/self_attention/out", "dense"),
    (_Q + r"\.attention\.output\.LayerNorm", r"qformer/layers_\1/post_self_attention_layer_norm", "norm"),
    (_Q + r"\.crossattention\.attention\.(query|key|value)", r"qformer/layers_\1/cross_attention/\2", "dense"),
    (_Q + r"\.crossattention\.output\.dense", r"qformer/layers_\1/cross_attention/out", "dense"),
    (_Q + r"\.crossattention\.output\.LayerNorm", r"qformer/layers_\1/post_cross_attention_layer_norm", "norm"),
    (_Q + r"\.intermediate_query\.dense", r"qformer/layers_\1/query_mlp/wi", "dense"),
    (_Q + r"\.output_query\.dense", r"qformer/layers_\1/query_mlp/wo", "dense"),
    (_Q + r"\.output_query\.LayerNorm", r"qformer/layers_\1/post_query_mlp_layer_norm", "norm"),
    (_Q + r"\.intermediate\.dense", r"qformer/layers_\1/mlp/wi", "dense"),
    (_Q + r"\.output\.dense", r"qformer/layers_\1/mlp/wo", "dense"),
    (_Q + r"\.output\.LayerNorm", r"qformer/layers_\1/post_mlp_layer_norm", "norm"),
    (r"language_projection", "projection", "dense"),
]
_PARAMETERS = {"dense": {"weight": "kernel", "bias": "bias"}, "patches": {"weight": "kernel", "bias": "bias"},
               "norm": {"weight": "scale", "bias": "bias"}}  # fmt: skip


def leaves_of(tensors: dict[str, Leaf], model_type: str) -> dict[str, Leaf]:
    """`tensors` under our names, without the language model's (`LANGUAGE_PREFIX`) and without buffers."""
    names = _VIT_NAMES if model_type in VIT else _SIGLIP_NAMES + _QFORMER_NAMES
    out = {}
    for theirs, leaf in tensors.items():
        if not theirs.startswith(LANGUAGE_PREFIX) and not _BUFFERS.fullmatch(theirs):
            out |= _translated(theirs, leaf, names)
    return out


def _translated(theirs: str, leaf: Leaf, names: list) -> dict[str, Leaf]:
    module, _, parameter = theirs.rpartition(".")
    for pattern, ours, kind in names:
        if kind == "table" and (match := re.fullmatch(pattern + r"(?:\.weight)?", theirs)):
            shape = leaf.shape[-2:]  # [1, rows, width] or [rows, width]
            return {ours: leaf if leaf.shape == shape else computed((leaf,), shape, lambda x: x)}
        if not (match := re.fullmatch(pattern, module)):
            continue
        name = match.expand(ours)
        if kind == "qkv":
            width = leaf.shape[0] // 3
            parts = (("query", 0), ("key", 1), ("value", 2))
            cut = {part: rows(leaf, i * width, (i + 1) * width) for part, i in parts}
            if parameter == "bias":
                return {f"{name}/{part}/bias": each for part, each in cut.items()}
            return {f"{name}/{part}/kernel": transposed(each) for part, each in cut.items()}
        if parameter not in _PARAMETERS.get(kind, {}):
            continue
        if kind == "patches" and parameter == "weight":
            width, size = leaf.shape[0], leaf.size // leaf.shape[0]
            leaf = computed((leaf,), (size, width), lambda x: x.transpose(2, 3, 1, 0))
        elif kind == "dense" and parameter == "weight":
            leaf = transposed(leaf)
        return {f"{name}/{_PARAMETERS[kind][parameter]}": leaf}
    return {theirs: leaf}


def settings_of(config: dict, folder: epath.Path, path: str) -> dict[str, dict]:
    """What shapes do not show, by part: fields of `ViTConfig` and `QFormerConfig`.

    Raises:
      CheckpointError: for an activation that no tower here has.
    """
    vision = config.get("vision_config", config)
    activation = vision.get("hidden_act", "gelu" if config["model_type"] not in SIGLIP else "gelu_pytorch_tanh")
    if activation not in _ACTIVATIONS:
        raise CheckpointError(f"{path} has hidden_act {activation!r}; known are {', '.join(_ACTIVATIONS)}.")
    out = {"vision": {"activation": _ACTIVATIONS[activation]} | _pixels(folder, path)}
    if "num_attention_heads" in vision:
        out["vision"]["num_heads"] = vision["num_attention_heads"]
    out["vision"]["layer_norm_epsilon"] = vision.get("layer_norm_eps", 1e-12 if config["model_type"] in VIT else 1e-6)
    if config["model_type"] in BLIP2:
        qformer = config.get("qformer_config", {})
        if qformer.get("hidden_act", "gelu") != "gelu" or qformer.get("layer_norm_eps", 1e-12) != 1e-12:
            raise CheckpointError(
                f"{path} has a Q-Former with another activation or norm than BERT's; none is known here."
            )
        out["qformer"] = {
            "num_heads": qformer.get("num_attention_heads", 12),
            "cross_attention_frequency": qformer.get("cross_attention_frequency", 2),
        }
    return out


def _pixels(folder: epath.Path, path: str) -> dict:
    """`pixel_mean` and `pixel_std`, where the folder says how images are prepared."""
    file = folder / "preprocessor_config.json"
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text())
    except json.JSONDecodeError as e:
        raise CheckpointError(f"{path}/{file.name} is damaged or cut short ({e}); copy it again.") from e
    if not found.get("do_normalize", True) or "image_mean" not in found or "image_std" not in found:
        return {}
    mean, std = tuple(found["image_mean"]), tuple(found["image_std"])
    usual = all(x == 0.5 for x in (*mean, *std))  # images are in [-1, 1] here
    return {"pixel_mean": None, "pixel_std": None} if usual else {"pixel_mean": mean, "pixel_std": std}
