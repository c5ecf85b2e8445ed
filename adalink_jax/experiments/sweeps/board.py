"""The progress display of a sweep: runs done, and each active run's step and time left; plain lines without a terminal."""

import time
from collections.abc import Mapping
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from adalink_jax.experiments.sweeps.run_folder import RunFolder

REFRESH_SECONDS = 1.0


class Board:
    """Use it as a context manager.

    Args:
      total: number of runs.
      at_once: number of runs at the same time.
      console: where to print.
    """

    def __init__(self, total: int, at_once: int, console: Console):
        self._total, self._at_once, self._console = total, at_once, console
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._first_seen: dict[str, tuple[float, int]] = {}  # name -> time and step when it was first seen past step 0
        self._started: dict[str, float] = {}
        self._durations: list[float] = []
        self._done, self._refreshed = 0, 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_) -> None:
        self._live.stop()

    def report(self, name: str, event: str) -> None:
        """Prints one line about a run: "started", "done", or any other event."""
        if event == "started":
            self._started[name] = time.monotonic()
            self._first_seen.pop(name, None)
        elif event == "done":
            self._durations.append(time.monotonic() - self._started[name])
        if event != "started" or not self._console.is_terminal:
            self._console.print(f"{name}: {event}", soft_wrap=True)

    def show(self, running: Mapping[str, RunFolder], done: int, failed: int) -> None:
        """Draws the board, at most once per second.

        Args:
          running: name -> folder, of the active runs.
          done, failed: numbers of runs.
        """
        if not self._console.is_terminal:
            if done > self._done:
                self._console.print(f"{done} of {self._total} done{self._time_left(done, failed)}")
            self._done = done
            return
        if time.monotonic() - self._refreshed < REFRESH_SECONDS:
            return
        self._refreshed = time.monotonic()
        failures = (", ", (f"{failed} failed", "red")) if failed else ()
        waiting = self._total - done - failed - len(running)
        to_go = f", {waiting} to go{self._time_left(done, failed)}"
        title = Text.assemble((f"{done} of {self._total} done", "bold"), *failures, to_go)
        table = Table("running", Column("step", justify="right"), Column("left", justify="right"), box=None)
        for name, run in running.items():
            step = run.step()
            table.add_row(name, f"{step}/{run.total_steps}", self._time_left_of(name, step, run.total_steps))
        self._live.update(Group(title, table), refresh=True)

    def _time_left(self, done: int, failed: int) -> str:
        """The sweep's remaining time, from the runs that ended since this process started."""
        if not self._durations or done == self._total:
            return ""
        mean = sum(self._durations) / len(self._durations)
        return f", about {duration(mean * (self._total - done - failed) / self._at_once)} left"

    def _time_left_of(self, name: str, step: int, total: int) -> str:
        if not step:
            return ""
        when, first = self._first_seen.setdefault(name, (time.monotonic(), step))
        if step == first:
            return ""
        return duration((time.monotonic() - when) / (step - first) * (total - step))


def duration(seconds: float) -> str:
    """A duration for people: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
