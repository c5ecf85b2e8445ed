"""What crosses to transformers, PyTorch and the Hub: a base compared with them, adapters exported and pushed."""

from adalink_jax.interop.folded import export_folded
from adalink_jax.interop.hook import MODULE as HOOK_MODULE
from adalink_jax.interop.hook import export_hook
from adalink_jax.interop.model_card import describe
from adalink_jax.interop.push import check_repository, prepare, push, repo_of
from adalink_jax.interop.verify import TOLERANCE, Check, Comparison, Verification, verify_base

__all__ = [
    "HOOK_MODULE",
    "TOLERANCE",
    "Check",
    "Comparison",
    "Verification",
    "check_repository",
    "describe",
    "export_folded",
    "export_hook",
    "prepare",
    "push",
    "repo_of",
    "verify_base",
]
