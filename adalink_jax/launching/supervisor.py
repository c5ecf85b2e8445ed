"""Runs the processes of one local job: starts them together, each with a log, and leaves none running when the job has ended.

The job's exit status is 75 if it was preempted and saved (see `preemption`), else that of the first process that failed, else 0.
"""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import time
import types

from adalink_jax import preemption
from adalink_jax.errors import Preempted
from adalink_jax.launching import record


def free_port() -> int:
    """A port of this machine on which nothing listens."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


class Supervisor:
    """The processes of one job, as a context manager: they start when it is entered, and none is left when it exits.

    Args:
      commands: one per process.
      environments: variables that are added to this process's environment, one dict per process.
      folder: where `process_I.log` and `process_I.pid` are written.
      grace_seconds: seconds from SIGTERM to SIGKILL.
    """

    def __init__(
        self,
        commands: list[list[str]],
        environments: list[dict[str, str]],
        folder: str | os.PathLike[str],
        grace_seconds: float,
    ):
        self._commands, self._environments = commands, environments
        self._folder, self._grace = pathlib.Path(folder), grace_seconds
        self.processes: list[subprocess.Popen] = []
        self._notice: int | None = None  # the first signal that this process received

    def __enter__(self) -> "Supervisor":
        with contextlib.ExitStack() as stack:
            stack.enter_context(preemption.signals_handled(self._receive, *preemption.NOTICES, signal.SIGINT))
            stack.callback(self._end)
            for index in range(len(self._commands)):
                self._start(index)
            self._at_exit = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._at_exit.close()

    def _end(self) -> None:
        self._stop_all(signal.SIGTERM)
        for index in range(len(self.processes)):
            (self._folder / f"process_{index}.pid").unlink(missing_ok=True)

    def wait(self) -> int:
        """Waits until all processes have ended, and forwards signals to them.

        Returns:
          The job's exit status.
        """
        failure = None
        while any(process.poll() is None for process in self.processes):
            if self._notice is not None:
                self._stop_all(self._notice)
                break
            failure = next((process.returncode for process in self.processes if process.poll()), None)
            if failure is not None:
                # If that process saved, the others are saving too; otherwise they would wait for it forever.
                self._stop_all(signal.SIGTERM)
                break
            time.sleep(0.1)
        statuses = [process.wait() for process in self.processes]
        if failure is None:
            failure = next((status for status in statuses if status), 0)
        if self._notice is not None and Preempted.status in statuses:
            return Preempted.status  # another process may have been killed before it could handle the signal
        return failure if failure >= 0 else 128 - failure  # shells report death by signal N as 128 + N

    def _start(self, index: int) -> None:
        with open(self._folder / f"process_{index}.log", "ab") as log:
            # In its own session, Ctrl-C reaches only this process, which forwards it once.
            process = subprocess.Popen(
                self._commands[index],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | self._environments[index],
                start_new_session=True,
            )
        self.processes.append(process)
        record.note_process(self._folder / f"process_{index}.pid", process.pid)

    def _receive(self, number: int, frame: types.FrameType | None) -> None:
        if self._notice is None:
            self._notice = number
        else:
            self._send(number)  # a second Ctrl-C stops at once

    def _stop_all(self, number: int) -> None:
        """Sends the signal, then SIGKILL to what is still running after the grace period."""
        deadline = time.monotonic() + self._grace
        self._send(number)
        while any(process.poll() is None for process in self.processes) and time.monotonic() < deadline:
            time.sleep(0.05)
        self._send(signal.SIGKILL)
        for process in self.processes:
            process.wait()

    def _send(self, number: int) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, number)
