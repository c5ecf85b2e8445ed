"""AdaLink under t5x: our models, adapters and gin files in t5x's own train loop, evaluation and inference.

Imported on demand alone (gin/t5x/*.gin do), where t5x is installed; nothing else of the package knows of it. With it gin knows
what our files of models, adapters and tasks name, and finds the shipped ones.
"""

import gin

try:
    import t5x as _host  # noqa: F401
except ModuleNotFoundError as e:
    raise ModuleNotFoundError(
        "adalink_jax.t5x works inside t5x, which is not installed; `adalink train` needs no t5x (docs/t5x.md)."
    ) from e

from adalink_jax import adapters, data, models, parallel  # noqa: F401
from adalink_jax.configuration import gin_root
from adalink_jax.t5x.model import AdaptedEncoderDecoderModel, vocabulary
from adalink_jax.t5x.optimizer import AdapterOptimizer
from adalink_jax.t5x.restore import with_adapter
from adalink_jax.t5x.summary import summarize_config
from adalink_jax.training import optimizers, prompt_start, run  # noqa: F401
from adalink_jax.training.packs import run_pack  # noqa: F401

gin.add_config_file_search_path(str(gin_root().parent))

__all__ = ["AdaptedEncoderDecoderModel", "AdapterOptimizer", "summarize_config", "vocabulary", "with_adapter"]
