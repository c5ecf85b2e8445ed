"""gin selectors of configurables whose module moved: rewritten before gin parses them."""

import contextlib
import io
import os
import re
from collections.abc import Iterator

from gin import config as gin_config

from adalink_jax import moved


def current(text: str) -> str:
    """`text` of a gin file or binding, with each old selector (however much of its module is written) replaced by the new one."""
    new_selectors = _moved_configurables()
    if not new_selectors:
        return text
    alternatives = "|".join(sorted(map(re.escape, new_selectors), key=len, reverse=True))
    return re.sub(rf"(?<![\w.'\"])({alternatives})(?!\w)", lambda match: new_selectors[match[1]], text)


@contextlib.contextmanager
def rewriting() -> Iterator[None]:
    """While entered, gin reads files, included ones too, through `current`."""
    reader = (_open, os.path.isfile)
    gin_config._FILE_READERS.insert(0, reader)  # `register_file_reader` would append it behind `open`
    try:
        yield
    finally:
        gin_config._FILE_READERS.remove(reader)


def _open(path: str) -> io.StringIO:
    with open(path, encoding="utf-8") as file:
        out = io.StringIO(current(file.read()))
    out.name = path  # which gin names in errors
    return out


def _moved_configurables() -> dict[str, str]:
    """Old selector -> new one, of every configurable in a module that moved; old ones with each possible part of the module."""
    out = {}
    for old, new in moved.MODULES.items():
        parts = old.split(".")
        names = [key.removeprefix(f"{new}.") for key, _ in gin_config._REGISTRY.items() if key.startswith(f"{new}.")]
        for name in names:
            out |= {".".join([*parts[start:], name]): f"{new}.{name}" for start in range(len(parts))}
    return out
