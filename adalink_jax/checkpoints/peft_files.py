"""PEFT's own layout of the two methods that it shares with this package, LoRA and prompt tuning of a T5, both ways.

    base_model.model.<module>.lora_A.weight [R, in]         <projection>/down [in, R]
    base_model.model.<module>.lora_B.weight [out, R]        <projection>/up [R, out]
    prompt_embeddings [P, D]                                prompt [P, D]

The numbers are the same there: a branch times lora_alpha / r, a prompt before the encoder's embeddings.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping

import numpy as np

from adalink_jax.adapters import LoRA, PromptTuning, describe_adapter, make_adapter
from adalink_jax.checkpoints.hugging_face import hf_name, t5x_name
from adalink_jax.errors import CheckpointError
from adalink_jax.files.leaves import Leaf, transposed

LORA, PROMPT_TUNING = "LORA", "PROMPT_TUNING"
TYPES = (LORA, PROMPT_TUNING)
_PREFIX, _PROMPT = "base_model.model.", "prompt_embeddings"
_THEIRS = {"lora_A": "down", "lora_B": "up"}
_OURS = {ours: theirs for theirs, ours in _THEIRS.items()}
# Fields that may say anything: they change nothing in what is computed, or are read below. Any other that is set is refused.
_READ = {
    None: {"peft_type", "task_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision",
           "inference_mode", "adalink"},
    LORA: {"r", "lora_alpha", "lora_dropout", "use_rslora", "init_lora_weights", "target_modules", "exclude_modules",
           "layers_to_transform", "layers_pattern", "bias", "megatron_core", "qalora_group_size", "eva_config",
           "ensure_weight_tying"},
    PROMPT_TUNING: {"num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers",
                    "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"},
}  # fmt: skip
_SAME_BASE = (True, False, None, "gaussian", "orthogonal", "eva")  # `init_lora_weights` that leave the base as it is


def to_peft(about: Mapping, leaves: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict] | None:
    """An adapter as PEFT writes it.

    Args:
      about: `method` and `settings`.
      leaves: under our unscanned names.

    Returns:
      Tensors by PEFT's names, and the fields of `adapter_config.json`; None for an adapter that PEFT has no place for:
      another method, and LoRA beyond a T5.
    """
    method = about.get("method")
    common = {"task_type": "SEQ_2_SEQ_LM", "inference_mode": True}
    if method == PromptTuning.__name__ and leaves.keys() == {"prompt"}:
        length, width = leaves["prompt"].shape
        sizes = {"num_virtual_tokens": length, "token_dim": width, "num_transformer_submodules": 1}
        return {_PROMPT: leaves["prompt"]}, common | {"peft_type": PROMPT_TUNING, **sizes}
    if method != LoRA.__name__:
        return None
    lora = make_adapter(method, about["settings"])
    tensors, modules = {}, set()
    for name, leaf in leaves.items():
        projection, _, matrix = name.rpartition("/")
        try:
            module = hf_name(f"{projection}/kernel").removesuffix(".weight")
        except CheckpointError:
            return None
        tensors[f"{_PREFIX}{module}.{_OURS[matrix]}.weight"] = leaf.T
        modules.add(module)
    alpha = int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha
    return tensors, common | {
        "peft_type": LORA, "r": lora.rank, "lora_alpha": alpha, "lora_dropout": 0.0, "target_modules": sorted(modules),
        "bias": "none", "fan_in_fan_out": False,
    }  # fmt: skip


def from_peft(tensors: Mapping[str, Leaf], peft_type: str, path: str) -> dict[str, Leaf]:
    """Leaves under our names, of tensors under PEFT's.

    Raises:
      CheckpointError: for a tensor that is none of the method's, or no T5's.
    """
    leaves = {}
    for name, leaf in tensors.items():
        ours = "prompt" if name == _PROMPT else None
        if peft_type == LORA:
            ours, leaf = _leaf_name(name), transposed(leaf)
        if ours is None:
            raise CheckpointError(
                f"The adapter {path} holds {name[:100]!r}, which is no tensor of PEFT's {peft_type} for a T5; only those can "
                f"be read."
            )
        leaves[ours] = leaf
    return dict(sorted(leaves.items()))


def describe(config: Mapping, leaves: Mapping[str, Leaf], path: str) -> dict:
    """What an adapter that PEFT wrote is, in our terms.

    Args:
      config: its `adapter_config.json`.
      leaves: under our names.
      path: for errors.

    Returns:
      `method`, `settings` and `base`, whose `fingerprint` is None: PEFT does not say which weights it trained on.

    Raises:
      CheckpointError: for a field that is missing, and what this package does not compute.
    """
    kind = config["peft_type"]
    _refuse_unsupported(config, kind, path)
    module = _lora(config, leaves, path) if kind == LORA else _prompt_tuning(config, leaves, path)
    base = config.get("base_model_name_or_path")
    return describe_adapter(module) | {
        "base": {"name": base if isinstance(base, str) and base else "unknown", "fingerprint": None},
        "written_by": f"PEFT {config.get('peft_version', '')}".strip(),
    }


def _refuse_unsupported(config: Mapping, kind: str, path: str) -> None:
    supported = {
        "bias": (None, "none"),
        "init_lora_weights": _SAME_BASE,
        "num_transformer_submodules": (1,) if kind == PROMPT_TUNING else (None,),
        "task_type": ("SEQ_2_SEQ_LM",) if kind == PROMPT_TUNING else (None, "SEQ_2_SEQ_LM"),
    }
    odd = [key for key, value in config.items() if value and key not in _READ[None] | _READ[kind]]
    odd += [key for key, values in supported.items() if key in config and config[key] not in values]
    if odd:
        value = json.dumps(config[odd[0]])
        raise CheckpointError(
            f"The adapter {path} has {odd[0][:60]} = {value[:60]} in PEFT's configuration, which is not supported here; train "
            f"it without, or merge it into its base with PEFT and convert that."
        )


def _lora(config: Mapping, leaves: Mapping[str, Leaf], path: str) -> LoRA:
    rank, alpha = _number(config, "r", int, path), _number(config, "lora_alpha", (int, float), path)
    projections = sorted({name.rpartition("/")[0] for name in leaves})
    for projection in projections:
        for matrix, axis in (("down", 1), ("up", 0)):
            leaf = leaves.get(f"{projection}/{matrix}")
            if leaf is None or len(leaf.shape) != 2 or leaf.shape[axis] != rank:
                found = "no" if leaf is None else f"in our order {leaf.shape}"
                raise CheckpointError(
                    f"The adapter {path} has r = {rank}, but its {projection}/{matrix} is {found}; copy or train it again."
                )
    if not projections:
        raise CheckpointError(f"The adapter {path} holds no tensors; copy or train it again.")
    scale = math.sqrt(rank) if config.get("use_rslora") else 1.0
    return LoRA(rank, alpha * scale, tuple(_expressions(projections)))


def _prompt_tuning(config: Mapping, leaves: Mapping[str, Leaf], path: str) -> PromptTuning:
    length = _number(config, "num_virtual_tokens", int, path)
    shape = leaves["prompt"].shape if leaves else None
    if shape is None or len(shape) != 2 or shape[0] != length:
        raise CheckpointError(
            f"The adapter {path} has num_virtual_tokens = {length}, but its {_PROMPT} is {shape}; copy or train it again."
        )
    return PromptTuning(length)


def _number(config: Mapping, key: str, kind, path: str):
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, kind) or not 0 < value < 1e6:
        raise CheckpointError(
            f"The adapter {path} has {key} = {json.dumps(value)[:60]} in PEFT's configuration; copy or train it again."
        )
    return value


def _leaf_name(tensor: str) -> str | None:
    match = re.fullmatch(re.escape(_PREFIX) + r"(.+)\.(lora_[AB])\.weight", tensor)
    name = t5x_name(f"{match[1]}.weight") if match else None
    if name is None or not name.endswith("/kernel") or hf_name(name) != f"{match[1]}.weight":
        return None
    return f"{name.removesuffix('/kernel')}/{_THEIRS[match[2]]}"


def _expressions(projections: Iterable[str]) -> list[str]:
    """Regular expressions that match exactly `projections`; equal ones of several layers share one."""
    layers: dict[tuple[str, str], list[str]] = {}
    plain = []
    for name in projections:
        match = re.fullmatch(r"(\w+/layers_)(\d+)(/.+)", name)
        if match:
            layers.setdefault((match[1], match[3]), []).append(match[2])
        else:
            plain.append(name)
    numbered = [f"{head}({'|'.join(sorted(found, key=int))}){tail}" for (head, tail), found in layers.items()]
    return plain + numbered
