"""`adalink plan`: does a job fit, and how fast can it be?"""

import json
import os

from adalink_jax import configuration
from adalink_jax.cli.arguments import MODEL, gin_parser, register

GB = 1e9
# The TPU compiler asks the machine which TPU it has, and complains where there is none.
NO_TPU_HERE = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-8"}


def plan(argv: list[str]) -> int:
    """`adalink plan`; status 1 where the job does not fit."""
    parser = gin_parser(
        "plan",
        "Compile the training step, and the decoding of an evaluation, for hardware that is not here: memory of a chip,\n"
        "FLOPs, collectives, a bound on the step's speed.\n"
        "Takes the flags of `adalink train`, or with --gin_file=gin/runs/pack.gin those of `adalink pack`; what they leave open\n"
        "is in gin/runs/plan.gin. Nothing is read or allocated.",
        "adalink plan --gin_file=gin/models/t5_1_1_xxl.gin --gin_file=gin/adapters/adalink.gin --topology v5e:4x8",
    )
    parser.add_argument(
        "--topology",
        required=True,
        metavar="CHIP:SHAPE",
        help="v5e:4x8, v5p:4x4x4, v6e:16x16*2 (two slices), h100:8, cpu:8",
    )
    parser.add_argument(
        "--search", action="store_true", help="where it does not fit, try settings and larger slices until one does"
    )
    parser.add_argument(
        "--eval_examples", type=int, default=1000, metavar="N", help="examples that an evaluation decodes (1000)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="compile with the least effort: a tenth of the time, for programs that need somewhat more memory",
    )
    parser.add_argument("--json", action="store_true", help="print the plan as one JSON object")
    flags, rest = configuration.parse_flags(argv)
    options = parser.parse_args(rest)
    os.environ.update(NO_TPU_HERE)  # read when JAX is imported
    from adalink_jax.parallel.accelerators import parse_topology

    _prepare(options.topology, options.search, options.quick)
    register()

    from adalink_jax.planning import search
    from adalink_jax.planning.plan import make_plan

    def attempt(settings, where):
        typed = flags
        for name, text in settings.items():
            typed = typed.binding(name, text)
        configuration.load(typed, extra_files=("gin/runs/plan.gin",))
        configuration.require(MODEL)
        job = _job()
        made = make_plan(job, parse_topology(where), options.eval_examples)
        fsdp = _fsdp()
        if not made.fits:
            made.remedies = search.remedies(made, job, fsdp)
        return made, job, fsdp

    made, job, fsdp = attempt({}, options.topology)
    tried = []
    if not options.json:
        _print_plan(made, job, options.search)
    if options.search and not made.fits:
        for settings, where, each in search.search(made, job, fsdp, lambda s, w: attempt(s, w)[0]):
            tried.append({"settings": dict(settings), "topology": where, **each.to_json()})
            if not options.json:
                _print_attempt(settings, where, each)
    if options.json:
        print(json.dumps(made.to_json() | {"quick": options.quick} | ({"search": tried} if options.search else {})))
    return 0 if made.fits or any(each["fits"] for each in tried) else 1


def _prepare(text: str, searching: bool, quick: bool) -> None:
    """What JAX and the TPU compiler read when they start."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    from adalink_jax.parallel.accelerators import parse_topology

    topology = parse_topology(text)
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    if topology.platform != "gpu":
        jax.config.update("jax_platforms", "cpu")
    if topology.platform != "tpu":
        largest = topology.larger()[-1] if searching else text
        jax.config.update("jax_num_cpu_devices", parse_topology(largest).chips)
    jax.config.update("jax_enable_compilation_cache", False)  # `compile_seconds` is the compiler's
    compilation_cache.reset_cache()  # JAX remembers whether there is one from a first use in this process
    if quick:
        jax.config.update("jax_exec_time_optimization_effort", -1.0)


def _job():
    """The job that `train` would run under gin's configuration, or `train_pack` where a file configures it."""
    import gin

    from adalink_jax.planning.plan import Job
    from adalink_jax.training import run
    from adalink_jax.training.packs import members, run_pack
    from adalink_jax.training.step import CrossEntropy

    settings, pack = gin.get_bindings(run.train), gin.get_bindings(run_pack.train_pack)
    if "setup" in pack:
        pack["members"] = members.grid(pack["learning_rates"], pack["seeds"], pack.get("ranks"))
        settings = pack
    return Job(
        settings["setup"], settings["optimizer"], settings.get("loss") or CrossEntropy(), settings["total_steps"],
        settings.get("eval_period", 0), settings.get("microbatches", 1), settings.get("members", ()),
        settings.get("at_once"),
    )  # fmt: skip


