"""Whether a job fits, and how fast it can be, before it is launched: its real programs, compiled for hardware that is not here."""

import dataclasses
import re
import time
from collections.abc import Sequence

import jax
import optax
from jax.experimental import topologies

from adalink_jax import parallel
from adalink_jax.errors import UserError
from adalink_jax.parallel.accelerators import Topology
from adalink_jax.planning import roofline
from adalink_jax.planning.collectives import by_kind, collectives
from adalink_jax.planning.hlo import Program
from adalink_jax.planning.traffic import bytes_moved
from adalink_jax.training import abstract
from adalink_jax.training.evaluation import make_generate, make_generate_packed
from adalink_jax.training.flops import count_flops
from adalink_jax.training.packs.members import Member, own_batches
from adalink_jax.training.packs.pack import abstract_pack, make_packed_step
from adalink_jax.training.setup import Setup
from adalink_jax.training.step import CrossEntropy, check_batch, make_train_step


@dataclasses.dataclass(frozen=True)
class Job:
    """What is planned: the settings of `train`, or of `train_pack`.

    Attributes:
      setup: model, data, what is trained. Nothing is read.
      optimizer, loss, microbatches, total_steps, eval_period: as in `train`.
      members: of a pack; none of a single run.
      at_once: as in `train_pack`.
    """

    setup: Setup
    optimizer: optax.GradientTransformation
    loss: CrossEntropy
    total_steps: int
    eval_period: int
    microbatches: int
    members: Sequence[Member] = ()
    at_once: int | None = None


@dataclasses.dataclass
class Plan:
    """What a step needs of one chip, and what it does. Bytes are of one chip, FLOPs and seconds of a step of all.

    Attributes:
      topology, chips, mesh: where.
      members: of a pack; 1 for a single run.
      fits: whether both programs, the step and an evaluation's decoding, fit into a chip's memory.
      hbm_bytes: what it needs: arguments, results that are not updated in place, temporaries, code. Where the arguments alone
        are too much nothing is compiled, and this is their sum.
      eval_hbm_bytes: what the decoding of one evaluation batch needs (encoder, cache, and all as above), beside the optimizer's
        state, which stays on the chip; None where the step does not fit, which is not looked beyond.
      hbm_limit_bytes: what a program may use; None where nothing is known of the machine.
      frozen_bytes, trainable_bytes, optimizer_bytes, batch_bytes: the arguments.
      temp_bytes: the compiler's temporaries; None where it refused the program, or was not asked.
      compiler: whose program it is ("tpu", "gpu", "cpu").
      model_flops: FLOPs of the step without recomputation, of all chips.
      flops: with it.
      collectives: kind -> `count`, `bytes`.
      bytes_moved: bytes to and from a chip's memory.
      estimate: seconds by the roofline; None where nothing is known of the machine.
      compile_seconds, eval_compile_seconds: to trace and compile the step, and the decoding.
      remedies: what would make it fit, for people.
    """

    topology: str
    chips: int
    mesh: dict[str, int]
    members: int
    fits: bool
    hbm_bytes: int
    eval_hbm_bytes: int | None
    hbm_limit_bytes: int | None
    frozen_bytes: int
    trainable_bytes: int
    optimizer_bytes: int
    batch_bytes: int
    temp_bytes: int | None
    compiler: str
    model_flops: int
    flops: int
    collectives: dict[str, dict[str, float]] | None
    bytes_moved: int | None
    estimate: roofline.Estimate | None
    compile_seconds: float
    eval_compile_seconds: float | None
    remedies: list[str]

    def to_json(self) -> dict:
        """All of it as JSON can hold it; of the estimate `estimated_step_seconds`, `estimated_mfu` and its parts."""
        out = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "estimate"}
        return out | (self.estimate or roofline.UNKNOWN).to_json()


