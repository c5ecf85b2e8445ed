"""Compiles a job's real programs for hardware that need not be here: whether the job fits, and how fast it can be."""

import dataclasses
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import Mesh

from adalink_jax import parallel
from adalink_jax.adapters import AdaptedModel
from adalink_jax.errors import UserError
from adalink_jax.parallel import compiler_settings
from adalink_jax.parallel.accelerators import Topology, standing_for
from adalink_jax.planning import roofline
from adalink_jax.planning.collectives import by_kind, collectives
from adalink_jax.planning.hlo import Program
from adalink_jax.planning.saved import saved_on_chip
from adalink_jax.planning.traffic import bytes_moved
from adalink_jax.training import abstract
from adalink_jax.training.evaluation import make_generate, make_generate_packed
from adalink_jax.training.flops import count_flops
from adalink_jax.training.not_finite import holding
from adalink_jax.training.packs.members import Member, own_batches
from adalink_jax.training.packs.pack import abstract_pack, make_packed_step
from adalink_jax.training.setup import Setup
from adalink_jax.training.step import CrossEntropy, check_batch, make_train_step


@dataclasses.dataclass(frozen=True)
class Job:
    """The job to plan: the settings of `train` or of `train_pack`.

    Attributes:
      setup: model, data set, trainable parameters. No file is read.
      optimizer, loss, total_steps, eval_period, microbatches: see `train`.
      members: members of a pack; empty for a single run.
      at_once: see `train_pack`.
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
    """What a training step and an evaluation need and do. Bytes are per chip, FLOPs and seconds per step of the whole job.

    Attributes:
      topology, chips, mesh: where the job would run.
      members: members of a pack; 1 for a single run.
      fits: whether the training step and the decoding of an evaluation both fit a chip's memory.
      hbm_bytes: memory of the step: arguments, results that are not updated in place, temporaries, code. If the arguments alone exceed
        the memory, nothing is compiled, and this is their sum.
      eval_hbm_bytes: memory to decode one evaluation batch (encoder, cache, and all of the above), plus the optimizer state, which stays
        on the chip; None if the step does not fit, since decoding is not compiled then.
      hbm_limit_bytes: memory that a program may use; None for CPUs.
      frozen_bytes, trainable_bytes, optimizer_bytes, batch_bytes: the arguments.
      saved: what the forward pass saves for the backward pass, per stack of layers and kind (`saved.saved_on_chip`): bytes per chip for one
        microbatch (and one member of a pack), before a `model` axis divides some of it. It is the largest part of the temporaries.
      temp_bytes: the compiler's temporaries at the step's peak, on TPUs without the gaps between them; None if it refused the program or
        did not run.
      compiler: platform of the compiler ("tpu", "gpu", "cpu").
      compiler_flags: name of the job's set of flags, see `parallel.compiler_settings`.
      compiler_options: the flags that the compiler was given here; none if it is not the job's.
      model_flops: FLOPs of the step on all chips, without recomputation.
      flops: the same with recomputation.
      collectives: kind -> `count`, `bytes`.
      eval_collectives: the same of the decoding of one evaluation batch, with outputs of full length.
      token_collective_bytes: bytes among them for each token of an output.
      bytes_moved: bytes read from and written to a chip's memory.
      estimate: seconds by the roofline model; None for CPUs.
      quick: whether the compiler's effort was the least; such a program moves more than the job's.
      step_is_bound: whether no step can be faster than `estimate` says: the program is the hardware's own, compiled with the usual effort, and
        multiplies at the rate that is assumed. Otherwise its time is rough; those of evaluations, whose outputs may end early, always are.
      compile_seconds, eval_compile_seconds: to trace and compile the step and the decoding.
      remedies: what would make the job fit, for people.
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
    saved: dict[str, dict[str, Any]]
    temp_bytes: int | None
    compiler: str
    compiler_flags: str
    compiler_options: dict[str, str]
    model_flops: int
    flops: int
    collectives: dict[str, dict[str, float]] | None
    eval_collectives: dict[str, dict[str, float]] | None
    token_collective_bytes: float | None
    bytes_moved: int | None
    estimate: roofline.Estimate | None
    quick: bool
    step_is_bound: bool
    compile_seconds: float
    eval_compile_seconds: float | None
    remedies: list[str]

    def to_json(self) -> dict:
        """The plan as JSON values; the fields of `estimate` become `estimated_step_seconds`, `estimated_mfu`, ..."""
        out = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "estimate"}
        return out | (self.estimate or roofline.UNKNOWN).to_json()


