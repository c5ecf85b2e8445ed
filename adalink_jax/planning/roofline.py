"""How fast a step can be: the slowest of its matrix products, its memory traffic and its collectives, each at its peak rate.

A bound from below, as if the three overlapped fully and ran at the data sheet's rates; real steps take longer.
"""

import dataclasses

from adalink_jax.parallel.accelerators import Accelerator, Topology
from adalink_jax.planning.collectives import Collective


@dataclasses.dataclass(frozen=True)
class Decoding:
    """One evaluation: batches, FLOPs of a forward pass of one, tokens an output, bytes of weights read for each token."""

    batches: int
    forward_flops: int
    tokens: int
    weight_bytes: int


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of a step, and of a job.

    Attributes:
      step_seconds: the largest of the three that follow.
      compute_seconds, memory_seconds, collective_seconds: of a step.
      mfu: model FLOPs over peak FLOPs in `step_seconds`.
      job_hours: all steps and evaluations; without compilation, loading and saving.
      chip_hours: that on all chips.
    """

    step_seconds: float | None = None
    compute_seconds: float | None = None
    memory_seconds: float | None = None
    collective_seconds: float | None = None
    mfu: float | None = None
    job_hours: float | None = None
    chip_hours: float | None = None

    @property
    def bound(self) -> str:
        """What the step waits for: "compute", "memory" or "collectives"."""
        parts = {
            "compute": self.compute_seconds,
            "memory": self.memory_seconds,
            "collectives": self.collective_seconds,
        }
        return max(parts, key=parts.get)

    def to_json(self) -> dict:
        """All of it under names that say that it is estimated."""
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
    decoded: Decoding,
    total_steps: int,
    evaluations: int,
) -> Estimate:
    """The roofline of a compiled step.

    Args:
      chip, topology: where.
      flops, model_flops: of all chips, with and without recomputation.
      moved: bytes to and from one chip's memory.
      sent: the step's collectives.
      decoded: one evaluation.
      total_steps, evaluations: of the job.
    """
    compute = flops / topology.chips / chip.peak_flops
    memory = moved / chip.memory_bandwidth
    collective = sum(each.times * each.sent_bytes / _bandwidth(chip, topology, each) for each in sent)
    step = max(compute, memory, collective)
    forward = decoded.forward_flops / topology.chips / chip.peak_flops
    decoding = decoded.batches * (forward + decoded.tokens * decoded.weight_bytes / chip.memory_bandwidth)
    hours = (total_steps * step + evaluations * decoding) / 3600
    mfu = model_flops / topology.chips / chip.peak_flops / step
    return Estimate(step, compute, memory, collective, mfu, hours, hours * topology.chips)


def _bandwidth(chip: Accelerator, topology: Topology, each: Collective) -> float:
    """Bytes a second that a chip sends in a collective: along links of its slice or node, or over the network."""
    out_of_node = chip.platform == "gpu" and each.group > chip.chips_per_host
    if each.slices > 1 or out_of_node:
        return chip.network_bandwidth
    whole_slice = each.group * topology.num_slices == topology.chips
    return chip.link_bandwidth * chip.links * (topology.axes if whole_slice else 1)
