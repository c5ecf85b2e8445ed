"""A run's metrics: `metrics.jsonl` on a disk; in a bucket numbered parts, `metrics-00001.jsonl`, ..., of which each is written once.

Objects of a bucket cannot be appended to, and rewriting one for every row would upload all earlier rows again. So rows are collected,
and a part holds those of half a minute. A run that resumes from an earlier step begins its first part with `{"step": STEP, "resumed": 1}`:
rows of later steps before this line do not count.
"""

import json
import re
import time
from typing import Any

from etils import epath

from adalink_jax.files import network_calls
from adalink_jax.files.json_lines import append_json, read_json_lines
from adalink_jax.files.places import is_remote, path_of
from adalink_jax.files.run_files import Metrics
from adalink_jax.files.whole_file import write_text

FILE = "metrics.jsonl"
PART_SECONDS = 30.0
_RESUMED = "resumed"
_PART = re.compile(r"metrics-(\d+)\.jsonl")

Row = dict[str, Any]  # `step`, and values by tag


def shown(folder: str | epath.Path) -> str:
    """What a sentence calls the metrics of a run's folder."""
    return str(path_of(folder) / ("metrics-*.jsonl" if is_remote(folder) else FILE))


def has_metrics(folder: epath.Path) -> bool:
    """Whether a run has written metrics to a folder."""
    return (folder / FILE).exists() or bool(_parts(folder))


def read_metrics(folder: epath.Path) -> list[Row]:
    """The rows of a run's folder in the order of writing, without those that a kill cut short or that were written before a run
    resumed from an earlier step; empty before the first row."""
    rows: list[Row] = []
    paths = [folder / FILE, *_parts(folder).values()]
    for of_part in network_calls.mapped(
        lambda path: list(read_json_lines(path, Metrics)), paths, network_calls.at_once(folder)
    ):
        for row in of_part:
            if _RESUMED in row:
                rows = [earlier for earlier in rows if earlier["step"] <= row["step"]]
            else:
                rows.append(row)
    return rows


def _parts(folder: epath.Path) -> dict[int, epath.Path]:
    """The parts in a bucket by number, ascending."""
    if not is_remote(folder) or not folder.exists():
        return {}
    matches = ((_PART.fullmatch(path.name), path) for path in folder.glob("metrics-*.jsonl"))
    return dict(sorted((int(match[1]), path) for match, path in matches if match))


class MetricLog:
    """Adds rows to the metrics of a folder. One process writes.

    Args:
      folder: the run's; it is made if it is missing.
    """

    def __init__(self, folder: epath.Path):
        self._folder, self._path = folder, folder / FILE
        self._new: list[Row] = []  # rows that are not in a part yet
        self._written_at = time.monotonic()
        self._number: int | None = None  # of the last part

    def resume(self, step: int | None) -> list[Row]:
        """The rows up to `step`, from which the run resumes; later ones are dropped. None keeps all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        rows = read_metrics(self._folder)
        valid = [row for row in rows if step is None or row["step"] <= step]
        if is_remote(self._folder):
            if step is not None and len(valid) < len(rows):
                self._new.append({"step": step, _RESUMED: 1})
        else:
            text = "".join(json.dumps(row) + "\n" for row in valid)
            if not self._path.exists() or self._path.read_bytes() != text.encode():
                write_text(self._path, text)
        return valid

    def append(self, row: Row) -> None:
        """Adds a row; in a bucket it is there after `flush`, or half a minute later."""
        if not is_remote(self._folder):
            append_json(self._path, row)
            return
        self._new.append(row)
        if time.monotonic() - self._written_at >= PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes the rows that are not written yet."""
        if self._new:
            if self._number is None:
                self._number = max(_parts(self._folder), default=0)
            self._number += 1
            text = "".join(json.dumps(row) + "\n" for row in self._new)
            (self._folder / f"metrics-{self._number:05}.jsonl").write_text(text)
            self._new = []
        self._written_at = time.monotonic()
