"""The roofline model of a step: the longest of compute, memory traffic and collectives, each at its peak rate.

As if the three overlapped fully at the data sheet's rates: of the job's own program this is a lower bound, and real steps take longer.
"""

import dataclasses

from adalink_jax.parallel.accelerators import Accelerator, Topology
from adalink_jax.planning.collectives import Collective


@dataclasses.dataclass(frozen=True)
class Decoding:
    """The work of one evaluation.

    Attributes:
      batches: number of batches.
      flops: FLOPs of one batch on all chips.
      moved: bytes read from and written to one chip's memory in one batch.
      sent: one batch's collectives.
    """

    batches: int
    flops: int
    moved: int
    sent: list[Collective]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The estimated time of a step and of a job.

    Attributes:
      step_seconds: the largest of the next three.
      compute_seconds, memory_seconds, collective_seconds: of one step.
      evaluation_seconds: of one evaluation, as long as its outputs can be.
      mfu: model FLOPs divided by the chips' peak FLOPs in `step_seconds`.
      job_hours: hours of all steps and evaluations, without compiling, loading and saving.
      chip_hours: `job_hours` times the number of chips.
    """

    step_seconds: float | None = None
    compute_seconds: float | None = None
    memory_seconds: float | None = None
    collective_seconds: float | None = None
    evaluation_seconds: float | None = None
    mfu: float | None = None
    job_hours: float | None = None
    chip_hours: float | None = None

    @property
    def bound(self) -> str:
        """The bottleneck of the step: "compute", "memory" or "collectives"."""
        parts = {
            "compute": self.compute_seconds,
            "memory": self.memory_seconds,
            "collectives": self.collective_seconds,
        }
        return max(parts, key=lambda name: parts[name] or 0.0)

    def to_json(self) -> dict:
        """All fields, with the prefix `estimated_`."""
        return {f"estimated_{name}": value for name, value in dataclasses.asdict(self).items()}


UNKNOWN = Estimate()


def estimate(
    chip: Accelerator,
    topology: Topology,
    *,
    flops: int,
    model_flops: int,
    moved: int,
    sent: list[Collective],
    decoding: Decoding | None,
    total_steps: int,
    evaluations: int,
) -> Estimate:
    """The roofline of a compiled step.

    Args:
      chip: the accelerator.
      topology: how many chips, and how they are connected.
      flops: FLOPs of the step on all chips.
      model_flops: the same without recomputation.
      moved: bytes read from and written to one chip's memory.
      sent: the step's collectives.
      decoding: the work of one evaluation; None if its program was not compiled, and the job's hours are then not estimated.
      total_steps: number of steps of the job.
      evaluations: number of evaluations of the job.
    """
    compute, memory, collective = parts = _seconds(chip, topology, flops, moved, sent)
    step = max(parts)
    mfu = model_flops / topology.devices / chip.peak_flops / step
    out = Estimate(step, compute, memory, collective, mfu=mfu)
    if decoding is None:
        return out
    evaluation = decoding.batches * max(_seconds(chip, topology, decoding.flops, decoding.moved, decoding.sent))
    hours = (total_steps * step + evaluations * evaluation) / 3600
    return dataclasses.replace(out, evaluation_seconds=evaluation, job_hours=hours, chip_hours=hours * topology.chips)


def _seconds(
    chip: Accelerator, topology: Topology, flops: int, moved: int, sent: list[Collective]
) -> tuple[float, float, float]:
    """Seconds of a program's compute, of its memory traffic and of its collectives."""
    collective = sum(c.times * c.sent_bytes / _bandwidth(chip, topology, c) for c in sent)
    return flops / topology.devices / chip.peak_flops, moved / chip.memory_bandwidth, collective


def _bandwidth(chip: Accelerator, topology: Topology, collective: Collective) -> float:
    """Bytes per second that a chip sends in a collective: along links of its slice or node, or over the network."""
    out_of_node = chip.platform == "gpu" and collective.group > (chip.chips_linked or chip.chips_per_host)
    if collective.slices > 1 or out_of_node:
        return chip.network_bandwidth
    whole_slice = collective.group * topology.num_slices == topology.devices
    return chip.link_bandwidth * chip.links * (topology.axes if whole_slice else 1)
