"""Cloud TPU VMs: a script for this machine, which creates and deletes a slice, and a script that runs on each of its hosts.

However the script ends, it deletes what it created; it never deletes an existing slice (`--tpu`).
"""

import dataclasses
import os

import gin

from adalink_jax.errors import UserError
from adalink_jax.launching import budget, job_templates
from adalink_jax.launching.alphabets import (
    Amount,
    Env,
    Label,
    Name,
    Option,
    Path,
    Text,
    Variable,
    check_settings,
    require,
)
from adalink_jax.launching.job import (
    ARRAY_INDEX,
    WRITING,
    Commands,
    Job,
    Rendered,
    check_shared_model_dir,
    check_under_current_folder,
)
from adalink_jax.launching.variables import check_variables
from adalink_jax.parallel.accelerators import Accelerator, Topology

SCRIPT, WORKER = "job.sh", "worker.sh"
# Accelerator -> Google's name for its slices, the number in that name per chip, and the runtime version. TPU7x is absent: Google's
# documentation names GKE as the way to create it.
CLOUD_NAMES = {
    "v4": ("v4", 2, "tpu-ubuntu2204-base"),
    "v5e": ("v5litepod", 1, "v2-alpha-tpuv5-lite"),
    "v5p": ("v5p", 2, "v2-alpha-tpuv5"),
    "v6e": ("v6e", 1, "v2-alpha-tpuv6e"),
}
SAVE_SECONDS = 120  # from the stop of a job to the end of MAX_CHIP_HOURS
# At the end of a script, which waits no longer for a connection that hangs.
STOP_SECONDS, COPY_SECONDS = 60, 1800
_BOUNDS = {1: "1,1,1", 4: "2,2,1", 8: "2,4,1"}  # chips per host -> TPU_CHIPS_PER_PROCESS_BOUNDS
_QUEUED = ("gcloud", "compute", "tpus", "queued-resources")
_EXISTING = ("gcloud", "compute", "tpus", "tpu-vm")


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Tpu:
    """Settings of a Google Cloud project and of a job on its TPUs.

    Attributes:
      topology: `v5e:4x8`, `v5e:16x16*2` for two slices.
      project: Google Cloud project.
      zone: Google Cloud zone.
      wheel: file of this package that each host installs (`make wheel`).
      extras: of this package, which the hosts install too, such as `hf`.
      constraints: pip constraints file; None for no constraints.
      runtime_version: system image of the hosts; None for the usual one of the chip.
      spot: request Spot capacity.
      reserved: request reserved capacity; without `spot` and `reserved` the slices are on demand.
      setup: shell lines on each host, before the installation.
      create_flags: additional flags of `gcloud compute tpus queued-resources create`.
      ssh_flags: additional flags of its `ssh` and `scp`, such as `--tunnel-through-iap`.
      tpu: an existing slice; None creates one.
      per_host: run the elements of an array independently, one at a time per host.
      env: environment variables of the processes.
      secrets: variable -> name of a secret of Google's Secret Manager, which the hosts' service account may read.
      max_chip_hours, price: see `budget.Priced`.

    Raises:
      UserError: for other values.
    """

    topology: str
    project: Name
    zone: Name
    wheel: Path
    extras: tuple[Name, ...] = ()
    constraints: Path | None = None
    runtime_version: Name | None = None
    spot: bool = False
    reserved: bool = False
    setup: tuple[Text, ...] = ()
    create_flags: tuple[Option, ...] = ()
    ssh_flags: tuple[Option, ...] = ()
    tpu: Label | None = None
    per_host: bool = False
    env: Env = dataclasses.field(default_factory=dict)
    secrets: dict[Variable, Name] = dataclasses.field(default_factory=dict)
    max_chip_hours: Amount | None = None
    price: Amount | None = None

    def __post_init__(self):
        check_settings(self)
        check_variables("tpu", self.env, self.secrets)


