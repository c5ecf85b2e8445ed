"""Several processes on this machine, each with its own devices. `supervisor` starts them and waits for them."""

import dataclasses

import gin

from adalink_jax.errors import UserError
from adalink_jax.launching import job_templates
from adalink_jax.launching.job import Job, Rendered


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Local:
    """Settings of a job on this machine.

    Attributes:
      processes: number of processes.
      devices: number of devices per process.
      platform: "cpu" for virtual devices, "gpu" for NVIDIA GPUs, of which each process sees only its own.
      grace_seconds: seconds between SIGTERM, to save and exit, and SIGKILL.

    Raises:
      UserError: for other values.
    """

    processes: int = 1
    devices: int = 1
    platform: str = "cpu"
    grace_seconds: int = 60

    def __post_init__(self):
        if min(self.processes, self.devices) < 1 or self.platform not in ("cpu", "gpu"):
            raise UserError(
                f"PROCESSES is {self.processes}, DEVICES {self.devices} and PLATFORM {self.platform!r}; the first two must be 1 or more, "
                "and PLATFORM 'cpu' or 'gpu'."
            )

    @property
    def topology(self) -> str:
        """All devices as a topology. Its platform is "cpu" for GPUs too, since no model of GPU is assumed."""
        return f"cpu:{self.processes * self.devices}"

    def environment(self, index: int) -> dict[str, str]:
        """The environment variables that are set for one process."""
        if self.platform == "cpu":
            return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={self.devices}"}
        devices = range(index * self.devices, (index + 1) * self.devices)
        return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, devices))}


def render(job: Job, settings: Local, staged: dict[str, str]) -> Rendered:
    """Renders the commands of a local job, for its record; `submit` runs them.

    Raises:
      UserError: see `Job.words`.
    """
    lines = []
    for index in range(settings.processes):
        variables = " ".join(f"{name}={value}" for name, value in settings.environment(index).items())
        lines.append(f"{variables} {job_templates.line(process_words(job, settings, index, 'localhost:PORT'))}\n")
    return Rendered(
        files={"processes.txt": "".join(lines)},
        main="processes.txt",
        submit=(),
        status=(),
        logs=None,
        cancel=(),
        resume="Rerun the same `adalink launch local` command: it resumes from the newest checkpoint in MODEL_DIR. Exit status 75 means "
        "that the job was stopped and has saved.",
    )


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
