"""AdaLink-JAX: adapt frozen T5- and PaLI-style encoder-decoders through their input embeddings.

Names are resolved on first use, so that `import adalink_jax` (and `adalink --help`) costs nothing.
"""

import importlib
from typing import Any

from adalink_jax import moved
from adalink_jax.version import __version__

moved.install()

_HOMES = {
    "AdaLink": "adapters",
    "AdaLinkAdapter": "adapters",
    "AdaptedModel": "adapters",
    "AttachedModel": "python_api",
    "Chain": "adapters",
    "LayerAdapter": "adapters",
    "LoRA": "adapters",
    "NormTuning": "adapters",
    "PositionOffsets": "adapters",
    "PromptTuning": "adapters",
    "BLIP2": "models",
    "PaLI": "models",
    "PaliGemma": "models",
    "PaliGemmaConfig": "models",
    "Pix2Struct": "models",
    "Pix2StructConfig": "models",
    "Predictor": "serving",
    "QFormerConfig": "models",
    "T5": "models",
    "T5Config": "models",
    "T5Gemma": "models",
    "T5Gemma2": "models",
    "T5Gemma2Config": "models",
    "T5GemmaConfig": "models",
    "ViTConfig": "models",
    "attach": "python_api",
    "load_adapter": "python_api",
    "load_base": "python_api",
}

__all__ = ["__version__", *_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]  # the table above


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"adalink_jax.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'adalink_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
