"""This machine: several processes, each with devices of its own. `supervisor` starts them and waits for them."""

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
      processes: how many there are.
      devices: of each process.
      platform: "cpu" for virtual devices, "gpu" for NVIDIA's, of which each process sees its own only.
      grace_seconds: that processes have to save and end after SIGTERM, before SIGKILL.

    Raises:
      UserError: for settings that are none of these.
    """

    processes: int = 1
    devices: int = 1
    platform: str = "cpu"
    grace_seconds: int = 60

    def __post_init__(self):
        if min(self.processes, self.devices) < 1 or self.platform not in ("cpu", "gpu"):
            raise UserError(
                f"PROCESSES = {self.processes} and DEVICES = {self.devices} must be 1 or more, and PLATFORM = "
                f"{self.platform!r} 'cpu' or 'gpu'."
            )

    @property
    def topology(self) -> str:
        """All devices, as topologies are written; no card of the table is assumed."""
        return f"cpu:{self.processes * self.devices}"

    def environment(self, index: int) -> dict[str, str]:
        """What a process's environment has beyond this one's."""
        if self.platform == "cpu":
            return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={self.devices}"}
        devices = range(index * self.devices, (index + 1) * self.devices)
        return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, devices))}


def render(job: Job, settings: Local, staged: dict[str, str]) -> Rendered:
    """What is recorded of a local job.

    Raises:
      UserError: for what `Job.words` refuses.
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
        resume="Give the same `adalink launch local` command again: it goes on from the newest checkpoint in MODEL_DIR. Status 75 means "
        "that it was stopped and saved.",
    )


def process_words(job: Job, settings: Local, index: int, coordinator: str) -> list[str]:
    """The command of one process."""
    meeting = (
        f"--coordinator_address={coordinator}",
        f"--process_count={settings.processes}",
        f"--process_index={index}",
    )
    return job.words(settings.processes, *meeting)
