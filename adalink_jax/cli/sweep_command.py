"""`adalink sweep`: the table of a sweep's runs, what they need, and running them."""

import argparse
import ast
import os
import sys

from adalink_jax import configuration
from adalink_jax.cli.arguments import MODEL, gin_parser, register, table_console
from adalink_jax.cli.comparison_commands import load_pack
from adalink_jax.cli.run_commands import DATA, RUN
from adalink_jax.errors import UserError
from adalink_jax.launching.job import ARRAY_INDEX

SWEEP = {"Sweep.runs": "a sweep's file, such as --gin_file=gin/sweeps/digits_small.gin"}


def sweep(argv: list[str]) -> int:
    """`adalink sweep`; status 1 where a run has failed, or one does not fit."""
    parser = _parser()
    flags, rest = configuration.parse_flags(argv)
    options = parser.parse_args(rest)
    if not flags.files:
        parser.error("give at least one --gin_file, such as --gin_file=gin/sweeps/digits_small.gin")
    chosen = [name for name in ("run", "plan", "element") if getattr(options, name) not in (None, False)]
    if len(chosen) > 1:
        parser.error(f"--{chosen[0]} and --{chosen[1]} do not go together")
    if bool(options.plan) != bool(options.topology):
        parser.error("--plan and --topology go together")
    if options.parallel < 1:
        parser.error("--parallel must be at least 1")
    if options.follow:
        from adalink_jax.experiments.sweeps.runner import follow

        follow(options.follow)
    register()
    made = _Configured(flags)
    if options.element is not None:
        return _element(made, options.element)
    if options.run and "://" in made.model_dir:
        raise UserError(
            f"--run needs a folder with locks and logs, and {made.model_dir} is a bucket; use --element for each."
        )
    if options.plan:
        return _plan(made, options.topology)
    runs = {run.name: made.folder(run) for run in made.runs}
    for folder in runs.values():
        folder.check()
    if options.run:
        return _run(made, runs, options.parallel)
    _show(made, runs)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = gin_parser(
        "sweep",
        "Show the runs that Sweep.runs describes, and what became of each. Each is `adalink train` with the sweep's gin files\n"
        "and flags and its own settings, in MODEL_DIR/<its name>; with Sweep.pack, `adalink pack`. Nothing is started without\n"
        "--run or --element.",
        "adalink sweep --gin_file=gin/sweeps/digits_small.gin --gin.MODEL_DIR=\"'runs/small'\" --run",
    )
    parser.add_argument(
        "--run",
        action="store_true",
        help="make, or go on with, all runs that are not finished; give it again after a stop",
    )
    parser.add_argument("--parallel", type=int, default=1, metavar="N", help="how many runs at once (1)")
    parser.add_argument(
        "--element",
        nargs="?",
        const="",
        metavar="I",
        help=f"make run number I of the table, or the one called I, alone, in this process; by default {ARRAY_INDEX}",
    )
    parser.add_argument(
        "--plan", action="store_true", help="see whether each fits, and what all need, without running any"
    )
    parser.add_argument(
        "--topology", metavar="CHIP:SHAPE", help="for --plan, as `adalink plan` takes it: v5e:4x8, h100:8"
    )
    parser.add_argument("--follow", type=int, help=argparse.SUPPRESS)  # the process that this one ends with
    return parser


