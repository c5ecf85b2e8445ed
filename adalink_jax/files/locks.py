"""Lock files: at most one process at a time works in a folder.

The operating system releases a lock however its process ends. Between machines a lock is as reliable as the file system's
flock: NFS 4 supports it, and so does Lustre if mounted with `flock`. Buckets have no locks: nothing there ever counts as held.
"""

import contextlib

import filelock
from etils import epath

from adalink_jax.files.places import is_remote


def hold(path: epath.Path, timeout: float) -> contextlib.AbstractContextManager[object]:
    """Locks the file `path`, until the end of the context that is returned.

    Args:
      path: the lock file; its folder must exist.
      timeout: how long to wait for another process to release it, in seconds.

    Raises:
      TimeoutError: if another process still holds it.
    """
    return contextlib.nullcontext() if is_remote(path) else filelock.FileLock(path).acquire(timeout=timeout)


def is_held(path: epath.Path) -> bool:
    """Whether some process holds the lock file `path`."""
    if is_remote(path) or not path.exists():
        return False
    try:
        with filelock.FileLock(path).acquire(blocking=False):
            return False
    except (TimeoutError, PermissionError):  # PermissionError: the file belongs to another user
        return True
