"""Files of JSON that are whole whenever they are read, also after a kill."""

import json
import os

from etils import epath


def write_json(path: epath.Path, value: dict) -> None:
    """Writes `value`; until it is written whole the file is as it was."""
    text = json.dumps(value, indent=2) + "\n"
    if "://" in os.fspath(path):  # objects of a bucket are replaced at once
        path.write_text(text)
        return
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(text)
    new.replace(path)


def read_json(path: epath.Path) -> dict | None:
    """What a file holds; None if it is not there, or was damaged."""
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError, json.JSONDecodeError):
        return None
