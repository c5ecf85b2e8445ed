"""Files of parameters: base models of every format and family, adapter folders, and the fingerprint that ties the two."""

from adalink_jax.checkpoints.adapter_facts import UNVERIFIED, AdapterFacts, BaseReference
from adalink_jax.checkpoints.adapter_files import (
    check_base,
    check_base_settings,
    check_method,
    check_shapes,
    load_adapter,
    open_adapter,
    own_base,
    read_adapter,
    save_adapter,
)
from adalink_jax.checkpoints.architecture import (
    check_fit,
    check_settings,
    config_fields,
    configs_of,
    settings_by_part,
    settings_of,
    sizes_of,
    stated_settings,
)
from adalink_jax.checkpoints.convert import PASSES, check_destination, convert
from adalink_jax.checkpoints.digests import digests, fingerprint, fingerprint_of_source, reference_of_source
from adalink_jax.checkpoints.families.family import family_of_config
from adalink_jax.checkpoints.formats import folder_of, open_source
from adalink_jax.checkpoints.load_base import Base, load_base
from adalink_jax.checkpoints.native import save_base
from adalink_jax.checkpoints.source import Source, counted
from adalink_jax.checkpoints.t5x_run import extract_adapter, open_t5x_run
from adalink_jax.files.base_formats import FORMATS

t5_sizes, t5_fields = sizes_of, config_fields  # names of earlier versions

__all__ = [
    "FORMATS",
    "PASSES",
    "AdapterFacts",
    "Base",
    "BaseReference",
    "Source",
    "check_base",
    "check_base_settings",
    "check_destination",
    "check_fit",
    "check_method",
    "check_settings",
    "check_shapes",
    "config_fields",
    "configs_of",
    "convert",
    "counted",
    "UNVERIFIED",
    "digests",
    "extract_adapter",
    "family_of_config",
    "fingerprint",
    "fingerprint_of_source",
    "reference_of_source",
    "folder_of",
    "load_adapter",
    "load_base",
    "open_adapter",
    "open_source",
    "open_t5x_run",
    "own_base",
    "read_adapter",
    "save_adapter",
    "save_base",
    "settings_by_part",
    "settings_of",
    "sizes_of",
    "stated_settings",
    "t5_fields",
    "t5_sizes",
]
