"""Writes each prediction as it is made; rerunning the command after a kill resumes it.

OUTPUT          rows with a column `prediction`: .jsonl or .csv
.OUTPUT.json    until OUTPUT is complete: which command writes it, and how many of its rows and bytes are complete
"""

import contextlib
import csv
import io
import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import pydantic
from etils import epath

from adalink_jax import preemption
from adalink_jax.errors import UserError
from adalink_jax.files import locks
from adalink_jax.files.places import path_of
from adalink_jax.files.typed_json import Form, read_state
from adalink_jax.files.whole_file import write_json

KINDS = (".jsonl", ".csv")


class _Begun(Form):
    """What is recorded of an incomplete file."""

    identity: dict[str, Any]
    rows: Annotated[int, pydantic.Field(ge=0)]
    bytes: Annotated[int, pydantic.Field(ge=0)]


class Output:
    """A file of predictions, to which rows are appended. It is created with the first row."""

    def __init__(self, path: str, columns: Sequence[str], identity: Mapping[str, Any]):
        """Args:
          path: `.jsonl` or `.csv`.
          columns: the columns of the rows.
          identity: what identifies the command, as JSON; an incomplete file of another command is refused.

        Raises:
          UserError: for another suffix, a missing folder, and a file that is complete or of another command.
          Taken: if another process writes it.
        """
        self.path, self._columns = path_of(path), list(columns)
        self._state = _state_of(self.path)
        if self.path.suffix not in KINDS:
            raise UserError(f"{path} must end in {' or '.join(KINDS)}.")
        if not self.path.parent.is_dir():
            raise UserError(f"The parent folder of {path} does not exist; create it first.")
        with contextlib.ExitStack() as lock:
            lock.enter_context(locks.hold_file(self.path))
            self._begin(path, identity)
            self._lock = lock.pop_all()

    def _begin(self, path: str, identity: Mapping[str, Any]) -> None:
        self._identity = json.loads(json.dumps(identity))
        state = read_state(self._state, _Begun)
        if self.path.exists() and state is None:
            raise UserError(f"{path} exists already; name another file.")
        if state is not None and self.path.exists() and state["identity"] != self._identity:
            raise UserError(
                f"{path} was begun by another command, or from other files; rerun that command, or delete {path} and {self._state}."
            )
        self.rows, self._bytes = (state["rows"], state["bytes"]) if state and self.path.exists() else (0, 0)
        if self.rows:
            preemption.keeps(f"the {self.rows:,} predictions in {self.path} are kept")

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Appends rows."""
        text = io.StringIO(newline="")
        if self.path.suffix == ".csv":
            table = csv.DictWriter(text, self._columns, restval="", lineterminator="\n")
            if not self.rows:
                table.writeheader()
            table.writerows(rows)
        else:
            text.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
        if not self.rows:
            self._note()
        with open(self.path, "r+b" if self.path.exists() else "wb") as file:
            file.truncate(self._bytes)  # drops a row that was cut off
            file.seek(self._bytes)
            file.write(text.getvalue().encode())
            self._bytes = file.tell()
        self.rows += len(rows)
        self._note()
        preemption.keeps(f"the {self.rows:,} predictions in {self.path} are kept")

    def finish(self, keep: bool = True) -> None:
        """Marks the file as complete; or removes it, if its rows are in another file by now."""
        if not keep:
            self.path.unlink(missing_ok=True)
        self._state.unlink(missing_ok=True)
        self._lock.close()

    def _note(self) -> None:
        write_json(self._state, {"identity": self._identity, "rows": self.rows, "bytes": self._bytes})


def is_unfinished(path: str) -> bool:
    """Whether a process that writes the file `path` has not finished it."""
    return _state_of(path_of(path)).exists()


def _state_of(path: epath.Path) -> epath.Path:
    return path.with_name(f".{path.name}.json")


def marks(*paths: str) -> list[list[Any]]:
    """Names, sizes and modification times of files, and of the files in folders: equal if nothing changed."""
    out = []
    for path in map(pathlib.Path, paths):
        files = sorted(path.rglob("*")) if path.is_dir() else [path] if path.exists() else []
        out.append(
            [str(path), *([str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in itertools.islice(files, 1000))]
        )
    return out
