"""A language model from a checkpoint alone, without a gin file: its sizes are read off its leaves."""

from typing import Any

from adalink_jax import parallel
from adalink_jax.adapters import AdaptedModel
from adalink_jax.checkpoints import Source, config_fields
from adalink_jax.checkpoints.families.family import family_of_shapes
from adalink_jax.errors import CheckpointError
from adalink_jax.training.setup import Setup, load_parameters


def load_language_model(source: Source, dtype: str = "float32") -> tuple[AdaptedModel, dict[str, Any]]:
    """Loads a language model, which computes in float32, and its parameters as Flax takes them.

    Args:
      source: the checkpoint; its settings state every deciding field of its family.
      dtype: the dtype in which the parameters are stored, "float32" or "bfloat16".

    Raises:
      CheckpointError: for a checkpoint that is not a language model alone.
    """
    family = family_of_shapes(source.shapes)
    if family is None or family.backbone is None:
        raise CheckpointError(f"{source.path} is not a known language model ({source.kind}); give a T5.")
    config = family.config(**config_fields(source), dtype="float32", scan_layers=True)
    model = AdaptedModel(family.backbone(config))
    mesh, rules = parallel.make_mesh(), parallel.logical_axis_rules()
    with parallel.use_mesh(mesh, rules):
        setup = Setup(model, initial_checkpoint_path=source.path, frozen_dtype=dtype)
        return model, load_parameters(setup, mesh, rules).tree()
