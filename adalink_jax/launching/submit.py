"""Submission: the check that a job fits, then the one command that its launcher rendered."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

from adalink_jax.errors import UserError
from adalink_jax.launching import local, record, supervisor
from adalink_jax.launching.job import Job
from adalink_jax.launching.job_templates import line

PLANNED = ("train", "quickstart")


def plan_words(job: Job) -> list[str] | None:
    """The `adalink plan` command of a training; None for what is not planned: other commands, and CPUs."""
    if job.command not in PLANNED or job.topology.accelerator is None:
        return None
    flags = job.flags
    words = [f"--gin_file={name}" for name in flags.files]
    if job.command == "quickstart":
        words = ["--gin_file=gin/runs/quickstart.gin", *words]
    if flags.search_paths:
        words.append(f"--gin_search_paths={','.join(flags.search_paths)}")
    words += [f"--gin.{name}={text}" for name, text in flags.bindings]
    return ["adalink", "plan", *words, "--topology", job.topology.text, "--quick", "--json"]


def check_fits(job: Job) -> None:
    """Plans a training before it is submitted: with the compiler's least effort, and, as its programs need more memory than the
    job's, again with the usual effort before one is refused.

    Raises:
      UserError: for a job that does not fit, whose configuration is refused, or that cannot be planned here.
    """
    words = plan_words(job)
    if words is None:
        return
    plan = _planned(words)
    if not plan["fits"]:
        words = [word for word in words if word != "--quick"]
        plan = _planned(words)
    if not plan["fits"]:
        needed = max(plan["hbm_bytes"], plan["eval_hbm_bytes"] or 0)
        raise UserError(
            f"The job does not fit {job.topology.text}: it needs {needed / 1e9:.1f} of {plan['hbm_limit_bytes'] / 1e9:.1f} GB on each "
            f"chip; `{line(word for word in words if word != '--json')}` says what would help."
        )


def _planned(words: list[str]) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "adalink_jax", *words[1:]], capture_output=True, text=True, env=_environment()
    )
    told = next((text for text in done.stderr.splitlines() if text.startswith("error: ")), None)
    if told is not None:
        raise UserError(told.removeprefix("error: "))
    try:
        return json.loads(done.stdout)
    except json.JSONDecodeError as e:
        why = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1][:300]
        raise UserError(f"The job could not be planned ({why}); --no_plan submits it as it is.") from e


def submit(job: Job, launcher: str, settings) -> int:
    """Submits what was rendered into the job's folder, and records that.

    Returns:
      The exit status: of the job where it runs in the foreground, of the submission elsewhere.

    Raises:
      UserError: if the command that submits, or a file that hosts install, is not here.
    """
    if launcher == "local":
        return _run_local(job, settings)
    command = record.read(job.folder)["commands"]["submit"]
    if launcher == "tpu":
        need("gcloud")
        for name in filter(None, (settings.wheel, settings.constraints)):
            if not os.path.isfile(name):
                raise UserError(
                    f"There is no file {name} for the TPU's hosts to install; `make wheel` makes the wheel, in dist/."
                )
        return _run_in_foreground(job, command)
    need(command[0])
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="", flush=True)
    if done.returncode == 0:
        # sbatch prints ID, or ID;CLUSTER.
        record.submitted(job.folder, id=done.stdout.strip().split(";")[0] if launcher == "slurm" else job.name)
    return done.returncode


def need(program: str) -> None:
    """Refuses a command that is not there.

    Raises:
      UserError: names it.
    """
    if shutil.which(program) is None:
        raise UserError(f"There is no {program} on this machine; give the command where it is.")


def _environment() -> dict[str, str]:
    """For `python -m adalink_jax` from any folder: this package, wherever it was imported from."""
    root = str(pathlib.Path(__file__).resolve().parent.parent.parent)
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}


def _run_local(job: Job, settings: local.Local) -> int:
    coordinator = f"localhost:{supervisor.free_port()}"
    indices = range(settings.processes)
    commands = [
        [sys.executable, "-m", "adalink_jax", *local.process_words(job, settings, index, coordinator)[1:]]
        for index in indices
    ]
    environments = [{"PYTHONPATH": _environment()["PYTHONPATH"], **settings.environment(index)} for index in indices]
    print(f"{settings.processes} processes; logs: {job.folder}/process_*.log", flush=True)
    record.submitted(job.folder)
    with supervisor.Supervisor(commands, environments, job.folder, settings.grace_seconds) as processes:
        status = processes.wait()
    print(f"Ended with status {status}.", flush=True)
    return status


def _run_in_foreground(job: Job, command: list[str]) -> int:
    """Runs a script, shows its log, and passes signals on to it. Where this process goes with its terminal, the script stays."""
    path = pathlib.Path(job.folder, "script.log")
    with open(path, "ab") as log:
        begin = log.tell()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    pass_on = lambda number, frame: process.send_signal(number)
    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    pid = pathlib.Path(job.folder, "script.pid")
    record.note_process(pid, process.pid)
    record.submitted(job.folder)
    try:
        with open(path, errors="replace") as log:
            log.seek(begin)
            while (ended := process.poll()) is None:
                print(log.read(), end="", flush=True)
                time.sleep(0.2)
            print(log.read(), end="", flush=True)
        return ended if ended >= 0 else 128 - ended
    finally:
        if process.poll() is not None:
            pid.unlink(missing_ok=True)
        for number, handler in before.items():
            signal.signal(number, handler)
