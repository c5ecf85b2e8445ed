"""Processes of one job on this machine: started together, each with a log, and none left when the job has ended.

The job's status is 75 if it was stopped and saved ("start me again"), else that of the first process that failed, else 0.
"""

import os
import pathlib
import signal
import socket
import subprocess
import time

from adalink_jax import preemption
from adalink_jax.errors import Preempted
from adalink_jax.launching import record

_PASSED_ON = (*preemption.NOTICES, signal.SIGINT)


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


class Supervisor:
    """The processes of one job. Used as a context, at whose end none is left.

    Args:
      commands: one command a process.
      environments: what each has beyond this process's environment.
      folder: where `process_I.log` and `process_I.pid` are written.
      grace_seconds: from SIGTERM until SIGKILL.
    """

    def __init__(
        self, commands: list[list[str]], environments: list[dict[str, str]], folder: str, grace_seconds: float
    ):
        self._commands, self._environments = commands, environments
        self._folder, self._grace = pathlib.Path(folder), grace_seconds
        self.processes: list[subprocess.Popen] = []
        self._notice: int | None = None  # the first that came
        self._handlers = {}

    def __enter__(self) -> "Supervisor":
        self._handlers = {number: signal.signal(number, self._heard) for number in _PASSED_ON}
        try:
            for index in range(len(self._commands)):
                self._start(index)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        self._stop_all(signal.SIGTERM)
        for index in range(len(self.processes)):
            (self._folder / f"process_{index}.pid").unlink(missing_ok=True)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def wait(self) -> int:
        """The job's status, when all have ended. A notice to this process is passed on to all."""
        first = None
        while any(process.poll() is None for process in self.processes):
            if self._notice is not None:
                self._stop_all(self._notice)
                break
            bad = [process.returncode for process in self.processes if process.poll()]
            if bad:
                first = bad[0]
                # The others are saving too if it saved; else they wait for one that is gone.
                self._stop_all(signal.SIGTERM)
                break
            time.sleep(0.1)
        statuses = [process.wait() for process in self.processes]
        if first is None:
            first = next((status for status in statuses if status), 0)
        if self._notice is not None and Preempted.status in statuses:
            return Preempted.status  # another may have been too young to know the signal
        return first if first >= 0 else 128 - first  # as shells tell of a signal

    def _start(self, index: int) -> None:
        with open(self._folder / f"process_{index}.log", "ab") as log:
            # In a group of its own: Ctrl-C comes to this process alone, which passes it on once.
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

    def _heard(self, number, frame) -> None:
        if self._notice is None:
            self._notice = number
        else:
            self._send(number)  # a second Ctrl-C stops at once

    def _stop_all(self, number: int) -> None:
        """The signal, then SIGKILL to what is left after the time of grace."""
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
