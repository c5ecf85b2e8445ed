"""Jobs that were launched: their state, their output, their end. All is known from a job's folder (`record`)."""

import os
import pathlib
import signal
import subprocess

from adalink_jax.errors import UserError
from adalink_jax.launching.record import alive
from adalink_jax.launching.submit import need


def status(job: dict) -> int:
    """Prints what a job's machine says of it.

    Args:
      job: as `record.read` gives it.

    Raises:
      UserError: for a job that was not submitted, or of which nothing is known.
    """
    _check_submitted(job)
    for name, pid in _processes(job).items():
        print(f"{name}: runs, process {pid}")
    if not job["commands"]["status"]:
        if not _processes(job):
            print("No process of it runs.")
        return 0
    return _first_with_an_answer(job)


def logs(job: dict) -> int:
    """Prints a job's output.

    Raises:
      UserError: for a job that was not submitted, or has written nothing yet.
    """
    _check_submitted(job)
    if job["commands"]["logs"] is not None:
        return _run(job, job["commands"]["logs"])
    paths = sorted(pathlib.Path(job["folder"]).glob("*.log"))
    if not paths:
        raise UserError(f"{job['name']} has written no log into {job['folder']} yet.")
    for path in paths:
        if len(paths) > 1:
            print(f"--- {path}")
        print(path.read_text(errors="replace"), end="")
    return 0


def cancel(job: dict) -> int:
    """Stops a job, which saves if its machine gives it the time. A slice that it did not create stays.

    Raises:
      UserError: for a job that was not submitted.
    """
    _check_submitted(job)
    running = _processes(job)
    for name, pid in running.items():
        os.kill(pid, signal.SIGTERM)
        print(f"{name}: told to stop.")
    if running:
        return 0  # a script that runs cleans up itself
    if not job["commands"]["cancel"]:
        print("No process of it runs.")
        return 0
    return _run(job, job["commands"]["cancel"])


def _check_submitted(job: dict) -> None:
    if not job["submitted"]:
        raise UserError(
            f"{job['name']} was written into {job['folder']}, but not submitted; the launch command does with --submit."
        )


def _processes(job: dict) -> dict[str, int]:
    """Processes of this machine that belong to the job, by the names of their pid files."""
    found = {path.stem: alive(path) for path in sorted(pathlib.Path(job["folder"]).glob("*.pid"))}
    return {name: pid for name, pid in found.items() if pid}


def _words(job: dict, command: list[str]) -> list[str]:
    need(command[0])
    return [word.replace("{id}", str(job["submitted"].get("id"))) for word in command]


def _run(job: dict, command: list[str]) -> int:
    return subprocess.run(_words(job, command)).returncode


def _first_with_an_answer(job: dict) -> int:
    told = []
    for command in job["commands"]["status"]:
        done = subprocess.run(_words(job, command), capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.strip():
            print(done.stdout, end="")
            return 0
        told.append(f"{command[0]}: {(done.stderr.strip().splitlines() or ['nothing'])[-1]}")
    raise UserError(f"Nothing is known of {job['name']} ({'; '.join(told)}).")
