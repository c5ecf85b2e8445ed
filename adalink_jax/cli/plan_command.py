"""`adalink plan`: whether a job fits, and how fast it can be."""

import argparse
import dataclasses
import json
import math
import os
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from adalink_jax import configuration
from adalink_jax.cli.arguments import gin_parser, option, parse, register
from adalink_jax.configuration.requirements import MODEL

if typing.TYPE_CHECKING:
    from rich.table import Table

    from adalink_jax.parallel.accelerators import Topology
    from adalink_jax.planning.plan import Job, Plan
    from adalink_jax.planning.search import Tried

GB = 1e9
# Without these the TPU compiler queries the machine's metadata, and warns on machines without a TPU.
NO_TPU_HERE = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-8"}

_SHOWN_KINDS = 6  # of what a layer saves, the largest


def plan(argv: list[str]) -> int:
    """`adalink plan`; exit status 1 if the job does not fit."""
    parser = gin_parser(
        "plan",
        "Compile the training step, and the decoding of an evaluation, for hardware that need not be here. Reports memory per chip,\n"
        "FLOPs, collectives, and a lower bound on the time of a step. No data is read, and no parameter is allocated.\n"
        "Takes the flags of `adalink train`, or with --gin_file=gin/runs/pack.gin those of `adalink pack`; gin/runs/plan.gin has the\n"
        "defaults of what they leave unset.",
        "adalink plan --gin_file=gin/models/t5_1_1_xxl.gin --gin_file=gin/adapters/adalink.gin --topology v5e:4x8",
        option(
            "--topology",
            required=True,
            metavar="CHIP:SHAPE",
            help="v5e:4x8, v5p:4x4x4, v6e:16x16*2 (two slices), tpu7x:2x2x1, h100:8, cpu:8",
        ),
        option(
            "--search",
            action="store_true",
            help="find the fastest settings that fit: mesh, REMAT, microbatches, then fewer bits, then larger slices; at most eight "
            "compilations, several at once, kept for the next search",
        ),
        option(
            "--eval_examples", type=int, default=1000, metavar="N", help="examples that an evaluation decodes (1000)"
        ),
        option(
            "--quick",
            action="store_true",
            help="compile with the least optimization: ten times faster, and programs need somewhat more memory",
        ),
        option(
            "--network_bandwidth",
            type=float,
            metavar="GB",
            help="GB per second that a device sends out of its slice or node (by default the vendor's figure)",
        ),
        option("--json", action="store_true", help="print the plan as one JSON object"),
    )
    flags, options = parse(parser, argv)
    os.environ.update(NO_TPU_HERE)  # read when JAX is imported
    topology = _topology(options.topology, options.network_bandwidth)
    _prepare(options.topology, options.search, options.quick)
    register()

    from adalink_jax import parallel, terminal
    from adalink_jax.planning.configured_job import configured_job
    from adalink_jax.planning.plan import make_plan
    from adalink_jax.planning.remedies import remedies

    configuration.load(flags, extra_files=("gin/runs/plan.gin",))
    configuration.require(MODEL)
    job = configured_job()
    with terminal.progress() as show:
        show(f"compiling for {options.topology}")
        first = make_plan(job, topology, options.eval_examples)
    fsdp = dict(parallel.logical_axis_rules()).get("embed") is not None
    if not first.fits:
        first.remedies = remedies(first, job, fsdp)
    if not options.json:
        _print_plan(first, job, options.search)
    tried = _searched(first, job, fsdp, flags, options) if options.search else []
    if options.json:
        candidates = [{"settings": {**settings}, **plan} for settings, _, plan in tried]
        print(json.dumps(first.to_json() | ({"search": candidates} if options.search else {})))
    return 0 if first.fits or any(plan["fits"] for *_, plan in tried) else 1


def _topology(text: str, network_bandwidth: float | None) -> "Topology":
    """The topology called `text`; `network_bandwidth` in GB per second, or None for its chip's own.

    Raises:
      UserError: for a bandwidth that is not positive, or of devices that are not in the table.
    """
    from adalink_jax.errors import UserError
    from adalink_jax.parallel.accelerators import parse_topology

    parsed = parse_topology(text)
    if network_bandwidth is None:
        return parsed
    if parsed.accelerator is None or network_bandwidth <= 0:
        raise UserError("--network_bandwidth must be more than 0, and needs the --topology of TPUs or GPUs.")
    chip = dataclasses.replace(parsed.accelerator, network_bandwidth=network_bandwidth * GB)
    return dataclasses.replace(parsed, accelerator=chip)


def _searched(
    first: "Plan", job: "Job", fsdp: bool, flags: configuration.GinFlags, options: argparse.Namespace
) -> "list[Tried]":
    """The candidates of a search, which it prints as they come unless the plan is printed as JSON."""
    from adalink_jax import terminal
    from adalink_jax.planning.arithmetic import Arithmetic, typed_choice
    from adalink_jax.planning.attempts import attempt_all
    from adalink_jax.planning.search import Tried, search

    more = ["--eval_examples", str(options.eval_examples), *(["--quick"] if options.quick else [])]
    if options.network_bandwidth is not None:
        more += ["--network_bandwidth", str(options.network_bandwidth)]
    topology_of = lambda text: _topology(text, options.network_bandwidth)
    tried = [Tried({}, options.topology, first.to_json())]
    with terminal.progress() as show:

        def attempt(wanted: "Sequence[tuple[Mapping[str, str], str]]") -> "list[dict | None]":
            all_flags = []
            for settings, _ in wanted:
                of = flags
                for name, text in settings.items():
                    of = of.binding(name, text)
                all_flags.append(of)
            return attempt_all(all_flags, [where for _, where in wanted], more, show)

        typed = typed_choice(job, first.mesh["model"], fsdp)
        for candidate in search(tried[0].plan, Arithmetic(job), typed, attempt, os.cpu_count() or 1, topology_of):
            tried.append(candidate)
            if not options.json:
                _print_candidate(candidate)
    if not options.json:
        _print_fastest(tried)
    return tried[1:]


def _prepare(text: str, searching: bool, quick: bool) -> None:
    """Sets what JAX and the TPU compiler read when they start."""
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
    jax.config.update("jax_enable_compilation_cache", False)  # `compile_seconds` is to be the compiler's time
    compilation_cache.reset_cache()  # a cache that this process has used already
    if quick:
        jax.config.update("jax_optimization_level", "O0")


def _print_plan(plan: "Plan", job: "Job", searching: bool) -> None:
    from rich.text import Text

    from adalink_jax import terminal

    console = terminal.console()
    console.print(_table(plan, job))
    if why := _why_rough(plan):
        console.print(f"{why} The time of a step is a rough estimate, not a bound.", style="dim")
    if plan.fits:
        console.print("It fits.", style="green")
        return
    needs = {"in a step": plan.hbm_bytes, "in an evaluation": plan.eval_hbm_bytes or 0}
    when = max(needs, key=lambda name: needs[name])
    over = needs[when] - (plan.hbm_limit_bytes or 0)
    console.print(
        Text.assemble(
            ("It does not fit", "bold red"), f": {over / GB:,.1f} GB too much on each chip, {when}. What would help:"
        )
    )
    for remedy in plan.remedies:
        console.print(f"  {remedy}")
    console.print("Trying these:" if searching else "  --search tries these.")


def _why_rough(plan: "Plan") -> str | None:
    if plan.estimate is None or plan.step_is_bound:
        return None
    if plan.compiler == "cpu":
        return "There is no compiler for these chips here: temporaries, traffic and collectives are those of XLA's CPU program."
    if plan.quick:
        return "With --quick the program moves more than the job's own, which is compiled with the usual effort."
    return "The products of FROZEN_MATMUL may be faster than the bfloat16 ones that are assumed."


def _table(plan: "Plan", job: "Job") -> "Table":
    from rich import box
    from rich.table import Column, Table

    mesh = " x ".join(f"{name} {size}" for name, size in plan.mesh.items() if size > 1) or "one device"
    pack = f", a pack of {plan.members}" if plan.members > 1 else ""
    table = Table(
        Column(),
        Column(justify="right"),
        Column(overflow="fold"),
        title=f"{plan.topology}: {plan.chips} chips, mesh {mesh}{pack}",
        title_justify="left",
        box=box.SIMPLE,
        show_header=False,
    )
    unit = "chip" if math.prod(plan.mesh.values()) == plan.chips else "device"
    row = lambda name, value, note="": table.add_row(name, value, note.replace("per chip", f"per {unit}"))
    gigabytes = lambda n: "-" if n is None else f"{n / GB:,.3f} GB"
    rows = f"{job.setup.data.batch_size} rows, {job.microbatches} microbatches"
    limit = f"of {plan.hbm_limit_bytes / GB:,.1f} GB" if plan.hbm_limit_bytes else "the limit is not known"
    row("frozen parameters", gigabytes(plan.frozen_bytes), f"per chip, {job.setup.frozen_dtype}")
    row("trainable parameters", gigabytes(plan.trainable_bytes), "per chip, float32")
    row("optimizer state", gigabytes(plan.optimizer_bytes), "per chip")
    row("batch", gigabytes(plan.batch_bytes), f"per chip; {rows}")
    for stack, sums in plan.saved.items():
        kinds = ", ".join(f"{kind} {size / 1e6:,.2f}" for kind, size in list(sums["layer"].items())[:_SHOWN_KINDS])
        layers = (
            f"per chip; MB in each of {sums['layers']} layers: {kinds}"
            if sums["layers"] > 1
            else f"per chip; MB: {kinds}"
        )
        row(f"saved, {stack}", gigabytes(sums["bytes"]), layers)
    row("temporaries", gigabytes(plan.temp_bytes), f"per chip, by the {plan.compiler} compiler")
    row("needed", gigabytes(plan.hbm_bytes), f"per chip, {limit}")
    row("needed in evaluations", gigabytes(plan.eval_hbm_bytes), "per chip, with the optimizer state")
    table.add_section()
    recomputed = f"; {plan.flops / plan.model_flops:.2f} times as many with recomputation"
    recomputed = recomputed if plan.flops > plan.model_flops else ""
    row("FLOPs of a step", f"{plan.model_flops:.3e}", f"matrix products, 2 per multiply-add{recomputed}")
    for kind, sent in (plan.collectives or {}).items():
        row(kind, gigabytes(sent["bytes"]), f"{sent['count']:,} per step, on each chip")
    if e := plan.estimate:
        milliseconds = lambda seconds: f"{(seconds or 0.0) * 1e3:,.2f}"
        best, most = ("at best", "at most") if plan.step_is_bound else ("roughly", "roughly")
        table.add_section()
        row(f"step, {best}", f"{milliseconds(e.step_seconds)} ms", f"bound by {e.bound}; compute {milliseconds(e.compute_seconds)}, "
            f"memory {milliseconds(e.memory_seconds)}, collectives {milliseconds(e.collective_seconds)} ms")  # fmt: skip
        row(f"MFU, {most}", f"{e.mfu:.1%}", "model FLOPs / the chips' bfloat16 peak")
        if e.evaluation_seconds is not None:
            gathered = f"collectives {gigabytes(plan.token_collective_bytes)} per token of an output, on each chip"
            row("evaluation, roughly", f"{e.evaluation_seconds:,.2f} s", gathered)
            hours = f"{e.chip_hours:,.1f} chip-hours; {job.total_steps:,} steps, with evaluations"
            row("whole job, roughly", f"{e.job_hours:,.2f} h", hours)
    table.add_section()
    evaluation = f"the step; an evaluation's decoding in {plan.eval_compile_seconds} s" if plan.eval_hbm_bytes else ""
    row("compiled in", f"{plan.compile_seconds} s", evaluation)
    row(
        "compiler flags",
        plan.compiler_flags,
        " ".join(f"--{name}={text}" for name, text in plan.compiler_options.items()),
    )
    return table


def _print_candidate(candidate: "Tried") -> None:
    settings, where, plan = candidate
    fits = "fits" if plan["fits"] else "does not fit"
    needed = max(plan["hbm_bytes"], plan["eval_hbm_bytes"] or 0)
    times = f", {_times(plan)}" if plan["estimated_step_seconds"] else ""
    print(f"{fits}: {needed / GB:,.1f} GB per chip{times} with --topology {where} {_flags(settings)}", flush=True)


def _print_fastest(tried: "Sequence[Tried]") -> None:
    """Names the settings with which the whole job is fastest, of those that fit."""
    fitting = [one for one in tried if one.plan["fits"]]
    if not fitting:
        print("Nothing fits of what was tried.")
        return
    if not all(one.plan["estimated_job_hours"] for one in fitting):
        return  # CPUs, whose speed is not known
    settings, where, plan = min(fitting, key=lambda one: (one.plan["estimated_job_hours"], len(one.settings)))
    print(f"fastest: {_times(plan)} with --topology {where} {_flags(settings) or 'as typed'}")


def _times(plan: Mapping[str, Any]) -> str:
    """The times of a step and of the job, for people; of a job that does not fit no evaluation may be known."""
    step = f"{plan['estimated_step_seconds'] * 1e3:,.2f} ms per step"
    hours = plan["estimated_job_hours"]
    job = "" if hours is None else f", roughly {hours:,.2f} h with evaluations"
    return f"{'at best' if plan['step_is_bound'] else 'roughly'} {step}{job}"


def _flags(settings: Mapping[str, str]) -> str:
    return " ".join(f'--gin.{name}="{text}"' for name, text in settings.items())
