"""A cell of a study on disk: its folder, and the small result file that remains when the folder does not.

The result file is JSON, `KEPT/<stage>/<cell>.json`: the cell's place in the study, scores, counts, times, versions, and a digest of its
settings; a file made with other settings is refused. Parameters are not in it: a base is trained again if an unfinished run
needs it.
"""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from adalink_jax import configuration
from adalink_jax.errors import UserError
from adalink_jax.experiments.comparisons.learning_rate import TUNED, Tuned, choose
from adalink_jax.experiments.scaling.study import BASES, RUNS, TUNING, Cell, Study
from adalink_jax.experiments.sweeps.run_folder import SUMMARY, RunFolder
from adalink_jax.files.metric_log import read_metrics
from adalink_jax.files.places import path_of
from adalink_jax.files.typed_json import Form, read_state
from adalink_jax.files.whole_file import write_json


class _Result(Form):
    """A result file; those of a tuning and of runs have all fields."""

    stage: str
    size: str
    regime: str
    order: list[int]
    settings: str
    seconds: float
    versions: dict[str, str]
    task: str | None = None
    method: str | None = None
    metric: str | None = None
    trained: int | None = None
    frozen: int | None = None
    parameters: int | None = None
    steps: int | None = None
    base: dict[str, Any] | None = None
    learning_rate: list[float] = []
    seed: list[int] = []
    validation: list[float | None] = []
    step: list[int] = []
    test: list[float | None] = []
    start: list[float | None] = []


class CellFolder(RunFolder):
    """The folder of one cell.

    Args:
      study: gives the cell's folder, and that of its result.
      cell: the cell.
      base: the base that it starts from; None if it starts from random weights.
      settings: gin name -> literal, of everything that must stay the same.
      total_steps: the number of steps at which it is finished.
    """

    # Places on this machine, which do not change what a run is; what it starts from is the setting `base` below.
    local_settings = ("initial_checkpoint_path", "data_dir", "model_dir", "vision_cache")

    def __init__(
        self, study: Study, cell: Cell, base: "CellFolder | None", settings: Mapping[str, str], total_steps: int
    ):
        if base is not None:  # so that a folder is refused if its base was trained again with other settings
            settings = {**settings, "base": base.digest}
        super().__init__(f"{study.model_dir}/{cell.name}", cell.axes(), settings, total_steps)
        self.cell, self._study, self._base = cell, study, base
        self._file = None if study.kept is None else path_of(study.kept) / f"{cell.name}.json"

    def check(self) -> None:
        """Refuses a folder or a result file that was made with other settings.

        Raises:
          UserError: names it.
        """
        super().check()
        result = self._read_kept()
        if result is not None and result["settings"] not in (self.digest, self.digest_in_0_1_0):
            raise UserError(
                f"{self._file} was made with other settings than the study has now; restore them, choose another "
                f"Study.kept, or delete that file."
            )

    def finished(self) -> bool:
        """Whether its result exists; for a base, whether its parameters do."""
        return self.trained() if self.cell.stage == BASES else self.result() is not None

    def trained(self) -> bool:
        """Whether its folder has everything that was trained, and chosen."""
        return super().finished() and (self.cell.stage != TUNING or (self.path / TUNED).exists())

    @property
    def settings_in_0_1_0(self) -> dict[str, str]:
        """The settings as version 0.1.0 recorded them, with its digest of the base."""
        return super().settings_in_0_1_0 | ({} if self._base is None else {"base": self._base.digest_in_0_1_0})

    @functools.cached_property
    def digest(self) -> str:
        """A digest of its settings, without those at their defaults, and of its base's."""
        return self._digest(self.settings)

    @functools.cached_property
    def digest_in_0_1_0(self) -> str:
        """The digest as version 0.1.0 recorded it."""
        return self._digest(self.settings_in_0_1_0)

    def _digest(self, settings: Mapping[str, str]) -> str:
        settings = {
            name: text
            for name, text in settings.items()
            if not name.lower().endswith(self.local_settings) and text != configuration.default_of(name)
        }
        return hashlib.sha256(json.dumps({"base": None} | settings, sort_keys=True).encode()).hexdigest()[:16]

    def result(self) -> dict[str, Any] | None:
        """The cell's result, None until it is finished: its axes, for a base `parameters`, for the others see `_pack_facts`."""
        result = self._read_kept()
        return self._read_folder() if result is None and self.trained() else result

    def keep(self) -> None:
        """Writes the result into the folder of results, if the study has one."""
        if self._file is not None and self._read_kept() is None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._file, self._read_folder())

    def _read_kept(self) -> dict[str, Any] | None:
        return read_result(self._file) if self._file is not None and self._file.exists() else None

    def _read_folder(self) -> dict[str, Any]:
        summary, stage = self.summary(), self.cell.stage
        if summary is None:
            raise UserError(f"{self.path / SUMMARY} is missing or damaged; run the study again.")
        facts = {"stage": stage, **self.cell.axes(), "order": self._study.order(self.cell), "settings": self.digest}
        if stage == BASES:
            facts |= {"parameters": summary["trainable"], "steps": summary["steps"]}
        else:
            facts |= _pack_facts(summary, with_test=stage == RUNS)
            if stage == RUNS:
                facts["reference"] = self._study.reference
            starts = [self._first_score(summary["metric"], member["name"]) for member in summary["members"]]
            facts["start"] = _rounded(starts)
        made_with = {name: summary[name] for name in ("versions", "segments") if name in summary}
        return facts | {"seconds": summary["seconds"]} | made_with

    def _first_score(self, metric: str, member: str) -> float:
        """A member's score on validation before the first step: the frozen base's, if the method starts as the identity."""
        rows, name = read_metrics(self.path / "members" / member), f"validation/{metric}"
        return next(row[name] for row in rows if name in row)


