"""`adalink sweep`: shows, plans and runs a sweep."""

import argparse
import collections
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from adalink_jax.cli.arguments import SAME_BITS, gin_parser, option, parse_gin, register, table, table_console
from adalink_jax.cli.main import main

if TYPE_CHECKING:
    from rich.table import Table

    from adalink_jax.experiments.sweeps.configured_sweep import ConfiguredSweep
    from adalink_jax.experiments.sweeps.hardware_plan import Program
    from adalink_jax.experiments.sweeps.run_folder import RunFolder


# The options of a command that runs many processes; --follow names a parent process, with which this one ends.
PARALLEL = (
    option("--parallel", type=int, default=1, metavar="N", help="number of runs at once (1)"),
    option("--follow", type=int, help=argparse.SUPPRESS),
)


def sweep(argv: list[str]) -> int:
    """`adalink sweep`; status 1 if a run has failed, or one does not fit."""
    parser = gin_parser(
        "sweep",
        "Show the runs that Sweep.runs describes, and the state of each. Each run is `adalink train` with the sweep's gin files\n"
        "and flags and its own settings, in MODEL_DIR/<its name>; with Sweep.pack, `adalink pack`. Nothing is started without\n"
        "--run or --element.",
        "adalink sweep --gin_file=gin/sweeps/digits_small.gin --gin.MODEL_DIR=\"'runs/small'\" --run",
        SAME_BITS,
        option(
            "--run",
            action="store_true",
            help="make or resume all unfinished runs; after a stop, rerun the same command",
        ),
        *PARALLEL,
        option(
            "--element",
            nargs="?",
            const="",
            metavar="I",
            help="make only the run with number or name I, in this process; the default number is ADALINK_ARRAY_INDEX",
        ),
        option("--plan", action="store_true", help="report whether each run fits, and what all need, without running"),
        option(
            "--topology",
            metavar="CHIP:SHAPE",
            help="as for `adalink plan`: v5e:4x8, h100:8; with --run this machine's, to plan first and to count chip-hours",
        ),
    )
    flags, options = parse_gin(parser, argv, "gin/sweeps/digits_small.gin")
    modes = [name for name in ("run", "plan", "element") if getattr(options, name) not in (None, False)]
    if len(modes) > 1:
        parser.error(f"--{modes[0]} and --{modes[1]} exclude each other")
    if options.plan and not options.topology:
        parser.error("--plan needs --topology")
    if options.topology and not (options.plan or options.run):
        parser.error("--topology needs --plan or --run")
    follow_parent(parser, options)
    register()
    from adalink_jax import terminal
    from adalink_jax.experiments.sweeps.configured_sweep import ConfiguredSweep
    from adalink_jax.parallel.accelerators import parse_topology

    configured = ConfiguredSweep(flags)
    if configured.sweep.max_chip_hours is not None and options.element is not None and not options.follow:
        print(
            "Sweep.max_chip_hours limits --run alone; for a cluster's arrays set the launcher's MAX_CHIP_HOURS.",
            file=sys.stderr,
        )
    if options.element is not None:
        return configured.make_one(options.element, main)
    if options.plan:
        return _plan(configured, options.topology)
    if not options.run:
        _show(configured, configured.folders())
        return 0
    if options.topology and (status := _plan(configured, options.topology)):
        return status
    console, chips = terminal.console(), parse_topology(options.topology).chips if options.topology else None
    if failed := configured.make_all(options.parallel, console, chips):
        return print_failed(failed, f"{len(failed)} of {len(configured.runs)} runs")
    console.print(
        f"All {len(configured.runs)} runs are done: `adalink results {configured.model_dir}` shows them.",
        soft_wrap=True,
    )
    return 0


def follow_parent(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Checks and applies the options `PARALLEL`."""
    if options.parallel < 1:
        parser.error("--parallel must be at least 1")
    if options.follow:
        from adalink_jax.experiments.sweeps.runner import follow

        follow(options.follow)


def print_failed(failed: Mapping[str, str], count: str) -> int:
    """Prints the failed runs; returns the exit status."""
    reasons = "; ".join(f"{name} ({reason})" for name, reason in failed.items())
    print(f"{count} failed: {reasons}.", file=sys.stderr)
    return 1


def _show(configured: "ConfiguredSweep", folders: Mapping[str, "RunFolder"]) -> None:
    from adalink_jax.experiments.sweeps.run_folder import DONE, FAILED, RUNNING
    from adalink_jax.training.segments import environment_note

    styles = {DONE: "green", RUNNING: "bold", FAILED: "red"}
    columns = list(dict.fromkeys(name for run in configured.runs for name, _ in run.point.bindings))
    title = f"{len(configured.runs)} runs in {configured.model_dir}"
    states = table("", "run", *columns, "state", right=("", *columns), title=title)
    counts: collections.Counter[str] = collections.Counter()
    for run in configured.runs:
        folder, bindings = folders[run.name], dict(run.point.bindings)
        state, step = folder.state(), folder.step()
        counts[state] += 1
        progress = f"{state}, step {step} of {folder.total_steps}" if state != DONE and step else state
        cells = [bindings.get(name, "") for name in columns]
        states.add_row(str(run.number), run.name, *cells, progress, style=styles.get(state))
    console = table_console()
    console.print(states)
    counted = ", ".join(f"{count} {state}" for state, count in counts.items())
    console.print(f"{counted}. --run starts the unfinished ones.")
    summaries = (folder.summary() for folder in folders.values())
    if warning := environment_note([summary for summary in summaries if summary], "runs"):
        console.print(warning, soft_wrap=True)


def _plan(configured: "ConfiguredSweep", topology: str) -> int:
    from adalink_jax.launching import budget
    from adalink_jax.parallel.accelerators import parse_topology

    parse_topology(topology)
    console = table_console()
    programs = configured.plan(topology, lambda name: console.print(f"compiling for {name}", style="dim"))
    runs = len(configured.runs)
    console.print(_plan_table(programs, f"{runs} runs, {len(programs)} programs, each on {topology}"))
    hours = [program.chip_hours for program in programs]
    known = None if None in hours else sum(x or 0.0 for x in hours)
    if sentence := budget.check(configured.sweep, known, "sweep", "Sweep.max_chip_hours"):
        console.print(sentence, soft_wrap=True)
    too_large = sum(len(program.runs) for program in programs if not program.plan["fits"])
    console.print(f"{too_large} of {runs} runs do not fit." if too_large else "All runs fit.")
    return 1 if too_large else 0


def _plan_table(programs: "Sequence[Program]", title: str) -> "Table":
    from rich.text import Text

    numeric = ("GB per chip", "fits", "step, roughly", "chip-hours of all")
    out = table("runs", "first", *numeric, right=("runs", *numeric), title=title)
    text = lambda value, form: "-" if value is None else form.format(value)
    for program in programs:
        plan = program.plan
        needed = max(plan["hbm_bytes"], plan["eval_hbm_bytes"] or 0) / 1e9
        step = plan["estimated_step_seconds"]
        out.add_row(
            str(len(program.runs)), program.runs[0], f"{needed:,.3f}", "yes" if plan["fits"] else Text("no", "red"),
            text(step and step * 1e3, "{:,.2f} ms"), text(program.chip_hours, "{:,.3g}"),
        )  # fmt: skip
    return out
