"""Files of one JSON object per line, which processes append to and may be killed while they do."""

import contextlib
import json
import os
from typing import Any

from etils import epath

from adalink_jax.files.places import is_remote


def append_json(path: epath.Path, row: dict[str, Any]) -> None:
    """Appends one line, after a line break if a kill cut the last one short; creates the file if it is missing."""
    line = json.dumps(row) + "\n"
    if is_remote(path):  # objects of a bucket cannot be appended to
        path.write_text((path.read_text() if path.exists() else "") + line)
        return
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else f"\n{line}"
        file.write(line.encode())


def read_json_lines(path: epath.Path) -> list[dict[str, Any]]:
    """Returns the complete lines, without any that a kill cut short; empty if the file is missing."""
    rows = []
    for line in path.read_text().split("\n") if path.exists() else ():  # other line separators are text
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows
