"""What the `config.json` of Gemma's families have in common: how a stack of layers is stated, read and written."""

from collections.abc import Mapping
from typing import Annotated, Any

import pydantic

from adalink_jax.checkpoints.families.family import stated_ids
from adalink_jax.errors import CheckpointError
from adalink_jax.files.typed_json import Form

# Hugging Face's names of a block's matrices -> this package's.
ATTENTION = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "out"}
MLP = {"gate_proj": "wi_0", "up_proj": "wi_1", "down_proj": "wo"}

SLIDING, FULL = "sliding_attention", "full_attention"
Id = Annotated[int, pydantic.Field(ge=0, lt=2**31)]
Size = Annotated[int, pydantic.Field(ge=1, lt=2**31)]
_SIZES = {"num_heads": "num_attention_heads", "num_kv_heads": "num_key_value_heads", "head_dim": "head_dim"}
_SUPPORTED = {"hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "attention_bias": False}


class Ids(Form):
    """Ids of tokens, which a model states for the whole, for its stacks, or for both."""

    decoder_start_token_id: Id | None = None
    bos_token_id: Id | None = None
    pad_token_id: Id | None = None
    eos_token_id: Id | list[Id] | None = None


class Rope(Form):
    """`rope_parameters` of a stack with one rotation."""

    rope_theta: float = 10_000.0
    rope_type: str = "default"


class Stack(Ids):
    """What is stated of a stack of layers, and shapes do not show; defaults are those of `transformers`."""

    num_attention_heads: Size = 8
    num_key_value_heads: Size = 4
    head_dim: Size = 256
    query_pre_attn_scalar: Size = 256
    layer_types: list[str] | None = None
    hidden_activation: str = "gelu_pytorch_tanh"
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False


def heads(stack: Stack, prefix: str = "") -> dict[str, int]:
    """How a stack's width is cut into heads, by the names of this package's configurations."""
    return {prefix + name: getattr(stack, stated) for name, stated in _SIZES.items()}


def check_supported(stacks: Mapping[str, Stack], family: str, path: str, **further: Any) -> None:
    """Refuses what none of the family's released models has.

    Args:
      stacks: by the name of their place in `config.json`.
      family: the family's name.
      path: the folder.
      further: the one supported value of a setting, beside those that all families have in common.

    Raises:
      CheckpointError: names the setting.
    """
    for name, supported in (_SUPPORTED | further).items():
        for place, stack in stacks.items():
            if (value := getattr(stack, name)) != supported:
                raise CheckpointError(
                    f"{path} has {place}.{name} {value!r}; this package supports only {supported!r} for {family}."
                )


def check_rotation(
    rope_type: str, place: str, family: str, path: str, supported: tuple[str, ...] = ("default",)
) -> None:
    """Refuses another kind of rotary positions.

    Raises:
      CheckpointError: names the kind.
    """
    if rope_type not in supported:
        raise CheckpointError(
            f"{path} has rope_type {rope_type!r} in {place}; this package supports only {supported[-1]!r} there for {family}."
        )


def check_same(encoder: Stack, decoder: Stack, names: tuple[str, ...], path: str) -> None:
    """Refuses a setting that the two sides state differently where this package has one for both.

    Raises:
      CheckpointError: names the setting.
    """
    for name in names:
        if getattr(encoder, name) != getattr(decoder, name):
            raise CheckpointError(
                f"{path} has another {name} for the encoder than for the decoder; this package supports one for both."
            )


def ids(model: Ids, stack: Ids, implied: Mapping[str, int], path: str) -> dict[str, Any]:
    """The ids that a model's configuration has, from what the model states, else its stack, else the family.

    Args:
      model: what is stated for the whole model.
      stack: what is stated for its (decoder's) layers.
      implied, path: see `stated_ids`, also for what is returned and raised.
    """
    stated = {
        "decoder_start_token_id": (model.decoder_start_token_id, stack.bos_token_id),
        "pad_token_id": (model.pad_token_id, stack.pad_token_id),
        "eos_token_id": (model.eos_token_id, stack.eos_token_id),
    }
    return stated_ids(stated, implied, path)


def layer_types(layers: int, every: int) -> list[str]:
    """The kinds of layers where, of each `every`, the last sees all tokens."""
    return [FULL if (i + 1) % every == 0 else SLIDING for i in range(layers)]


def full_attention_every(stacks: list[list[str] | None], path: str, usual: int = 2) -> int:
    """The number of layers of which the last is not windowed.

    Args:
      stacks: `layer_types` of each stack; None where they are not stated.
      path: the folder, for the error.
      usual: the number where none of them is stated.

    Raises:
      CheckpointError: for layers that do not alternate regularly.
    """
    stated = [kinds for kinds in stacks if kinds]
    if not stated:
        return usual
    longest = max(stated, key=len)
    every = longest.index(FULL) + 1 if FULL in longest else len(longest) + 1
    for kinds in stated:
        if kinds != layer_types(len(kinds), every):
            raise CheckpointError(
                f"{path} has layer_types {kinds}; this package supports layers that alternate regularly."
            )
    return every


def stack_config(
    settings: Mapping[str, Any], sizes: Mapping[str, Any], layers: int, prefix: str = ""
) -> dict[str, Any]:
    """How a stack is written.

    Args:
      settings: of the model's configuration, which states every field that shapes do not show.
      sizes: those that shapes show.
      layers: how many the stack has.
      prefix: of the settings and sizes that the stack has of its own, such as `decoder_`.
    """
    return {
        "vocab_size": sizes["vocab_size"],
        "hidden_size": sizes[f"{prefix}emb_dim"],
        "intermediate_size": sizes[f"{prefix}mlp_dim"],
        "num_hidden_layers": layers,
        **{stated: settings[prefix + name] for name, stated in _SIZES.items()},
        "query_pre_attn_scalar": settings["query_pre_attn_scalar"],
        "final_logit_softcapping": settings["logits_softcap"],
        "sliding_window": settings["sliding_window"],
        "layer_types": layer_types(layers, settings["full_attention_every"]),
        **_SUPPORTED,
    }