class _Configured:
    """The sweep that gin describes, and gin's configuration of each run."""

    def __init__(self, flags: configuration.GinFlags):
        from adalink_jax.experiments.sweeps import sweep as study

        self.flags = flags
        configuration.load(flags, require_all=False)
        configuration.require(SWEEP | RUN)
        sweep = study.Sweep()
        self.command = "pack" if sweep.pack else "train"
        self.runs = study.expand(sweep, [name for name, _ in flags.bindings if name != "MODEL_DIR"])
        self.model_dir = self._model_dir()

    def _model_dir(self) -> str:
        try:
            folder = ast.literal_eval(configuration.bindings()["train.model_dir"])
        except (KeyError, ValueError, SyntaxError):  # no run's file, or not set there
            folder = None
        if not isinstance(folder, str) or not folder:
            raise UserError("MODEL_DIR is not set; add --gin.MODEL_DIR=\"'runs/NAME'\".")
        return folder.rstrip("/")

    def flags_of(self, run) -> configuration.GinFlags:
        return run.flags(self.flags, f"{self.model_dir}/{run.name}")

    def planned_flags(self, run) -> configuration.GinFlags:
        """Those of `adalink plan`, which reads the file of a pack only where it is given."""
        flags = self.flags_of(run)
        if self.command != "pack":
            return flags
        flags = load_pack(flags, self.command)
        return configuration.GinFlags(("gin/runs/pack.gin", *flags.files), flags.bindings, flags.search_paths)

    def settings(self, run) -> dict[str, str]:
        """All that gin has for it, after all that can be checked of it was checked."""
        try:
            if self.command == "pack":
                load_pack(self.flags_of(run), self.command)
            else:
                configuration.load(self.flags_of(run))
                configuration.require(MODEL | DATA | RUN)
        except UserError as e:
            raise UserError(f"Run {run.name}: {configuration.original_message(e)}") from e
        return configuration.bindings()

    def folder(self, run):
        """Its folder; its settings are checked."""
        from adalink_jax.experiments.sweeps.run_folder import RunFolder
        from adalink_jax.training.run import identity_of

        settings = self.settings(run)
        kept = {name: text for name, text in settings.items() if not name.startswith(("Sweep.", "Comparison."))}
        steps = ast.literal_eval(settings[f"train{'_pack' if self.command == 'pack' else ''}.total_steps"])
        return RunFolder(f"{self.model_dir}/{run.name}", dict(run.point.bindings), identity_of(kept), steps)


def _show(made: _Configured, runs: dict) -> None:
    from rich.table import Table

    from adalink_jax.experiments.sweeps.run_folder import DONE, FAILED, RUNNING

    styles = {DONE: "green", RUNNING: "bold", FAILED: "red"}
    columns = list(dict.fromkeys(name for run in made.runs for name, _ in run.point.bindings))
    table = Table(title=f"{len(made.runs)} runs in {made.model_dir}", title_justify="left")
    for heading in ("", "run", *columns, "state"):
        table.add_column(heading, justify="left" if heading in ("run", "state") else "right", overflow="fold")
    counted: dict[str, int] = {}
    for run in made.runs:
        folder, own = runs[run.name], dict(run.point.bindings)
        state = folder.state()
        counted[state] = counted.get(state, 0) + 1
        step = folder.step()
        told = f"{state}, step {step} of {folder.total_steps}" if state != DONE and step else state
        cells = [own.get(name, "") for name in columns]
        table.add_row(str(run.number), run.name, *cells, told, style=styles.get(state))
    console = table_console()
    console.print(table)
    console.print(
        ", ".join(f"{count} {state}" for state, count in counted.items()) + ". --run starts what is not done."
    )


