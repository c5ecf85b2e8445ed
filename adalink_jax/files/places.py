"""Whether a path is in a bucket, whose objects are replaced atomically but cannot be appended to or locked."""

import os

from etils import epath


def is_remote(path: str | epath.Path) -> bool:
    """Whether `path` has a scheme, such as gs://."""
    return "://" in os.fspath(path)
