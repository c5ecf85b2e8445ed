"""Cloud TPU VMs: one script for this machine, which asks for a slice and gives it back, and one that runs on each of its hosts.

What the script created it deletes, however it ends; a slice that existed before (`--tpu`) it never deletes.
"""

import dataclasses
import os

import gin

from adalink_jax.errors import UserError
from adalink_jax.launching import job_templates
from adalink_jax.launching.job import ARRAY_INDEX, WRITING, Job, Rendered, shared_model_dir

SCRIPT, WORKER = "job.sh", "worker.sh"
# The table's chip -> Google's name of a slice of N chips, what it counts for each chip, and the system image.
CLOUD_NAMES = {
    "v4": ("v4", 2, "tpu-ubuntu2204-base"),
    "v5e": ("v5litepod", 1, "v2-alpha-tpuv5-lite"),
    "v5p": ("v5p", 2, "v2-alpha-tpuv5"),
    "v6e": ("v6e", 1, "v2-alpha-tpuv6e"),
}
_BOUNDS = {1: "1,1,1", 4: "2,2,1", 8: "2,4,1"}  # chips of one host


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Tpu:
    """Settings of a project and of a job on its TPUs.

    Attributes:
      topology: `v5e:4x8`, `v5e:16x16*2` for two slices.
      project, zone: of Google Cloud.
      wheel: file of this package, which each host installs (`make wheel`).
      constraints: file of versions for pip; None takes what fits.
      runtime_version: system image of the hosts; None for the one of the chip.
      spot, reserved: how the slices are asked for; neither is on demand.
      setup: shell lines on each host, before the installation.
      create_flags: further ones of `gcloud compute tpus queued-resources create`.
      ssh_flags: further ones of its `ssh` and `scp`, such as `--tunnel-through-iap`.
    """

    topology: str
    project: str
    zone: str
    wheel: str
    constraints: str | None = None
    runtime_version: str | None = None
    spot: bool = False
    reserved: bool = False
    setup: tuple[str, ...] = ()
    create_flags: tuple[str, ...] = ()
    ssh_flags: tuple[str, ...] = ()


def render(job: Job, settings: Tpu, staged: dict[str, str], tpu: str | None = None, per_host: bool = False) -> Rendered:
    """The scripts of a job.

    Args:
      job: what runs.
      settings: of the project.
      staged: the job's own files, copied to each host.
      tpu: a slice that exists; None asks for one.
      per_host: each host runs elements of an array on its own, as if it were alone.

    Raises:
      UserError: for settings that exclude each other, a MODEL_DIR that hosts do not share, files outside the current folder.
    """
    topology = job.topology
    _check(job, settings, tpu, per_host)
    for name in staged:
        if os.path.isabs(name):
            raise UserError(
                f"{name} must lie under the current folder, to be found on the TPU's hosts by the same name; copy it here."
            )
    prefix, factor, image = CLOUD_NAMES[topology.accelerator.name]
    chips = topology.chips // topology.num_slices
    request = [
        f"--accelerator-type={prefix}-{chips * factor}",
        f"--runtime-version={settings.runtime_version or image}",
    ]
    many = topology.num_slices > 1
    request += (
        [f"--node-count={topology.num_slices}", f"--node-prefix={job.name}"] if many else [f"--node-id={job.name}"]
    )
    request += [f"--{name}" for name in ("spot", "reserved") if getattr(settings, name)]
    request += settings.create_flags
    queued = ("gcloud", "compute", "tpus", "queued-resources")
    where = (f"--project={settings.project}", f"--zone={settings.zone}")
    name = tpu or job.name
    writes = job.command in WRITING and not job.model_dir.startswith("gs://")
    kept = os.path.normpath(job.model_dir) if writes else None
    values = {
        "job": job,
        "settings": settings,
        "name": name,
        "existing": tpu is not None,
        "where": where,
        "request": request,
        "of_slice": ("gcloud", "compute", "tpus", "tpu-vm") if tpu else queued,
        "every": ("--worker=all",) if tpu else ("--node=all", "--worker=all"),
        "kept": kept,
        "kept_parent": kept and (os.path.dirname(kept) or "."),
        "hosts": topology.hosts,
        "home": f"adalink/{job.name}",
        "top_level": sorted({staged_name.split("/")[0] for staged_name in staged}),
        "script": os.path.join(job.folder, SCRIPT),
    }
    on_host = {
        "job": job,
        "settings": settings,
        "wheel": os.path.basename(settings.wheel),
        "constraints": settings.constraints and os.path.basename(settings.constraints),
        "words": _host_words(job, per_host),
        "hosts": topology.hosts,
        "elements": (job.array or topology.hosts) if per_host else None,
        "bounds": _BOUNDS[topology.chips_per_host],
        "visible": ",".join(map(str, range(topology.chips_per_host))),
    }
    describe = (
        ("gcloud", "compute", "tpus", "tpu-vm", "describe", name, *where, "--format=value(state)")
        if tpu
        else (*queued, "describe", name, *where, "--format=value(state.state)")
    )
    return Rendered(
        files={
            SCRIPT: job_templates.fill("tpu.sh.jinja", **values),
            WORKER: job_templates.fill("tpu_worker.sh.jinja", **on_host),
        },
        main=SCRIPT,
        submit=("bash", values["script"]),
        status=(describe,),
        logs=None,
        cancel=() if tpu else (*queued, "delete", name, *where, "--force", "--quiet"),
        resume=f"`bash {values['script']}` goes on from the newest checkpoint in MODEL_DIR. Its status is 75 where the job was stopped "
        "and saved, or its Spot slice was taken away.",
    )


def _check(job: Job, settings: Tpu, tpu: str | None, per_host: bool) -> None:
    topology = job.topology
    if topology.platform != "tpu":
        raise UserError(f"TOPOLOGY is {topology.text!r}, but must be a TPU's, such as 'v5e:4x8'.")
    if settings.spot and settings.reserved:
        raise UserError("SPOT and RESERVED exclude each other; set one of them.")
    if tpu and topology.num_slices > 1:
        raise UserError(
            f"--tpu={tpu} is one slice, but TOPOLOGY is {topology.text!r}; give the topology of that slice."
        )
    if per_host and topology.num_slices > 1:
        raise UserError(
            f"--per_host divides one slice, but TOPOLOGY is {topology.text!r}; launch a job for each slice."
        )
    if job.array and not per_host:
        raise UserError("--array needs --per_host on a TPU, which gives each element one host.")
    if per_host and job.command in ("train", "quickstart"):
        raise UserError(
            f"--per_host would run `{job.command}` on each host into one MODEL_DIR; use `sweep --element`, which reads {ARRAY_INDEX}."
        )
    if topology.hosts > 1 and not per_host:
        shared_model_dir(job, f"which all {topology.hosts} hosts can write")
    elif job.command in WRITING:
        folder = job.model_dir
        if folder is None or not (folder.startswith("gs://") or _inside(folder)):
            raise UserError(
                f"MODEL_DIR is {folder!r}; give --gin.MODEL_DIR with a bucket's folder, or one under the current folder."
            )


def _inside(folder: str) -> bool:
    return (
        not os.path.isabs(folder)
        and not folder.startswith("~")
        and os.path.normpath(folder).split(os.sep)[0] not in ("..", ".")
    )


def _host_words(job: Job, per_host: bool) -> list[str]:
    return ["adalink", *job.arguments] if per_host else job.words(job.topology.hosts)
