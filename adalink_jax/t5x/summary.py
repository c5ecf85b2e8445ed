"""Records what `adalink adapters extract` needs to know of a t5x run's adapter."""

from typing import Any

import jax
from t5x import gin_utils  # pyright: ignore[reportAttributeAccessIssue]  # t5x is optional; this package shadows its name

from adalink_jax.adapters import AdaptedModel, describe_adapter
from adalink_jax.checkpoints.t5x_run import ABOUT
from adalink_jax.files.places import path_of
from adalink_jax.files.whole_file import write_json
from adalink_jax.version import __version__


def summarize_config(
    model_dir: str,
    summary_writer: Any,
    step: int,
    module: AdaptedModel,
    base: str,
    task: str,
    trainable: tuple[str, ...],
) -> None:
    """A `summarize_config_fn` of t5x: writes t5x's `config.gin`, and `adapter.json`.

    Args:
      model_dir: the run's folder.
      summary_writer: t5x's writer of TensorBoard events.
      step: the step at which the run starts.
      module: the model, which has an adapter.
      base: the checkpoint that the run starts from.
      task: the task or mixture that it trains on.
      trainable: regular expressions of the trainable leaves.
    """
    gin_utils.summarize_gin_config(model_dir, summary_writer, step)
    if jax.process_index() == 0:
        about = {
            **describe_adapter(module.adapter),  # pyright: ignore[reportArgumentType]  # a trained model has one
            "base": base,
            "task": task,
            "trainable": trainable,
            "version": __version__,
        }
        write_json(path_of(model_dir) / ABOUT, dict(sorted(about.items())))
