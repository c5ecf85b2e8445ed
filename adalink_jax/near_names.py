"""Names and paths near a misspelt one, for error messages."""

import difflib
import itertools
import os
from collections.abc import Iterable, Sequence

_MOST = 3
_MOST_FILES = 2_000  # of a folder that are compared


def near(name: str, names: Iterable[str], likeness: float = 0.5) -> list[str]:
    """The names that are at least so much like `name` (1: equal), the nearest first; at most three."""
    return difflib.get_close_matches(name, sorted(names), _MOST, likeness)


def near_paths(path: str | os.PathLike[str], endings: Sequence[str] = ()) -> list[str]:
    """The paths that exist and differ from a missing one in one part, the nearest first; none in a bucket.

    Args:
      path: as a user typed it.
      endings: how files end that are meant, in lower case, before a `.gz`; () for any. Folders count too.
    """
    head, rest = os.fspath(path).rstrip(os.sep), []
    if "://" in head:
        return []
    while head and not os.path.exists(os.path.expanduser(head)):
        head, name = os.path.split(head)
        rest.insert(0, name)
    if not rest:
        return []
    stems: dict[str, list[str]] = {}  # without suffixes, which make all names alike
    try:
        with os.scandir(os.path.expanduser(head) or os.curdir) as entries:
            for entry in itertools.islice(entries, _MOST_FILES):
                if _is_meant(entry, endings):
                    stems.setdefault(_stem(entry.name), []).append(entry.name)
    except OSError:
        return []
    names = [name for stem in near(_stem(rest[0]), stems, likeness=0.6) for name in sorted(stems[stem])]
    paths = (os.path.join(head, name, *rest[1:]) for name in names)
    return [path for path in paths if os.path.exists(os.path.expanduser(path))][:_MOST]


def _is_meant(entry: os.DirEntry[str], endings: Sequence[str]) -> bool:
    name = entry.name.lower().removesuffix(".gz")
    return not name.startswith(".") and (not endings or name.endswith(tuple(endings)) or entry.is_dir())


def _stem(name: str) -> str:
    return os.path.splitext(name.removesuffix(".gz"))[0]


def did_you_mean(names: Sequence[str], otherwise: str = ".") -> str:
    """The end of a sentence: `; did you mean A, B or C?`, or `otherwise` without names."""
    *others, last = names or [""]
    return f"; did you mean {' or '.join(filter(None, (', '.join(others), last)))}?" if names else otherwise