def render(job: Job, settings: Tpu, staged: dict[str, str]) -> Rendered:
    """Renders the scripts of a job.

    Args:
      job: what runs.
      settings: of the project.
      staged: path -> text of the job's own files, which are copied to each host.

    Raises:
      UserError: for settings that exclude each other, a MODEL_DIR that the hosts do not share, files outside the current folder, and
        paths that `scp` would not take as they are.
    """
    topology = job.topology
    accelerator = topology.accelerator
    if accelerator is None or topology.platform != "tpu":
        raise UserError(f"TOPOLOGY is {topology.text!r}, but must be a TPU's, such as 'v5e:4x8'.")
    if accelerator.name not in CLOUD_NAMES:
        raise UserError(f"{topology.text} is created through GKE; use `adalink launch gke`.")
    _check(job, settings)
    check_under_current_folder(staged, "the TPU's hosts")
    for path in staged:
        require(path, Path, "The path of a file", "rename it")
    script, model_dir = os.path.join(job.folder, SCRIPT), _copied_model_dir(job)
    values = {
        "job": job,
        "settings": settings,
        "name": settings.tpu or job.name,
        "existing": settings.tpu is not None,
        "where": _where(settings),
        "request": _request(job, settings, accelerator),
        "gcloud": _EXISTING if settings.tpu else _QUEUED,
        # gcloud would reach 64 hosts at once, and a job waits for all.
        "all_hosts": (*(() if settings.tpu else ("--node=all",)), "--worker=all", f"--batch-size={topology.hosts}"),
        "model_dir": model_dir,
        "model_dir_parent": model_dir and (os.path.dirname(model_dir) or "."),
        "hosts": topology.hosts,
        "home": f"adalink/{job.name}",
        "top_level": sorted({path.split("/")[0] for path in staged}),
        "script": script,
        "limit": budget.attempt_seconds(job, settings, 1),
        "save": SAVE_SECONDS,
        "stop_seconds": STOP_SECONDS,
        "copy_seconds": COPY_SECONDS,
    }
    on_host = {
        "job": job,
        "setup": [job_templates.Shell(command) for command in settings.setup],
        "wheel": f"./{os.path.basename(settings.wheel)}[{','.join(('tpu', *settings.extras))}]",
        "constraints": settings.constraints and os.path.basename(settings.constraints),
        "words": ["adalink", *job.arguments] if settings.per_host else job.words(topology.hosts),
        "env": list(settings.env.items()),
        "secrets": list(settings.secrets.items()),
        "project": settings.project,
        "hosts": topology.hosts,
        "elements": (job.array or topology.hosts) if settings.per_host else None,
        "bounds": _BOUNDS[topology.chips_per_host],
        "visible": ",".join(map(str, range(topology.chips_per_host))),
    }
    return Rendered(
        files={
            SCRIPT: job_templates.fill("tpu.sh.jinja", **values),
            WORKER: job_templates.fill("tpu_worker.sh.jinja", **on_host),
        },
        main=SCRIPT,
        submit=("bash", script),
        resume=f"`bash {script}` resumes the job from the newest checkpoint in MODEL_DIR. Its exit status is 75 if the job was stopped and "
        "has saved, or if its Spot slice was taken away.",
    )


def commands(name: str, topology: Topology, settings: Tpu, number: str) -> Commands:
    """The commands that control the job of this name. A running script, to which a signal is sent, cleans up itself."""
    where = _where(settings)
    if settings.tpu:
        return Commands(status=((*_EXISTING, "describe", settings.tpu, *where, "--format=value(state)"),))
    return Commands(
        status=((*_QUEUED, "describe", name, *where, "--format=value(state.state)"),),
        cancel=(*_QUEUED, "delete", name, *where, "--force", "--quiet"),
    )


def _where(settings: Tpu) -> tuple[str, ...]:
    return (f"--project={settings.project}", f"--zone={settings.zone}")


def _request(job: Job, settings: Tpu, accelerator: Accelerator) -> list[str]:
    """The arguments of `queued-resources create`, without the name and the project."""
    prefix, factor, image = CLOUD_NAMES[accelerator.name]
    slices = job.topology.num_slices
    nodes = [f"--node-count={slices}", f"--node-prefix={job.name}"] if slices > 1 else [f"--node-id={job.name}"]
    return [
        f"--accelerator-type={prefix}-{job.topology.chips // slices * factor}",
        f"--runtime-version={settings.runtime_version or image}",
        *nodes,
        *(f"--{name}" for name in ("spot", "reserved") if getattr(settings, name)),
        *settings.create_flags,
    ]


def _copied_model_dir(job: Job) -> str | None:
    """MODEL_DIR if it is a folder of this machine, which is copied to the host and back; None otherwise."""
    folder = job.model_dir
    if folder is None or job.command not in WRITING or folder.startswith("gs://"):
        return None
    return os.path.normpath(folder)


def _check(job: Job, settings: Tpu) -> None:
    topology, tpu, per_host = job.topology, settings.tpu, settings.per_host
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
        raise UserError("--array needs --per_host on a TPU, which runs each element on one host.")
    if per_host and job.command in ("train", "quickstart"):
        raise UserError(
            f"--per_host would run `{job.command}` on each host into one MODEL_DIR; use `sweep --element`, which reads {ARRAY_INDEX}."
        )
    if topology.hosts > 1 and not per_host:
        check_shared_model_dir(job, f"to which all {topology.hosts} hosts can write")
    elif job.command in WRITING:
        folder = job.model_dir
        if folder is None or not (folder.startswith("gs://") or _under_current_folder(folder)):
            raise UserError(
                f"MODEL_DIR is {folder!r}; give --gin.MODEL_DIR with a folder in a bucket or under the current folder."
            )
        if not folder.startswith("gs://"):
            require(folder, Path, "MODEL_DIR, which is copied to the host,")


def _under_current_folder(folder: str) -> bool:
    first = os.path.normpath(folder).split(os.sep)[0]
    return not os.path.isabs(folder) and not folder.startswith("~") and first not in ("..", ".")
