"""Pix2Struct, MatCha and DePlot in Hugging Face folders, all of `model_type` pix2struct.

Kernels are transposed, and the table of relative positions is `[buckets, H]`, the decoder's alone. Encoder and decoder have one width,
number of heads and MLP here, as in every published checkpoint.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any

import pydantic
from etils import epath

from adalink_jax.checkpoints.families import image_processors
from adalink_jax.checkpoints.families.family import (
    LANGUAGE,
    Family,
    Shapes,
    Translation,
    depth,
    renamed,
    stated_ids,
)
from adalink_jax.checkpoints.source import Source
from adalink_jax.errors import CheckpointError
from adalink_jax.files.leaves import Leaf, transposed
from adalink_jax.files.typed_json import Form, as_form
from adalink_jax.models.pix2struct import Pix2Struct, Pix2StructConfig
from adalink_jax.typed_values import shown

_ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu_exact", "relu": "relu", "silu": "silu"}
_STATED = {activation: stated for stated, activation in reversed(_ACTIVATIONS.items())}
_TABLE, _HEAD = "token_embedder/embedding", "decoder/logits_dense/kernel"
_TABLE_TENSOR, _HEAD_TENSOR = "decoder.embed_tokens.weight", "decoder.lm_head.weight"
_ROWS, _PATCHES = "projection/row_embedding", "projection/kernel"
_RELATIVE = "decoder/relpos_bias/rel_embedding"
_ATTENTION = {"query": "query", "key": "key", "value": "value", "output": "out"}
_MATRICES = ("wi_0", "wi_1", "wo")
_ENCODER, _OURS = "encoder.encoder.layer.{}", "encoder/layers_{}"
_NAMES = {  # Hugging Face's name -> this package's; {} is the number of a layer
    _TABLE_TENSOR: _TABLE,
    _HEAD_TENSOR: _HEAD,
    "encoder.embeddings.patch_projection.weight": _PATCHES,
    "encoder.embeddings.patch_projection.bias": "projection/bias",
    "encoder.embeddings.row_embedder.weight": _ROWS,
    "encoder.embeddings.column_embedder.weight": "projection/column_embedding",
    "encoder.layernorm.weight": "encoder/encoder_norm/scale",
    "decoder.final_layer_norm.weight": "decoder/decoder_norm/scale",
    "decoder.layer.0.self_attention.attention.relative_attention_bias.weight": _RELATIVE,
    **{f"{_ENCODER}.pre_{part}_layer_norm.weight": f"{_OURS}/pre_{part}_layer_norm/scale" for part in ("attention", "mlp")},
    **{f"{_ENCODER}.attention.{tensor}.weight": f"{_OURS}/attention/{name}/kernel" for tensor, name in _ATTENTION.items()},
    **{f"{_ENCODER}.mlp.{matrix}.weight": f"{_OURS}/mlp/{matrix}/kernel" for matrix in _MATRICES},
    **{f"decoder.layer.{{}}.{tensor}.layer_norm.weight": f"decoder/layers_{{}}/pre_{name}_layer_norm/scale"
       for tensor, name in (("self_attention", "self_attention"), ("encoder_decoder_attention", "cross_attention"), ("mlp", "mlp"))},
    **{f"decoder.layer.{{}}.{block}.attention.{tensor}.weight": f"decoder/layers_{{}}/{block}/{name}/kernel"
       for block in ("self_attention", "encoder_decoder_attention") for tensor, name in _ATTENTION.items()},
    **{f"decoder.layer.{{}}.mlp.DenseReluDense.{matrix}.weight": f"decoder/layers_{{}}/mlp/{matrix}/kernel" for matrix in _MATRICES},
}  # fmt: skip
_TENSORS = {name: tensor for tensor, name in _NAMES.items()}
_PROCESSORS = ("Pix2StructImageProcessor", "Pix2StructImageProcessorPil", "Pix2StructImageProcessorFast", None)
_USUAL_PATCHES = 2048  # of a picture, in all published processors

_Size = Annotated[int, pydantic.Field(ge=1, lt=2**31)]
_Id = Annotated[int, pydantic.Field(ge=0, lt=2**31)]
_Ids = _Id | list[_Id] | None


class _Ending(Form):
    """Special ids, which a folder may state in two places."""

    decoder_start_token_id: _Ids = None
    pad_token_id: _Ids = None
    eos_token_id: _Ids = None


class _Text(_Ending):
    """What `text_config` states and shapes do not show."""

    hidden_size: _Size = 768
    d_kv: _Size = 64
    num_heads: _Size = 12
    dense_act_fn: str = "gelu_new"
    layer_norm_epsilon: float = 1e-6
    relative_attention_max_distance: _Size = 128


class _Vision(Form):
    """What `vision_config` states and shapes do not show."""

    d_kv: _Size = 64
    num_attention_heads: _Size = 12
    dense_act_fn: str = "gelu_new"
    layer_norm_eps: float = 1e-6


class _Config(_Ending):
    """`config.json`."""

    text_config: _Text = _Text()
    vision_config: _Vision = _Vision()
    tie_word_embeddings: bool = False


class _PatchSize(Form):
    height: _Size = 16
    width: _Size = 16


class _Processor(Form):
    """The image processor's file; `max_patches` and `is_vqa` are settings of a run here (MAX_PATCHES, HEADER_FONT)."""

    image_processor_type: str | None = None
    do_normalize: bool = True
    do_convert_rgb: bool | None = True
    patch_size: _PatchSize = _PatchSize()


