"""Runs a job's tasks on a Ray cluster and waits for them. Needs the extra `ray`."""

import importlib
import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from adalink_jax.errors import Preempted, UserError
from adalink_jax.launching.job import Job
from adalink_jax.launching.job_templates import after_setup
from adalink_jax.launching.ray import Ray, indices, resources
from adalink_jax.launching.variables import read_secrets


class Again(Exception):
    """The task was stopped and has saved; Ray starts it again."""


def run(job: Job, settings: Ray, staged: dict[str, str]) -> int:
    """Gives Ray a task for each element of the job's array, and waits until all have ended.

    Args:
      job: the job.
      settings: of the cluster.
      staged: path -> text of the job's own files, which each task finds in its current folder.

    Returns:
      The exit status: of the first task that failed, else 0.

    Raises:
      UserError: without Ray, and for a cluster that does not answer.
    """
    if importlib.util.find_spec("ray") is None:
        raise UserError("Ray is not installed; run pip install 'adalink-jax[ray]', in the version of the cluster.")
    ray: Any = importlib.import_module("ray")

    try:
        ray.init(address=settings.address, log_to_driver=True)
    except (ConnectionError, ValueError) as e:
        raise UserError(f"The Ray cluster at ADDRESS = {settings.address!r} does not answer ({e}).") from e
    options: dict[str, Any] = {
        "max_retries": settings.max_retries,
        "retry_exceptions": [Again],
        **resources(settings, job.topology),
    }
    task = ray.remote(**options)(element)
    words = job.words()
    waiting = {}
    for index in indices(job):
        env = settings.environment(index)
        waiting[task.remote(words[1:], env, settings.secrets, settings.setup, staged)] = index or 0
    print(f"{len(waiting)} tasks on the Ray cluster at {settings.address}.", flush=True)
    first = 0
    while waiting:
        (done,), _ = ray.wait(list(waiting), num_returns=1)
        index = waiting.pop(done)
        try:
            status = ray.get(done)
        except ray.exceptions.RayError as e:
            status = Preempted.status if isinstance(getattr(e, "cause", None), Again) else 1
            print(f"task {index}: {str(e).strip().splitlines()[-1]}", file=sys.stderr)
        print(f"task {index}: ended with status {status}.", flush=True)
        first = first or status
    return first


def element(
    words: list[str], env: dict[str, str], secrets: dict[str, str], setup: tuple[str, ...], staged: dict[str, str]
) -> int:
    """One task: runs an `adalink` command on a node, where the files of `secrets` are read.

    Raises:
      Again: if it was stopped and has saved.
      UserError: if a file of `secrets` cannot be read.
    """
    environment = os.environ | env | read_secrets(secrets)
    command = after_setup(setup, [sys.executable, "-m", "adalink_jax", *words])
    with tempfile.TemporaryDirectory() as folder:
        for name, text in staged.items():
            path = pathlib.Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        status = subprocess.run(command, cwd=folder, env=environment).returncode
    if status == Preempted.status:
        raise Again
    return status
