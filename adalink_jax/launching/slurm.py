"""Slurm: one batch script. It starts one process per GPU, and each process sees all GPUs of its node."""

import dataclasses
import os
import re

import gin

from adalink_jax.errors import UserError
from adalink_jax.launching import budget, job_templates
from adalink_jax.launching.alphabets import (
    Amount,
    Count,
    CountOrZero,
    Env,
    Name,
    Number,
    Option,
    Path,
    Text,
    Time,
    Variable,
    check_settings,
    require,
)
from adalink_jax.launching.job import SEVERAL, Commands, Job, Rendered
from adalink_jax.launching.variables import GPU_MEMORY, check_variables
from adalink_jax.parallel.accelerators import Topology

SCRIPT = "job.sbatch"
_FAILURES = (
    "BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT",
)  # fmt: skip


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Slurm:
    """Settings of a Slurm cluster and of a job on it.

    Attributes:
      topology: `h100:16`, or `cpu:4` for four processes on the CPUs of one node.
      account, partition, qos: options of `sbatch`; None leaves one out.
      time: time limit of one run of the job, in Slurm's format; with MAX_CHIP_HOURS that limits it.
      gpus_per_node: None for the number in the table of accelerators.
      cpus_per_process: None for the cluster's default.
      signal_seconds: seconds before the time limit at which the job is sent SIGUSR1, to save.
      max_requeues: the most times that a job that was stopped is requeued; those of Slurm itself count too.
      modules: names for `module load`.
      setup: shell lines before the command, such as `source .venv/bin/activate`.
      container_image: image, for clusters with Pyxis; None without a container.
      container_mounts: `FROM:TO` each.
      sbatch: additional options, such as `--mem=0`.
      env: environment variables of the processes.
      secrets: variable -> file that holds its value, on the cluster.
      max_chip_hours, price: see `budget.Priced`.

    Raises:
      UserError: for other values.
    """

    topology: str
    account: Name | None = None
    partition: Name | None = None
    qos: Name | None = None
    time: Time = "24:00:00"
    gpus_per_node: Count | None = None
    cpus_per_process: Count | None = None
    signal_seconds: CountOrZero = 120
    max_requeues: CountOrZero = 20
    modules: tuple[Name, ...] = ()
    setup: tuple[Text, ...] = ()
    container_image: Text | None = None
    container_mounts: tuple[Text, ...] = ()
    sbatch: tuple[Option, ...] = ()
    env: Env = dataclasses.field(default_factory=dict)
    secrets: dict[Variable, Path] = dataclasses.field(default_factory=dict)
    max_chip_hours: Amount | None = None
    price: Amount | None = None

    def __post_init__(self):
        check_settings(self)
        check_variables("slurm", self.env, self.secrets)


def render(job: Job, settings: Slurm, staged: dict[str, str]) -> Rendered:
    """Renders the batch script of a job.

    Args:
      job: what runs.
      settings: of the cluster.
      staged: the job's own files; not used, since the nodes share the file system.

    Raises:
      UserError: for TPUs, for GPUs that do not fill their nodes, and see `Job.words`.
    """
    topology = job.topology
    if topology.platform == "tpu":
        raise UserError(
            f"TOPOLOGY is {topology.text!r}, but Slurm has no TPUs; give GPUs (h100:8) or CPUs (cpu:4), or use `adalink launch tpu`."
        )
    per_node = _per_node(job, settings)
    nodes = topology.chips // per_node
    # A command that runs in one process uses all GPUs of one node.
    processes = topology.chips if job.command in SEVERAL or nodes > 1 else 1
    script = os.path.join(job.folder, SCRIPT)
    seconds = budget.attempt_seconds(job, settings, 1 + settings.max_requeues)
    text = job_templates.fill(
        "slurm.sh.jinja",
        job=job,
        settings=settings,
        script=script,
        log=os.path.join(job.folder, "%A_%a.log" if job.array else "%j.log"),
        nodes=nodes,
        tasks_per_node=processes // nodes,
        gpus_per_node=per_node if topology.platform == "gpu" else None,
        env=list(((GPU_MEMORY if topology.platform == "gpu" else {}) | settings.env).items()),
        # Not quoted: lines of shell, and options in comments, which `sbatch` reads.
        setup=[job_templates.Shell(command) for command in settings.setup],
        limited=seconds is not None,
        time=settings.time if seconds is None else _shorter(settings.time, seconds // 60),
        options=[job_templates.Shell(option) for option in settings.sbatch],
        words=job.words(processes),
    )
    return Rendered(
        files={SCRIPT: text},
        main=SCRIPT,
        submit=("sbatch", "--parsable", script),
        resume=f"If the job ends with status 75, its script requeues it, up to {settings.max_requeues} times. If it ended otherwise, "
        f"`sbatch {script}` resumes it from the newest checkpoint in MODEL_DIR.",
    )


def commands(name: str, topology: Topology, settings: Slurm, number: str) -> Commands:
    """The commands that control the job which `sbatch` gave this number.

    Raises:
      UserError: for another text.
    """
    require(number, Number, f"The id of {name}", "launch it again")
    return Commands(
        status=(
            ("squeue", "--noheader", "--states=all", f"--jobs={number}", "--format=%i %T %M %R"),
            ("sacct", "--noheader", f"--jobs={number}", "--format=JobID,State,ExitCode,Elapsed"),
        ),
        cancel=("scancel", number),
        state=(
            ("squeue", "--noheader", "--states=all", f"--jobs={number}", "--format=%T"),
            ("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={number}", "--format=State"),
        ),
        ends={"COMPLETED": True, **dict.fromkeys(_FAILURES, False)},
    )


def number(printed: str) -> str:
    """The job's number in what `sbatch --parsable` printed: `NUMBER`, or `NUMBER;CLUSTER`.

    Raises:
      UserError: if it is missing.
    """
    match = re.fullmatch(r"([0-9]{1,10})(;.*)?", (printed.strip().splitlines() or [""])[-1])
    if not match:
        raise UserError(
            f"sbatch printed {printed.strip()[-200:]!r}, in which there is no job's number; `squeue --me` lists the jobs that run."
        )
    return match[1]


def _shorter(time: str, minutes: int) -> str:
    """The shorter of a time in Slurm's format (minutes, H:M:S, D-H:M:S, ...) and of a number of minutes."""
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")] if rest != "UNLIMITED" else []
    if not parts:
        return str(minutes)
    if not dash and len(parts) < 3:
        parts = [0, *parts]  # minutes, or minutes:seconds
    parts += [0] * (3 - len(parts))
    seconds = int(days or 0) * 86400 + parts[0] * 3600 + parts[1] * 60 + parts[2]
    return time if seconds <= minutes * 60 else str(minutes)


def _per_node(job: Job, settings: Slurm) -> int:
    if job.topology.accelerator is None:
        return job.topology.chips
    if settings.gpus_per_node is None:
        return job.topology.chips_per_host
    if job.topology.chips % settings.gpus_per_node:
        raise UserError(f"{job.topology.text} does not fill nodes of GPUS_PER_NODE = {settings.gpus_per_node}.")
    return settings.gpus_per_node