class Pix2StructFamily(Family):
    """Pix2Struct, MatCha and DePlot."""

    name = "Pix2Struct"
    part = LANGUAGE
    config = Pix2StructConfig
    backbone = Pix2Struct
    hooked_kinds = ()  # its encoder reads no text, and patches are no `inputs_embeds`
    implied = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
    deciding = ("mlp_activations", "relpos_max_distance", *implied)
    model_types = ("pix2struct",)

    def sizes(self, shapes: Shapes) -> dict[str, Any]:
        """`Pix2StructConfig`'s sizes; `max_patches`, which no shape shows, is that of the published processors."""
        names = (
            _TABLE,
            _PATCHES,
            _ROWS,
            _RELATIVE,
            "encoder/layers_0/attention/query/kernel",
            "encoder/layers_0/mlp/wi_0/kernel",
        )
        matrices = [shapes[name] for name in names if len(shapes.get(name, ())) == 2 and 0 not in shapes[name]]
        if len(matrices) < len(names):
            return {}  # another model's, or damaged
        (vocab, width), (pixels, _), (positions, _), (heads, buckets), (_, joined), (_, mlp) = matrices
        channels = 3 if pixels % 3 == 0 and math.isqrt(pixels // 3) ** 2 == pixels // 3 else 1
        return {
            "vocab_size": vocab,
            "emb_dim": width,
            "num_heads": heads,
            "head_dim": joined // heads,
            "mlp_dim": mlp,
            "num_encoder_layers": depth(shapes, "encoder"),
            "num_decoder_layers": depth(shapes, "decoder"),
            "logits_via_embedding": _HEAD not in shapes,
            "relpos_num_buckets": buckets,
            "max_patches": min(_USUAL_PATCHES, positions),
            "num_positions": positions,
            "patch_size": math.isqrt(pixels // channels),
            "channels": channels,
        }

    def name_from_hugging_face(self, tensor: str) -> str | None:
        """`encoder.encoder.layer.0.attention.query.weight` -> `encoder/layers_0/attention/query/kernel`."""
        return renamed(tensor, _NAMES)

    def name_in_hugging_face(self, name: str) -> str | None:
        """`encoder/layers_0/attention/query/kernel` -> `encoder.encoder.layer.0.attention.query.weight`."""
        return renamed(name, _TENSORS)

    def from_hugging_face(
        self, tensors: Mapping[str, Leaf], config: Mapping[str, Any], folder: epath.Path, path: str
    ) -> Translation:
        """See `Family`."""
        stated, leaves = as_form(config, _Config, f"{path}/config.json", error=CheckpointError), {}
        if _HEAD_TENSOR not in tensors and stated.tie_word_embeddings and _TABLE_TENSOR in tensors:
            tensors = {**tensors, _HEAD_TENSOR: tensors[_TABLE_TENSOR]}  # tied, but not scaled as T5's
        for tensor, leaf in tensors.items():
            name = self.name_from_hugging_face(tensor) or tensor
            leaves[name] = transposed(leaf) if _is_transposed(name) else leaf
        _check_processor(folder, path, leaves.get(_PATCHES))
        return Translation(leaves, {LANGUAGE: _settings(stated, path)})

    def to_hugging_face(self, leaves: Mapping[str, Leaf]) -> dict[str, Leaf]:
        """See `Family`."""
        if _HEAD not in leaves:
            raise CheckpointError(
                f"A Hugging Face {self.name} does not scale tied logits; convert this model to native or t5x instead."
            )
        return self._renamed_tensors(leaves, _is_transposed)

    def kept_config(self, config: Mapping[str, Any], source: Source) -> dict[str, Any]:
        """See `Family`: the head is written apart."""
        return {**config, "tie_word_embeddings": False}

    def hugging_face_config(self, source: Source) -> dict[str, Any]:
        """See `Family`."""
        settings, sizes = source.settings[LANGUAGE], self.sizes(source.shapes)
        activation, *gate = settings["mlp_activations"]
        if (
            activation not in _STATED
            or gate != ["linear"]
            or sizes["num_heads"] * sizes["head_dim"] != sizes["emb_dim"]
        ):
            raise CheckpointError(
                f"{source.path} has mlp_activations {settings['mlp_activations']} and {sizes['num_heads']} heads of "
                f"{sizes['head_dim']}; a Hugging Face {self.name} supports {list(_STATED)} with 'linear', and heads that "
                f"together are as wide as the model."
            )
        ids = {field: settings[field] for field in self.implied}
        common = {
            "hidden_size": sizes["emb_dim"],
            "d_kv": sizes["head_dim"],
            "d_ff": sizes["mlp_dim"],
            "dense_act_fn": _STATED[activation],
        }
        return {
            "architectures": ["Pix2StructForConditionalGeneration"],
            "model_type": "pix2struct",
            "is_encoder_decoder": True,
            "tie_word_embeddings": False,
            "text_config": common | ids | {
                "model_type": "pix2struct_text_model",
                "vocab_size": sizes["vocab_size"],
                "num_heads": sizes["num_heads"],
                "num_layers": sizes["num_decoder_layers"],
                "relative_attention_num_buckets": sizes["relpos_num_buckets"],
                "relative_attention_max_distance": settings["relpos_max_distance"],
                "layer_norm_epsilon": 1e-6,
                "tie_word_embeddings": False,
            },
            "vision_config": common | {
                "model_type": "pix2struct_vision_model",
                "patch_embed_hidden_size": source.shapes[_PATCHES][0],
                "num_attention_heads": sizes["num_heads"],
                "num_hidden_layers": sizes["num_encoder_layers"],
                "seq_len": sizes["num_positions"],
                "layer_norm_eps": 1e-6,
            },
            **ids,
        }  # fmt: skip

    def folded(self, source: Source, embeddings: Mapping[str, Leaf]) -> tuple[Source, dict[str, Leaf]]:
        """See `Family`.

        Raises:
          CheckpointError: always.
        """
        raise CheckpointError(f"A {self.name}'s encoder reads no text, so no adapter of texts folds into it.")


def _is_transposed(name: str) -> bool:
    """Whether Hugging Face stores the leaf with its axes reversed."""
    return name.endswith(("/kernel", "rel_embedding"))


def _settings(stated: _Config, path: str) -> dict[str, Any]:
    """Fields of `Pix2StructConfig` that `config.json` states and shapes do not show."""
    text, vision = stated.text_config, stated.vision_config
    for name, value, supported in (
        ("text_config.layer_norm_epsilon", text.layer_norm_epsilon, 1e-6),
        ("vision_config.layer_norm_eps", vision.layer_norm_eps, 1e-6),
        ("vision_config.dense_act_fn", vision.dense_act_fn, text.dense_act_fn),
        ("vision_config.num_attention_heads", vision.num_attention_heads, text.num_heads),
        ("vision_config.d_kv", vision.d_kv, text.d_kv),
        ("text_config.num_heads", text.num_heads, text.hidden_size // text.d_kv),
    ):  # fmt: skip
        if value != supported:
            raise CheckpointError(
                f"{path} has {name} {value!r}; this package supports only {supported!r} in this model."
            )
    if text.dense_act_fn not in _ACTIVATIONS:
        raise CheckpointError(
            f"{path} has dense_act_fn {text.dense_act_fn!r}; this package supports {', '.join(_ACTIVATIONS)}."
        )
    implied = Pix2StructFamily.implied
    return {
        "mlp_activations": (_ACTIVATIONS[text.dense_act_fn], "linear"),
        "relpos_max_distance": text.relative_attention_max_distance,
        **stated_ids({name: [getattr(stated, name), getattr(text, name)] for name in implied}, implied, path),
    }


def _check_processor(folder: epath.Path, path: str, kernel: Leaf | None) -> None:
    """Refuses pictures that are prepared otherwise than here.

    Raises:
      CheckpointError: names the field of the image processor's file.
    """
    name, fields = image_processors.stated_fields(folder, path)
    if fields is None:
        return
    stated = as_form(fields, _Processor, f"{path}/{name}", error=CheckpointError)
    side = stated.patch_size.height
    for field, value, right in (
        ("image_processor_type", stated.image_processor_type, stated.image_processor_type in _PROCESSORS),
        ("do_normalize", stated.do_normalize, stated.do_normalize),
        ("patch_size", fields.get("patch_size"), side == stated.patch_size.width),
        ("patch_size", fields.get("patch_size"), kernel is None or kernel.shape[0] in (side * side, 3 * side * side)),
    ):  # fmt: skip
        if not right:
            raise CheckpointError(
                f"{path}/{name} has {field} = {shown(value)}, which this package does not reproduce; use a folder whose processor cuts "
                f"standardised pictures into the square patches that the model reads."
            )
