"""What crosses to transformers and PyTorch: a base compared with them, adapters exported for them."""

from adalink_jax.interop.folded import export_folded
from adalink_jax.interop.hook import MODULE as HOOK_MODULE
from adalink_jax.interop.hook import export_hook
from adalink_jax.interop.verify import TOLERANCE, Check, Comparison, Verification, verify_base

__all__ = [
    "HOOK_MODULE",
    "TOLERANCE",
    "Check",
    "Comparison",
    "Verification",
    "export_folded",
    "export_hook",
    "verify_base",
]
