"""An existing Ray cluster: each element of an array is a task, which Ray places, starts again elsewhere if its node goes, and scales for.

Nodes must have this package installed, as an image or by Ray's own means. The job's own files are sent with each task.
"""

import dataclasses
import os
from collections.abc import Sequence

import gin

from adalink_jax.errors import UserError
from adalink_jax.launching import job_templates
from adalink_jax.launching.alphabets import Count, CountOrZero, Env, Name, Path, Text, Variable, check_settings
from adalink_jax.launching.job import (
    ARRAY_INDEX,
    WRITING,
    Commands,
    Job,
    Rendered,
    check_processes,
    check_under_current_folder,
)
from adalink_jax.launching.variables import check_variables
from adalink_jax.parallel.accelerators import Topology

TASKS = "tasks.txt"


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Ray:
    """Settings of a Ray cluster and of a job on it.

    Attributes:
      topology: the chips of each task, on one host: `h100:1`, `v5e:2x4`, `cpu:1`.
      address: of the cluster, such as `ray://HOST:10001`; `auto` for the one that this machine is in.
      cpus: CPUs of each task.
      max_retries: the most times that a task is started again, after its node has gone or the job was stopped and has saved.
      setup: shell lines before the command, on the node.
      env: environment variables of the tasks.
      secrets: variable -> file on each node that holds its value.

    Raises:
      UserError: for other values.
    """

    topology: str
    address: Name = "auto"
    cpus: Count = 1
    max_retries: CountOrZero = 20
    setup: tuple[Text, ...] = ()
    env: Env = dataclasses.field(default_factory=dict)
    secrets: dict[Variable, Path] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        check_settings(self)
        check_variables("ray", self.env, self.secrets)
        for name, path in self.secrets.items():
            if not os.path.isabs(path):
                raise UserError(
                    f"SECRETS reads {name} from {path!r}; give an absolute path, which each node of Ray has, since tasks run in folders of their own."
                )

    def environment(self, index: int | None) -> dict[str, str]:
        """The environment variables that are set for a task, with its number in the job's array, if there is one."""
        return self.env | ({} if index is None else {ARRAY_INDEX: str(index)})


def render(job: Job, settings: Ray, staged: dict[str, str]) -> Rendered:
    """Renders the commands of the tasks, for the record; `submit` gives them to Ray.

    Raises:
      UserError: for several hosts, and a MODEL_DIR that the nodes do not share.
    """
    if job.topology.hosts > 1:
        raise UserError(
            f"TOPOLOGY is {job.topology.text!r}, but each task of Ray is on one host; use another launcher for several."
        )
    check_processes(job, 1)
    check_under_current_folder(staged, "Ray's nodes")
    folder = job.model_dir or ""
    if job.command in WRITING and not (folder.startswith("gs://") or os.path.isabs(folder)):
        raise UserError(
            f"MODEL_DIR is {folder!r}; give a folder in a bucket, or the absolute path of one that all nodes of Ray share."
        )
    words = job_templates.after_setup(settings.setup, job.words())
    lines = [
        f"{job_templates.with_variables(settings.environment(index), settings.secrets, words)}\n"
        for index in indices(job)
    ]
    return Rendered(
        files={TASKS: "".join(lines)},
        main=TASKS,
        submit=(),
        resume="Rerun the same `adalink launch ray` command: runs that are done are left alone, and the others resume.",
    )


def indices(job: Job) -> Sequence[int | None]:
    """The numbers of the tasks of the job's array; None for the one task of a job without an array."""
    return [None] if job.array is None else range(job.array)


def commands(name: str, topology: Topology, settings: Ray, number: str) -> Commands:
    """No commands: `control` knows the process of this machine that waits for the tasks."""
    return Commands()


def resources(settings: Ray, topology: Topology) -> dict[str, object]:
    """What Ray reserves for a task, as options of `ray.remote`."""
    chips: dict[str, object] = {"gpu": {"num_gpus": topology.chips}, "tpu": {"resources": {"TPU": topology.chips}}}.get(
        topology.platform, {}
    )  # pyright: ignore
    return {"num_cpus": settings.cpus, **chips}
