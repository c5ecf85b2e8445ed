"""Status, logs and cancellation of launched jobs. Everything needed is in the job's folder (`record`)."""

import os
import pathlib
import signal
import subprocess

from adalink_jax.errors import UserError
from adalink_jax.launching.record import JobRecord, running_pid
from adalink_jax.launching.submit import require_program


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
    if job["commands"]["status"]:
        _print_first_answer(job)
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
    if job["commands"]["logs"] is not None:
        return _run(job, job["commands"]["logs"]).returncode
    paths = sorted(pathlib.Path(job["folder"]).glob("*.log"))
    if not paths:
        raise UserError(f"{job['name']} has written no log to {job['folder']} yet; see `adalink launch status`.")
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
    if not job["commands"]["cancel"]:
        print("No process of this job is running.")
        return 0
    return _run(job, job["commands"]["cancel"]).returncode


def _check_submitted(job: JobRecord) -> None:
    if not job["submitted"]:
        raise UserError(f"{job['name']} was written to {job['folder']} but not submitted; launch it with --submit.")


def _processes(job: JobRecord) -> dict[str, int]:
    """Name of the pid file -> process, for the job's running processes on this machine."""
    pids = {path.stem: running_pid(path) for path in sorted(pathlib.Path(job["folder"]).glob("*.pid"))}
    return {name: pid for name, pid in pids.items() if pid}


def _run(job: JobRecord, command: list[str], capture: bool = False) -> subprocess.CompletedProcess[str]:
    require_program(command[0])
    words = [word.replace("{id}", str((job["submitted"] or {}).get("id"))) for word in command]
    return subprocess.run(words, capture_output=capture, encoding="utf-8", errors="replace")


def _print_first_answer(job: JobRecord) -> None:
    failures = []
    for command in job["commands"]["status"]:
        done = _run(job, command, capture=True)
        if done.returncode == 0 and done.stdout.strip():
            print(done.stdout, end="")
            return
        failures.append(f"{command[0]}: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
    raise UserError(f"The status of {job['name']} is not known ({'; '.join(failures)}).")
