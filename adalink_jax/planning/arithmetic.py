"""A job's memory and time by arithmetic, before anything is compiled: which settings deserve to be compiled, and in which order.

The weights' bytes are exact. What is saved is read from the job's trace for one row, and grows with the rows of a chip; the time
is a roofline of FLOPs, of reading weights and what is saved, and of gathering or summing over the mesh.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from adalink_jax import parallel
from adalink_jax.errors import UserError
from adalink_jax.parallel.accelerators import Accelerator, Topology
from adalink_jax.planning.plan import Job, devices_of, with_remat
from adalink_jax.planning.saved import by_stack, saved_arrays
from adalink_jax.training import abstract
from adalink_jax.training.flops import count_flops
from adalink_jax.training.setup import split_abstract
from adalink_jax.training.step import make_loss

UNDIVIDED = ("residual stream", "norm")  # kinds of saved arrays that a `model` axis leaves whole
READS = {"full": 3}  # of each weight in a microbatch: forward, backward, and the forward pass once more
USUAL_READS = 2


@dataclasses.dataclass(frozen=True)
class Choice:
    """Settings of a job that decide its memory and time.

    Attributes:
      model: devices that split heads, MLP and vocabulary (`make_mesh.model`).
      fsdp: whether the parameters are split over `data` too.
      remat: REMAT.
      microbatches: MICROBATCHES.
      dtype: FROZEN_DTYPE.
    """

    model: int
    fsdp: bool
    remat: str
    microbatches: int
    dtype: str

    def settings(self, typed: "Choice") -> dict[str, str]:
        """What differs from `typed`: macro or parameter -> text of the value."""
        texts = {
            "make_mesh.model": (self.model, typed.model),
            "logical_axis_rules.fsdp": (self.fsdp, typed.fsdp),
            "REMAT": (self.remat, typed.remat),
            "MICROBATCHES": (self.microbatches, typed.microbatches),
            "FROZEN_DTYPE": (self.dtype, typed.dtype),
        }
        return {name: repr(here) for name, (here, there) in texts.items() if here != there}


@dataclasses.dataclass(frozen=True)
class Guess:
    """What arithmetic says of a choice.

    Attributes:
      choice: the settings.
      arguments: bytes of weights, optimizer state and batch on a chip; exact.
      temporaries: bytes of what is saved, and of one layer's work, on a chip.
      seconds: of a step.
    """

    choice: Choice
    arguments: int
    temporaries: int
    seconds: float


class Arithmetic:
    """Guesses for one job. What it reads from the job's trace it reads once, whatever the topology.

    Attributes:
      job: the job.
    """

    def __init__(self, job: Job):
        self.job = job
        self.stack = functools.cache(self._stack)
        self.flops = functools.cache(self._flops)
        self.weights = functools.cache(self._weights)

    def guess(self, topology: Topology, choice: Choice) -> Guess | None:
        """The guess of a choice; None if the mesh or the batch does not divide, or `fsdp` has nothing to split over.

        Args:
          topology: chips of the table, since the speed of others is not known.
          choice: the settings.
        """
        chip, slices = topology.accelerator, topology.num_slices
        assert chip is not None
        data, no_mesh = divmod(topology.devices // slices, choice.model)
        rows, no_rows = divmod(self.job.setup.data.batch_size, max(1, data) * slices)
        if no_mesh or no_rows or rows % choice.microbatches or (choice.fsdp and data == 1):
            return None
        try:
            held, frozen = self.weights(topology, choice.model, choice.fsdp, choice.dtype)
            whole = self.weights(topology, choice.model, False, choice.dtype)[1]
        except UserError:  # a leaf that does not divide
            return None
        saved, layer = (
            self._on_a_chip(choice.remat, choice.model),
            self._on_a_chip("none", choice.model, one_layer=True),
        )
        layers = max(1, sum(sums["layers"] for sums in self.stack("full").values() if sums["layers"] > 1))
        work = layer * rows // choice.microbatches + (2 * whole // layers if choice.fsdp else 0)
        temporaries = saved * rows // choice.microbatches + work
        reads = READS.get(choice.remat, USUAL_READS)
        gathered = choice.microbatches * reads * whole  # bytes of weights that the products of a step read
        moved = gathered * (2 if choice.fsdp else 1) + 3 * saved * rows
        stream = sum(sums["bytes"] for sums in self.stack("full").values() if sums["layers"] > 1) * rows
        seconds = max(
            self.flops(choice.remat) / topology.devices / chip.peak_flops,
            moved / chip.memory_bandwidth,
            (gathered * (data - 1) / data / _rate(topology, chip, data) if choice.fsdp else 0.0)
            # Two sums of a layer's outputs in each pass, each sent about twice.
            + 4 * reads * stream * (choice.model - 1) / choice.model / _rate(topology, chip, choice.model),
        )
        return Guess(choice, held + frozen, int(temporaries), seconds)

    def _weights(self, topology: Topology, model: int, fsdp: bool, dtype: str) -> tuple[int, int]:
        """`(others, frozen)`: bytes on a chip of what is trained with its optimizer, and of the frozen weights."""
        data = topology.devices // topology.num_slices // model
        mesh = parallel.make_mesh(data, model, topology.num_slices, devices_of(topology))
        rules = parallel.logical_axis_rules(fsdp=fsdp)
        setup = in_dtype(self.job, dtype).setup
        with parallel.use_mesh(mesh, rules):
            state, frozen = abstract.abstract_state(
                setup.model, setup.trainable, setup.storage, self.job.optimizer, mesh, rules
            )
        others = sum(abstract.bytes_per_device(part) for part in (state.trainable, state.opt_state))
        return others * (len(self.job.members) or 1), abstract.bytes_per_device(frozen)

    def _stack(self, remat: str) -> dict[str, dict[str, Any]]:
        """`by_stack` of what one row of one member saves."""
        loss, trainable, frozen = self._loss(remat)
        return by_stack(saved_arrays(loss, trainable, frozen, self.job.setup.train_batch(1)))

    def _on_a_chip(self, remat: str, model: int, one_layer: bool = False) -> float:
        """Bytes that a row saves on a chip, in all layers or in the largest one."""
        members = self.job.at_once or len(self.job.members) or 1
        total, largest = 0.0, 0.0
        for sums in self.stack(remat).values():
            layer = sum(
                size / (1 if any(word in kind for word in UNDIVIDED) else model) for kind, size in sums["layer"].items()
            )
            total, largest = total + layer * sums["layers"], max(largest, layer)
        return members * (largest if one_layer else total)

    def _flops(self, remat: str) -> int:
        """FLOPs of a step, of all rows and members."""
        loss, trainable, frozen = self._loss(remat)

        def gradient(trainable: Any, frozen: Any, batch: Any, seed: Any) -> Any:
            return jax.grad(lambda x: loss(x, frozen, batch, jax.random.key(seed)), has_aux=True)(trainable)

        batch = self.job.setup.train_batch(self.job.setup.data.batch_size)
        return count_flops(gradient, trainable, frozen, batch, 0) * (len(self.job.members) or 1)

    def _loss(self, remat: str) -> tuple[Callable, Any, Any]:
        """The summed loss of the job with this REMAT, and its abstract trainable and frozen leaves."""
        setup = self.job.setup
        model = with_remat(setup.model, remat)
        trainable, frozen = split_abstract(model, setup.trainable)
        return make_loss(model, self.job.loss), trainable, setup.storage.stored(frozen, ())


def _rate(topology: Topology, chip: Accelerator, group: int) -> float:
    """Bytes per second that a chip sends within a group of neighbours."""
    if chip.platform == "gpu" and group > (chip.chips_linked or chip.chips_per_host):
        return chip.network_bandwidth
    whole_slice = group * topology.num_slices == topology.devices
    return chip.link_bandwidth * chip.links * (topology.axes if whole_slice else 1)


def typed_choice(job: Job, model: int, fsdp: bool) -> Choice:
    """The choice that a job's own settings are, on a mesh with `model` devices on that axis."""
    remats = (value.remat for value in vars(job.setup.model.backbone).values() if hasattr(value, "remat"))
    return Choice(model, fsdp, next(remats, "none"), job.microbatches, job.setup.frozen_dtype)


def in_dtype(job: Job, dtype: str) -> Job:
    """The job with FROZEN_DTYPE `dtype`."""
    if job.setup.frozen_dtype == dtype:
        return job
    return dataclasses.replace(job, setup=dataclasses.replace(job.setup, frozen_dtype=dtype, frozen_matmul=None))
