"""T5Gemma 2 in files. Hugging Face: kernels are transposed, but not the projector's; the tower is the encoder's.

Two styles of names are read: `encoder.embed_tokens` as in the released files, which is written, and `encoder.text_model.embed_tokens` as
in the code of `transformers`; the tower's with and without `vision_model.`. The decoder's table and the head are the encoder's table
and absent. Where a text adapter is folded into the encoder's table, all three are there, and `config.json` says that they are not tied.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from adalink_jax.checkpoints.families import gemma_config
from adalink_jax.checkpoints.families.family import (
    LANGUAGE,
    VISION,
    Family,
    Shapes,
    Translation,
    depth,
    equal,
    renamed,
)
from adalink_jax.checkpoints.families.vit_family import (
    SIGLIP_NAMES,
    siglip_config,
    siglip_tensors,
    translated,
    vision_settings,
)
from adalink_jax.checkpoints.source import Source
from adalink_jax.errors import CheckpointError
from adalink_jax.files.leaves import Leaf, transposed
from adalink_jax.files.typed_json import Form, as_form
from adalink_jax.models.t5gemma2 import T5Gemma2, T5Gemma2Config

PREFIX, _VISION, _HEAD = "model.", "encoder.vision_tower.", "lm_head.out_proj.weight"
_TABLE, _ENCODER = "token_embedder/embedding", "encoder/"
_EMBEDDER = {"embed_tokens.weight": _TABLE, "embed_tokens.eoi_embedding": "token_embedder/end_of_image"}
_PROJECTOR = {
    "encoder.multi_modal_projector.mm_soft_emb_norm.weight": "projection/norm/scale",
    "encoder.multi_modal_projector.mm_input_projection_weight": "projection/kernel",
}
_STACKS = {"encoder": "attention", "decoder": "self_attention"}  # with the name of their attention
_NAMES = {  # Hugging Face's name -> this package's; {} is the number of a layer
    **{f"encoder.{tensor}": name for tensor, name in _EMBEDDER.items()},
    **_PROJECTOR,
    **{f"{stack}.norm.weight": f"{stack}/{stack}_norm/scale" for stack in _STACKS},
    **{f"{stack}.layers.{{}}.self_attn.{tensor}.weight": f"{stack}/layers_{{}}/{attention}/{name}/kernel"
       for stack, attention in _STACKS.items() for tensor, name in gemma_config.ATTENTION.items()},
    **{f"{stack}.layers.{{}}.self_attn.{tensor}_norm.weight": f"{stack}/layers_{{}}/{attention}/{name}_norm/scale"
       for stack, attention in _STACKS.items() for tensor, name in (("q", "query"), ("k", "key"))},
    **{f"{stack}.layers.{{}}.mlp.{tensor}.weight": f"{stack}/layers_{{}}/mlp/{name}/kernel"
       for stack in _STACKS for tensor, name in gemma_config.MLP.items()},
    **{f"{stack}.layers.{{}}.{place}_{tensor}_layernorm.weight": f"{stack}/layers_{{}}/{place}_{name}_layer_norm/scale"
       for stack, attention in _STACKS.items() for place in ("pre", "post")
       for tensor, name in (("self_attn", attention), ("feedforward", "mlp"))},
}  # fmt: skip
_TENSORS = {name: tensor for tensor, name in _NAMES.items()}


class _Rope(Form):
    rope_theta: float | None = None
    rope_type: str = "default"
    factor: float = 1.0


class _Ropes(Form):
    """`rope_parameters` of one side."""

    full_attention: _Rope = _Rope()
    sliding_attention: _Rope = _Rope()


class _Side(gemma_config.Stack):
    """What `config.json` states of the encoder's text or the decoder."""

    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    sliding_window: gemma_config.Size = 4096
    sliding_window_pattern: gemma_config.Size = 6  # this and the last three in older files
    rope_parameters: _Ropes = _Ropes()
    rope_scaling: _Rope | None = None
    rope_theta: float | None = None
    rope_local_base_freq: float | None = None

    @property
    def rotations(self) -> tuple[_Rope, float]:
        """The rotation of layers that see all tokens, and the base of the others'."""
        full, local = self.rope_parameters.full_attention, self.rope_parameters.sliding_attention
        scaling = self.rope_scaling or full
        theta = full.rope_theta or self.rope_theta or 1_000_000.0
        full = _Rope(rope_theta=theta, rope_type=scaling.rope_type, factor=scaling.factor)
        return full, local.rope_theta or self.rope_local_base_freq or 10_000.0


