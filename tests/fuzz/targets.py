"""All targets by the kind of their input."""

from fuzz import checkpoints, data_files, launchers, runs, settings

TARGETS = {**checkpoints.TARGETS, **runs.TARGETS, **settings.TARGETS, **data_files.TARGETS, **launchers.TARGETS}
