"""A T5 from a checkpoint alone, without a configuration: its sizes are read off its leaves."""

from adalink_jax import parallel
from adalink_jax.adapters import AdaptedModel
from adalink_jax.checkpoints import t5_fields
from adalink_jax.checkpoints.source import Source
from adalink_jax.models import T5, T5Config
from adalink_jax.training.setup import Setup, load_parameters


def load_language_model(source: Source, dtype: str = "float32") -> tuple[AdaptedModel, dict]:
    """The model, which computes in float32, and its parameters.

    Args:
      source: a T5, whose settings hold `mlp_activations`.
      dtype: in which the parameters are stored, "float32" or "bfloat16".
    """
    model = AdaptedModel(T5(T5Config(**t5_fields(source), dtype="float32", scan_layers=True)))
    mesh, rules = parallel.make_mesh(), parallel.logical_axis_rules()
    with parallel.use_mesh(mesh, rules):
        setup = Setup(model, initial_checkpoint_path=source.path, frozen_dtype=dtype)
        return model, load_parameters(setup, mesh, rules).frozen
