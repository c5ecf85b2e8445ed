"""JSON files that are complete whenever they are read, even after a kill."""

import json
import os
from typing import Any

from etils import epath

from adalink_jax.files.places import is_remote


def write_json(path: epath.Path, value: dict[str, Any]) -> None:
    """Writes `value`; until the new file is complete, `path` keeps its old contents."""
    text = json.dumps(value, indent=2) + "\n"
    if is_remote(path):  # objects of a bucket are replaced atomically
        path.write_text(text)
        return
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(text)
    new.replace(path)


def read_json(path: epath.Path) -> dict[str, Any] | None:
    """Returns the contents of `path`; None if the file is missing or damaged."""
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError, json.JSONDecodeError):
        return None
