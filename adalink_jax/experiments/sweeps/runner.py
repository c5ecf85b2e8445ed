"""Runs a sweep's runs on this machine: a few processes at once, each `adalink sweep --element`, which locks its run.

The state is in the runs' folders, not here: after any kill, finished runs are not started again, and unfinished ones resume
from their checkpoints. The processes end when this one does, after saving.
"""

import collections
import os
import re
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console

from adalink_jax.errors import Preempted, Stopped, Taken, UserError
from adalink_jax.experiments.sweeps.board import Board
from adalink_jax.experiments.sweeps.run_folder import LOG, RunFolder
from adalink_jax.experiments.sweeps.spending import Spending
from adalink_jax.preemption import NOTICES, signals_handled

POLL_SECONDS, LOOK_SECONDS, FOLLOW_SECONDS = 0.1, 1.0, 1.0
TRIES = 20  # starts of a run that is preempted again and again
RESTARTED = {Preempted.status, Taken.status, *(-number for number in NOTICES)}


def follow(parent: int) -> None:
    """Makes this process receive SIGTERM when `parent`, the process that started it, ends."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(FOLLOW_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def run_all(
    arguments: Sequence[str],
    runs: Mapping[str, RunFolder],
    parallel: int,
    console: Console,
    spending: Spending | None = None,
) -> dict[str, str]:
    """Makes all unfinished runs, each in its own process.

    Args:
      arguments: of an `adalink` command, whose `--element NAME` makes one run.
      runs: name -> folder, in order.
      parallel: number of runs at once.
      console: shows the progress.
      spending: limits the chip-hours; None without a limit.

    Returns:
      Name -> reason, of the runs that failed.

    Raises:
      UserError, Stopped, Preempted: see `Runner.run`.
    """
    start = [sys.executable, "-m", "adalink_jax", *arguments, "--follow", str(os.getpid())]
    board = Board(len(runs), parallel, console)
    runner = Runner(runs, lambda name: [*start, "--element", name], parallel, board, spending)
    runner.run()
    return runner.failed


class Runner:
    """Runs every run that is not finished.

    Args:
      runs: name -> folder, in order.
      command: name -> command line that makes it.
      parallel: number of runs at once.
      board: shows the progress.
      spending: limits the chip-hours; None without a limit.

    Attributes:
      failed: name -> reason, with the log's path.
    """

    def __init__(
        self,
        runs: Mapping[str, RunFolder],
        command: Callable[[str], Sequence[str]],
        parallel: int,
        board: Board,
        spending: Spending | None = None,
    ):
        self._runs, self._command, self._parallel, self._board = runs, command, parallel, board
        self._spending, self._spent = spending, False
        self._waiting = collections.deque(name for name, run in runs.items() if not run.finished())
        self._running: dict[str, subprocess.Popen] = {}
        self._tries: collections.Counter[str] = collections.Counter()
        self._looked = 0.0
        self._signals: list[int] = []
        self.failed: dict[str, str] = {}

    def run(self) -> None:
        """Returns when every run is finished or has failed.

        Raises:
          UserError: once the chip-hours are used, and all processes have saved and ended.
          Stopped, Preempted: after a signal, once all processes have saved and ended.
        """
        with signals_handled(self._record_signal, signal.SIGINT, *NOTICES), self._board:
            try:
                while (self._waiting and not self._ending) or self._running:
                    self._spend()
                    self._start_some()
                    self._collect()
                    self._show()
                    time.sleep(POLL_SECONDS)
            finally:
                for process in self._running.values():  # any left only after an error above
                    process.kill()
                if self._spending:
                    self._spending.write()
        if self._spending and self._spent and self._waiting:
            failed = f" Failed: {', '.join(self.failed)}." if self.failed else ""
            raise UserError(self._spending.words() + failed)
        if self._signals:
            kind = Preempted if self._signals[0] in NOTICES else Stopped
            raise kind("The sweep was stopped, and its runs have saved; rerun the same command to resume.")

    @property
    def _ending(self) -> bool:
        return bool(self._signals) or self._spent

    def _spend(self) -> None:
        if self._spending and not self._ending and self._spending.over():
            self._spent = True
            for process in self._running.values():
                process.terminate()

    def _record_signal(self, number: int, _: types.FrameType | None) -> None:
        self._signals.append(number)
        again = number == signal.SIGINT and self._signals.count(number) > 1
        for process in self._running.values():  # a second Ctrl-C does not wait for checkpoints
            process.kill() if again else process.terminate()

    def _start_some(self) -> None:
        if len(self._running) >= self._parallel or time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        for name in list(self._waiting):
            if self._ending or len(self._running) >= self._parallel:
                return
            run = self._runs[name]
            if run.finished():  # by another process
                self._waiting.remove(name)
            elif not run.taken():
                self._waiting.remove(name)
                self._start(name)

    def _start(self, name: str) -> None:
        run = self._runs[name]
        run.path.mkdir(parents=True, exist_ok=True)
        with open(run.path / LOG, "ab") as log:
            # A new session: Ctrl-C in the terminal reaches only this process, which passes it on.
            self._running[name] = subprocess.Popen(
                self._command(name), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        self._tries[name] += 1
        self._board.report(name, "started")
        if self._signals:  # one that came while the process was being started
            self._running[name].terminate()

    def _collect(self) -> None:
        for name, process in list(self._running.items()):
            status = process.poll()
            if status is None:
                continue
            del self._running[name]
            self._looked = 0.0
            if status == 0 and self._runs[name].finished():
                self._board.report(name, "done")
            elif self._ending:
                if not self._runs[name].finished():
                    self._waiting.append(name)
            elif status in RESTARTED and self._tries[name] < TRIES:
                self._waiting.append(name)
                self._tries[name] -= status == Taken.status
                taken = status == Taken.status
                self._board.report(name, "another process trains it" if taken else "preempted; it will resume")
            else:
                self.failed[name] = f"{self._reason(name, status)}; see {self._runs[name].path / LOG}"
                self._board.report(name, f"failed: {self.failed[name]}")

    def _reason(self, name: str, status: int) -> str:
        if status == -signal.SIGKILL:
            return "killed by SIGKILL, perhaps because memory ran out"
        if status < 0:
            return f"ended by {signal.Signals(-status).name}"
        text = (self._runs[name].path / LOG).read_bytes().decode(errors="replace")
        errors = re.findall(r"^(?:error: |\w*(?:Error|Exception): )(.*?)\.?$", text, re.MULTILINE)
        return errors[-1] if errors else f"ended with status {status}"

    def _show(self) -> None:
        done = len(self._runs) - len(self._waiting) - len(self._running) - len(self.failed)
        self._board.show({name: self._runs[name] for name in self._running}, done, len(self.failed))