def devices_of(topology: Topology):
    """The devices of a topology: a TPU's without the hardware; else JAX's own, GPUs if they are here and CPUs if not.

    Raises:
      UserError: where the TPU compiler is not installed, or JAX sees too few devices.
    """
    if topology.platform != "tpu":
        here = jax.devices() if len(jax.devices()) >= topology.chips else jax.devices("cpu")
        if len(here) < topology.chips:
            raise UserError(f"JAX sees {len(here)} devices here, fewer than the {topology.chips} of {topology.text}.")
        return here[: topology.chips]
    options = {"num_slices": topology.num_slices} if topology.num_slices > 1 else {}
    if topology.shape == "1x1":
        options["chips_per_host_bounds"] = (1, 1, 1)
    if topology.accelerator.name == "v4":
        options["chip_config_name"] = "megacore"
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=f"{topology.accelerator.name}:{topology.shape}", **options
        ).devices
    except Exception as e:
        if "not installed" in str(e):
            raise UserError(
                "Planning for a TPU needs its compiler, which is not installed: pip install 'adalink-jax[plan]'."
            ) from e
        raise


def make_plan(job: Job, topology: Topology, eval_examples: int) -> Plan:
    """Compiles the step of `job` and its evaluation's decoding for `topology`, and counts.

    Args:
      job: what is planned.
      topology: where; for GPUs that are not here, and CPUs, XLA's CPU compiler makes the program.
      eval_examples: examples that an evaluation decodes.

    Raises:
      UserError: for a mesh or a batch that does not divide.
    """
    mesh, rules = parallel.make_mesh(devices=devices_of(topology)), parallel.logical_axis_rules()
    check_batch(job.setup.dataset.batch_size, job.microbatches, parallel.data_axis_size(mesh))
    chip = topology.accelerator
    with parallel.use_mesh(mesh, rules):
        model, arguments, decoded = _arguments(job, mesh, rules)
        state, *_, frozen, batch = arguments
        at_once = job.at_once or (None if topology.platform == "cpu" else len(job.members))
        sizes = {
            "frozen_bytes": abstract.bytes_per_device(frozen),
            "trainable_bytes": abstract.bytes_per_device(state.trainable),
            "optimizer_bytes": abstract.bytes_per_device(state.opt_state),
            "batch_bytes": abstract.bytes_per_device(batch),
        }
        alone = sum(sizes.values())
        too_much = chip is not None and alone > chip.memory  # whatever the program is
        step = _step(job, model, parallel.shards_of(state.trainable, mesh), at_once)
        step_program, eval_program = _Compiled(None, alone, 0.0), _Compiled(None, None, None)
        if not too_much:
            step_program = _compile(jax.jit(step, donate_argnums=0), *arguments)
        if step_program.compiled:
            eval_program = _compile(_generate(job, model, at_once), *decoded)
        flops = count_flops(step, *arguments)
        model_flops = count_flops(_step(job, without_remat(model), 1, at_once), *arguments)
    program = Program(step_program.compiled.as_text()) if step_program.compiled else None
    sent = collectives(program, topology.chips, topology.num_slices) if program else None
    moved = bytes_moved(program) if program else None
    memory = step_program.compiled.memory_analysis() if step_program.compiled else None
    limit = chip.memory if chip else None
    eval_needed = None if eval_program.needed is None else eval_program.needed + sizes["optimizer_bytes"]
    fits = all(each.compiled for each in (step_program, eval_program)) and (
        limit is None or max(step_program.needed, eval_needed) <= limit
    )
    estimate = None
    if chip and program:
        estimate = roofline.estimate(
            chip, topology, flops=flops, model_flops=model_flops, moved=moved, sent=sent,
            decoded=_decoding(job, eval_examples, sizes["frozen_bytes"]), total_steps=job.total_steps,
            evaluations=_evaluations(job),
        )  # fmt: skip
    return Plan(
        topology=topology.text, chips=topology.chips, mesh=dict(mesh.shape), members=len(job.members) or 1,
        fits=fits, hbm_bytes=step_program.needed, eval_hbm_bytes=eval_needed, hbm_limit_bytes=limit,
        **sizes, temp_bytes=memory.temp_size_in_bytes if memory else None,
        compiler=mesh.devices.flat[0].platform, model_flops=model_flops, flops=flops,
        collectives=by_kind(sent) if sent is not None else None, bytes_moved=moved, estimate=estimate,
        compile_seconds=step_program.seconds, eval_compile_seconds=eval_program.seconds, remedies=[],
    )  # fmt: skip


