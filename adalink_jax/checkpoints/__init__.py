"""Files of parameters: base models of every format, adapter folders, and the fingerprint that ties the two together."""

from adalink_jax.checkpoints.adapter_files import load_adapter, save_adapter
from adalink_jax.checkpoints.architecture import settings_of, t5_sizes
from adalink_jax.checkpoints.fingerprint import digests, fingerprint
from adalink_jax.checkpoints.load import Base, folder_of, load_base, open_source
from adalink_jax.checkpoints.native import save_base

__all__ = [
    "Base",
    "digests",
    "fingerprint",
    "folder_of",
    "load_adapter",
    "load_base",
    "open_source",
    "save_adapter",
    "save_base",
    "settings_of",
    "t5_sizes",
]
