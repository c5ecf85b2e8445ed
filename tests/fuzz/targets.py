"""All targets by the kind of their input."""

from fuzz import checkpoints, data_files, launchers

TARGETS = {**checkpoints.TARGETS, **data_files.TARGETS, **launchers.TARGETS}
