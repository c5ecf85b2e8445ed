"""Several processes on this machine, each with its own devices. `supervisor` starts them and waits for them."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import gin

from adalink_jax.launching import job_templates
from adalink_jax.launching.alphabets import Count, CountOrZero, Env, Path, Text, Variable, check_settings
from adalink_jax.launching.job import Commands, Job, Rendered
from adalink_jax.launching.variables import check_variables
from adalink_jax.parallel.accelerators import Topology


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Local:
    """Settings of a job on this machine.

    Attributes:
      processes: number of processes.
      devices: number of devices per process.
      platform: "cpu" for virtual devices, "gpu" for NVIDIA GPUs, of which each process sees only its own.
      grace_seconds: seconds between SIGTERM, to save and exit, and SIGKILL.
      setup: shell lines before the command.
      env: environment variables of the processes.
      secrets: variable -> file of this machine that holds its value.

    Raises:
      UserError: for other values.
    """

    processes: Count = 1
    devices: Count = 1
    platform: Literal["cpu", "gpu"] = "cpu"
    grace_seconds: CountOrZero = 60
    setup: tuple[Text, ...] = ()
    env: Env = dataclasses.field(default_factory=dict)
    secrets: dict[Variable, Path] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        check_settings(self)
        check_variables("local", self.env, self.secrets)

    @property
    def topology(self) -> str:
        """All devices as a topology. Its platform is "cpu" for GPUs too, since no model of GPU is assumed."""
        return f"cpu:{self.processes * self.devices}"

    def environment(self, index: int) -> dict[str, str]:
        """The environment variables that are set for one process."""
        if self.platform == "cpu":
            count = f"--xla_force_host_platform_device_count={self.devices}"
            flags = " ".join(filter(None, (self.env.get("XLA_FLAGS"), count)))
            return {**self.env, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        devices = range(index * self.devices, (index + 1) * self.devices)
        return {**self.env, "CUDA_VISIBLE_DEVICES": ",".join(map(str, devices))}


def no_proxy(environment: Mapping[str, str]) -> dict[str, str]:
    """A variable by which the processes of a job find each other on this machine without the proxy of `http_proxy`.

    gRPC takes the first of `no_grpc_proxy` and `no_proxy` that is set, and no `*`; nothing else reads the former.

    Args:
      environment: of this process; its exceptions are kept.
    """
    exceptions = environment.get("no_grpc_proxy") or environment.get("no_proxy") or ""
    return {"no_grpc_proxy": ",".join(filter(None, (exceptions, "localhost")))}


def render(job: Job, settings: Local, staged: dict[str, str]) -> Rendered:
    """Renders the commands of a local job, for its record; `submit` runs them.

    Raises:
      UserError: see `Job.words`.
    """
    lines = []
    for index in range(settings.processes):
        words = job_templates.after_setup(settings.setup, process_words(job, settings, index, "localhost:PORT"))
        lines.append(f"{job_templates.with_variables(settings.environment(index), settings.secrets, words)}\n")
    return Rendered(
        files={"processes.txt": "".join(lines)},
        main="processes.txt",
        submit=(),
        resume="Rerun the same `adalink launch local` command: it resumes from the newest checkpoint in MODEL_DIR. Exit status 75 means "
        "that the job was stopped and has saved.",
    )


def commands(name: str, topology: Topology, settings: Local, number: str) -> Commands:
    """No commands: `control` knows the processes of this machine."""
    return Commands()


def process_words(job: Job, settings: Local, index: int, coordinator: str) -> list[str]:
    """The command of one process.

    Args:
      job: the job.
      settings: its settings.
      index: number of the process.
      coordinator: `HOST:PORT` of process 0.
    """
    return job.words(
        settings.processes,
        f"--coordinator_address={coordinator}",
        f"--process_count={settings.processes}",
        f"--process_index={index}",
    )