def _arguments(job: Job, mesh, rules):
    """The model, the arguments of the step and those of the decoding, abstract, in their places."""
    setup, lengths = job.setup, job.setup.dataset.task_feature_lengths
    place = parallel.batch_sharding(mesh)

    def batch(*own: int):
        shapes = setup.model.backbone.abstract_batch(setup.dataset.batch_size, lengths["inputs"], lengths["targets"])
        shape = lambda x: (x.shape[0], *own, *x.shape[1:])
        return {name: jax.ShapeDtypeStruct(shape(x), x.dtype, sharding=place) for name, x in shapes.items()}

    if not job.members:
        state, frozen = abstract.abstract_state(
            setup.model, setup.trainable, setup.frozen_dtype, job.optimizer, mesh, rules
        )  # fmt: skip
        return setup.model, (state, frozen, batch()), (state.trainable, frozen, batch())
    model, state, members, frozen = abstract_pack(setup, job.members, job.optimizer, mesh, rules)
    rows = batch(len(job.members)) if own_batches(job.members) else batch()
    return model, (state, members, frozen, rows), ((state.trainable, members.padding), frozen, batch())


def _step(job: Job, model, shards: int, at_once: int | None):
    if job.members:
        return make_packed_step(
            model, job.optimizer, own_batches=own_batches(job.members), at_once=at_once, loss=job.loss,
            microbatches=job.microbatches,
        )  # fmt: skip
    return make_train_step(
        model, job.optimizer, loss=job.loss, seed=job.setup.random_seed, microbatches=job.microbatches, shards=shards
    )


def _generate(job: Job, model, at_once: int | None):
    generate = make_generate(model, job.setup.dataset.task_feature_lengths["targets"], job.setup.decoding)
    return jax.jit(make_generate_packed(generate, at_once) if job.members else generate)


def without_remat(model):
    """`model` with nothing recomputed: what model FLOPs are counted of."""
    changes = {
        name: dataclasses.replace(value, remat="none")
        for name, value in vars(model.backbone).items()
        if hasattr(value, "remat")
    }
    return model.clone(backbone=model.backbone.clone(**changes))


_SIZE = re.compile(r"([\d.]+)([KMGT])")


@dataclasses.dataclass(frozen=True)
class _Compiled:
    """A program, None where the compiler says that it does not fit; the bytes that it needs of a chip; seconds to compile it."""

    compiled: jax.stages.Compiled | None
    needed: int | None
    seconds: float | None


def _compile(program, *arguments) -> _Compiled:
    started = time.perf_counter()
    seconds = lambda: round(time.perf_counter() - started, 1)
    try:
        compiled = program.lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        return _Compiled(None, _needed(str(e)), seconds())
    took, memory = seconds(), compiled.memory_analysis()
    needed = (
        memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    )  # fmt: skip
    return _Compiled(compiled, needed, took)


def _needed(message: str) -> int:
    """Bytes that a program needs, by the compiler's complaint."""
    used = re.search(r"Used ([\d.]+[KMGT]) of", message) or re.search(r"\(([\d.]+[KMGT])\) exceeds", message)
    found = _SIZE.search(used[1] if used else message)
    return int(float(found[1]) * 1024 ** ("KMGT".index(found[2]) + 1))


def _evaluations(job: Job) -> int:
    """On validation before the first step, every period and at the end; on test after, and of a single run before."""
    return (2 if job.members else 3) + (job.total_steps // job.eval_period if job.eval_period else 1)


def _decoding(job: Job, examples: int, frozen_bytes: int) -> roofline.Decoding:
    """What one evaluation decodes."""
    lengths, rows = job.setup.dataset.task_feature_lengths, job.setup.dataset.batch_size
    shapes = job.setup.model.backbone.abstract_batch(rows, lengths["inputs"], lengths["targets"])
    params = parallel.unbox(abstract.abstract_params(job.setup.model))
    forward = count_flops(lambda params, batch: job.setup.model.apply({"params": params}, batch), params, shapes)
    return roofline.Decoding(-(-examples // rows), forward * (len(job.members) or 1), lengths["targets"], frozen_bytes)