def devices_of(topology: Topology) -> Sequence[jax.Device]:  # pyright: ignore[reportInvalidTypeForm]  # a variable to pyright
    """The devices of a topology: descriptions of TPU devices, which need no hardware; otherwise JAX's GPUs, or CPUs without GPUs.

    Raises:
      UserError: if the TPU compiler is not installed, or JAX has too few devices.
    """
    accelerator = topology.accelerator
    if accelerator is None or topology.platform != "tpu":
        here = jax.devices() if len(jax.devices()) >= topology.chips else jax.devices("cpu")
        if len(here) < topology.chips:
            raise UserError(
                f"JAX has {len(here)} devices here, fewer than the {topology.chips} of {topology.text}; plan a smaller topology."
            )
        return here[: topology.chips]
    options: dict[str, Any] = {"num_slices": topology.num_slices} if topology.num_slices > 1 else {}
    if set(topology.shape) == {"1", "x"}:
        options["chips_per_host_bounds"] = (1, 1, 1)
    if accelerator.name == "v4":
        options["chip_config_name"] = "megacore"
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=f"{accelerator.name}:{topology.shape}", **options
        ).devices
    except Exception as e:
        if "not installed" in str(e):
            raise UserError(
                "Planning for a TPU needs its compiler, which is not installed; run pip install 'adalink-jax[plan]'."
            ) from e
        raise


def make_plan(job: Job, topology: Topology, eval_examples: int) -> Plan:
    """Compiles the training step of `job` and the decoding of an evaluation for `topology`.

    Args:
      job: the job to plan.
      topology: where it would run; XLA's CPU compiler stands in for GPUs that are not here.
      eval_examples: number of examples that an evaluation decodes.

    Raises:
      UserError: for a batch that does not divide over the mesh.
    """
    mesh, rules = parallel.make_mesh(devices=devices_of(topology)), parallel.logical_axis_rules()
    check_batch(job.setup.data.batch_size, job.microbatches, parallel.data_axis_size(mesh))
    chip = topology.accelerator
    limit = chip.memory if chip else None
    compiler = mesh.devices.flat[0].platform
    (flag_set,) = compiler_settings.compiler_flags([topology.platform])
    options = compiler_settings.effective(flag_set) if compiler == topology.platform else {}
    stood_for = chip if compiler != topology.platform else None
    with parallel.use_mesh(mesh, rules), standing_for(stood_for):
        model, arguments, decoding_arguments = _arguments(job, mesh, rules)
        state, *_, frozen, batch = arguments
        at_once = job.at_once or (None if topology.platform == "cpu" else len(job.members))
        sizes = {
            "frozen_bytes": abstract.bytes_per_device(frozen),
            "trainable_bytes": abstract.bytes_per_device(state.trainable),
            "optimizer_bytes": abstract.bytes_per_device(state.opt_state),
            "batch_bytes": abstract.bytes_per_device(batch),
        }
        step = _step(job, model, parallel.shards_of(state.trainable, mesh), at_once)
        step_program = _Compiled(None, sum(sizes.values()), None, 0.0)
        if limit is None or step_program.needed <= limit:
            step_program = _compile(jax.jit(step, donate_argnums=0), options, *arguments)
        eval_program = (
            _compile(_generate(job, model, at_once), options, *decoding_arguments) if step_program.executable else None
        )
        flops = count_flops(step, *arguments)
        saved = saved_on_chip(job.setup, job.loss, job.microbatches, mesh, rules)
        model_flops = count_flops(_step(job, with_remat(model, "none"), 1, at_once), *arguments)
    needed, eval_needed, fits = step_program.needed, None, False
    if eval_program:
        eval_needed = eval_program.needed + sizes["optimizer_bytes"]
        fits = eval_program.executable is not None and (limit is None or max(needed, eval_needed) <= limit)
    sent, moved, estimate, decoding = None, None, None, None
    quick = jax.config.jax_optimization_level == "O0"  # pyright: ignore[reportAttributeAccessIssue]
    if eval_program and eval_program.executable:
        with parallel.use_mesh(mesh, rules):
            decoding = _decoding(job, topology, eval_program.executable, eval_examples)
    if step_program.executable:
        program = Program(step_program.executable.as_text() or "")
        sent, moved = collectives(program, topology.devices, topology.num_slices), bytes_moved(program)
        if chip:
            estimate = roofline.estimate(
                chip, topology, flops=flops, model_flops=model_flops, moved=moved, sent=sent,
                decoding=decoding and decoding.work, total_steps=job.total_steps, evaluations=_evaluations(job),
            )  # fmt: skip
    return Plan(
        topology=topology.text, chips=topology.chips, mesh=dict(mesh.shape), members=len(job.members) or 1,
        fits=fits, hbm_bytes=needed, eval_hbm_bytes=eval_needed, hbm_limit_bytes=limit,
        **sizes, saved=saved, temp_bytes=step_program.temporaries,
        compiler=compiler, compiler_flags=flag_set.name, compiler_options=options, model_flops=model_flops, flops=flops,
        collectives=None if sent is None else by_kind(sent),
        eval_collectives=decoding and by_kind(decoding.work.sent),
        token_collective_bytes=decoding and decoding.token_bytes, bytes_moved=moved, estimate=estimate,
        quick=quick, step_is_bound=compiler == topology.platform and not quick and job.setup.frozen_matmul is None,
        compile_seconds=step_program.seconds, eval_compile_seconds=eval_program.seconds if eval_program else None,
        remedies=[],
    )  # fmt: skip