def _plan(made: _Configured, topology: str) -> int:
    from rich.table import Table

    from adalink_jax.experiments.sweeps import sweep_plan
    from adalink_jax.parallel.accelerators import parse_topology

    parse_topology(topology)
    console = table_console()
    runs = {run.name: (made.planned_flags(run), made.settings(run)) for run in made.runs}
    programs = sweep_plan.plan(
        runs, topology, f"{made.model_dir}/.plans", lambda name: console.print(f"compiling for {name}", style="dim")
    )
    table = Table(title=f"{len(runs)} runs, {len(programs)} programs, each on {topology}", title_justify="left")
    for heading in ("runs", "first", "GB a chip", "fits", "step, at best", "chip-hours of all"):
        table.add_column(heading, justify="left" if heading == "first" else "right", overflow="fold")
    shown = lambda value, text: "-" if value is None else text.format(value)
    for program in programs:
        found = program.plan
        needed = max(found["hbm_bytes"], found["eval_hbm_bytes"] or 0) / 1e9
        step = found["estimated_step_seconds"]
        table.add_row(
            str(len(program.runs)), program.runs[0], f"{needed:,.3f}", "yes" if found["fits"] else "[red]no[/]",
            shown(step and step * 1e3, "{:,.2f} ms"), shown(program.chip_hours, "{:,.3g}"),
        )  # fmt: skip
    console.print(table)
    hours = [program.chip_hours for program in programs]
    if None not in hours:
        console.print(f"{sum(hours):,.3g} chip-hours in all, at best; real steps take longer.")
    too_large = sum(len(program.runs) for program in programs if not program.plan["fits"])
    console.print(f"{too_large} of {len(runs)} runs do not fit." if too_large else "All runs fit.")
    return 1 if too_large else 0


def _element(made: _Configured, which: str) -> int:
    which = which or os.environ.get(ARRAY_INDEX, "")
    if not which:
        raise UserError(f"--element has no number, and {ARRAY_INDEX} is not set; give the number of a run.")
    found = [run for run in made.runs if which in (str(run.number), run.name)]
    if not found:
        raise UserError(f"There is no run {which!r}; the sweep has {len(made.runs)}, from 0 to {len(made.runs) - 1}.")
    run = found[0]
    told = f"Run {run.number} of {len(made.runs)}: {run.name}"
    return make_run(made.folder(run), [made.command, *made.flags_of(run).arguments()], told, made.model_dir)


def make_run(folder, command: list[str], told: str, cache_dir: str) -> int:
    """Makes, or goes on with, one run of many in this process, which holds its folder meanwhile.

    Args:
      folder: the run's `RunFolder`.
      command: what `adalink` makes it with.
      told: printed when it is started.
      cache_dir: of the runs, which compile much the same.

    Returns:
      The command's exit status.

    Raises:
      Taken, UserError: see `RunFolder.held`.
    """
    import jax

    from adalink_jax.cli.main import main

    with folder.held():
        if folder.finished():
            print(f"{folder.path} holds this run, finished.")
            return 0
        folder.begin()
        print(told, flush=True)
        if jax.config.jax_compilation_cache_dir is None:
            jax.config.update("jax_compilation_cache_dir", f"{cache_dir}/.compilation_cache")
        try:
            status = main(command)
        except BaseException:
            folder.end(1)
            raise
        folder.end(status)
        return status


def make_all(command: str, flags: configuration.GinFlags, runs: dict, parallel: int, console) -> bool:
    """Makes what is not finished of many runs, each in a process of its own, and tells which have failed.

    Args:
      command: `sweep` or `study`, whose `--element` makes one.
      flags: of that command.
      runs: name -> `RunFolder`, in order.
      parallel: how many at once.
      console: where they are shown.

    Returns:
      Whether all are done.

    Raises:
      Stopped, Preempted: see `Runner.run`.
    """
    from adalink_jax.experiments.sweeps.board import Board
    from adalink_jax.experiments.sweeps.runner import Runner

    start = [sys.executable, "-m", "adalink_jax", command, *flags.arguments(), "--follow", str(os.getpid())]
    runner = Runner(runs, lambda name: [*start, "--element", name], parallel, Board(len(runs), parallel, console))
    runner.run()
    if runner.failed:
        told = "; ".join(f"{name} ({why})" for name, why in runner.failed.items())
        print(f"{len(runner.failed)} of {len(runs)} runs failed: {told}.", file=sys.stderr)
    return not runner.failed


def _run(made: _Configured, runs: dict, parallel: int) -> int:
    from rich.console import Console

    console = Console(highlight=False)
    if not make_all("sweep", made.flags, runs, parallel, console):
        return 1
    console.print(f"All {len(runs)} runs are done: `adalink results {made.model_dir}` shows them.", soft_wrap=True)
    return 0
