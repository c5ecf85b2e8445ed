"""`adalink study`: shows and runs a scaling study."""

from typing import TYPE_CHECKING

from adalink_jax.cli.arguments import SAME_BITS, gin_parser, option, parse_gin, register, table, table_console
from adalink_jax.cli.main import main
from adalink_jax.cli.sweep_command import PARALLEL, follow_parent, print_failed

if TYPE_CHECKING:
    from adalink_jax.experiments.scaling.configured_study import ConfiguredStudy, Selection


def study(argv: list[str]) -> int:
    """`adalink study`; status 1 if something has failed."""
    parser = gin_parser(
        "study",
        "Show a scaling study, model size x base x task x method, and how much of it is done. Bases are trained first, then\n"
        "learning rates are tuned at each size, then every run is a pack of seeds, scored once on test. Nothing finished is\n"
        "made again, whether its folder is in MODEL_DIR or its result in Study.kept. `adalink report` reports on the results.",
        "adalink study --gin_file=gin/studies/miniature.gin --gin.MODEL_DIR=\"'runs/miniature'\" \\\n"
        "    --gin.DATA_DIR=\"'../shared/data'\" --gin.VOCABULARY=\"'runs/miniature/vocabulary'\" --run",
        SAME_BITS,
        option("--run", action="store_true", help="make everything unfinished; after a stop, rerun the same command"),
        *PARALLEL,
        option("--size", action="append", metavar="NAME", help="only this size; repeatable"),
        option("--task", action="append", metavar="NAME", help="only this task; repeatable"),
        option(
            "--element", metavar="NAME", help="make only this cell, in this process (runs/..., tuning/..., bases/...)"
        ),
    )
    flags, options = parse_gin(parser, argv, "gin/studies/miniature.gin")
    if options.element is not None and (options.run or options.size or options.task):
        parser.error("--element excludes --run, --size and --task")
    follow_parent(parser, options)
    register()
    from adalink_jax import terminal
    from adalink_jax.experiments.scaling.configured_study import ConfiguredStudy

    configured = ConfiguredStudy(flags)
    if options.element is not None:
        return configured.make_one(options.element, main)
    selection = configured.select(options.size, options.task)
    if not options.run:
        _show(configured, selection)
        return 0
    console = terminal.console()
    if failed := configured.make_all(selection, options.parallel, console):
        return print_failed(failed, f"{len(failed)} cells")
    console.print("All cells are done; `adalink report` shows the results.")
    return 0


def _show(configured: "ConfiguredStudy", selection: "Selection") -> None:
    from adalink_jax.experiments.scaling.study import AXES
    from adalink_jax.training.segments import environment_note

    console, results = table_console(), []
    configured.check()
    for stage, all_cells in configured.cells.items():
        cells = [cell for cell in all_cells if selection.has(cell)]
        if not cells:
            continue
        axes = [axis for axis in AXES if getattr(cells[0], axis) and axis != "task"]
        rows: dict[tuple[str, ...], list] = {}
        for cell in cells:
            rows.setdefault(tuple(cell.axes()[axis] for axis in axes), []).append(configured.folder(cell))
        headings, title = (*axes, "done", "of", "in progress"), f"{stage}: {len(cells)}"
        progress_table = table(*headings, right=("done", "of"), overflow="ellipsis", title=title)
        for key, folders in rows.items():
            pairs = [(folder, folder.result()) for folder in folders]
            states = [folder.state() for folder, result in pairs if result is None]
            results += [result for _, result in pairs if result is not None]
            done = len(folders) - len(states)
            progress = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states) if state != "new")
            style = "green" if done == len(folders) else None
            progress_table.add_row(*key, str(done), str(len(folders)), progress, style=style)
        console.print(progress_table)
    console.print("--run makes what is not done.")
    if warning := environment_note(results, "cells"):
        console.print(warning, soft_wrap=True)
