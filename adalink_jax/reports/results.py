"""All runs below a folder as one table: a row a run, also for one that was not finished, in pyarrow's form.

Columns are, in this order: `run` (its folder), `state`; the sweep's own bindings and all settings, by their names in gin; then
what was measured: `validation/METRIC` (of the best step), `test/METRIC`, `frozen/METRIC` (on test, before the first step),
`trained` (parameters), `step` (the best), `steps`, `seconds`, `step_seconds`, `step_flops` (those of the
matrix products of a step, with what remat computes again), and `version/PACKAGE`.
"""

import ast
import dataclasses
import difflib
import json
import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from etils import epath

from adalink_jax.errors import UserError
from adalink_jax.experiments.sweeps.run_folder import DONE, RECORD, SUMMARY, last_step, state_of
from adalink_jax.files.whole_file import read_json
from adalink_jax.reports.comparison_report import interval

UNFINISHED = "unfinished"  # of a run of no sweep: nobody knows whether it is going on
MARKS = (SUMMARY, RECORD, "config.gin", "checkpoints", "before.json")  # of a folder that holds a run
COUNTS = ("trained", "step", "steps")
MEASURED = (*COUNTS, "seconds", "step_seconds", "step_flops")
OF_MEMBER = {"learning_rate": "LEARNING_RATE", "seed": "RANDOM_SEED", "rank": "RANK"}


@dataclasses.dataclass(frozen=True)
class Results:
    """The table.

    Attributes:
      table: a row for each run.
      settings: its columns of settings; of them are told apart by `own` those that a sweep or a pack varies.
      own: see `settings`.
    """

    table: pa.Table
    settings: tuple[str, ...]
    own: tuple[str, ...]

    @property
    def metrics(self) -> list[str]:
        """The columns of scores."""
        return [name for name in self.table.column_names if name.startswith(("validation/", "test/", "frozen/"))]

    def differing(self) -> list[str]:
        """Settings that are not the same in all runs, each once: where two go together, the sweep's own, or the first."""
        out: dict[tuple, str] = {}
        for name in (*self.own, *self.settings):
            values = tuple(map(str, self.table[name].to_pylist()))
            if len(set(values)) > 1:
                out.setdefault(_pattern(values), name)
        return list(out.values())

    def column(self, name: str) -> str:
        """The column that is called so, in full or by its last part (`rank` for `AdaLinkAdapter.rank`).

        Raises:
          UserError: if there is none, or several.
        """
        columns = self.table.column_names
        if name in columns:
            return name
        found = [column for column in columns if column.replace("/", ".").split(".")[-1] == name]
        if len(found) != 1:
            near = found or difflib.get_close_matches(name, columns, 3, cutoff=0.4) or columns[:3]
            raise UserError(
                f"{'Several columns are' if found else 'There is no column'} called {name}: {', '.join(near)}."
            )
        return found[0]

    def where(self, conditions: Sequence[str]) -> "Results":
        """The runs of which each `NAME=VALUE` is true.

        Raises:
          UserError: for what is no such condition, and where no run is left.
        """
        keep = np.ones(self.table.num_rows, bool)
        for condition in conditions:
            name, equals, text = condition.partition("=")
            if not equals:
                raise UserError(f"--where takes NAME=VALUE, not {condition!r}.")
            wanted = _value(text)
            keep &= [value == wanted or str(value) == text for value in self.table[self.column(name)].to_pylist()]
        if not keep.any():
            raise UserError(f"No run has {' and '.join(conditions)}.")
        return dataclasses.replace(self, table=self.table.filter(pa.array(keep)))

    def grouped(self, by: Sequence[str]) -> pa.Table:
        """A row for each combination of `by`: `runs` (finished ones), and each metric's mean and 95 % interval
        (`METRIC`, `METRIC low`, `METRIC high`; no interval of a single run).

        Raises:
          UserError: for a column that is not there, or if no run is finished.
        """
        columns = [self.column(name) for name in by]
        groups: dict[tuple, list[dict]] = {}
        for row in self.table.to_pylist():
            if row["state"] == DONE:
                groups.setdefault(tuple(row[name] for name in columns), []).append(row)
        if not groups:
            raise UserError("No run is finished: there is nothing to group.")
        rows = []
        for key, members in groups.items():
            row = dict(zip(columns, key)) | {"runs": len(members)}
            for metric in self.metrics:
                values = [member[metric] for member in members if member[metric] is not None]
                low, high = interval(values) if len(values) > 1 else (None, None)
                row |= {
                    metric: float(np.mean(values)) if values else None,
                    f"{metric} low": low,
                    f"{metric} high": high,
                }
            rows.append(row)
        return _table(rows, list(rows[0]))


