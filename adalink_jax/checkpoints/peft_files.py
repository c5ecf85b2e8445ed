"""PEFT's layout of the two methods that it shares with this package, LoRA and prompt tuning, both ways.

    base_model.model.<module>.lora_A.weight [R, in]         <projection>/down [in, R]
    base_model.model.<module>.lora_B.weight [out, R]        <projection>/up [R, out]
    prompt_embeddings [P, D]                                prompt [P, D]

PEFT computes the same: a branch times lora_alpha / r, a prompt before the encoder's embeddings. `<module>` is a name of a
Hugging Face model, which the families of models translate.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, cast

import numpy as np
import pydantic

from adalink_jax.adapters import LoRA, PromptTuning, describe_adapter, make_adapter
from adalink_jax.checkpoints.adapter_facts import AdapterFacts, BaseReference
from adalink_jax.checkpoints.families.family import FAMILIES, Family
from adalink_jax.errors import CheckpointError
from adalink_jax.files.leaves import Leaf, transposed
from adalink_jax.files.typed_json import Form, as_form

LORA, PROMPT_TUNING = "LORA", "PROMPT_TUNING"
_SEQ_TO_SEQ = "SEQ_2_SEQ_LM"
_OLDEST = "T5"  # the family of files from before families were stated
TYPES = (LORA, PROMPT_TUNING)
_PREFIX, _PROMPT = "base_model.model.", "prompt_embeddings"
_MATRICES = {"down": "lora_A", "up": "lora_B"}
_LEAVES = {matrix: leaf for leaf, matrix in _MATRICES.items()}
# Fields of PEFT's configuration that do not change the computation, or are read below. Any other field that is set is refused.
_READ = {
    None: {"peft_type", "task_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision",
           "inference_mode", "adalink"},
    LORA: {"r", "lora_alpha", "lora_dropout", "use_rslora", "init_lora_weights", "target_modules", "exclude_modules",
           "layers_to_transform", "layers_pattern", "bias", "megatron_core", "qalora_group_size", "eva_config",
           "ensure_weight_tying"},
    PROMPT_TUNING: {"num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers",
                    "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"},
}  # fmt: skip
_SAME_BASE = (True, False, None, "gaussian", "orthogonal", "eva")  # values of `init_lora_weights` that keep the base

_REMEDY = "copy or train it again"
_Count = Annotated[int, pydantic.Field(ge=1, lt=10**6)]


class _LoRA(Form):
    """PEFT's configuration of LoRA."""

    r: _Count
    lora_alpha: _Count | Annotated[float, pydantic.Field(gt=0, lt=1e6, allow_inf_nan=False)]
    use_rslora: bool | None = None


class _PromptTuning(Form):
    """PEFT's configuration of prompt tuning."""

    num_virtual_tokens: _Count


def task_type(base: BaseReference) -> str:
    """PEFT's name for what a base model does; an encoder-decoder's where the file does not state the family."""
    return next((family.peft_task for family in FAMILIES if family.name == base.family), _SEQ_TO_SEQ)