class _Tower(Form):
    """The sizes in `vision_config` that tell how many of its tokens are one visual token."""

    image_size: gemma_config.Size = 224
    patch_size: gemma_config.Size = 16


class _Encoder(Form):
    text_config: _Side
    vision_config: _Tower = _Tower()
    mm_tokens_per_image: gemma_config.Size = 256
    eoi_token_index: gemma_config.Id = 256_000


class _Config(gemma_config.Ids):
    """`config.json`."""

    encoder: _Encoder
    decoder: _Side
    image_token_index: gemma_config.Id = 256_001
    tie_word_embeddings: bool = True


class T5Gemma2Family(Family):
    """T5Gemma 2's encoder-decoders."""

    name = "T5Gemma 2"
    part = LANGUAGE
    config = T5Gemma2Config
    backbone = T5Gemma2
    implied = {"decoder_start_token_id": 2, "pad_token_id": 0, "eos_token_id": 1}
    deciding = (
        "num_heads", "num_kv_heads", "head_dim", "query_pre_attn_scalar", "logits_softcap", "sliding_window",
        "full_attention_every", "rope_theta", "rope_factor", "local_rope_theta", "image_pool", "image_token_id",
        "end_of_image_token_id", *implied,
    )  # fmt: skip
    hooked_kinds = ("text", "image")
    model_types = ("t5gemma2",)

    def sizes(self, shapes: Shapes) -> dict[str, Any]:
        """The sizes in `T5Gemma2Config` that shapes show: not how they are cut into heads."""
        names = _TABLE, *(f"{stack}/layers_0/mlp/wi_0/kernel" for stack in _STACKS)
        matrices = [shapes[name] for name in names if len(shapes.get(name, ())) == 2]
        if "decoder/layers_0/self_attention/query_norm/scale" not in shapes or len(matrices) < len(names):
            return {}  # another model's, or damaged
        return {
            "vocab_size": matrices[0][0],
            "emb_dim": matrices[0][1],
            "mlp_dim": matrices[1][1],
            "num_encoder_layers": depth(shapes, "encoder"),
            "num_decoder_layers": depth(shapes, "decoder"),
            "encoder_embedding": _ENCODER + _TABLE in shapes,
        }

    def name_from_hugging_face(self, tensor: str) -> str | None:
        """`model.encoder.layers.0.self_attn.q_proj.weight` -> `encoder/layers_0/attention/query/kernel`."""
        return renamed(_inner(tensor), _NAMES)

    def name_in_hugging_face(self, name: str) -> str | None:
        """`encoder/layers_0/attention/query/kernel` -> `model.encoder.text_model.layers.0.self_attn.q_proj.weight`.

        As it is in memory, where PEFT reads and writes it; files have the name as released.
        """
        tensor = renamed(name, _TENSORS)
        if tensor and tensor not in _PROJECTOR:
            tensor = re.sub("^encoder[.]", "encoder.text_model.", tensor)
        return tensor and PREFIX + tensor

    def from_hugging_face(
        self, tensors: Mapping[str, Leaf], config: Mapping[str, Any], folder: epath.Path, path: str
    ) -> Translation:
        """See `Family`."""
        stated = as_form(config, _Config, f"{path}/config.json", error=CheckpointError)
        leaves, vision, others = {}, {}, {}
        for tensor, leaf in tensors.items():
            inner = _inner(tensor)
            if name := renamed(inner, _NAMES):
                leaves[name] = transposed(leaf) if _is_transposed(name) else leaf
            elif inner.startswith(_VISION):
                vision[inner.removeprefix(_VISION)] = leaf
            else:
                others[inner] = leaf
        leaves |= translated(vision, SIGLIP_NAMES)
        leaves |= _tables(leaves, others, stated.tie_word_embeddings, path)
        tower = {"model_type": "t5gemma2", "vision_config": config["encoder"].get("vision_config", {})}
        settings = {LANGUAGE: _settings(stated, path), VISION: vision_settings(tower, folder, path)}
        return Translation(leaves | others, settings)

    def to_hugging_face(self, leaves: Mapping[str, Leaf]) -> dict[str, Leaf]:
        """See `Family`."""
        rest = {name: leaf for name, leaf in leaves.items() if not name.startswith(f"{VISION}/")}
        untied = {}
        if _ENCODER + _TABLE in rest:
            tables = [prefix + name for prefix in ("", _ENCODER) for name in _EMBEDDER.values()]
            if absent := [name for name in tables if name not in rest]:
                raise CheckpointError(
                    f"A {self.name} with tables that are not tied has {absent[0]}, and this one lacks it; copy it again."
                )
            decoder = {tensor: rest.pop(name) for tensor, name in _EMBEDDER.items()}
            untied = {f"{PREFIX}decoder.{tensor}": leaf for tensor, leaf in decoder.items()}
            untied[_HEAD] = decoder["embed_tokens.weight"]
            rest |= {name: rest.pop(_ENCODER + name) for name in _EMBEDDER.values()}
        tower = siglip_tensors(leaves, f"{PREFIX}{_VISION}vision_model.")
        in_files = lambda name: None if (tensor := renamed(name, _TENSORS)) is None else PREFIX + tensor
        return self._renamed_tensors(rest, _is_transposed, in_files) | tower | untied

    def folded(self, source: Source, embeddings: Mapping[str, Leaf]) -> tuple[Source, dict[str, Leaf]]:
        """See `Family`."""
        return dataclasses.replace(source, leaves={**source.leaves, **embeddings}), {}

    def kept_config(self, config: Mapping[str, Any], source: Source) -> dict[str, Any]:
        """See `Family`: whether the tables are tied."""
        return _tied(dict(config), source)

    def hugging_face_config(self, source: Source) -> dict[str, Any]:
        """See `Family`."""
        settings, sizes = source.settings[LANGUAGE], self.sizes(source.shapes)
        start, pad, eos = (settings[name] for name in self.implied)
        ids = {"bos_token_id": start, "pad_token_id": pad, "eos_token_id": eos}
        ropes = {
            gemma_config.FULL: {
                "rope_type": "linear",
                "factor": settings["rope_factor"],
                "rope_theta": settings["rope_theta"],
            },
            gemma_config.SLIDING: {"rope_type": "default", "rope_theta": settings["local_rope_theta"]},
        }

        def side(kind: str, layers: int) -> dict[str, Any]:
            return gemma_config.stack_config(settings, sizes, layers) | {
                "model_type": kind,
                "rope_parameters": ropes,
                "max_position_embeddings": 131_072,
                **ids,
            }

        vision = siglip_config(source)
        encoder = {
            "model_type": "t5gemma2_encoder",
            "text_config": side("t5gemma2_text", sizes["num_encoder_layers"]),
            "vision_config": vision,
            "mm_tokens_per_image": (vision["image_size"] // vision["patch_size"] // settings["image_pool"]) ** 2,
            "eoi_token_index": settings["end_of_image_token_id"],
            "image_token_index": settings["image_token_id"],
        }
        config = {
            "architectures": ["T5Gemma2ForConditionalGeneration"],
            "model_type": "t5gemma2",
            "vocab_size": sizes["vocab_size"],
            "is_encoder_decoder": True,
            "encoder": encoder,
            "decoder": side("t5gemma2_decoder", sizes["num_decoder_layers"]),
            "image_token_index": settings["image_token_id"],
            "eoi_token_index": settings["end_of_image_token_id"],
            **ids,
        }
        return _tied(config, source)


def _inner(tensor: str) -> str:
    """A tensor's name as released, without `model.`."""
    return tensor.removeprefix(PREFIX).replace("encoder.text_model.", "encoder.", 1)


def _is_transposed(name: str) -> bool:
    """Whether Hugging Face stores the leaf with its axes reversed."""
    return name.endswith("/kernel") and name != "projection/kernel"


def _tied(config: dict[str, Any], source: Source) -> dict[str, Any]:
    """`config` with what it says of tied tables, which are those of both sides and the head."""
    tied = {"tie_word_embeddings": _ENCODER + _TABLE not in source.shapes}
    encoder = config["encoder"]
    encoder = encoder | tied | {"text_config": encoder["text_config"] | tied}
    return config | tied | {"encoder": encoder, "decoder": config["decoder"] | tied}


def _tables(leaves: dict[str, Leaf], others: dict[str, Leaf], tied: bool, path: str) -> dict[str, Leaf]:
    """The tables of both sides; those that are the encoder's are taken out of `others`.

    Raises:
      CheckpointError: for a head that is not tied to the decoder's table, for tables that only `config.json` or only the
        tensors say are tied, and for an encoder without its tables.
    """
    decoder = {name: others.pop(f"decoder.{tensor}", None) for tensor, name in _EMBEDDER.items()}
    head = others.pop(_HEAD, None)
    table = decoder[_TABLE] or leaves.get(_TABLE)
    if head is not None and (table is None or not equal(head, table)):
        raise CheckpointError(f"{path} has logits that are not tied to the decoder's embedding table; T5Gemma 2's are.")
    if all(leaf is None or (name in leaves and equal(leaf, leaves[name])) for name, leaf in decoder.items()):
        if not tied and None in decoder.values():
            raise CheckpointError(f"{path} has tie_word_embeddings False, but lacks the decoder's embeddings.")
        return {}
    if tied or None in decoder.values():
        raise CheckpointError(
            f"{path} has other embeddings for the decoder than for the encoder, and tie_word_embeddings is not False."
        )
    if absent := [tensor for tensor, name in _EMBEDDER.items() if name not in leaves]:
        raise CheckpointError(f"{path} lacks the encoder's {absent[0]}; copy it again.")
    return {_ENCODER + name: leaves[name] for name in decoder} | {k: v for k, v in decoder.items() if v is not None}


def _settings(stated: _Config, path: str) -> dict[str, Any]:
    """Fields of `T5Gemma2Config` that `config.json` states and shapes do not show."""
    encoder, decoder, family = stated.encoder.text_config, stated.decoder, T5Gemma2Family.name
    sides = {"encoder.text_config": encoder, "decoder": decoder}
    gemma_config.check_supported(sides, family, path, attn_logit_softcapping=None)
    for place, side in sides.items():
        place, ropes = f"{place}.rope_parameters", side.rope_parameters
        gemma_config.check_rotation(ropes.sliding_attention.rope_type, f"{place}.sliding_attention", family, path)
        gemma_config.check_rotation(
            side.rotations[0].rope_type, f"{place}.full_attention", family, path, ("default", "linear")
        )
    same = (
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "query_pre_attn_scalar",
        "sliding_window",
        "rotations",
    )
    gemma_config.check_same(encoder, decoder, same, path)
    full, local_theta = encoder.rotations
    tower, tokens = stated.encoder.vision_config, stated.encoder.mm_tokens_per_image
    side = tower.image_size // tower.patch_size
    pool = side // math.isqrt(tokens)
    if not pool or (side // pool) ** 2 != tokens:
        raise CheckpointError(
            f"{path} has mm_tokens_per_image {tokens}; {side} x {side} tokens cannot be averaged in equal squares to so many."
        )
    kinds, pattern = [encoder.layer_types, decoder.layer_types], encoder.sliding_window_pattern
    return {
        **gemma_config.heads(encoder),
        "query_pre_attn_scalar": encoder.query_pre_attn_scalar,
        "logits_softcap": decoder.final_logit_softcapping,
        "sliding_window": encoder.sliding_window,
        "full_attention_every": gemma_config.full_attention_every(kinds, path, pattern),
        "rope_theta": full.rope_theta,
        "rope_factor": full.factor if full.rope_type == "linear" else 1.0,
        "local_rope_theta": local_theta,
        "image_pool": pool,
        "image_token_id": stated.image_token_index,
        "end_of_image_token_id": stated.encoder.eoi_token_index,
        **gemma_config.ids(stated, decoder, T5Gemma2Family.implied, path),
    }