def _arguments(job: Job, mesh: Mesh, rules: parallel.LogicalRules) -> tuple[AdaptedModel, tuple, tuple]:
    """The model, and the abstract, sharded arguments of the step and of the decoding."""
    setup, lengths = job.setup, job.setup.data.task_feature_lengths
    place = parallel.batch_sharding(mesh)

    def batch(shapes: dict[str, jax.ShapeDtypeStruct], *members: int) -> dict[str, jax.ShapeDtypeStruct]:
        shape = lambda x: (x.shape[0], *members, *x.shape[1:])
        return {name: jax.ShapeDtypeStruct(shape(x), x.dtype, sharding=place) for name, x in shapes.items()}

    rows = setup.data.batch_size
    trained = setup.train_batch(rows)
    decoded = batch(setup.model.backbone.abstract_batch(rows, lengths["inputs"], lengths["targets"]))
    decoded["sampling_ids"] = jax.ShapeDtypeStruct((rows, 3), np.int32, sharding=place)
    if not job.members:
        state, frozen = abstract.abstract_state(
            setup.model, setup.trainable, setup.storage, job.optimizer, mesh, rules
        )  # fmt: skip
        return setup.model, (state, frozen, batch(trained)), (state.trainable, frozen, decoded)
    model, state, members, frozen = abstract_pack(setup, job.members, job.optimizer, mesh, rules)
    trained = batch(trained, *([len(job.members)] if own_batches(job.members) else []))
    return model, (state, members, frozen, trained), ((state.trainable, members.padding), frozen, decoded)


def _step(job: Job, model: AdaptedModel, shards: int, at_once: int | None) -> Callable:
    if job.members:
        return holding(make_packed_step(
            model, job.optimizer, own_batches=own_batches(job.members), at_once=at_once, loss=job.loss,
            microbatches=job.microbatches,
        ))  # fmt: skip
    return holding(
        make_train_step(
            model,
            job.optimizer,
            loss=job.loss,
            seed=job.setup.random_seed,
            microbatches=job.microbatches,
            shards=shards,
        )
    )


def _generate(job: Job, model: AdaptedModel, at_once: int | None) -> jax.stages.Wrapped:
    generate = make_generate(model, job.setup.data.task_feature_lengths["targets"], job.setup.decoding)
    return jax.jit(make_generate_packed(generate, at_once) if job.members else generate)


