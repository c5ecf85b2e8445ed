"""All runs below a folder as one pyarrow table: one row per run, finished or not.

Columns, in this order: `run` (its folder), `state`; the settings that a sweep varies; gin's macros, such as `RANK`; all settings by
their gin names; then the measurements: `validation/METRIC` (of the best step), `test/METRIC`, `frozen/METRIC` (on test, before the first step),
`baseline/METRIC` (on test, the best method without a model), `trained` (parameters), `step` (the best), `steps`, `seconds`, `step_seconds`, `step_flops` (of a step's matrix products, with those
that remat recomputes), and `version/PACKAGE`.
"""

import ast
import collections
import dataclasses
import itertools
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from etils import epath

from adalink_jax.configuration.gin_sources import RUN_CONFIG, recorded_macros
from adalink_jax.errors import UserError
from adalink_jax.experiments.sweeps.run_folder import DONE, RECORD, SUMMARY, last_step, state_of
from adalink_jax.files.places import path_of
from adalink_jax.files.run_files import Record, Summary
from adalink_jax.files.typed_json import read_state
from adalink_jax.files.whole_file import writing
from adalink_jax.near_names import did_you_mean, near, near_paths
from adalink_jax.reports.statistics import Estimate, mean
from adalink_jax.training.segments import environment_note

UNFINISHED = "unfinished"  # of a run outside a sweep, whose attempts are not recorded
MARKS = (SUMMARY, RECORD, RUN_CONFIG, "checkpoints", "before.json")  # files of a run's folder
NAMED = 3  # runs in a note
SCORES = ("validation/", "test/", "frozen/", "baseline/")  # how their columns begin
COUNTS = ("trained", "step", "steps")
MEASURED = (*COUNTS, "seconds", "step_seconds", "step_flops")
MEMBER_SETTINGS = {"learning_rate": "LEARNING_RATE", "seed": "RANDOM_SEED", "rank": "RANK"}


