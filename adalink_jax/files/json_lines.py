"""Files of one JSON object per line, which processes append to and may be killed while they do."""

import contextlib
import json
import os
from typing import Any

from etils import epath

from adalink_jax.errors import UserError
from adalink_jax.files.places import file_size, is_remote, is_there
from adalink_jax.files.typed_json import Form, as_form, parse_object

LARGEST = 2**28  # bytes


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


def read_json_lines(path: epath.Path, form: type[Form] = Form) -> list[dict[str, Any]]:
    """Returns the rows, without lines that a kill cut short or that are not of `form`; empty if the file is missing.

    Raises:
      UserError: for what is not a regular file, or is larger than `LARGEST`.
    """
    if not is_there(path):
        return []
    if (size := file_size(path, "delete it")) > LARGEST:
        raise UserError(f"{path} has {size:,} bytes, more than {LARGEST:,}; delete it.")
    rows = []
    for line in path.read_bytes().splitlines():
        with contextlib.suppress(UserError, UnicodeDecodeError):
            row = parse_object(line.decode(), "a line")
            as_form(row, form, "a line")
            rows.append(row)
    return rows
