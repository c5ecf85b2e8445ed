"""Puts an adapter file into the state that t5x restores."""

from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from adalink_jax import checkpoints
from adalink_jax.adapters import AdaptedModel, describe_adapter
from adalink_jax.errors import UserError
from adalink_jax.models import paths

BACKBONE, ADAPTER = "backbone", "adapter"


def with_adapter(
    state_dict: Mapping[str, Any],
    target_state_dict: Mapping[str, Any],
    module: AdaptedModel,
    path: str | None = None,
    *,
    is_resuming: bool = False,
) -> Mapping[str, Any]:
    """One of t5x's `state_transformation_fns`: adds an adapter file to a base model or an adapted model.

    The leaves of a base model move from `target/encoder/...` to `target/backbone/encoder/...`. t5x reads the checkpoint's values later, so
    it is not checked here that the adapter was trained on this base; `adalink adapters verify ADAPTER --base CHECKPOINT` checks it.

    Args:
      state_dict: the state in the checkpoint.
      target_state_dict: the state to restore.
      module: the model that is restored.
      path: an adapter's folder; None keeps the state's adapter.
      is_resuming: whether a run is resumed, whose state is returned unchanged.

    Returns:
      `state_dict` with the backbone's new names and the adapter.

    Raises:
      UserError: for a base in Orbax's format, whose leaves t5x cannot rename; if the model has an adapter, and neither the checkpoint nor
        `path` does.
      CheckpointError: for a folder that is not an adapter, or an adapter of another method, settings or model.
    """
    if is_resuming:
        return state_dict
    base = BACKBONE not in state_dict["target"]
    backbone = state_dict["target"] if base else state_dict["target"][BACKBONE]
    if (base or ADAPTER not in state_dict["target"]) and _of_orbax(backbone):
        raise UserError(
            "The base is a checkpoint in Orbax's format, whose leaves t5x cannot rename; convert it with "
            "`adalink convert BASE/checkpoint_N NEW/checkpoint_N --to t5x`."
        )
    target = {**({} if base else state_dict["target"]), BACKBONE: backbone}
    if path is not None:
        target[ADAPTER] = _read(path, module, target_state_dict["target"].get(ADAPTER, {}))
    elif base and ADAPTER in target_state_dict["target"]:
        raise UserError(
            "The checkpoint is a base model without an adapter; set INITIAL_ADAPTER_PATH to an adapter's folder."
        )
    return {**state_dict, "target": target}


def _read(path: str, module: AdaptedModel, wanted: Mapping) -> dict:
    if module.adapter is None:
        raise UserError(
            "INITIAL_ADAPTER_PATH is set, but the model has no adapter; add its gin file, --gin_file=gin/adapters/..."
        )
    leaves, facts = checkpoints.open_adapter(path)
    shapes = {name: tuple(leaf.shape) for name, leaf in paths.flatten(wanted).items()}
    checkpoints.check_shapes(path, facts, leaves, shapes)
    checkpoints.check_method(path, facts, describe_adapter(module.adapter))
    values, _ = checkpoints.read_adapter(path)
    return paths.unflatten({name: values[name] for name in shapes})


def _of_orbax(tree: Mapping) -> bool:
    return any(isinstance(leaf, ocp.metadata.tree.ValueMetadataEntry) for leaf in jax.tree.leaves(tree))
