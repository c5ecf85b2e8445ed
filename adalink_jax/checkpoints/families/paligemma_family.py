"""PaliGemma 1 and 2 in files: a SigLIP tower (`vision/`), a linear `projection/`, and a Gemma 1 or 2 (`decoder/`).

Hugging Face: kernels are transposed. Gemma 1's `post_attention_layernorm` is the norm before the MLP, Gemma 2's is the one behind the
attention. The table has rows for the placeholder `<image>`, and filling, behind those of the vocabulary; they are left out: no text has
them, and their logits are noise. big_vision: one `.npz` with heads apart and layers stacked.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from etils import epath

from adalink_jax.checkpoints.families import big_vision_paligemma, gemma_config
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
from adalink_jax.files.leaves import Leaf, rows, transposed
from adalink_jax.files.typed_json import as_form
from adalink_jax.models.paligemma import PaliGemma, PaliGemmaConfig

_TABLE, _NORM = "token_embedder/embedding", "decoder/decoder_norm/scale"
_LANGUAGE, _VISION, _PROJECTOR = "language_model.model.", "vision_tower.", "multi_modal_projector.linear"
_IN_MEMORY = "model.language_model."
_HEADS = re.compile(r"(?:model\.)?(?:language_model\.)?lm_head\.weight")
_FILLED = 64  # the table has a multiple of this many rows
_MATRICES = {
    **{f"self_attn.{tensor}": f"self_attention/{name}" for tensor, name in gemma_config.ATTENTION.items()},
    **{f"mlp.{tensor}": f"mlp/{name}" for tensor, name in gemma_config.MLP.items()},
}
_NORMS = {  # by whether there are norms behind the sublayers
    False: {"input": "pre_self_attention", "post_attention": "pre_mlp"},
    True: {
        "input": "pre_self_attention",
        "post_attention": "post_self_attention",
        "pre_feedforward": "pre_mlp",
        "post_feedforward": "post_mlp",
    },
}
_NAMES = {  # by the same, Hugging Face's name -> this package's; {} is the number of a layer
    post_norms: {
        f"{_LANGUAGE}embed_tokens.weight": _TABLE,
        f"{_LANGUAGE}norm.weight": _NORM,
        **{f"{_LANGUAGE}layers.{{}}.{tensor}.weight": f"decoder/layers_{{}}/{name}/kernel" for tensor, name in _MATRICES.items()},
        **{f"{_LANGUAGE}layers.{{}}.{tensor}_layernorm.weight": f"decoder/layers_{{}}/{name}_layer_norm/scale"
           for tensor, name in norms.items()},
    }
    for post_norms, norms in _NORMS.items()
}  # fmt: skip
_TENSORS = {post_norms: {name: tensor for tensor, name in names.items()} for post_norms, names in _NAMES.items()}
_FIRST_POST_NORM = "decoder/layers_0/post_mlp_layer_norm/scale"


class _Text(gemma_config.Stack):
    """What `text_config` states and shapes do not show."""

    model_type: Literal["gemma", "gemma2"] = "gemma"
    attn_logit_softcapping: float | None = 50.0
    final_logit_softcapping: float | None = 30.0
    sliding_window: gemma_config.Size | None = 4096
    tie_word_embeddings: bool = True
    rope_theta: float | None = None  # in older files
    rope_parameters: gemma_config.Rope = gemma_config.Rope()


class _Config(gemma_config.Ids):
    """`config.json`."""

    text_config: _Text = _Text()
    image_token_index: gemma_config.Id = 256_000
    tie_word_embeddings: bool = True


class PaliGemmaFamily(Family):
    """PaliGemma 1 and 2."""

    name = "PaliGemma"
    part = LANGUAGE
    config = PaliGemmaConfig
    backbone = PaliGemma
    hooked_kinds = ()  # one stack reads prefix and suffix
    peft_task = "CAUSAL_LM"
    implied = {"pad_token_id": 0, "eos_token_id": 1}
    deciding = (
        "num_heads", "num_kv_heads", "head_dim", "query_pre_attn_scalar", "attention_softcap", "logits_softcap",
        "sliding_window", "full_attention_every", "rope_theta", *implied,
    )  # fmt: skip
    may_be_off = ("logits_softcap", "sliding_window")  # as in big_vision, which fine-tunes without them
    model_types = ("paligemma",)

    def sizes(self, shapes: Shapes) -> dict[str, Any]:
        """The sizes in `PaliGemmaConfig` that shapes show: not how they are cut into heads."""
        names = _TABLE, "decoder/layers_0/self_attention/query/kernel", "decoder/layers_0/mlp/wi_0/kernel"
        matrices = [shapes[name] for name in names if len(shapes.get(name, ())) == 2]
        if len(matrices) < len(names) or any(name.startswith("encoder/layers") for name in shapes):
            return {}  # another model's, or damaged
        return {
            "vocab_size": matrices[0][0],
            "emb_dim": matrices[0][1],
            "mlp_dim": matrices[2][1],
            "num_layers": depth(shapes, "decoder"),
            "post_norms": _FIRST_POST_NORM in shapes,
            "encoder_embedding": f"encoder/{_TABLE}" in shapes,
        }

    def name_from_hugging_face(self, tensor: str) -> str | None:
        """`language_model.model.layers.0.self_attn.q_proj.weight` -> `decoder/layers_0/self_attention/query/kernel`."""
        return renamed(_inner(tensor), _NAMES[True])

    def name_in_hugging_face(self, name: str) -> str | None:
        """`decoder/layers_0/self_attention/query/kernel` -> `model.language_model.layers.0.self_attn.q_proj.weight`.

        As it is in memory, where PEFT reads and writes it; files have the name as released.
        """
        tensor = renamed(name, _TENSORS[True])
        return tensor and tensor.replace(_LANGUAGE, _IN_MEMORY, 1)

    def from_hugging_face(
        self, tensors: Mapping[str, Leaf], config: Mapping[str, Any], folder: epath.Path, path: str
    ) -> Translation:
        """See `Family`."""
        stated = as_form(_plain(config), _Config, f"{path}/config.json", error=CheckpointError)
        names, language, others, heads = _NAMES[stated.text_config.model_type == "gemma2"], {}, {}, []
        for tensor, leaf in tensors.items():
            inner = _inner(tensor)
            if (name := renamed(inner, names)) is not None:
                language[name] = transposed(leaf) if _is_transposed(name) else leaf
            elif _HEADS.fullmatch(tensor):
                heads.append(leaf)
            else:
                others[inner.removeprefix(_VISION)] = leaf
        table = language.get(_TABLE)
        if table is not None and 0 < table.shape[0] - stated.image_token_index <= _FILLED:
            table = language[_TABLE] = rows(table, 0, stated.image_token_index)
        _check_tied(stated, heads, table, path)
        leaves = language | translated(others, [*SIGLIP_NAMES, (re.escape(_PROJECTOR), "projection", "dense")])
        settings = {LANGUAGE: _settings(stated, path), VISION: vision_settings(config, folder, path)}
        return Translation(leaves, settings)

    def to_hugging_face(self, leaves: Mapping[str, Leaf]) -> dict[str, Leaf]:
        """See `Family`."""
        names = _TENSORS[_FIRST_POST_NORM in leaves]
        tensors = siglip_tensors(leaves, f"{_VISION}vision_model.")
        for name, leaf in leaves.items():
            if name.startswith("vision/"):
                continue
            if name.startswith("projection/"):
                tensor = f"{_PROJECTOR}.{'weight' if _is_transposed(name) else 'bias'}"
            elif (tensor := renamed(name, names)) is None:
                raise CheckpointError(
                    f"A Hugging Face {self.name} has no place for {name}; convert this model to native or t5x instead."
                )
            tensors[tensor] = transposed(leaf) if _is_transposed(name) else leaf
        return tensors

    def kept_config(self, config: Mapping[str, Any], source: Source) -> dict[str, Any]:
        """See `Family`: the rows behind the vocabulary are not written."""
        vocab = {"vocab_size": self.sizes(source.shapes)["vocab_size"]}
        return {**config, **vocab, "text_config": {**config.get("text_config", {}), **vocab}}

    def hugging_face_config(self, source: Source) -> dict[str, Any]:
        """See `Family`."""
        settings, sizes = source.settings[LANGUAGE], self.sizes(source.shapes)
        pad, eos = (settings[name] for name in self.implied)
        ids = {"bos_token_id": 2, "pad_token_id": pad, "eos_token_id": eos}
        layers, width = sizes["num_layers"], sizes["emb_dim"]
        text = gemma_config.stack_config(settings, sizes, layers) | {
            "rope_parameters": {"rope_theta": settings["rope_theta"], "rope_type": "default"},
            "max_position_embeddings": 8192,
            **ids,
        }
        if sizes["post_norms"]:
            text |= {"model_type": "gemma2", "attn_logit_softcapping": settings["attention_softcap"]}
            if settings["sliding_window"] is None:  # the cache of `transformers` refuses windowed layers without one
                text["layer_types"] = [gemma_config.FULL] * layers
        else:
            text["model_type"], text["hidden_act"] = "gemma", text.pop("hidden_activation")
            for name in ("query_pre_attn_scalar", "final_logit_softcapping", "sliding_window", "layer_types"):
                del text[name]
        usual = {"attention_softcap": None, "logits_softcap": None, "sliding_window": None}
        usual["query_pre_attn_scalar"] = settings["head_dim"]
        if not sizes["post_norms"] and (wrong := [name for name, value in usual.items() if settings[name] != value]):
            raise CheckpointError(f"A Gemma 1 of transformers has no {wrong[0]}; convert to native or t5x instead.")
        return {
            "architectures": ["PaliGemmaForConditionalGeneration"],
            "model_type": "paligemma",
            "vocab_size": sizes["vocab_size"],
            "image_token_index": sizes["vocab_size"],
            "hidden_size": width,
            "projection_dim": width,
            "tie_word_embeddings": True,
            "text_config": text,
            "vision_config": siglip_config(source) | {"projection_dim": width},
            **ids,
        }

    def from_big_vision(self, tensors: Mapping[str, Leaf], path: str) -> Translation | None:
        """See `Family`."""
        return big_vision_paligemma.translated(tensors, path)


def _inner(tensor: str) -> str:
    """A tensor's name as released; newer files of transformers begin with `model.`, and have no `model.` within."""
    tensor = tensor.removeprefix("model.")
    is_new = tensor.startswith("language_model.") and not tensor.startswith(_LANGUAGE)
    return tensor.replace("language_model.", _LANGUAGE, 1) if is_new else tensor


