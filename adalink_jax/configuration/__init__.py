"""gin with t5x's conventions: flags, files, and checks that no setting is misspelt, unset or unused.

Imports no numerical library, and from this package only `errors`, `moved` and `typed_values`.
"""

from adalink_jax.configuration.flags import GinFlags, parse_flags
from adalink_jax.configuration.gin_checks import check_all_used, check_reachable
from adalink_jax.configuration.gin_files import gin_root
from adalink_jax.configuration.load import (
    as_in_0_1_0,
    bindings,
    consent_option,
    default_of,
    isolated,
    load,
    operative_config,
    require,
    train_options,
    used_settings,
)
from adalink_jax.configuration.modules import import_module
from adalink_jax.configuration.setting_names import as_named, named_as
from adalink_jax.configuration.value_types import check_argument, check_fields
from adalink_jax.configuration.working_folder import check_working_folder

__all__ = [
    "GinFlags",
    "as_in_0_1_0",
    "as_named",
    "bindings",
    "check_all_used",
    "check_argument",
    "check_fields",
    "check_reachable",
    "check_working_folder",
    "consent_option",
    "default_of",
    "gin_root",
    "import_module",
    "isolated",
    "load",
    "named_as",
    "operative_config",
    "parse_flags",
    "require",
    "train_options",
    "used_settings",
]
