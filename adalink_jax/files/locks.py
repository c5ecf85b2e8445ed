"""Lock files: at most one process at a time works in a folder.

The operating system releases a lock however its process ends. Between machines a lock is as reliable as the file system's
flock: NFS 4 supports it, and so does Lustre if mounted with `flock`. On other file systems and in a bucket, the holder rewrites
a heartbeat file; another process takes the lock over once that file has not changed for `SILENCE` seconds.
"""

import contextlib
import errno
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator

import filelock
import psutil
from etils import epath

from adalink_jax.errors import Taken
from adalink_jax.files.places import is_remote

LOCK = "lock"
PATIENCE = 5.0  # seconds; a process that only looks whether a folder is locked locks it for a moment
BEAT = 10.0
SILENCE = 35.0
_NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def hold(path: epath.Path, timeout: float) -> Iterator[None]:
    """Locks the file `path`, until the end of the context. A process may hold a lock several times.

    Args:
      path: the lock file; its folder must exist.
      timeout: how long to wait for another process to release it, in seconds.

    Raises:
      TimeoutError: if another process still holds it.
    """
    with contextlib.ExitStack() as stack:
        try:
            if _has_flock(path):
                stack.enter_context(filelock.FileLock(path, is_singleton=True).acquire(timeout=timeout))
            else:
                stack.enter_context(_heartbeat(path, timeout))
        except OSError as e:
            if e.errno not in _NO_FLOCK:
                raise
            stack.enter_context(_heartbeat(path, timeout))
        yield


@contextlib.contextmanager
def hold_folder(folder: epath.Path, timeout: float = PATIENCE, name: str = LOCK) -> Iterator[None]:
    """Holds the file `name` in a folder, which is created if absent; see `hold`. Both are removed if nothing else was written.

    Raises:
      Taken: if another process still holds it.
    """
    existed, lock = folder.exists(), folder / name
    folder.mkdir(parents=True, exist_ok=True)
    with _hold_for(folder, lock, timeout):
        is_outermost = os.fspath(lock) not in _folders
        _folders.add(os.fspath(lock))
        try:
            yield
        finally:
            if is_outermost:
                _folders.discard(os.fspath(lock))
                with contextlib.suppress(OSError):  # some systems keep a file's name while it is open
                    if [item.name for item in folder.iterdir()] == [name]:
                        lock.unlink()
                        if not existed:
                            folder.rmdir()


@contextlib.contextmanager
def hold_file(path: epath.Path) -> Iterator[bool]:
    """Holds `.NAME.lock` beside a file that is written bit by bit, and removes it; see `hold_folder`.

    Yields:
      whether the lock file existed: a process that held it was killed.
    """
    lock = path.parent / f".{path.name}.{LOCK}"
    existed = lock.exists()
    with _hold_for(path, lock, PATIENCE):
        try:
            yield existed
        finally:
            with contextlib.suppress(OSError):
                lock.unlink()


@contextlib.contextmanager
def _hold_for(written: epath.Path, lock: epath.Path, timeout: float) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hold(lock, timeout))
        except TimeoutError as e:
            raise Taken(
                f"Another process is writing {written}; this one leaves it alone. Wait until it ends, or choose another place."
            ) from e
        yield


def is_held(path: epath.Path) -> bool:
    """Whether some process holds the lock file `path`; without flock, whether it did less than `SILENCE` seconds ago."""
    if not path.exists():
        return False
    try:
        if not _has_flock(path):
            return time.time() - path.stat().mtime < SILENCE
        with filelock.FileLock(path).acquire(blocking=False):
            return False
    except (TimeoutError, PermissionError):  # PermissionError: the file belongs to another user
        return True


def _has_flock(path: epath.Path) -> bool:
    """Whether the file `path`, which is created if it is missing, can be locked by the system."""
    if is_remote(path):
        return False
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows, which has locks of another kind
        return True
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_UN)
        except OSError as e:
            return e.errno not in _NO_FLOCK
    return True


_folders: set[str] = set()  # lock files of the folders that this process holds
_held: dict[str, int] = {}  # heartbeat files of this process, and how often it holds each


@contextlib.contextmanager
def _heartbeat(path: epath.Path, timeout: float) -> Iterator[None]:
    name, stop = os.fspath(path), threading.Event()
    _held[name] = _held.get(name, 0) + 1
    try:
        if _held[name] > 1:
            yield
            return
        _wait_for_silence(path, timeout)
        owner = f"{_machine()} {os.getpid()} {uuid.uuid4().hex}"

        def beat() -> None:
            count = 0
            while not stop.wait(BEAT):
                count += 1
                with contextlib.suppress(Exception):  # the network's; several beats may fail before others take over
                    path.write_text(f"{owner} {count}")

        path.write_text(f"{owner} 0")
        time.sleep(BEAT / 10)
        if not (_read(path) or "").startswith(owner):  # two began at once, and the last to write has it
            raise TimeoutError(f"{path} is kept alive by another process.")
        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            path.unlink(missing_ok=True)
    finally:
        _held[name] -= 1


def _wait_for_silence(path: epath.Path, timeout: float) -> None:
    """Returns when no process keeps the heartbeat file `path` alive.

    Raises:
      TimeoutError: if one still does after `timeout` seconds.
    """
    latest, changed = _read(path), time.monotonic()
    deadline = changed + timeout
    while (record := _read(path)) is not None and not _has_ended(record):
        if record != latest:
            latest, changed = record, time.monotonic()
            if changed >= deadline:
                raise TimeoutError(f"{path} is kept alive by another process.")
        elif time.monotonic() >= changed + SILENCE:
            return
        time.sleep(BEAT / 10)


def _read(path: epath.Path) -> str | None:
    """The record in a heartbeat file, "" while it is being written; None if there is no file."""
    try:
        return path.read_text() if path.exists() else None
    except FileNotFoundError:
        return None


def _machine() -> str:
    """Names what gives process ids their meaning: the host, and a container's name space."""
    space = "/proc/self/ns/pid"
    return socket.gethostname() + (f"/{os.readlink(space)}" if os.path.exists(space) else "")


def _has_ended(record: str) -> bool:
    """Whether the holder was a process of this machine that is gone."""
    host, _, rest = record.partition(" ")
    pid = rest.split(" ")[0]
    return host == _machine() and pid.isdigit() and not psutil.pid_exists(int(pid))
