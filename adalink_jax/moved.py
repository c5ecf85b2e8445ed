"""Old names of what moved: imports and gin selectors with the old names still work.

`MODULES` maps each old dotted name to the new one. `import adalink_jax` installs the import finder, and an import of an old name gives
a `DeprecationWarning`. `configuration.moved_selectors` renames gin's selectors, silently, since configurations of old runs have them.
Old names are kept for at least one minor version, and for as long as files of released versions name them.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MODULES = {
    "adalink_jax.data.iterators": "adalink_jax.data.batch_order",
    "adalink_jax.checkpoints.load": "adalink_jax.checkpoints.load_base",
    "adalink_jax.checkpoints.safetensors_file": "adalink_jax.files.safetensors_file",
    "adalink_jax.checkpoints.t5x": "adalink_jax.checkpoints.t5x_format",
    "adalink_jax.configuration.checks": "adalink_jax.configuration.gin_checks",
    "adalink_jax.configuration.files": "adalink_jax.configuration.gin_files",
    "adalink_jax.data.files": "adalink_jax.data.user_files",
    "adalink_jax.data.files.checks": "adalink_jax.data.user_files.row_checks",
    "adalink_jax.data.files.guess": "adalink_jax.data.user_files.column_guess",
    "adalink_jax.data.files.pictures": "adalink_jax.data.user_files.image_files",
    "adalink_jax.data.files.reading": "adalink_jax.data.user_files.file_splits",
    "adalink_jax.data.files.store": "adalink_jax.data.user_files.row_store",
    "adalink_jax.data.files.tables": "adalink_jax.data.user_files.table_files",
    "adalink_jax.data.files.task": "adalink_jax.data.user_files.file_task",
    "adalink_jax.data.files.templates": "adalink_jax.data.user_files.text_templates",
    "adalink_jax.data.files.workers": "adalink_jax.data.user_files.workers",
    "adalink_jax.data.metrics.checks": "adalink_jax.data.metrics.metric_arguments",
    "adalink_jax.data.metrics.glue": "adalink_jax.data.metrics.glue_scores",
    "adalink_jax.data.metrics.vqa": "adalink_jax.data.metrics.vqa_accuracy",
    "adalink_jax.launching.templates": "adalink_jax.launching.job_templates",
    "adalink_jax.notices": "adalink_jax.preemption",
    "adalink_jax.studies.behaviours": "adalink_jax.contract.behaviours",
    "adalink_jax.studies.case": "adalink_jax.contract.case",
    "adalink_jax.studies.compare": "adalink_jax.experiments.comparisons.compare",
    "adalink_jax.studies.cost": "adalink_jax.experiments.comparisons.cost",
    "adalink_jax.studies.page": "adalink_jax.reports.page",
    "adalink_jax.studies.report": "adalink_jax.reports.comparison_report",
    "adalink_jax.studies.results": "adalink_jax.reports.results",
    "adalink_jax.studies.run_folder": "adalink_jax.experiments.sweeps.run_folder",
    "adalink_jax.studies.runs_report": "adalink_jax.reports.runs_report",
    "adalink_jax.studies.scaling": "adalink_jax.reports.fits",
    "adalink_jax.studies.study": "adalink_jax.experiments.scaling.study",
    "adalink_jax.studies.study_folder": "adalink_jax.experiments.scaling.cell_folder",
    "adalink_jax.studies.study_report": "adalink_jax.reports.scaling_report",
    "adalink_jax.studies.style": "adalink_jax.reports.style",
    "adalink_jax.studies.sweep": "adalink_jax.experiments.sweeps.sweep",
    "adalink_jax.studies.sweep_board": "adalink_jax.experiments.sweeps.board",
    "adalink_jax.studies.sweep_plan": "adalink_jax.experiments.sweeps.hardware_plan",
    "adalink_jax.studies.sweep_runner": "adalink_jax.experiments.sweeps.runner",
    "adalink_jax.studies.tiny": "adalink_jax.contract.tiny",
    "adalink_jax.studies.tune": "adalink_jax.experiments.comparisons.tune",
    "adalink_jax.training.growing_file": "adalink_jax.files.growing_file",
    "adalink_jax.training.members": "adalink_jax.training.packs.members",
    "adalink_jax.training.pack": "adalink_jax.training.packs.pack",
    "adalink_jax.training.pictures": "adalink_jax.training.contact_sheet",
    "adalink_jax.training.run_pack": "adalink_jax.training.packs.run_pack",
    "adalink_jax.training.tables": "adalink_jax.training.parameter_tables",
    "adalink_jax.training.vision_cache": "adalink_jax.training.fill_vision_cache",
    "adalink_jax.training.whole_file": "adalink_jax.files.whole_file",
}
_GONE = {"adalink_jax.studies"}  # packages that have no modules left


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules by their old names, and packages that are gone as empty ones."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname in _GONE:
            return importlib.machinery.ModuleSpec(fullname, None, is_package=True)
        return importlib.machinery.ModuleSpec(fullname, self) if fullname in MODULES else None

    def exec_module(self, module: types.ModuleType) -> None:
        new = MODULES[module.__name__]
        warnings.warn(f"{module.__name__} is now {new}; import that instead.", DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = importlib.import_module(new)


def names(module: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a module from which names moved.

    Args:
      module: its `__name__`.
      homes: name -> the module that has it now.
    """

    def getattr_of_module(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(f"{module}.{name} is now in {homes[name]}; import it there.", DeprecationWarning, stacklevel=2)
        return getattr(importlib.import_module(homes[name]), name)

    return getattr_of_module


def install() -> None:
    """Makes the old names of modules importable."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        # First, as the new place of a package may have a module with the old short name.
        sys.meta_path.insert(0, _Finder())