def with_remat(model: AdaptedModel, remat: str) -> AdaptedModel:
    """`model` with this REMAT in all of its stacks. Model FLOPs are counted with "none"."""
    changes = {
        name: dataclasses.replace(value, remat=remat)
        for name, value in vars(model.backbone).items()
        if hasattr(value, "remat")
    }
    return model.clone(backbone=model.backbone.clone(**changes))


_SIZE = re.compile(r"([\d.]+)([KMGT])")


@dataclasses.dataclass(frozen=True)
class _Compiled:
    """The outcome of compiling a program.

    Attributes:
      executable: the program; None if the compiler refused it for lack of memory, or did not run.
      needed: bytes that it needs on a chip.
      temporaries: the compiler's temporaries among them; None without `executable`.
      seconds: to trace and compile it.
    """

    executable: jax.stages.Compiled | None
    needed: int
    temporaries: int | None
    seconds: float


def _compile(program: jax.stages.Wrapped, options: dict[str, str], *arguments: Any) -> _Compiled:
    started = time.perf_counter()
    elapsed = lambda: round(time.perf_counter() - started, 1)
    try:
        compiled = program.lower(*arguments).compile(compiler_options=dict(options) or None)
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        return _Compiled(None, _needed(str(e)), None, elapsed())
    seconds = elapsed()
    memory: Any = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    temporaries = memory.temp_size_in_bytes
    if _platform_of(compiled) == "tpu" and memory.peak_memory_in_bytes:
        # The TPU compiler's sum of temporaries is not what it allocates: it may exceed the memory of a chip that the program fits, and
        # in small programs it is less.
        temporaries = memory.peak_memory_in_bytes - held
    return _Compiled(compiled, held + temporaries + memory.generated_code_size_in_bytes, temporaries, seconds)


def _platform_of(compiled: jax.stages.Compiled) -> str:
    sharding = jax.tree.leaves(compiled.output_shardings)[0]
    return next(iter(sharding.device_set)).platform


def _needed(refusal: str) -> int:
    """Bytes that a program needs, by the compiler's message that it refuses it."""
    used = re.search(r"Used ([\d.]+[KMGT]) of", refusal) or re.search(r"\(([\d.]+[KMGT])\) exceeds", refusal)
    size = _SIZE.search(used[1] if used else refusal)
    if size is None:
        raise ValueError(f"The compiler does not say how much memory the program needs: {refusal[:300]}")
    return int(float(size[1]) * 1024 ** ("KMGT".index(size[2]) + 1))


def _evaluations(job: Job) -> int:
    """Number of evaluations: on validation at the start, every period and at the end; on test at the end, and in a single run at the start."""
    return (2 if job.members else 3) + (job.total_steps // job.eval_period if job.eval_period else 1)


@dataclasses.dataclass(frozen=True)
class _Evaluation:
    """The decoding of an evaluation.

    Attributes:
      work: of all its batches.
      token_bytes: bytes of the collectives for one more token of an output.
    """

    work: roofline.Decoding
    token_bytes: float


def _decoding(job: Job, topology: Topology, program: jax.stages.Compiled, examples: int) -> _Evaluation:
    """Reads the work of an evaluation off its compiled program, whose loop over tokens is taken to run to the end."""
    lengths, rows = job.setup.data.task_feature_lengths, job.setup.data.batch_size
    shapes = job.setup.model.backbone.abstract_batch(rows, lengths["inputs"], lengths["targets"])
    params = parallel.unbox(abstract.abstract_params(job.setup.model))
    forward = count_flops(lambda params, batch: job.setup.model.apply({"params": params}, batch), params, shapes)
    forward *= len(job.members) or 1
    text, tokens = program.as_text() or "", lengths["targets"]
    # The first token is decoded before the loop.
    whole, shorter = (Program(text, open_trips) for open_trips in (max(tokens - 1, 0), max(tokens - 2, 0)))
    sent, less = (collectives(read, topology.devices, topology.num_slices) for read in (whole, shorter))
    total = lambda sent: sum(one.times * one.nbytes for one in sent)
    work = roofline.Decoding(-(-examples // rows), forward, bytes_moved(whole), sent)
    return _Evaluation(work, total(sent) - total(less))
