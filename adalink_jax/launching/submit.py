"""Submits a job: checks that it fits the chips' memory, then runs the command that its launcher rendered."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import types
from typing import Any

from adalink_jax import preemption
from adalink_jax.errors import Preempted, Stopped, UserError
from adalink_jax.launching import Settings, local, ray, ray_tasks, record, slurm, supervisor, tpu
from adalink_jax.launching.job import Job
from adalink_jax.launching.job_templates import after_setup, line
from adalink_jax.launching.variables import compiler_variables, read_secrets

PLANNED = ("train", "quickstart")


def plan_words(job: Job) -> list[str] | None:
    """The `adalink plan` command for a training job; None for other commands and for CPUs, which are not planned."""
    if job.command not in PLANNED or job.topology.accelerator is None:
        return None
    words = job.flags.arguments()
    if job.command == "quickstart":
        words = ["--gin_file=gin/runs/quickstart.gin", *words]
    return ["adalink", "plan", *words, "--topology", job.topology.text, "--quick", "--json"]


def check_plan(job: Job, settings: Settings) -> float | None:
    """Plans a training job with the compiler's least effort, and again with the usual effort if that needs too much memory or time.

    Args:
      job: the job.
      settings: of its launcher.

    Returns:
      The chip-hours of the whole job, roughly; None if they are not known.

    Raises:
      UserError: for a job that does not fit, has an invalid configuration, or cannot be planned on this machine.
    """
    words = plan_words(job)
    if words is None:
        return None
    flags = compiler_variables(settings.env)
    plan, most = _run_plan(words, flags), getattr(settings, "max_chip_hours", None)
    if not plan["fits"] or (most and plan["estimated_chip_hours"] and plan["estimated_chip_hours"] > most):
        words = [word for word in words if word != "--quick"]
        plan = _run_plan(words, flags)
    if not plan["fits"]:
        needed = max(plan["hbm_bytes"], plan["eval_hbm_bytes"] or 0)
        raise UserError(
            f"The job {job.name} does not fit {job.topology.text}: it needs {needed / 1e9:.1f} of {plan['hbm_limit_bytes'] / 1e9:.1f} GB on each "
            f"chip; `{line(word for word in words if word != '--json')}` prints what would help."
        )
    return plan["estimated_chip_hours"]


def _run_plan(words: list[str], flags: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "adalink_jax", *words[1:]],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=_environment() | flags,
    )
    error = next((text for text in done.stderr.splitlines() if text.startswith("error: ")), None)
    if error is not None:
        raise UserError(error.removeprefix("error: "))
    try:
        return json.loads(done.stdout)
    except json.JSONDecodeError as e:
        why = (done.stderr.strip().splitlines() or ["no output"])[-1][:300]
        raise UserError(f"The job could not be planned ({why}); --no_plan submits it without planning.") from e


def submit(job: Job, settings: Settings, command: tuple[str, ...], staged: dict[str, str]) -> int:
    """Submits a job whose folder is written, and records that.

    Args:
      job: the job.
      settings: of its launcher.
      command: the command that submits it, see `Rendered`.
      staged: path -> text of the job's own files.

    Returns:
      The exit status: of the job for local jobs, TPUs and Ray, which run in the foreground, else of the submission.

    Raises:
      UserError: if the program that submits, or a file that TPU hosts install, is not on this machine, or if it does not print an id.
      Stopped: if a signal came while a script for TPUs cleaned up after a job that succeeded.
    """
    if isinstance(settings, local.Local):
        return _run_local(job, settings)
    if isinstance(settings, ray.Ray):
        return _run_tasks(job, settings, staged)
    if isinstance(settings, tpu.Tpu):
        require_program("gcloud")
        for name in filter(None, (settings.wheel, settings.constraints)):
            if not os.path.isfile(name):
                raise UserError(
                    f"There is no file {name} for the TPU's hosts to install; `make wheel` builds the wheel in dist/."
                )
        return _run_in_foreground(job, command)
    require_program(command[0])
    done = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", errors="replace")
    print(done.stdout, end="", flush=True)
    if done.returncode == 0:
        number = slurm.number(done.stdout) if isinstance(settings, slurm.Slurm) else job.name
        record.submitted(job.folder, id=number)
    return done.returncode


def require_program(program: str) -> None:
    """Checks that a program is installed.

    Raises:
      UserError: if it is not.
    """
    if shutil.which(program) is None:
        raise UserError(f"There is no {program} on this machine; run the command on a machine that has it.")


def _environment() -> dict[str, str]:
    """The environment in which `python -m adalink_jax` runs this package, from any folder."""
    root = str(pathlib.Path(__file__).resolve().parent.parent.parent)
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}


def _run_local(job: Job, settings: local.Local) -> int:
    coordinator = f"localhost:{supervisor.free_port()}"
    indices = range(settings.processes)
    commands = [
        after_setup(
            settings.setup,
            [sys.executable, "-m", "adalink_jax", *local.process_words(job, settings, index, coordinator)[1:]],
        )
        for index in indices
    ]
    require_program(commands[0][0])
    shared = {"PYTHONPATH": _environment()["PYTHONPATH"], **local.no_proxy(os.environ)}
    shared |= read_secrets(settings.secrets)
    environments = [{**shared, **settings.environment(index)} for index in indices]
    print(f"{settings.processes} processes; logs: {job.folder}/process_*.log", flush=True)
    record.submitted(job.folder)
    with supervisor.Supervisor(commands, environments, job.folder, settings.grace_seconds) as processes:
        status = processes.wait()
    print(f"Ended with status {status}.", flush=True)
    return status


def _run_tasks(job: Job, settings: ray.Ray, staged: dict[str, str]) -> int:
    """Waits for the tasks of a Ray cluster; while this process runs, `control` knows it. Without it Ray ends them."""
    pid = pathlib.Path(job.folder, "tasks.pid")
    record.note_process(pid, os.getpid())
    record.submitted(job.folder)
    try:
        return ray_tasks.run(job, settings, staged)
    finally:
        pid.unlink(missing_ok=True)


def _run_in_foreground(job: Job, command: tuple[str, ...]) -> int:
    """Runs a script, prints its log and forwards signals to it. The script survives if the terminal closes."""
    path = pathlib.Path(job.folder, "script.log")
    with open(path, "ab") as log:
        begin = log.tell()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    received = []

    def forward(number: int, frame: types.FrameType | None) -> None:
        received.append(number)
        process.send_signal(number)

    pid = pathlib.Path(job.folder, "script.pid")
    with preemption.signals_handled(forward, signal.SIGTERM, signal.SIGINT):
        record.note_process(pid, process.pid)
        record.submitted(job.folder)
        try:
            with open(path, encoding="utf-8", errors="replace") as log:
                log.seek(begin)
                while (ended := process.poll()) is None:
                    print(log.read(), end="", flush=True)
                    time.sleep(0.2)
                print(log.read(), end="", flush=True)
        finally:
            if process.poll() is not None:
                pid.unlink(missing_ok=True)
    if received and ended == 0:
        stopped = Stopped if signal.SIGINT in received else Preempted
        raise stopped(f"Stopped by {signal.Signals(received[0]).name}; {job.name} itself has succeeded.")
    return ended if ended >= 0 else 128 - ended
