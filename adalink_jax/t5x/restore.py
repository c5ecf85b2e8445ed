"""Our adapter files in t5x's restored states."""

from collections.abc import Mapping

import jax
import orbax.checkpoint as ocp

from adalink_jax import checkpoints
from adalink_jax.adapters import AdaptedModel, describe_adapter
from adalink_jax.errors import UserError
from adalink_jax.models import paths

BACKBONE, ADAPTER = "backbone", "adapter"


def with_adapter(
    state_dict: Mapping,
    target_state_dict: Mapping,
    module: AdaptedModel,
    path: str | None = None,
    *,
    is_resuming: bool = False,
):
    """A `state_transformation_fns` of t5x: a base, or an adapted model, with the adapter of a file in it.

    A base (`target/encoder/...`) becomes `target/backbone/encoder/...`. The values of a checkpoint are read later by t5x, so
    that whether the adapter belongs to this base is not known here: `adalink adapters verify ADAPTER --base CHECKPOINT` compares them.

    Args:
      state_dict: what is in the checkpoint.
      target_state_dict: what is wanted.
      module: the model that is restored.
      path: an adapter's folder; None leaves the state as it is.
      is_resuming: a run that goes on is left as it is.

    Raises:
      UserError: for a base in Orbax's format, whose leaves t5x cannot rename; without `path`, where an adapter is wanted and none is there.
      CheckpointError: for a folder that is no adapter, or one of another method, settings or model.
    """
    if is_resuming:
        return state_dict
    base = BACKBONE not in state_dict["target"]
    backbone = state_dict["target"] if base else state_dict["target"][BACKBONE]
    if (base or ADAPTER not in state_dict["target"]) and _of_orbax(backbone):
        raise UserError(
            "The base is a checkpoint in Orbax's format, in which t5x finds no leaf under another name; write it once with "
            "`adalink convert BASE/checkpoint_N NEW/checkpoint_N --to t5x`."
        )
    target = {**({} if base else state_dict["target"]), BACKBONE: backbone}
    if path is not None:
        target[ADAPTER] = _read(path, module, target_state_dict["target"].get(ADAPTER, {}))
    elif base and ADAPTER in target_state_dict["target"]:
        raise UserError("The checkpoint is a base without an adapter; set INITIAL_ADAPTER_PATH to an adapter's folder.")
    return {**state_dict, "target": target}


def _read(path: str, module: AdaptedModel, wanted: Mapping) -> dict:
    if module.adapter is None:
        raise UserError(
            "INITIAL_ADAPTER_PATH is set, and the model has no adapter; add its file, --gin_file=gin/adapters/..."
        )
    leaves, facts = checkpoints.open_adapter(path)
    shapes = {name: tuple(leaf.shape) for name, leaf in paths.flatten(wanted).items()}
    checkpoints.check_shapes(path, facts, leaves, shapes)
    checkpoints.check_method(path, facts, describe_adapter(module.adapter))
    values, _ = checkpoints.read_adapter(path)
    return paths.unflatten({name: values[name] for name in shapes})


def _of_orbax(tree: Mapping) -> bool:
    return any(isinstance(leaf, ocp.metadata.tree.ValueMetadataEntry) for leaf in jax.tree.leaves(tree))