@dataclasses.dataclass(frozen=True)
class Results:
    """The table.

    Attributes:
      table: one row per run.
      settings: the names of its columns of settings, macros first.
      varied: those of them that a sweep or a pack varies.
      summaries: of the runs, in the order of the rows; {} of an unfinished one.
    """

    table: pa.Table
    settings: tuple[str, ...]
    varied: tuple[str, ...]
    summaries: tuple[Mapping[str, Any], ...]

    @property
    def metrics(self) -> list[str]:
        """The columns of scores."""
        return [name for name in self.table.column_names if name.startswith(SCORES)]

    @property
    def finished(self) -> int:
        """The number of finished runs."""
        return sum(state == DONE for state in self.table["state"].to_pylist())

    def summary_columns(self) -> list[str]:
        """The columns for people: settings that differ, scores and measurements, without empty ones."""
        filled = [name for name in (*self.metrics, *MEASURED) if self.table[name].null_count < self.table.num_rows]
        return ["run", "state", *self.differing(), *filled]

    def learned_note(self) -> str | None:
        """One sentence if runs learned nothing, or less than a method without a model, with the first of them; else None."""
        notes = [(name, text) for name, summary in zip(self.table["run"].to_pylist(), self.summaries)
                 if (text := summary.get("nothing_learned"))]  # fmt: skip
        if not notes:
            return None
        counted = "1 run" if len(notes) == 1 else f"{len(notes)} of {self.table.num_rows} runs"
        return f"{counted} learned nothing, or less than a method without a model. {notes[0][0]}: {notes[0][1]}"

    def untrained_note(self) -> str | None:
        """One sentence that names the runs whose scores are not a trained model's, and whose they are; else None."""
        named: dict[str, list[str]] = {}
        for name, summary in zip(self.table["run"].to_pylist(), self.summaries):
            if summary.get("step") == 0 and (whose := summary.get("scores_are_of")):
                named.setdefault(whose, []).append(name)
        said = [
            f"{', '.join(names[:NAMED])}{f' and {len(names) - NAMED:,} more' if len(names) > NAMED else ''} are those of {whose}"
            for whose, names in named.items()
        ]
        return f"No step was better than step 0, so the scores of {'; of '.join(said)}." if said else None

    def environments_note(self) -> str | None:
        """One sentence if the finished runs were made with different versions or hardware; else None."""
        return environment_note(self.summaries, "runs")

    def differing(self) -> list[str]:
        """Settings that differ between runs; of settings that change together only one, preferably one that a sweep varies."""
        chosen: dict[str, list[Any]] = {}
        for name in (*self.varied, *self.settings):
            values = self.table[name].to_pylist()
            if len({str(value) for value in values if value is not None}) > 1 and not any(
                _change_together(values, others) for others in chosen.values()
            ):
                chosen[name] = values
        return list(chosen)

    def column(self, name: str) -> str:
        """Finds a column by its name, or by the last part of it (`phi` for `AdaLinkAdapter.phi`).

        Raises:
          UserError: if there is no such column, or several.
        """
        columns = self.table.column_names
        if name in columns:
            return name
        by_last_part: dict[str, list[str]] = {}
        for column in columns:
            by_last_part.setdefault(column.replace("/", ".").split(".")[-1], []).append(column)
        matches = by_last_part.get(name, [])
        if len(matches) > 1:
            raise UserError(f"Several columns are called {name}: {', '.join(matches)}; name one of them.")
        if not matches:
            in_lower_case = collections.defaultdict(list)
            for part, named in by_last_part.items():
                in_lower_case[part.lower()] += named
            meant = [column for part in near(name.lower(), in_lower_case) for column in in_lower_case[part]][:3]
            listed = f"; there are, for example, {', '.join([*self.differing(), *self.metrics][:5])}."
            raise UserError(f"There is no column called {name}{did_you_mean(meant, listed)}")
        return matches[0]

    def where(self, conditions: Sequence[str]) -> "Results":
        """Selects the runs that satisfy every `NAME=VALUE`.

        Raises:
          UserError: for a condition of another form, or if no run is left.
        """
        mask = np.ones(self.table.num_rows, bool)
        for condition in conditions:
            name, equals, text = condition.partition("=")
            if not equals:
                raise UserError(f"--where takes NAME=VALUE, not {condition!r}.")
            wanted = _value(text)
            mask &= [value == wanted or str(value) == text for value in self.table[self.column(name)].to_pylist()]
        if not mask.any():
            raise UserError(f"No run has {' and '.join(conditions)}.")
        summaries = tuple(itertools.compress(self.summaries, mask))
        return dataclasses.replace(self, table=self.table.filter(pa.array(mask)), summaries=summaries)

    def grouped(self, by: Sequence[str]) -> pa.Table:
        """Groups the finished runs: one row per combination of `by`, with `runs` (their number), and each metric's mean and 95 %
        interval (`METRIC`, `METRIC low`, `METRIC high`; none of a single run, or if all runs agree).

        Raises:
          UserError: for an unknown column, or if no run is finished.
        """
        columns = [self.column(name) for name in by]
        groups: dict[tuple, list[dict]] = {}
        for row in self.table.to_pylist():
            if row["state"] == DONE:
                groups.setdefault(tuple(row[name] for name in columns), []).append(row)
        if not groups:
            raise UserError("No run is finished: there is nothing to group.")
        rows = []
        for key in sorted(groups, key=lambda key: [_in_order(str(value)) for value in key]):
            members = groups[key]
            row = dict(zip(columns, key)) | {"runs": len(members)}
            for metric in self.metrics:
                values = [member[metric] for member in members if member[metric] is not None]
                estimate = mean(values) if values else Estimate(math.nan)
                numbers = {"": estimate.value, " low": estimate.low, " high": estimate.high}
                row |= {metric + end: None if math.isnan(number) else number for end, number in numbers.items()}
            rows.append(row)
        return _table(rows, list(rows[0]))


@dataclasses.dataclass(frozen=True)
class _Run:
    """One row: what was measured, gin's macros, all settings, those that a sweep varies, and the summary."""

    facts: dict[str, Any]
    macros: dict[str, Any]
    settings: dict[str, Any]
    varied: dict[str, Any]
    summary: Mapping[str, Any]


