"""gin in t5x's habits: flags, files, and checks that leave no setting misspelt, unset or unused.

Imports nothing of the project but its errors, and no numerical library.
"""

from adalink_jax.configuration.flags import GinFlags, parse_flags
from adalink_jax.configuration.gin_checks import check_all_used
from adalink_jax.configuration.gin_files import gin_root
from adalink_jax.configuration.load import (
    bindings,
    default_of,
    isolated,
    load,
    operative_config,
    original_message,
    require,
    used_settings,
)

__all__ = [
    "GinFlags",
    "bindings",
    "check_all_used",
    "default_of",
    "gin_root",
    "isolated",
    "load",
    "operative_config",
    "original_message",
    "parse_flags",
    "require",
    "used_settings",
]