def collect(folder: str) -> Results:
    """Reads every run below a folder: single runs, members of packs, whatever made them.

    Raises:
      UserError: if there is no run.
    """
    root = epath.Path(folder)
    rows = [row for path in _folders(root) for row in _read(path, root)] if root.is_dir() else []
    if not rows:
        raise UserError(f"There is no run in {folder}.")
    own, settings = {}, {}
    for row in rows:
        own |= dict.fromkeys(row["own"])
        settings |= dict.fromkeys(sorted(row["settings"]))
    flat = [{**row["facts"], **row["settings"], **row["own"]} for row in rows]
    named = {name for row in flat for name in row}
    scores = sorted(name for name in named if name.startswith(("validation/", "test/", "frozen/")))
    versions = sorted(name for name in named if name.startswith("version/"))
    order = ["run", "state", *own, *(name for name in settings if name not in own), *scores, *MEASURED, *versions]
    return Results(_table(flat, order), tuple(settings), tuple(own))


def write(path: str, table: pa.Table) -> None:
    """Writes `*.csv` or `*.parquet`.

    Raises:
      UserError: for another ending.
    """
    out = epath.Path(path)
    if out.suffix not in (".csv", ".parquet"):
        raise UserError(f"--out is {path!r}; its name must end in .csv or .parquet.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("wb") as file:
        (pyarrow.csv.write_csv if out.suffix == ".csv" else pyarrow.parquet.write_table)(table, file)


def _folders(folder: epath.Path) -> Iterator[epath.Path]:
    """Folders that hold runs, in order; nothing is looked for inside one, but for the members of a pack."""
    if any((folder / mark).exists() for mark in MARKS):
        yield folder
        return
    linked = lambda child: os.path.islink(os.fspath(child))  # it would count a run twice
    children = [x for x in folder.iterdir() if not x.name.startswith(".") and x.is_dir() and not linked(x)]
    for child in sorted(children, key=lambda path: path.name):
        yield from _folders(child)


def _read(path: epath.Path, root: epath.Path) -> Iterator[dict]:
    """`{"facts", "settings", "own"}` of each run in a folder: one, or a pack's members."""
    summary, record = read_json(path / SUMMARY), read_json(path / RECORD) or {}
    members = path / "members"
    if members.exists():
        for member in sorted(members.iterdir(), key=lambda folder: folder.name):
            yield _row(member, root, read_json(member / SUMMARY), record, held=path)
        return
    yield _row(path, root, summary, record)


def _row(
    path: epath.Path, root: epath.Path, summary: Mapping | None, record: Mapping, held: epath.Path | None = None
) -> dict:
    """Of the run in `path`, whose state and record are those of the folder `held`, a pack's, if it is a member."""
    own = dict(record.get("bindings", {}))
    if summary is None:
        state = state_of(held or path) if record else UNFINISHED
        if (path / SUMMARY).exists():
            state = "damaged"
        summary = {"steps": last_step(path)}
    else:
        state = DONE
    own |= {OF_MEMBER[name]: repr(summary[name]) for name in OF_MEMBER if summary.get(name) is not None}
    facts = {"run": _relative(path, root), "state": state, "trained": summary.get("trainable")}
    facts |= {name: summary.get(name) for name in MEASURED if name != "trained"}
    facts |= {f"test/{name}": value for name, value in summary.get("scores", {}).items()}
    facts |= {f"version/{name}": value for name, value in summary.get("versions", {}).items()}
    metric = summary.get("metric", "accuracy")
    facts |= {f"frozen/{key[7:]}": value for key, value in summary.items() if key.startswith("frozen_")}
    if summary.get("validation") is not None:  # a run without a metric has none
        facts[f"validation/{metric}"] = summary["validation"]
    settings = summary.get("settings") or record.get("settings", {})
    values = lambda texts: {name: _value(text) for name, text in texts.items()}
    return {"facts": facts, "settings": values(settings), "own": values(own)}


def _relative(path: epath.Path, root: epath.Path) -> str:
    inside = str(path)[len(str(root)) :].strip("/")
    return inside or path.name


def _value(text: str):
    """A number, a truth value or a string; what else a literal may be stays a text, and so does a reference."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, (bool, int, float, str)) else text


def _table(rows: Sequence[Mapping], columns: Sequence[str]) -> pa.Table:
    return pa.table({name: _array(name, [row.get(name) for row in rows]) for name in columns})


def _array(name: str, values: list) -> pa.Array:
    """One type for a column: numbers as floats if any is one; of different kinds, as texts."""
    kinds = {type(value) for value in values if value is not None}
    if name in COUNTS or not kinds - {int}:
        return pa.array(values, pa.int64())
    if kinds <= {int, float}:
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    if len(kinds) > 1:
        values = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    return pa.array(values)


def _pattern(values: Sequence[str]) -> tuple:
    """Which values are equal to which: the same for two columns that change together."""
    numbers: dict[str, int] = {}
    return tuple(numbers.setdefault(value, len(numbers)) for value in values)