def _fsdp() -> bool:
    from adalink_jax import parallel

    return dict(parallel.logical_axis_rules()).get("embed") is not None


def _print_plan(made, job, searching: bool) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    mesh = " x ".join(f"{name} {size}" for name, size in made.mesh.items() if size > 1) or "one device"
    table = Table(
        title=f"{made.topology}: {made.chips} chips, mesh {mesh}"
        + (f", a pack of {made.members}" if made.members > 1 else ""),
        title_justify="left",
        box=box.SIMPLE,
        show_header=False,
    )
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    row = lambda name, value, note="": table.add_row(name, value, note)
    gigabytes = lambda n: "-" if n is None else f"{n / GB:,.3f} GB"
    row("frozen parameters", gigabytes(made.frozen_bytes), f"a chip, {job.setup.frozen_dtype}")
    row("trainable parameters", gigabytes(made.trainable_bytes), "a chip, float32")
    row("optimizer state", gigabytes(made.optimizer_bytes), "a chip")
    row(
        "batch",
        gigabytes(made.batch_bytes),
        f"a chip; {job.setup.dataset.batch_size} rows of all, {job.microbatches} microbatches",
    )
    row("temporaries", gigabytes(made.temp_bytes), f"a chip, by the {made.compiler} compiler")
    limit = f"of {made.hbm_limit_bytes / GB:,.1f} GB" if made.hbm_limit_bytes else "memory of the machine not known"
    row("needed", gigabytes(made.hbm_bytes), f"a chip, {limit}")
    row(
        "needed in evaluations", gigabytes(made.eval_hbm_bytes), "a chip, to decode a batch, beside the optimizer state"
    )
    table.add_section()
    recomputed = (
        f", {made.flops / made.model_flops:.2f} times that with recomputation" if made.flops > made.model_flops else ""
    )
    row("FLOPs of a step", f"{made.model_flops:.3e}", f"matrix products, 2 a multiply-add{recomputed}")
    for kind, each in (made.collectives or {}).items():
        row(kind, gigabytes(each["bytes"]), f"{each['count']:,} a step, on each chip")
    if made.estimate:
        e = made.estimate
        table.add_section()
        row("step, at best", f"{e.step_seconds * 1e3:,.2f} ms", f"bound by {e.bound}; compute {e.compute_seconds * 1e3:,.2f}, "
            f"memory {e.memory_seconds * 1e3:,.2f}, collectives {e.collective_seconds * 1e3:,.2f} ms")  # fmt: skip
        row("MFU, at most", f"{e.mfu:.1%}", "model FLOPs over the chips' bfloat16 peak")
        row(
            "whole job, at best",
            f"{e.job_hours:,.2f} h",
            f"{e.chip_hours:,.1f} chip-hours; {job.total_steps:,} steps, with evaluations",
        )
    table.add_section()
    evaluation = f"the step; an evaluation's decoding in {made.eval_compile_seconds} s" if made.eval_hbm_bytes else ""
    row("compiled in", f"{made.compile_seconds} s", evaluation)
    console.print(table)
    if made.compiler == "cpu" and not made.topology.startswith("cpu"):
        console.print(
            "No compiler for these chips is here: temporaries, traffic and collectives are those of XLA's CPU program, and the "
            "times are rough, no bounds.",
            style="dim",
        )
    if made.fits:
        console.print("[green]It fits.[/]")
        return
    needs = {"in a step": made.hbm_bytes, "in an evaluation": made.eval_hbm_bytes or 0}
    when = max(needs, key=needs.get)
    over = needs[when] - (made.hbm_limit_bytes or 0)
    console.print(f"[bold red]It does not fit[/]: {over / GB:,.1f} GB too much on each chip, {when}. What would help:")
    for remedy in made.remedies:
        console.print(f"  {remedy}")
    console.print("Trying them:" if searching else "  --search tries them.")


def _print_attempt(settings, where: str, made) -> None:
    typed = " ".join(f'--gin.{name}="{text}"' for name, text in settings.items())
    fits = "fits" if made.fits else "does not fit"
    needed = max(made.hbm_bytes, made.eval_hbm_bytes or 0)
    print(f"{fits}: {needed / GB:,.1f} GB a chip with --topology {where} {typed}", flush=True)