def _is_transposed(name: str) -> bool:
    """Whether Hugging Face stores the leaf with its axes reversed."""
    return name.endswith("/kernel")


def _check_tied(stated: _Config, heads: Sequence[Leaf], table: Leaf | None, path: str) -> None:
    """Refuses a head other than the embedding table; only its rows behind the vocabulary may differ.

    Raises:
      CheckpointError: names the checkpoint.
    """
    tied = stated.tie_word_embeddings and stated.text_config.tie_word_embeddings
    same = lambda head, table: head.shape[0] >= table.shape[0] and equal(rows(head, 0, table.shape[0]), table)
    if not tied or (table is not None and not all(same(head, table) for head in heads)):
        raise CheckpointError(
            f"{path} has an untied head (lm_head); this package supports PaliGemma only with the embedding table as its head."
        )


def _settings(stated: _Config, path: str) -> dict[str, Any]:
    """Fields of `PaliGemmaConfig` that `config.json` states and shapes do not show."""
    text = stated.text_config
    gemma_config.check_supported({"text_config": text}, PaliGemmaFamily.name, path)
    rope = text.rope_parameters
    gemma_config.check_rotation(rope.rope_type, "text_config.rope_parameters", PaliGemmaFamily.name, path)
    has_windows = text.sliding_window is not None and set(text.layer_types or [None]) != {gemma_config.FULL}
    return {
        **gemma_config.heads(text),
        "query_pre_attn_scalar": text.query_pre_attn_scalar,
        "attention_softcap": text.attn_logit_softcapping,
        "logits_softcap": text.final_logit_softcapping,
        "sliding_window": text.sliding_window if has_windows else None,
        "full_attention_every": gemma_config.full_attention_every([text.layer_types], path) if has_windows else 2,
        "rope_theta": rope.rope_theta if text.rope_theta is None else text.rope_theta,
        **gemma_config.ids(stated, text, PaliGemmaFamily.implied, path),
    }


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config.json` with a Gemma 1 stated as a Gemma 2 without caps and windows, whatever it states of those."""
    text = config.get("text_config", {})
    if not isinstance(text, Mapping) or text.get("model_type", "gemma") != "gemma":
        return dict(config)
    activation = text.get("hidden_activation") or text.get("hidden_act", "gelu")
    plain = {
        "query_pre_attn_scalar": text.get("head_dim", 256),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "sliding_window": None,
        "hidden_activation": "gelu_pytorch_tanh" if activation == "gelu" else activation,
    }
    return {**config, "text_config": {"num_attention_heads": 16, "num_key_value_heads": 16, **text, **plain}}