def to_peft(
    facts: AdapterFacts, leaves: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """An adapter in PEFT's layout.

    Args:
      facts: its method and settings.
      leaves: the values by this package's unscanned names.

    Returns:
      Tensors by PEFT's names, and the fields of `adapter_config.json`; None for an adapter that PEFT's layout cannot hold:
      another method, LoRA on a model that Hugging Face does not have, or a prompt of a model that is not an encoder-decoder:
      with a causal model's prompt, PEFT ignores token types, without which PaliGemma's prefix is causal.
    """
    common = {"task_type": task_type(facts.base), "inference_mode": True}
    if facts.method == PromptTuning.__name__ and leaves.keys() == {"prompt"}:
        if common["task_type"] != _SEQ_TO_SEQ:
            return None
        length, width = leaves["prompt"].shape
        sizes = {"num_virtual_tokens": length, "token_dim": width, "num_transformer_submodules": 1}
        return {_PROMPT: leaves["prompt"]}, common | {"peft_type": PROMPT_TUNING, **sizes}
    if facts.method != LoRA.__name__:
        return None
    projections = {name.rpartition("/")[0] for name in leaves}
    for family in sorted(FAMILIES, key=lambda family: family.name != _OLDEST):  # stable
        if facts.base.family not in (None, family.name):
            continue
        modules = {projection: _module(family, projection) for projection in projections}
        if None not in modules.values():
            break
    else:
        return None
    tensors = {}
    for name, leaf in leaves.items():
        projection, _, matrix = name.rpartition("/")
        tensors[f"{_PREFIX}{modules[projection]}.{_MATRICES[matrix]}.weight"] = leaf.T
    lora = cast(LoRA, make_adapter(facts.method, facts.settings))
    alpha = int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha
    return tensors, common | {
        "task_type": family.peft_task,
        "peft_type": LORA,
        "r": lora.rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(map(str, modules.values())),
        "bias": "none",
        "fan_in_fan_out": False,
    }


def _module(family: Family, projection: str) -> str | None:
    """Hugging Face's name of a dense layer; None if the family does not have it."""
    tensor = family.name_in_hugging_face(f"{projection}/kernel")
    return tensor and tensor.removesuffix(".weight")


def from_peft(tensors: Mapping[str, Leaf], peft_type: str, path: str) -> dict[str, Leaf]:
    """Leaves by this package's names, of tensors by PEFT's.

    Args:
      tensors: the tensors.
      peft_type: one of `TYPES`.
      path: the adapter, for errors.

    Raises:
      CheckpointError: for a tensor of another method, or of a model that no family knows.
    """
    leaves = {}
    for tensor, leaf in tensors.items():
        name = "prompt" if tensor == _PROMPT else None
        if peft_type == LORA:
            name, leaf = _leaf_name(tensor), transposed(leaf)
        if name is None:
            raise CheckpointError(
                f"The adapter {path} holds {tensor[:100]!r}, which is not a tensor of PEFT's {peft_type} on a supported model; "
                f"train it on a model that this package implements, such as a T5."
            )
        leaves[name] = leaf
    return dict(sorted(leaves.items()))


def facts_of(config: Mapping[str, Any], leaves: Mapping[str, Leaf], path: str) -> AdapterFacts:
    """The facts of an adapter that PEFT wrote.

    Args:
      config: its `adapter_config.json`.
      leaves: by this package's names.
      path: the adapter, for errors.

    Returns:
      Facts without the base model's fingerprint: PEFT does not state which weights it trained on.

    Raises:
      CheckpointError: for a field that is missing, and what this package does not implement.
    """
    kind = config["peft_type"]
    _refuse_unsupported(config, kind, path)
    module = _lora(config, leaves, path) if kind == LORA else _prompt_tuning(config, leaves, path)
    base = config.get("base_model_name_or_path")
    return AdapterFacts(
        **describe_adapter(module),
        base=BaseReference(base if isinstance(base, str) and base else "unknown", None),
        extra={"written_by": f"PEFT {config.get('peft_version', '')}".strip()},
    )


def _refuse_unsupported(config: Mapping[str, Any], kind: str, path: str) -> None:
    supported = {
        "bias": (None, "none"),
        "init_lora_weights": _SAME_BASE,
        "num_transformer_submodules": (1,) if kind == PROMPT_TUNING else (None,),
        "task_type": (_SEQ_TO_SEQ,) if kind == PROMPT_TUNING else (None, *{family.peft_task for family in FAMILIES}),
    }
    unsupported = [key for key, value in config.items() if value and key not in _READ[None] | _READ[kind]]
    unsupported += [key for key, values in supported.items() if key in config and config[key] not in values]
    if unsupported:
        key = unsupported[0]
        raise CheckpointError(
            f"The adapter {path} has {key[:60]} = {json.dumps(config[key])[:60]} in PEFT's configuration, which this package "
            f"does not support; train it without, or merge it into its base with PEFT and convert the merged model."
        )


def _lora(config: Mapping[str, Any], leaves: Mapping[str, Leaf], path: str) -> LoRA:
    stated = as_form(config, _LoRA, f"{path}/adapter_config.json", _REMEDY, CheckpointError)
    rank, alpha = stated.r, stated.lora_alpha
    projections = sorted({name.rpartition("/")[0] for name in leaves})
    for projection in projections:
        for matrix, axis in (("down", 1), ("up", 0)):
            leaf = leaves.get(f"{projection}/{matrix}")
            if leaf is None or len(leaf.shape) != 2 or leaf.shape[axis] != rank:
                problem = "is missing" if leaf is None else f"has the (transposed) shape {leaf.shape}"
                raise CheckpointError(
                    f"The adapter {path} has r = {rank}, but its {projection}/{matrix} {problem}; copy or train it again."
                )
    if not projections:
        raise CheckpointError(f"The adapter {path} holds no tensors; copy or train it again.")
    scale = math.sqrt(rank) if stated.use_rslora else 1.0
    return LoRA(rank, alpha * scale, tuple(_expressions(projections)))


def _prompt_tuning(config: Mapping[str, Any], leaves: Mapping[str, Leaf], path: str) -> PromptTuning:
    stated = as_form(config, _PromptTuning, f"{path}/adapter_config.json", _REMEDY, CheckpointError)
    length = stated.num_virtual_tokens
    shape = leaves["prompt"].shape if leaves else None
    if shape is None or len(shape) != 2 or shape[0] != length:
        raise CheckpointError(
            f"The adapter {path} has num_virtual_tokens = {length}, but its {_PROMPT} has shape {shape}; copy or train it again."
        )
    return PromptTuning(length)


def _leaf_name(tensor: str) -> str | None:
    """This package's name of PEFT's LoRA tensor; None if no family has the module."""
    match = re.fullmatch(re.escape(_PREFIX) + r"(.+)\.(lora_[AB])\.weight", tensor)
    if match is None:
        return None
    for family in FAMILIES:
        name = family.name_from_hugging_face(f"{match[1]}.weight")
        written = name and family.name_in_hugging_face(name)
        # The module may have the name of an older `transformers`, which is not the one that is written.
        if name and written and name.endswith("/kernel") and family.name_from_hugging_face(written) == name:
            return f"{name.removesuffix('/kernel')}/{_LEAVES[match[2]]}"
    return None


def _expressions(projections: Iterable[str]) -> list[str]:
    """Regular expressions that match exactly `projections`; the same projection of several layers shares one."""
    layers: dict[tuple[str, str], list[str]] = {}  # (before the number, after it) -> numbers
    plain = []
    for name in projections:
        match = re.fullmatch(r"(\w+/layers_)(\d+)(/.+)", name)
        if match:
            layers.setdefault((match[1], match[3]), []).append(match[2])
        else:
            plain.append(name)
    numbered = [f"{head}({'|'.join(sorted(numbers, key=int))}){tail}" for (head, tail), numbers in layers.items()]
    return plain + numbered
