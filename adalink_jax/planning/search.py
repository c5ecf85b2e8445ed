"""Settings that make a job fit: what each would save, and a search that compiles the job with them."""

from collections.abc import Callable, Iterator, Mapping

from adalink_jax.parallel.accelerators import parse_topology
from adalink_jax.planning.plan import Job, Plan

Settings = Mapping[str, str]  # macro or parameter -> text of the value, as typed after --gin.

GB = 1e9


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
    if job.setup.frozen_dtype == "float32" and plan.frozen_bytes:
        half = plan.frozen_bytes / 2
        out.append(
            f"--gin.FROZEN_DTYPE=\"'bfloat16'\": {plan.frozen_bytes / GB:.1f} GB of frozen weights become {half / GB:.1f}"
        )
    if plan.flops == plan.model_flops:
        out.append("--gin.REMAT=\"'full'\": activations are recomputed instead of stored, for more FLOPs")
    largest = job.setup.data.batch_size // (plan.mesh["data"] * plan.mesh["slice"])
    if job.microbatches < largest:
        size = f", of {plan.temp_bytes / GB:.1f} GB," if plan.temp_bytes else ""
        out.append(
            f"--gin.MICROBATCHES={2 * job.microbatches} (up to {largest}): temporaries{size} shrink about in proportion"
        )
    if plan.eval_hbm_bytes and plan.eval_hbm_bytes > (plan.hbm_limit_bytes or plan.eval_hbm_bytes):
        out.append(
            f"--gin.BATCH_SIZE: an evaluation decodes a whole batch of {job.setup.data.batch_size} rows at once; fewer rows need "
            f"less than {plan.eval_hbm_bytes / GB:.1f} GB per chip"
        )
    larger = parse_topology(plan.topology).larger()
    if larger:
        out.append(f"--topology {larger[0]}: more chips, each with fewer rows (and, with FSDP, fewer parameters)")
    return out


def candidates(plan: Plan, job: Job, fsdp: bool) -> Iterator[tuple[dict[str, str], str]]:
    """`(settings, topology)` to try, the cheapest change first; each candidate keeps the settings of earlier ones."""
    settings: dict[str, str] = {}
    rows = job.setup.data.batch_size
    if job.setup.frozen_dtype == "float32" and plan.frozen_bytes:
        settings = settings | {"FROZEN_DTYPE": "'bfloat16'"}
        yield settings, plan.topology
    for topology in (plan.topology, *parse_topology(plan.topology).larger()):
        ways = parse_topology(topology).chips // plan.mesh["model"]
        here = dict(settings)
        if topology != plan.topology:
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
    """Plans `candidates` until one fits.

    Args:
      plan: the plan of the job as typed, which does not fit.
      job: that job.
      fsdp: whether its parameters are sharded over `data`.
      attempt: `(settings, topology) -> plan`.
      limit: the most candidates.

    Yields:
      `(settings, topology, plan)` of each candidate.
    """
    for _, (settings, topology) in zip(range(limit), candidates(plan, job, fsdp)):
        tried = attempt(settings, topology)
        yield settings, topology, tried
        if tried.fits:
            return
