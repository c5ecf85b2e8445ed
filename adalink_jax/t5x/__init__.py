"""AdaLink under t5x: our models, adapters and gin files in t5x's own train loop, evaluation and inference.

Imported on demand alone (gin/t5x/*.gin do), where t5x is installed; nothing else of the package knows of it. It makes all that
our gin files name known to gin, and finds the shipped ones.
"""

import gin

try:
    import t5x as _host  # noqa: F401
except ModuleNotFoundError as e:
    raise ModuleNotFoundError(
        "adalink_jax.t5x works inside t5x, which is not installed; `adalink train` needs no t5x (docs/t5x.md)."
    ) from e

from adalink_jax.cli.arguments import import_configurables
from adalink_jax.configuration import gin_root
from adalink_jax.t5x.model import AdaptedEncoderDecoderModel, vocabulary
from adalink_jax.t5x.optimizer import AdapterOptimizer
from adalink_jax.t5x.restore import with_adapter
from adalink_jax.t5x.summary import summarize_config

import_configurables()
gin.add_config_file_search_path(str(gin_root().parent))

__all__ = ["AdaptedEncoderDecoderModel", "AdapterOptimizer", "summarize_config", "vocabulary", "with_adapter"]