def _pack_facts(summary: Mapping[str, Any], with_test: bool) -> dict[str, Any]:
    """`metric`, `trained`, `frozen` (parameters), `base` (fingerprint), `steps`; per member `learning_rate`, `seed`, `validation`,
    `step` (the best), and with tests `test`. `start` is added: each member's validation score at step 0."""
    members, metric = summary["members"], summary["metric"]
    column = lambda name: [member[name] for member in members]
    facts = {"metric": metric, "trained": members[0]["trainable"], "frozen": summary["frozen"], "base": summary["base"]}
    facts |= {"steps": summary["steps"], "learning_rate": column("learning_rate"), "seed": column("seed")}
    facts |= {"validation": _rounded(column("validation")), "step": column("step")}
    return facts | ({"test": _rounded(column(f"adapted_{metric}"))} if with_test else {})


def _rounded(values: Sequence[float]) -> list[float]:
    return np.round(values, 6).tolist()


def chosen_rate(result: Mapping[str, Any]) -> float:
    """The learning rate that the result of a tuning chooses."""
    return trials(result).learning_rate


def trials(result: Mapping[str, Any]) -> Tuned:
    """The trials of the result of a tuning, and the choice among them."""
    return choose(result["learning_rate"], result["validation"])


def read_result(file: epath.Path) -> dict[str, Any]:
    """Reads a result file.

    Raises:
      UserError: if it is damaged.
    """
    result = read_state(file, _Result)
    if result is None:
        raise UserError(f"{file} is damaged, or not a result of a study; delete it, and run the study again.")
    return result


def holds_results(folder: str) -> bool:
    """Whether a folder has the result files of a study."""
    return any((path_of(folder) / stage).is_dir() for stage in (TUNING, RUNS)) and not any(
        (path / SUMMARY).exists() for path in path_of(folder).glob("*/*")
    )


def read_results(folder: str) -> list[dict[str, Any]]:
    """Reads all result files of a study, in the order of its axes.

    Raises:
      UserError: if the folder has no results, or one is damaged.
    """
    files = sorted(path_of(folder).glob("*/*.json")) if path_of(folder).is_dir() else []
    results = [read_result(file) for file in files]
    if not results:
        raise UserError(f"There are no results of a study in {folder}.")
    return sorted(results, key=lambda row: (row["stage"], row["order"]))
