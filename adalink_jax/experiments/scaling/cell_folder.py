"""A cell of a study on the disk: its folder, and the small file that is kept of its result when the folder is not.

What is kept is one JSON file a cell, `KEPT/<stage>/<cell>.json`: its place in the study, scores, counts, times, versions, and a digest of its
settings, by which a file of another description is refused. Parameters are not kept: a base is trained again where a run that is
not finished needs it.
"""

import functools
import hashlib
import json
from collections.abc import Mapping

import numpy as np
from etils import epath

from adalink_jax import configuration
from adalink_jax.errors import UserError
from adalink_jax.experiments.scaling.study import BASES, RUNS, TUNING, Cell, Study
from adalink_jax.experiments.sweeps.run_folder import SUMMARY, RunFolder
from adalink_jax.files.whole_file import read_json, write_json

NEEDED = ("stage", "size", "regime", "order", "settings", "seconds", "versions")  # of what is kept


class CellFolder(RunFolder):
    """Of one cell.

    Args:
      study: gives its folder, and that of its results.
      cell: which.
      base: the base that it starts from; None of one that starts from random weights.
      settings: name in gin -> literal, of all that must stay.
      total_steps: when it is finished.
    """

    # Where things lie on this machine, which says nothing of what they are: what a run starts from is `base` below.
    places = ("initial_checkpoint_path", "data_dir", "model_dir", "vision_cache")

    def __init__(
        self, study: Study, cell: Cell, base: "CellFolder | None", settings: Mapping[str, str], total_steps: int
    ):
        if base is not None:  # a folder whose base was trained anew with other settings is refused
            settings = {**settings, "base": base.digest}
        super().__init__(f"{study.model_dir}/{cell.name}", cell.axes(), settings, total_steps)
        self.cell, self._study = cell, study
        self._file = None if study.kept is None else epath.Path(study.kept) / f"{cell.name}.json"

    def check(self) -> None:
        """Refuses a folder, or a file that was kept, that was made with other settings.

        Raises:
          UserError: names it.
        """
        super().check()
        kept = self._kept()
        if kept is not None and kept["settings"] != self.digest:
            raise UserError(
                f"{self._file} was made with other settings than the study has now; set them back, give another "
                f"Study.kept, or delete that file."
            )

    def finished(self) -> bool:
        """Whether its result is there; of a base, whether its parameters are."""
        return self.made() if self.cell.stage == BASES else self.result() is not None

    def made(self) -> bool:
        """Whether its folder holds all that was trained."""
        return super().finished()

    @functools.cached_property
    def digest(self) -> str:
        """Of its settings, but for defaults, and of its base's."""
        kept = {name: text for name, text in self.settings.items() if not name.lower().endswith(self.places)}
        kept = {name: text for name, text in kept.items() if text != configuration.default_of(name)}
        kept.setdefault("base", None)
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]

    def result(self) -> dict | None:
        """What is known of it: its axes, and of a base `parameters`, `seconds`; of the others see `_of_pack`. None if it is not done."""
        kept = self._kept()
        if kept is not None:
            return kept
        return self._read() if self.made() else None

    def keep(self) -> None:
        """Writes the result to the folder of results, if there is one."""
        if self._file is not None and self._kept() is None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._file, self._read())

    def _start(self, metric: str, member: str) -> float:
        """A member's score on validation before the first step: the frozen base's, where the method starts as the identity."""
        lines = (self.path / "members" / member / "metrics.jsonl").read_text().splitlines()
        return next(row[name] for row in map(json.loads, lines) if (name := f"validation/{metric}") in row)

    def _kept(self) -> dict | None:
        return read_result(self._file) if self._file is not None and self._file.exists() else None

    def _read(self) -> dict:
        summary = read_json(self.path / SUMMARY)
        facts = {
            "stage": self.cell.stage,
            **self.cell.axes(),
            "order": self._study.order(self.cell),
            "settings": self.digest,
        }
        facts |= _of_base(summary) if self.cell.stage == BASES else _of_pack(summary, self.cell.stage == TUNING)
        if self.cell.stage == RUNS:
            facts["reference"] = self._study.reference
        if self.cell.stage != BASES:
            facts["start"] = _rounded([self._start(summary["metric"], member["name"]) for member in summary["members"]])
        return facts | {"seconds": summary["seconds"], "versions": summary["versions"]}


def _of_base(summary: dict) -> dict:
    return {"parameters": summary["trainable"], "steps": summary["steps"]}


def _of_pack(summary: dict, tuning: bool) -> dict:
    """`metric`, `trained`, `parameters`, `base` (fingerprint), `steps`, and lists over the members: `learning_rate`, `seed`,
    `validation`, `step` (the best), and `test`, but for tuning. `start` is added: each member's validation score at step 0."""
    members, metric = summary["members"], summary["metric"]
    trained = members[0]["trainable"]
    column = lambda name: [member[name] for member in members]
    out = {"metric": metric, "trained": trained, "frozen": summary["frozen"], "base": summary["base"]}
    out |= {"steps": summary["steps"], "learning_rate": column("learning_rate"), "seed": column("seed")}
    out |= {"validation": _rounded(column("validation")), "step": column("step")}
    return out if tuning else out | {"test": _rounded(column(f"adapted_{metric}"))}


def _rounded(values: list[float]) -> list[float]:
    return np.round(values, 6).tolist()


def chosen_rate(result: dict) -> float:
    """The learning rate of the highest mean on validation; the lowest such."""
    rates = np.array(result["learning_rate"])
    scores = np.array(result["validation"])
    mean = {float(rate): float(scores[rates == rate].mean()) for rate in np.unique(rates)}
    return max(mean, key=mean.get)


def read_result(file: epath.Path) -> dict:
    """What a file keeps.

    Raises:
      UserError: if it is damaged.
    """
    result = read_json(file)
    if result is None or any(name not in result for name in NEEDED):
        raise UserError(f"{file} is damaged, or no result of a study; delete it, and run the study again.")
    return result


def holds_results(folder: str) -> bool:
    """Whether a folder is one of results that were kept."""
    return any((epath.Path(folder) / stage).is_dir() for stage in (TUNING, RUNS)) and not any(
        (path / SUMMARY).exists() for path in epath.Path(folder).glob("*/*")
    )


def read_results(folder: str) -> list[dict]:
    """All results that were kept in a folder, in the order of the study's axes.

    Raises:
      UserError: if there are none, or one is damaged.
    """
    files = sorted(epath.Path(folder).glob("*/*.json")) if epath.Path(folder).is_dir() else []
    out = [read_result(file) for file in files]
    if not out:
        raise UserError(f"There are no results of a study in {folder}.")
    return sorted(out, key=lambda row: (row["stage"], row["order"]))
