"""A canary: ten steps of a training job on one host of its chips, which must succeed before the whole job is submitted.

It is a job of its own, with the job's base, data and bucket, and as many rows on each chip. What differs is bound on its command line,
by the macros that the job's gin files use.
"""

import dataclasses
import math
import sys
from collections.abc import Callable

from adalink_jax.configuration import gin_sources
from adalink_jax.errors import UserError
from adalink_jax.launching import Gke, Settings, Slurm, Tpu, control, record, submit
from adalink_jax.launching.job import Job
from adalink_jax.parallel.accelerators import Topology, parse_topology

STEPS = 10
TTL_SECONDS = 1800  # at least, so that the cluster still has the JobSet after `control.wait` could not ask for a while


def of(job: Job, settings: Settings) -> tuple[Job, Settings]:
    """The canary of a job, which runs in a new folder below its MODEL_DIR, and the settings of its launcher.

    Raises:
      UserError: for another command than `train`, without MODEL_DIR, for an existing slice of several hosts, for a mesh that one host does
        not have, and for a batch that does not divide over the hosts.
    """
    if job.command != "train" or job.array is not None or not job.model_dir:
        raise UserError("--canary tries a `train` command whose --gin.MODEL_DIR is given.")
    host = _one_host(job.topology, settings)
    hosts = job.topology.chips // host.chips
    if hosts > 1 and isinstance(settings, Tpu) and settings.tpu:
        raise UserError(
            f"--canary runs on one host, and --tpu={settings.tpu} has {hosts}; leave one of them out, or create a slice."
        )
    stamp = record.now()[:19].replace(":", "").replace("-", "")
    changes = {"MODEL_DIR": repr(f"{job.model_dir.rstrip('/')}/canary_{stamp}")}

    def change(parameter: str, new: Callable[[int], int]) -> None:
        name, value = gin_sources.bound(job.flags, parameter) or ("", None)
        if isinstance(value, int) and new(value) != value:
            changes[name] = str(new(value))

    change("train.total_steps", lambda steps: min(steps, STEPS))
    change("warmup_cosine.warmup_steps", lambda steps: min(steps, STEPS // 2))
    change("make_mesh.slices", lambda slices: 1)
    change("expect_devices.num_devices", lambda devices: host.devices)
    if hosts > 1:
        _check_mesh(job, host)
        _check_batch(job, hosts)
        change("DatasetConfig.batch_size", lambda rows: rows // hosts)
    short = stamp[4:].replace("T", "-")
    tried = dataclasses.replace(
        job,
        name=f"{job.name}-canary-{short}",
        folder=f"{job.folder.rstrip('/')}-canary-{short}",
        topology=host,
        arguments=(*job.arguments, *(f"--gin.{name}={text}" for name, text in changes.items())),
    )
    return tried, _settings(settings, host, hosts)


def check_plan(job: Job, settings: Settings) -> None:
    """Checks that a canary fits its host.

    Raises:
      UserError: see `submit.check_plan`.
    """
    try:
        submit.check_plan(job, settings)
    except UserError as e:
        raise UserError(
            f"{e} That is the canary on one host, {job.topology.text}; if the job needs several, leave --canary out."
        ) from e


def run(job: Job, settings: Settings, command: tuple[str, ...], staged: dict[str, str], whole: Job) -> int:
    """Submits a canary and waits until it has ended; if it failed, prints one sentence.

    Args:
      job, settings: of the canary.
      command: that submits it.
      staged: see `submit.submit`.
      whole: the job that follows.

    Returns:
      The exit status, 0 if it succeeded.

    Raises:
      UserError: if it cannot be submitted, or its cluster stops answering.
      Stopped: see `submit.submit`.
    """
    print(f"Canary {job.name}: {STEPS} steps on {job.topology.text}; {whole.name} follows if it succeeds.", flush=True)
    status = submit.submit(job, settings, command, staged)
    look = f"; `adalink launch logs {job.folder}` prints its output"
    if isinstance(settings, Tpu):
        ended = f"ended with status {status}"
    elif status:
        ended, look = f"could not be submitted (status {status})", ""
    else:
        state = _wait(job, whole)
        status, ended = int(not state.succeeded), f"ended as {state.word}"
    if status == 0:
        print(f"The canary {job.name} succeeded.", flush=True)
        return 0
    print(f"The canary {job.name} {ended}, so {whole.name} was not submitted{look}.", file=sys.stderr)
    return status


def _wait(job: Job, whole: Job) -> control.State:
    try:
        return control.wait(record.read(job.folder))
    except UserError as e:
        raise UserError(
            f"{e} The canary may still run (`adalink launch cancel {job.folder}` ends it), and {whole.name} was not submitted."
        ) from e


def _one_host(topology: Topology, settings: Settings) -> Topology:
    if isinstance(settings, Slurm) and settings.gpus_per_node and topology.accelerator:
        return parse_topology(f"{topology.accelerator.name}:{min(settings.gpus_per_node, topology.chips)}")
    return topology.one_host()


def _check_mesh(job: Job, host: Topology) -> None:
    axes = {axis: gin_sources.bound(job.flags, f"make_mesh.{axis}") for axis in ("data", "model")}
    # -1 takes what is left.
    fixed = {axis: bound for axis, bound in axes.items() if bound and isinstance(bound[1], int) and bound[1] > 0}
    count = math.prod(value for _, value in fixed.values())
    if host.devices != count if "data" in fixed else host.devices % count:
        shown = " and ".join(f"{name} = {value}" for name, value in fixed.values())
        raise UserError(
            f"--canary runs on one host, whose {host.devices} devices make no mesh with {shown}; leave --canary out."
        )


def _check_batch(job: Job, hosts: int) -> None:
    name, rows = gin_sources.bound(job.flags, "DatasetConfig.batch_size") or ("BATCH_SIZE", None)
    if not isinstance(rows, int):
        raise UserError(
            f"--canary divides the batch by the job's {hosts} hosts, and no number of rows is bound to {name}; add --gin.BATCH_SIZE=N."
        )
    if rows % hosts:
        raise UserError(
            f"--canary gives one host its share of the batch, and {name} = {rows} does not divide over the job's {hosts} hosts; make it "
            f"a multiple of {hosts}, or leave --canary out."
        )


def _settings(settings: Settings, host: Topology, hosts: int) -> Settings:
    """The same time limit as the job's on fewer chips; GPU hosts need their own networks only among several."""
    changes = {}
    if hosts > 1 and isinstance(settings, Gke | Slurm | Tpu):
        changes["topology"] = host.text
        if settings.max_chip_hours is not None:
            changes["max_chip_hours"] = settings.max_chip_hours / hosts
        if isinstance(settings, Gke):
            changes["networks"] = None
    if isinstance(settings, Gke) and settings.ttl_seconds is not None:
        changes["ttl_seconds"] = max(settings.ttl_seconds, TTL_SECONDS)
    return dataclasses.replace(settings, **changes)
