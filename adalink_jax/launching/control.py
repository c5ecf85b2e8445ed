"""Status, logs and cancellation of launched jobs.

What runs is derived from the description of the job in its folder (`record`) by the launcher's function `commands`, not read from there.
"""

import dataclasses
import os
import pathlib
import signal
import subprocess
import time

from adalink_jax import launching, preemption
from adalink_jax.errors import UserError
from adalink_jax.launching.job import Commands
from adalink_jax.launching.record import JobRecord, running_pid
from adalink_jax.launching.submit import require_program
from adalink_jax.parallel.accelerators import parse_topology

WAIT_SECONDS = 15.0  # between two looks at a job's state
MOST_FAILURES = 60  # in a row: a scheduler may be away for a quarter of an hour


def status(job: JobRecord) -> int:
    """Prints a job's status: of its processes on this machine, and as its scheduler reports it.

    Returns:
      The exit status, 0.

    Raises:
      UserError: for a job that was not submitted, or that no scheduler knows any more.
    """
    _check_submitted(job)
    processes = _processes(job)
    for name, pid in processes.items():
        print(f"{name}: running, process {pid}")
    if queries := _commands(job).status:
        print(_first_answer(job.name, queries), end="")
    elif not processes:
        print("No process of this job is running.")
    return 0


def logs(job: JobRecord) -> int:
    """Prints a job's output.

    Returns:
      The exit status: of the command that prints the logs, if there is one.

    Raises:
      UserError: for a job that was not submitted, or has written nothing yet.
    """
    _check_submitted(job)
    if (command := _commands(job).logs) is not None:
        return _run(command).returncode
    paths = sorted(pathlib.Path(job.folder).glob("*.log"))
    if not paths:
        raise UserError(f"{job.name} has written no log to {job.folder} yet; see `adalink launch status`.")
    for path in paths:
        if len(paths) > 1:
            print(f"--- {path}")
        print(path.read_text(encoding="utf-8", errors="replace"), end="")
    return 0


def cancel(job: JobRecord) -> int:
    """Cancels a job, which saves first if its machine leaves it the time. A TPU slice that the job did not create is kept.

    Returns:
      The exit status: of the command that cancels, if there is one.

    Raises:
      UserError: for a job that was not submitted.
    """
    _check_submitted(job)
    processes = _processes(job)
    for name, pid in processes.items():
        os.kill(pid, signal.SIGTERM)
        print(f"{name}: sent SIGTERM.")
    if processes:
        return 0  # a running script cleans up itself
    if not (command := _commands(job).cancel):
        print("No process of this job is running.")
        return 0
    return _run(command).returncode


@dataclasses.dataclass(frozen=True)
class State:
    """The last state of a job that has ended.

    Attributes:
      word: as its scheduler calls it.
      succeeded: whether it ended well.
    """

    word: str
    succeeded: bool


def wait(job: JobRecord) -> State:
    """Waits until a job of a scheduler has ended, and prints how its state changes.

    Raises:
      UserError: if the scheduler does not answer, several times in a row.
    """
    commands, failures, last = _commands(job), 0, ""
    preemption.keeps(f"{job.name} still runs, so cancel it first (`adalink launch cancel {job.folder}`)")
    while True:
        try:
            state, failures = _first_answer(job.name, commands.state).strip(), 0
        except UserError as e:
            state, failures = last, failures + 1
            if failures == MOST_FAILURES:
                raise
            if failures == 1:
                print(f"{e} It is asked for again.", flush=True)
        if state != last:
            print(f"{job.name}: {state.removeprefix(job.name).strip() or 'submitted'}", flush=True)
            last = state
        for word in state.replace("+", " ").split():
            if word in commands.ends:
                preemption.keeps("")
                return State(word, commands.ends[word])
        time.sleep(WAIT_SECONDS)


def _commands(job: JobRecord) -> Commands:
    number = job.submitted.id if job.submitted else ""
    return getattr(launching, job.launcher).commands(job.name, parse_topology(job.topology), job.settings, number)


def _check_submitted(job: JobRecord) -> None:
    if not job.submitted:
        raise UserError(f"{job.name} was written to {job.folder} but not submitted; launch it with --submit.")


def _processes(job: JobRecord) -> dict[str, int]:
    """Name of the pid file -> process, for the job's running processes on this machine."""
    pids = {path.stem: running_pid(path) for path in sorted(pathlib.Path(job.folder).glob("*.pid"))}
    return {name: pid for name, pid in pids.items() if pid}


def _run(command: tuple[str, ...], capture: bool = False) -> subprocess.CompletedProcess[str]:
    require_program(command[0])
    return subprocess.run(command, capture_output=capture, encoding="utf-8", errors="replace")


def _first_answer(name: str, queries: tuple[tuple[str, ...], ...]) -> str:
    """What the first command that knows something prints.

    Raises:
      UserError: if all fail.
    """
    failures = []
    for command in queries:
        done = _run(command, capture=True)
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout
        failures.append(f"{command[0]}: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
    raise UserError(f"The status of {name} is not known ({'; '.join(failures)}).")
