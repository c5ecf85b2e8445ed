"""What a run of t5x leaves about its adapter, for `adalink adapters extract`."""

import json

import jax
from etils import epath
from t5x import gin_utils

from adalink_jax.adapters import AdaptedModel, describe_adapter
from adalink_jax.checkpoints.t5x_run import ABOUT
from adalink_jax.version import __version__


def summarize_config(
    model_dir: str, summary_writer, step: int, module: AdaptedModel, base: str, task: str, trainable: tuple[str, ...]
) -> None:
    """t5x's `summarize_config_fn`: its own `config.gin`, and `adapter.json`.

    Args:
      model_dir, summary_writer, step: as t5x gives them.
      module: the model.
      base: the checkpoint that the run starts from.
      task: the task or mixture that it is trained on.
      trainable: what is trained.
    """
    gin_utils.summarize_gin_config(model_dir, summary_writer, step)
    if jax.process_index() == 0:
        about = {
            **describe_adapter(module.adapter),
            "base": base,
            "task": task,
            "trainable": trainable,
            "version": __version__,
        }
        (epath.Path(model_dir) / ABOUT).write_text(json.dumps(about, indent=2, sort_keys=True) + "\n")