def _change_together(values: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether two settings separate the same runs; those that lack one of them, as unfinished runs do, do not count."""
    pairs = {(str(x), str(y)) for x, y in zip(values, others) if x is not None and y is not None}
    return 1 < len(pairs) == len({x for x, _ in pairs}) == len({y for _, y in pairs})


def collect(folder: str) -> Results:
    """Reads every run below a folder: single runs and members of packs, of any command.

    Raises:
      UserError: if there is no run.
    """
    root = path_of(folder)
    runs = [run for path in _folders(root) for run in _read(path, root)] if root.is_dir() else []
    if not runs:
        raise UserError(f"There is no run in {folder}{did_you_mean(near_paths(folder))}")
    varied = list(dict.fromkeys(name for run in runs for name in run.varied))
    settings = list(
        dict.fromkeys(name for kind in ("macros", "settings") for run in runs for name in sorted(getattr(run, kind)))
    )
    flat = [{**run.facts, **run.macros, **run.settings, **run.varied} for run in runs]
    names = {name for row in flat for name in row}
    kind = lambda name: next(i for i, beginning in enumerate(SCORES) if name.startswith(beginning))
    selecting = lambda name: f"validation/{name.split('/', 1)[1]}" in names
    scores = sorted(
        (name for name in names if name.startswith(SCORES)), key=lambda name: (kind(name), not selecting(name), name)
    )
    versions = sorted(name for name in names if name.startswith("version/"))
    unvaried = [name for name in settings if name not in varied]
    order = ["run", "state", *varied, *unvaried, *scores, *MEASURED, *versions]
    return Results(_table(flat, order), tuple(settings), tuple(varied), tuple(run.summary for run in runs))


def write(path: str, table: pa.Table) -> None:
    """Writes `*.csv` or `*.parquet`.

    Raises:
      UserError: for another ending.
    """
    out = path_of(path)
    if out.suffix not in (".csv", ".parquet"):
        raise UserError(f"--out is {path!r}; its name must end in .csv or .parquet.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with writing(out) as file:
        if out.suffix == ".csv":
            pyarrow.csv.write_csv(table, file)
        else:
            pyarrow.parquet.write_table(table, file)


def _folders(folder: epath.Path) -> Iterator[epath.Path]:
    """The folders of runs, in order; does not search inside a run's folder."""
    if any((folder / mark).exists() for mark in MARKS):
        yield folder
        return
    linked = lambda child: os.path.islink(os.fspath(child))  # a link would count a run twice
    children = [x for x in folder.iterdir() if not x.name.startswith(".") and x.is_dir() and not linked(x)]
    for child in sorted(children, key=lambda path: _in_order(path.name)):
        yield from _folders(child)


def _in_order(text: str) -> list[tuple[float, str]]:
    """The key that sorts texts with the numbers in them as numbers: 1e-3, 0.01, 9, 10."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)", text)
    return [(float(part), "") if i % 2 else (0.0, part) for i, part in enumerate(parts)]


def _read(path: epath.Path, root: epath.Path) -> Iterator[_Run]:
    """The run in a folder, or a pack's members."""
    record, members = read_state(path / RECORD, Record) or {}, path / "members"
    for folder in sorted(members.iterdir(), key=lambda folder: _in_order(folder.name)) if members.exists() else [path]:
        yield _read_run(folder, root, record, attempts_in=path)


def _read_run(path: epath.Path, root: epath.Path, record: Mapping[str, Any], attempts_in: epath.Path) -> _Run:
    """Reads the run in `path`.

    Args:
      path: its folder.
      root: the folder that was asked for.
      record: the contents of `sweep.json`, of the run or of its pack.
      attempts_in: the folder that records attempts: the run's, or its pack's.
    """
    varied = dict(record.get("bindings", {}))
    summary, state = read_state(path / SUMMARY, Summary) or {}, DONE
    if not summary:
        state = state_of(attempts_in) if record else UNFINISHED
        if (path / SUMMARY).exists():
            state = "damaged"
    varied |= {MEMBER_SETTINGS[name]: repr(summary[name]) for name in MEMBER_SETTINGS if summary.get(name) is not None}
    macros = {}
    try:
        if (config := attempts_in / RUN_CONFIG).exists():
            macros = recorded_macros(config.read_text(encoding="utf-8"), str(config))
    except (UserError, SyntaxError):
        state = "damaged"
    relative = str(path)[len(str(root)) :].strip("/")
    facts = {"run": relative or path.name, "state": state, "trained": summary.get("trainable")}
    facts |= {name: summary.get(name) for name in MEASURED if name != "trained"}
    if state != DONE:
        facts["steps"] = last_step(path)
    facts |= {f"test/{name}": value for name, value in summary.get("scores", {}).items()}
    facts |= {f"version/{name}": value for name, value in summary.get("versions", {}).items()}
    facts |= {f"frozen/{key[7:]}": value for key, value in summary.items() if key.startswith("frozen_")}
    metric = summary.get("metric")
    if baselines := [x[metric] for x in summary.get("baselines", {}).values() if metric in x]:
        facts[f"baseline/{metric}"] = max(baselines)
    if summary.get("validation") is not None:  # a run without a metric has no such score
        facts[f"validation/{summary.get('metric', 'accuracy')}"] = summary["validation"]
    settings = summary.get("settings") or record.get("settings", {})
    values = lambda texts: {name: _value(text) for name, text in texts.items()}
    macros = {name: x for name, x in macros.items() if name != "MODEL_DIR"}  # which `run` is
    return _Run(facts, macros, values(settings), values(varied), summary)


def _value(text: str) -> bool | int | float | str:
    """The number, truth value or string of a literal; any other literal and a reference stay texts."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, (bool, int, float, str)) else text


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pa.Table:
    return pa.table({name: _array(name, [row.get(name) for row in rows]) for name in columns})


def _array(name: str, values: list[Any]) -> pa.Array:
    """A column of one type: integers become floats if any value is one; values of different kinds become texts."""
    too_large = lambda value: isinstance(value, int) and abs(value) >= 2**63
    values = [str(value) if too_large(value) else value for value in values]
    kinds = {type(value) for value in values if value is not None}
    if not kinds - {int} or (name in COUNTS and kinds <= {int, float}):
        return pa.array(values, pa.int64())
    if kinds <= {int, float}:
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    if len(kinds) > 1:
        values = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    return pa.array(values)
