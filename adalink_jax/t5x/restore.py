"""Our adapter files in t5x's restored states."""

from collections.abc import Mapping

from adalink_jax import checkpoints
from adalink_jax.errors import UserError
from adalink_jax.models import paths

BACKBONE, ADAPTER = "backbone", "adapter"


def with_adapter(
    state_dict: Mapping, target_state_dict: Mapping, path: str | None = None, *, is_resuming: bool = False
):
    """A `state_transformation_fns` of t5x: the state of a base, or of an adapted model, with the adapter of a file in it.

    A base (`target/encoder/...`) becomes `target/backbone/encoder/...`. The values of a checkpoint are read later by t5x, so that whether the adapter belongs to this base is not known here: `adalink
    adapters verify ADAPTER --base CHECKPOINT` compares them.

    Args:
      state_dict: what is in the checkpoint.
      target_state_dict: what is wanted.
      path: an adapter's folder; None leaves an adapted model as it is.
      is_resuming: a run that goes on is left as it is.

    Raises:
      UserError: for a base without `path`.
      CheckpointError: for a folder that is no adapter, or one of another method, rank or model.
    """
    adapted = BACKBONE in state_dict["target"]
    if is_resuming or (adapted and path is None):
        return state_dict
    if path is None:
        raise UserError("The checkpoint is a base without an adapter; set INITIAL_ADAPTER_PATH to an adapter's folder.")
    leaves, about = checkpoints.open_adapter(path)
    wanted = paths.flatten(target_state_dict["target"][ADAPTER])
    checkpoints.check_shapes(path, about, leaves, {name: tuple(leaf.shape) for name, leaf in wanted.items()})
    values, _ = checkpoints.read_adapter(path)
    backbone = state_dict["target"][BACKBONE] if adapted else state_dict["target"]
    target = {BACKBONE: backbone, ADAPTER: paths.unflatten({name: values[name] for name in wanted})}
    return {**state_dict, "target": target}
