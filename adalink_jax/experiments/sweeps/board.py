"""What a sweep shows while it works: how many are done, each run's step and time left; lines where there is no terminal."""

import time
from collections.abc import Mapping

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from adalink_jax.experiments.sweeps.run_folder import RunFolder

SHOW_SECONDS = 1.0


class Board:
    """Use it as a context.

    Args:
      total: how many runs there are.
      at_once: how many work at once.
      console: where it is shown.
    """

    def __init__(self, total: int, at_once: int, console: Console):
        self._total, self._at_once, self._console = total, at_once, console
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._since: dict[str, tuple[float, int]] = {}  # name -> when it was first seen to have made a step, and which
        self._began: dict[str, float] = {}
        self._took: list[float] = []
        self._done, self._shown = 0, 0.0

    def __enter__(self):
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_):
        self._live.stop()

    def told(self, name: str, what: str) -> None:
        """One line on a run: it was started, is done, has failed."""
        if what == "started":
            self._began[name] = time.monotonic()
            self._since.pop(name, None)
        elif what == "done":
            self._took.append(time.monotonic() - self._began[name])
        if what != "started" or not self._console.is_terminal:
            self._console.print(f"{name}: {what}", soft_wrap=True, markup=False)

    def show(self, running: Mapping[str, RunFolder], done: int, failed: int) -> None:
        """Draws the board, at most once a second.

        Args:
          running: name -> folder, of those that work now.
          done, failed: how many of all.
        """
        if not self._console.is_terminal:
            if done > self._done:
                self._console.print(f"{done} of {self._total} done{self._left(done, failed)}")
            self._done = done
            return
        if time.monotonic() - self._shown < SHOW_SECONDS:
            return
        self._shown = time.monotonic()
        also = f", [red]{failed} failed[/]" if failed else ""
        elsewhere = self._total - done - failed - len(running)
        title = f"[bold]{done} of {self._total} done[/]{also}, {elsewhere} to go{self._left(done, failed)}"
        table = Table(box=None)
        for heading in ("running", "step", "left"):
            table.add_column(heading, justify="left" if heading == "running" else "right")
        for name, run in running.items():
            step = run.step()
            table.add_row(name, f"{step}/{run.total_steps}", self._left_of(name, step, run.total_steps))
        self._live.update(Group(title, table), refresh=True)

    def _left(self, done: int, failed: int) -> str:
        """Of the sweep, by the runs that were made since it was started."""
        if not self._took or done == self._total:
            return ""
        seconds = sum(self._took) / len(self._took) * (self._total - done - failed) / self._at_once
        return f", about {duration(seconds)} left"

    def _left_of(self, name: str, step: int, total: int) -> str:
        if not step:
            return ""
        when, first = self._since.setdefault(name, (time.monotonic(), step))
        if step == first:
            return ""
        return duration((time.monotonic() - when) / (step - first) * (total - step))


def duration(seconds: float) -> str:
    """For people: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
