"""T5Gemma in files. Hugging Face: kernels are transposed; each side of the model states its own sizes in `config.json`."""

from collections.abc import Mapping
from typing import Any

from adalink_jax.checkpoints.families import gemma_config, gemma_orbax
from adalink_jax.checkpoints.families.family import (
    LANGUAGE,
    Family,
    Shapes,
    Translation,
    depth,
    equal,
    renamed,
)
from adalink_jax.checkpoints.source import Source
from adalink_jax.errors import CheckpointError
from adalink_jax.files.leaves import Leaf, transposed
from adalink_jax.files.typed_json import as_form
from adalink_jax.models.t5gemma import T5Gemma, T5GemmaConfig

PREFIX, HEAD = "model.", "lm_head.out_proj.weight"
_TABLE, _ENCODER_TABLE = "token_embedder/embedding", "encoder/token_embedder/embedding"
_BLOCKS = {  # stack -> Hugging Face's block -> this package's, and its matrices
    "encoder": {"self_attn": ("attention", gemma_config.ATTENTION), "mlp": ("mlp", gemma_config.MLP)},
    "decoder": {
        "self_attn": ("self_attention", gemma_config.ATTENTION),
        "cross_attn": ("encoder_decoder_attention", gemma_config.ATTENTION),
        "mlp": ("mlp", gemma_config.MLP),
    },
}
_NORMS = {  # stack -> Hugging Face's norm -> this package's; before and after
    "encoder": {"self_attn": "attention", "feedforward": "mlp"},
    "decoder": {"self_attn": "self_attention", "cross_attn": "cross_attention", "feedforward": "mlp"},
}
_NAMES = {  # Hugging Face's name -> this package's; {} is the number of a layer
    "decoder.embed_tokens.weight": _TABLE,
    "encoder.embed_tokens.weight": _ENCODER_TABLE,
    **{f"{stack}.norm.weight": f"{stack}/{stack}_norm/scale" for stack in _BLOCKS},
    **{f"{stack}.layers.{{}}.{hf_block}.{matrix}.weight": f"{stack}/layers_{{}}/{block}/{name}/kernel"
       for stack, blocks in _BLOCKS.items() for hf_block, (block, matrices) in blocks.items()
       for matrix, name in matrices.items()},
    **{f"{stack}.layers.{{}}.{place}_{hf_norm}_layernorm.weight": f"{stack}/layers_{{}}/{place}_{norm}_layer_norm/scale"
       for stack, norms in _NORMS.items() for hf_norm, norm in norms.items() for place in ("pre", "post")},
}  # fmt: skip
_TENSORS = {name: tensor for tensor, name in _NAMES.items()}


class _Side(gemma_config.Stack):
    """What `config.json` states of the encoder or the decoder."""

    attn_logit_softcapping: float | None = 50.0
    final_logit_softcapping: float | None = 30.0
    sliding_window: gemma_config.Size = 4096
    rope_theta: float | None = None  # in older files
    rope_parameters: gemma_config.Rope = gemma_config.Rope()

    @property
    def theta(self) -> float:
        """Base of the rotary positions."""
        return self.rope_parameters.rope_theta if self.rope_theta is None else self.rope_theta


class _Config(gemma_config.Ids):
    """`config.json`."""

    encoder: _Side
    decoder: _Side
    tie_word_embeddings: bool = True


