"""The folder of one run of a sweep: whose it is, what it was made with, what became of it.

Beside what `adalink train` writes there are

    sweep.json       the settings that its name stands for, since the run was first started
    attempts.jsonl   a line when a process starts the run, and one when it ends with a status
    lock             locked by the process that trains; the system lets go of it however that process ends
    log.txt          what the process printed, if `adalink sweep --run` started it

Between machines the lock is as good as the file system's flock: NFS 4 has it, Lustre if mounted with it, buckets have none.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping

import filelock
from etils import epath

from adalink_jax.errors import Preempted, Stopped, UserError
from adalink_jax.files.whole_file import read_json, write_json

SUMMARY = "summary.json"  # that of `training.outputs`, which would import JAX into every process that only looks
RECORD, ATTEMPTS, LOCK, LOG = "sweep.json", "attempts.jsonl", "lock", "log.txt"
DONE, RUNNING, STOPPED, FAILED, NEW = "done", "running", "stopped", "failed", "new"
PATIENCE_SECONDS = 5  # for a lock that is held by one who only looks


class Taken(Stopped):
    """Another process trains this run."""

    status = 4


GOES_ON = (Preempted.status, Stopped.status, Taken.status)  # of a run that was stopped, or is another's


class RunFolder:
    """Of one run.

    Args:
      path: `MODEL_DIR/<name of the run>`.
      bindings: its own, name -> literal.
      settings: name in gin -> literal, of all that must stay when it goes on.
      total_steps: when it is finished.
    """

    places: tuple[str, ...] = ()  # ends of names of settings that may differ, on another machine say

    def __init__(self, path: str, bindings: Mapping[str, str], settings: Mapping[str, str], total_steps: int):
        self.path = epath.Path(path)
        self.bindings, self.settings, self.total_steps = dict(bindings), dict(settings), total_steps

    def check(self) -> None:
        """Refuses a folder whose run was started with other settings.

        Raises:
          UserError: names one of them.
        """
        record = read_json(self.path / RECORD)
        made_with = self.settings if record is None else record["settings"]
        for name in sorted(made_with.keys() | self.settings.keys()):
            old, new = made_with.get(name, "not set"), self.settings.get(name, "not set")
            if old != new and not name.lower().endswith(self.places):
                raise UserError(
                    f"{self.path} was made with {name} = {old}, and the sweep now says {new}; set it back, give another "
                    f"MODEL_DIR, or delete that folder."
                )

    def finished(self) -> bool:
        """Whether all steps are made and scored."""
        summary = read_json(self.path / SUMMARY)
        return summary is not None and summary.get("total_steps", summary["steps"]) >= self.total_steps

    def taken(self) -> bool:
        """Whether a process trains it now."""
        return is_locked(self.path)

    def state(self) -> str:
        """One of DONE, RUNNING, STOPPED, FAILED, NEW."""
        return DONE if self.finished() else state_of(self.path)

    def step(self) -> int:
        """The last that it wrote metrics of."""
        return last_step(self.path)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Locks the run while entered.

        Raises:
          Taken: if another process has it.
          UserError: see `check`.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with _locked(self.path):
            self.check()
            yield

    def begin(self) -> None:
        """Records that this process, which holds the run, starts it."""
        if read_json(self.path / RECORD) is None:
            write_json(self.path / RECORD, {"bindings": self.bindings, "settings": self.settings})
        self._note(what="start", host=socket.gethostname(), pid=os.getpid())

    def end(self, status: int) -> None:
        """Records the status that it ended with."""
        self._note(what="end", status=status)

    def _note(self, **facts) -> None:
        path, line = self.path / ATTEMPTS, json.dumps({"time": round(time.time(), 1), **facts}) + "\n"
        if "://" in str(path):  # objects of a bucket cannot be appended to
            path.write_text((path.read_text() if path.exists() else "") + line)
            return
        with open(path, "a") as file:
            file.write(line)


@contextlib.contextmanager
def _locked(path: epath.Path) -> Iterator[None]:
    if "://" in str(path):
        yield
        return
    lock = filelock.FileLock(path / LOCK)
    try:
        lock.acquire(timeout=PATIENCE_SECONDS)
    except filelock.Timeout as e:
        raise Taken(f"{path} is being trained by another process; this one leaves it alone.") from e
    try:
        yield
    finally:
        lock.release()


def is_locked(path: epath.Path) -> bool:
    """Whether a process trains in a folder now; False in a bucket, where nobody knows."""
    if "://" in str(path) or not (path / LOCK).exists():
        return False
    lock = filelock.FileLock(path / LOCK)
    try:
        lock.acquire(blocking=False)
    except (filelock.Timeout, PermissionError):  # or the file is another user's
        return True
    lock.release()
    return False


def state_of(path: epath.Path) -> str:
    """What became of an unfinished run."""
    if is_locked(path):
        return RUNNING
    attempts = read_attempts(path)
    if attempts and attempts[-1].get("status", 0) not in (0, *GOES_ON):
        return FAILED
    return STOPPED if attempts else NEW


def read_attempts(path: epath.Path) -> list[dict]:
    """The lines of `attempts.jsonl`; none if it was never started."""
    return _rows(path / ATTEMPTS)


def last_step(path: epath.Path) -> int:
    """Of `metrics.jsonl`, in a pack that of its first member; 0 without."""
    if (members := path / "members").is_dir():
        path = min(members.iterdir(), key=lambda member: member.name, default=path)
    return max((row.get("step", 0) for row in _rows(path / "metrics.jsonl")[-1:]), default=0)


def _rows(path: epath.Path) -> list[dict]:
    """The whole lines of a file of JSON lines: the last may have been cut short by a kill."""
    out = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            out.append(json.loads(line))
    return out
