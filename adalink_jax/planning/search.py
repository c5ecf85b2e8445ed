"""Settings that make a job fit or faster: what each would save, and searches that compile the job with them."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import jax

from adalink_jax.models.quantised import bits_of
from adalink_jax.parallel.accelerators import parse_topology
from adalink_jax.parallel.compiler_settings import sets_of
from adalink_jax.planning.plan import Job, Plan
from adalink_jax.training.decoder_weights import decoder_weights
from adalink_jax.training.setup import split_abstract

Settings = Mapping[str, str]  # macro or parameter -> text of the value, as typed after --gin.

GB = 1e9
SMALLER = ("float32", "bfloat16", "int8", "int4")  # dtypes of frozen weights that a search tries, one after the other


def remedies(plan: Plan, job: Job, fsdp: bool) -> list[str]:
    """Settings that reduce the memory of a job that does not fit, each with what it would save; the cheapest change first.

    Args:
      plan: the plan, which does not fit.
      job: the planned job.
      fsdp: whether its parameters are sharded over `data`.
    """
    out = []
    data, others = plan.mesh["data"], plan.trainable_bytes + plan.optimizer_bytes
    parameters = plan.frozen_bytes + others
    if data > 1 and not fsdp:
        out.append(
            f"--gin_file=gin/meshes/fsdp.gin: {parameters / GB:.1f} GB of parameters per chip become {parameters / data / GB:.1f}"
        )
    for dtype in _smaller(job) if plan.frozen_bytes else ():
        smaller = plan.frozen_bytes * _stored_bytes(job, dtype) / _stored_bytes(job, job.setup.frozen_dtype)
        check = "" if dtype == "bfloat16" else " (`adalink quantise-check` measures what that changes)"
        out.append(
            f"--gin.FROZEN_DTYPE=\"'{dtype}'\": {plan.frozen_bytes / GB:.1f} GB of frozen weights become {smaller / GB:.1f}{check}"
        )
    if plan.flops == plan.model_flops:
        out.append("--gin.REMAT=\"'full'\": activations are recomputed instead of stored, for more FLOPs")
    largest = job.setup.data.batch_size // (plan.mesh["data"] * plan.mesh["slice"])
    if job.microbatches < largest:
        size = f", of {plan.temp_bytes / GB:.1f} GB," if plan.temp_bytes else ""
        out.append(
            f"--gin.MICROBATCHES={2 * job.microbatches} (up to {largest}): temporaries{size} shrink about in proportion"
        )
    if _evaluation_is_too_large(plan):
        if fsdp and decoder_weights() != "sharded":
            out.append(
                "--gin.DECODER_WEIGHTS=\"'sharded'\": evaluations gather a layer's weights for each token, not all of them once"
            )
        out.append(
            f"--gin.BATCH_SIZE: an evaluation decodes a whole batch of {job.setup.data.batch_size} rows at once; fewer rows need "
            f"less than {(plan.eval_hbm_bytes or 0) / GB:.1f} GB per chip"
        )
    larger = parse_topology(plan.topology).larger()
    if larger:
        out.append(f"--topology {larger[0]}: more chips, each with fewer rows (and, with FSDP, fewer parameters)")
    return out


def _smaller(job: Job) -> tuple[str, ...]:
    """The dtypes in which the job's frozen weights would be smaller, the least change first."""
    return SMALLER[SMALLER.index(job.setup.frozen_dtype) + 1 :] if job.setup.frozen_dtype in SMALLER else ()


def _stored_bytes(job: Job, dtype: str) -> float:
    """Bytes of the job's frozen leaves if FROZEN_DTYPE were `dtype`, on one device."""
    setup = dataclasses.replace(job.setup, frozen_dtype=dtype, frozen_matmul=None)
    stored = setup.storage.stored(split_abstract(setup.model, setup.trainable)[1], ())
    return sum(bits_of(x.dtype) / 8 * x.size for x in jax.tree.leaves(stored))


def _evaluation_is_too_large(plan: Plan) -> bool:
    return bool(plan.eval_hbm_bytes and plan.hbm_limit_bytes and plan.eval_hbm_bytes > plan.hbm_limit_bytes)


def candidates(plan: Plan, job: Job, fsdp: bool) -> Iterator[tuple[dict[str, str], str]]:
    """`(settings, topology)` to try, the cheapest change first; each candidate keeps the settings of earlier ones.

    Weights in eight bits or four come after what leaves the model's numbers as they are, and before larger slices.
    """
    settings: dict[str, str] = {}
    if fsdp and _evaluation_is_too_large(plan) and decoder_weights() != "sharded":
        settings = {"DECODER_WEIGHTS": "'sharded'"}
        yield settings, plan.topology
    rows = job.setup.data.batch_size
    smaller = _smaller(job) if plan.frozen_bytes else ()
    if "bfloat16" in smaller:
        settings = settings | {"FROZEN_DTYPE": "'bfloat16'"}
        yield settings, plan.topology
    quantised = [settings | {"FROZEN_DTYPE": repr(dtype)} for dtype in smaller if dtype != "bfloat16"]
    larger = parse_topology(plan.topology).larger()
    for start, topology in (
        (settings, plan.topology),
        *((changed, plan.topology) for changed in quantised),
        *((settings, topology) for topology in larger),
    ):
        ways = parse_topology(topology).devices // plan.mesh["model"]
        here = dict(start)
        if start is not settings or topology != plan.topology:
            yield here, topology
        if ways > 1 and not fsdp:
            here = here | {"logical_axis_rules.fsdp": "True"}
            yield here, topology
        if plan.flops == plan.model_flops:
            here = here | {"REMAT": "'full'"}
            yield here, topology
        most = rows // ways
        for factor in (4, 16, most):
            if job.microbatches < factor <= most and rows % (ways * factor) == 0:
                yield here | {"MICROBATCHES": str(factor)}, topology


def search(
    plan: Plan, job: Job, fsdp: bool, attempt: Callable[[Settings, str], Plan], limit: int = 24
) -> Iterator[tuple[Settings, str, Plan]]:
    """Plans `candidates` until one fits, and what fits with the other sets of compiler flags of its chips.

    Args:
      plan: the plan of the job as typed.
      job: that job.
      fsdp: whether its parameters are sharded over `data`.
      attempt: `(settings, topology) -> plan`.
      limit: the most candidates.

    Yields:
      `(settings, topology, plan)` of each candidate.
    """
    settings: Settings = {}
    if not plan.fits:
        for _, (settings, topology) in zip(range(limit), candidates(plan, job, fsdp)):
            plan = attempt(settings, topology)
            yield settings, topology, plan
            if plan.fits:
                break
    platform = parse_topology(plan.topology).platform
    if plan.fits and plan.compiler == platform:
        for flag_set in sets_of(platform):
            if flag_set.name != plan.compiler_flags:
                other = {**settings, "COMPILER_FLAGS": repr(flag_set.name)}
                yield other, plan.topology, attempt(other, plan.topology)