class T5GemmaFamily(Family):
    """T5Gemma's encoder-decoders."""

    name = "T5Gemma"
    part = LANGUAGE
    config = T5GemmaConfig
    backbone = T5Gemma
    implied = {"decoder_start_token_id": 2, "pad_token_id": 0, "eos_token_id": 1}
    deciding = (
        "num_heads", "num_kv_heads", "head_dim", "decoder_num_heads", "decoder_num_kv_heads", "decoder_head_dim",
        "query_pre_attn_scalar", "attention_softcap", "logits_softcap", "sliding_window", "full_attention_every", "rope_theta",
        *implied,
    )  # fmt: skip
    encoder_table = f"{PREFIX}encoder.embed_tokens.weight"
    model_types = ("t5gemma",)

    def sizes(self, shapes: Shapes) -> dict[str, Any]:
        """The sizes in `T5GemmaConfig` that shapes show: not how they are cut into heads."""
        names = _ENCODER_TABLE, _TABLE, *(f"{stack}/layers_0/mlp/wi_0/kernel" for stack in _BLOCKS)
        matrices = [shapes[name] for name in names if len(shapes.get(name, ())) == 2]
        if "decoder/layers_0/post_cross_attention_layer_norm/scale" not in shapes or len(matrices) < len(names):
            return {}  # another model's, or damaged
        (vocab, width), (_, decoder_width), *mlps = matrices
        return {
            "vocab_size": vocab,
            "emb_dim": width,
            "mlp_dim": mlps[0][1],
            "num_encoder_layers": depth(shapes, "encoder"),
            "num_decoder_layers": depth(shapes, "decoder"),
            "decoder_emb_dim": decoder_width,
            "decoder_mlp_dim": mlps[1][1],
        }

    def name_from_hugging_face(self, tensor: str) -> str | None:
        """`model.encoder.layers.0.self_attn.q_proj.weight` -> `encoder/layers_0/attention/query/kernel`."""
        return renamed(tensor.removeprefix(PREFIX), _NAMES)

    def name_in_hugging_face(self, name: str) -> str | None:
        """`encoder/layers_0/attention/query/kernel` -> `model.encoder.layers.0.self_attn.q_proj.weight`."""
        tensor = renamed(name, _TENSORS)
        return tensor and PREFIX + tensor

    def from_hugging_face(
        self, tensors: Mapping[str, Leaf], config: Mapping[str, Any], folder, path: str
    ) -> Translation:
        """See `Family`."""
        stated, leaves = as_form(config, _Config, f"{path}/config.json", error=CheckpointError), {}
        for tensor, leaf in tensors.items():
            name = self.name_from_hugging_face(tensor) or tensor
            leaves[name] = transposed(leaf) if _is_transposed(name) else leaf
        head = leaves.pop(HEAD, None)
        if not stated.tie_word_embeddings or (head is not None and not equal(head, leaves[_TABLE])):
            raise CheckpointError(
                f"{path} has logits that are not tied to the decoder's embedding table; T5Gemma's are."
            )
        return Translation(leaves, {LANGUAGE: _settings(stated, path)})

    def from_t5x(self, leaves: Mapping[str, Leaf]) -> Translation | None:
        """Translates a checkpoint of google-deepmind/gemma, such as Kaggle's; `None` for t5x's own."""
        return gemma_orbax.translated(leaves)

    def to_hugging_face(self, leaves: Mapping[str, Leaf]) -> dict[str, Leaf]:
        """See `Family`."""
        return self._renamed_tensors(leaves, _is_transposed)

    def hugging_face_config(self, source: Source) -> dict[str, Any]:
        """See `Family`."""
        settings, sizes = source.settings[LANGUAGE], self.sizes(source.shapes)
        start, pad, eos = (settings[name] for name in self.implied)
        ids = {"bos_token_id": start, "pad_token_id": pad, "eos_token_id": eos}

        def side(prefix: str, layers: int) -> dict[str, Any]:
            return gemma_config.stack_config(settings, sizes, layers, prefix) | {
                "model_type": "t5_gemma_module",
                "attn_logit_softcapping": settings["attention_softcap"],
                "rope_parameters": {"rope_theta": settings["rope_theta"], "rope_type": "default"},
                "max_position_embeddings": 8192,
                **ids,
            }

        decoder = side("decoder_", sizes["num_decoder_layers"])
        return {
            "architectures": ["T5GemmaForConditionalGeneration"],
            "model_type": "t5gemma",
            "vocab_size": sizes["vocab_size"],
            "tie_word_embeddings": True,
            "is_encoder_decoder": True,
            "encoder": side("", sizes["num_encoder_layers"]) | {"is_decoder": False},
            "decoder": decoder | {"is_decoder": True, "cross_attention_hidden_size": sizes["emb_dim"]},
            **ids,
        }


def _is_transposed(name: str) -> bool:
    """Whether Hugging Face stores the leaf with its axes reversed."""
    return name.endswith("/kernel")


def _settings(stated: _Config, path: str) -> dict[str, Any]:
    """Fields of `T5GemmaConfig` that `config.json` states and shapes do not show."""
    encoder, decoder = stated.encoder, stated.decoder
    gemma_config.check_supported({"encoder": encoder, "decoder": decoder}, T5GemmaFamily.name, path)
    same = "query_pre_attn_scalar", "attn_logit_softcapping", "sliding_window", "theta"
    gemma_config.check_same(encoder, decoder, same, path)
    for side, stack in (("encoder", encoder), ("decoder", decoder)):
        rope_type = stack.rope_parameters.rope_type
        gemma_config.check_rotation(rope_type, f"{side}.rope_parameters", T5GemmaFamily.name, path)
    return {
        **gemma_config.heads(encoder),
        **gemma_config.heads(decoder, "decoder_"),
        "query_pre_attn_scalar": encoder.query_pre_attn_scalar,
        "attention_softcap": encoder.attn_logit_softcapping,
        "logits_softcap": decoder.final_logit_softcapping,
        "sliding_window": encoder.sliding_window,
        "full_attention_every": gemma_config.full_attention_every([encoder.layer_types, decoder.layer_types], path),
        "rope_theta": encoder.theta,
        **gemma_config.ids(stated, decoder, T5GemmaFamily.implied, path),
    }
