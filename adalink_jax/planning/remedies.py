"""Settings that make a job fit, and what each would save."""

import jax

from adalink_jax.models.quantised import bits_of
from adalink_jax.parallel.accelerators import parse_topology
from adalink_jax.planning.arithmetic import in_dtype
from adalink_jax.planning.plan import Job, Plan
from adalink_jax.training.decoder_weights import decoder_weights
from adalink_jax.training.setup import split_abstract

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
    for dtype in smaller(job) if plan.frozen_bytes else ():
        stored = plan.frozen_bytes * _stored_bytes(job, dtype) / _stored_bytes(job, job.setup.frozen_dtype)
        check = "" if dtype == "bfloat16" else " (`adalink quantise-check` measures what that changes)"
        out.append(
            f"--gin.FROZEN_DTYPE=\"'{dtype}'\": {plan.frozen_bytes / GB:.1f} GB of frozen weights become {stored / GB:.1f}{check}"
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


def smaller(job: Job) -> tuple[str, ...]:
    """The dtypes in which the job's frozen weights would be smaller, the least change first."""
    return SMALLER[SMALLER.index(job.setup.frozen_dtype) + 1 :] if job.setup.frozen_dtype in SMALLER else ()


def _stored_bytes(job: Job, dtype: str) -> float:
    """Bytes of the job's frozen leaves if FROZEN_DTYPE were `dtype`, on one device."""
    setup = in_dtype(job, dtype).setup
    stored = setup.storage.stored(split_abstract(setup.model, setup.trainable)[1], ())
    return sum(bits_of(x.dtype) / 8 * x.size for x in jax.tree.leaves(stored))


def _evaluation_is_too_large(plan: Plan) -> bool:
    return bool(plan.eval_hbm_bytes and plan.hbm_limit_bytes and plan.eval_hbm_bytes > plan.hbm_limit_bytes)
