"""A command that is being killed: started, frozen inside a save or let run for a while, looked at, killed."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil

from adalink_jax.files import locks

FREEZER = pathlib.Path(__file__).parent / "freezer"
ROOT = pathlib.Path(__file__).parent.parent.parent
POLL_SECONDS = 0.01
PATIENCE = 300.0  # seconds for a stopped process to save and end


class Command:
    """One start of an `adalink` command in its folder, with the processes that it starts.

    Args:
      arguments: of `adalink`.
      place: the folder that it works in.
      at: the number of the change of the folder at which the first process to reach it is frozen; None for never.
      delay: seconds from that change to the stop.
      record: the file that gets every change, if none is to stop it.
      name: of its log, beside the folder; the folder's by default.
    """

    def __init__(
        self,
        arguments: list[str],
        place: pathlib.Path,
        at: int | None = None,
        delay: float = 0.0,
        record: pathlib.Path | None = None,
        name: str | None = None,
    ):
        place.mkdir(parents=True, exist_ok=True)
        self.place, self.log = place, place.parent / f"{name or place.name}.log"
        self.mark = record or self.log.with_suffix(".mark")
        self.mark.unlink(missing_ok=True)
        watched = {"SOAK_FOLDER": str(place), "SOAK_MARK": str(self.mark), "SOAK_DELAY": str(delay)}
        frozen = {} if at is None else watched | {"SOAK_AT": str(at)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "adalink_jax", *arguments], cwd=place, stdin=subprocess.DEVNULL,
            stdout=self.log.open("a", encoding="utf-8"), stderr=subprocess.STDOUT, env=environment() | (watched if record else frozen),
            start_new_session=True,
        )  # fmt: skip
        self.began = time.monotonic()
        self._all: dict[int, psutil.Process] = {}

    def family(self) -> list[psutil.Process]:
        """The processes of this start that are alive, the command's own first."""
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.process.pid)
            self._all |= {process.pid: process for process in (root, *root.children(recursive=True))}
        return [process for process in self._all.values() if alive(process)]

    def wait(self, until: Callable[[], bool] = lambda: False, seconds: float = 3600.0) -> int | None:
        """The exit status once it has ended; None if `until` became true first, or after some seconds."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < deadline and not until():
            time.sleep(POLL_SECONDS)
        return self.process.poll()

    def frozen(self) -> psutil.Process | None:
        """The process that is frozen, or will be in a moment."""
        if not self.mark.exists():
            return None
        pid = self.mark.read_text(encoding="utf-8").split("\t")[0]
        marked = next((process for process in self.family() if str(process.pid) == pid), None)
        return marked if marked is not None and marked.status() == psutil.STATUS_STOPPED else None

    def change(self) -> str:
        """The change of the folder that it was frozen at: "os.rename out/x"."""
        _, event, path = self.mark.read_text(encoding="utf-8").strip().split("\t")
        return f"{event} {pathlib.Path(path).relative_to(self.place)}"

    def kill(self, children: bool) -> None:
        """Kills the command's process, and its children too or not: they end by themselves."""
        family = self.family()
        for process in family if children else family[:1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
        self.process.wait()
        psutil.wait_procs(family if children else [], timeout=60)

    def stop(self, number: signal.Signals) -> int | None:
        """Sends a signal, and returns the exit status; None if it does not end (it is then killed)."""
        family = self.family()
        self.process.send_signal(number)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
        status = self.wait(seconds=PATIENCE)
        if status is None:
            self.kill(children=True)
        return status


def environment() -> dict[str, str]:
    """The environment of every command: this checkout and the freezer; programs are compiled once."""
    paths = [str(FREEZER), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    quick = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "COLUMNS": "200"}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)} | quick


def alive(process: psutil.Process) -> bool:
    """Whether it runs, or is stopped."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def held(place: pathlib.Path) -> list[str]:
    """The lock files in a folder that some process holds."""
    return [str(path.relative_to(place)) for path in lock_files(place) if locks.is_held(path)]  # pyright: ignore[reportArgumentType]


def lock_files(place: pathlib.Path) -> Iterator[pathlib.Path]:
    """All lock files in a folder."""
    for path in place.rglob("*"):
        if path.name == locks.LOCK or path.name.endswith(f".{locks.LOCK}"):
            yield path
