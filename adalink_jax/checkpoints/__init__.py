"""Files of parameters: native base models, adapter folders, and the fingerprint that ties the two together."""

from adalink_jax.checkpoints.adapter_files import load_adapter, save_adapter
from adalink_jax.checkpoints.fingerprint import digests, fingerprint
from adalink_jax.checkpoints.native import load_base, save_base

__all__ = ["digests", "fingerprint", "load_adapter", "load_base", "save_adapter", "save_base"]
