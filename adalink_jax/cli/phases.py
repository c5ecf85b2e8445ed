"""The option `--timings` of every command: seconds by phase on stderr at the end, and in a JSON file if one is named.

`main` takes the option before it imports the command, so that imports count too.
"""

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from adalink_jax import timings
from adalink_jax.errors import UserError

if TYPE_CHECKING:
    from etils import epath

OPTION = "--timings"


def split(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The file of `--timings=FILE`, "" for the option alone and None without it; and the other arguments."""
    options = [text for text in argv if text.partition("=")[0] == OPTION]
    if any(text == f"{OPTION}=" for text in options):
        raise UserError(f"{OPTION}= names no file; write {OPTION}=FILE, or {OPTION} alone.")
    rest = [text for text in argv if text not in options]
    return (options[-1].partition("=")[2] if options else None), rest


@contextlib.contextmanager
def reporting(file: str | None) -> Iterator[None]:
    """Prints the table when the context ends, also by an error. Of several processes process 0 prints.

    Args:
      file: see `split`.
    """
    path = _path(file) if file else None
    try:
        yield
    finally:
        if file is not None and ("adalink_jax.parallel" not in sys.modules or _is_first()):
            rows = timings.report()
            _print(rows)
            if path is not None:
                from adalink_jax.files.whole_file import write_text

                write_text(path, json.dumps(rows, indent=1) + "\n")


def _path(file: str) -> "epath.Path":
    from adalink_jax.files.places import path_of

    path = path_of(file)
    if not path.parent.is_dir():
        raise UserError(f"The parent folder of {file} ({OPTION}) does not exist; create it first.")
    return path


def _is_first() -> bool:
    from adalink_jax import parallel

    return parallel.is_first()


def _print(rows: Sequence[dict]) -> None:
    from rich.table import Column, Table

    from adalink_jax import terminal

    numbers = (Column(name, justify="right") for name in ("times", "first (s)", "all (s)"))
    table = Table("phase", *numbers, title="Seconds by phase", title_justify="left")
    for row in rows:
        *outer, name = row["phase"].split("/")
        table.add_row("  " * len(outer) + name, str(row["times"]), f"{row['first']:.2f}", f"{row['seconds']:.2f}")
    terminal.console(stderr=True).print(table)
