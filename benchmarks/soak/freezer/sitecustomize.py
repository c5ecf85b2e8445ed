"""Stops this process inside a save: it is frozen at its n-th change of a folder, so that whoever froze it can look, and kill it.

Python imports this module at its start (the folder is on PYTHONPATH), in children too. A change is whatever Python's audit events
report of the folder: a file opened for writing, renamed, truncated or removed, a folder made or removed.

    SOAK_FOLDER     the folder that is watched
    SOAK_MARK       the file that gets `process id, event, path` before the process stops (of several processes, the first one's)
    SOAK_AT         n; without it, every change is appended to SOAK_MARK, and nothing stops
    SOAK_DELAY      seconds from that change to the stop
"""

import contextlib
import os
import signal
import sys
import threading

CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _watch(folder: str, mark: str, at: int | None, delay: float) -> None:
    count, lock, here = 0, threading.Lock(), threading.local()

    def stop() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def on_change(event: str, path: str) -> None:
        nonlocal count
        with lock:
            count += 1
            number = count
        line = f"{os.getpid()}\t{event}\t{path}\n".encode()
        if at is None:
            file = os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(file, line)
            os.close(file)
        elif number == at:
            try:
                file = os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            except FileExistsError:  # another process is frozen already
                return
            os.write(file, line)
            os.close(file)
            if delay:
                threading.Timer(delay, stop).start()
            else:
                stop()

    def hook(event: str, arguments: tuple) -> None:
        if event not in CHANGES or getattr(here, "inside", False):
            return
        path = arguments[0]
        if event == "open" and (not isinstance(arguments[2], int) or not arguments[2] & _WRITES):
            return
        if isinstance(path, int):
            return
        here.inside = True
        try:
            with contextlib.suppress(OSError):  # a folder that is gone, or a system without /proc
                path = os.path.abspath(_within(event, arguments) + os.fsdecode(path))
            if path.startswith(folder):
                on_change(event, path)
        finally:
            here.inside = False

    sys.addaudithook(hook)


def _within(event: str, arguments: tuple) -> str:
    """The folder that a path is relative to if the call names one by its number, as shutil.rmtree does."""
    number = arguments[-1] if event in ("os.remove", "os.mkdir", "os.rmdir") else -1
    return os.readlink(f"/proc/self/fd/{number}") + os.sep if isinstance(number, int) and number >= 0 else ""


if "SOAK_FOLDER" in os.environ:
    _watch(
        os.environ["SOAK_FOLDER"] + os.sep,
        os.environ["SOAK_MARK"],
        int(os.environ["SOAK_AT"]) if "SOAK_AT" in os.environ else None,
        float(os.environ.get("SOAK_DELAY", "0")),
    )
