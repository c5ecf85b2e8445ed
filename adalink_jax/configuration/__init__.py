"""gin with t5x's conventions: flags, files, and checks that no setting is misspelt, unset or unused.

Imports no numerical library, and from this package only `errors` and `moved`.
"""

from adalink_jax.configuration.flags import GinFlags, parse_flags
from adalink_jax.configuration.gin_checks import check_all_used
from adalink_jax.configuration.gin_files import gin_root
from adalink_jax.configuration.load import (
    as_in_0_1_0,
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
    "as_in_0_1_0",
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
