"""AdaLink in t5x: this package's models, adapters and gin files in t5x's train loop, evaluation and inference.

Only gin/t5x/*.gin import it, and nothing else in the package does, since t5x is optional. It registers the configurables that
the shipped model, adapter and task files name, and lets gin find these files.
"""

import gin

try:
    import t5x as _t5x  # noqa: F401
except ModuleNotFoundError as e:
    raise ModuleNotFoundError(
        "adalink_jax.t5x needs t5x, which is not installed; install it (docs/t5x.md), or use `adalink train`."
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
