"""`adalink study`: a scaling study's bases, tuning and runs, and what they say."""

import argparse
import ast

from adalink_jax import configuration
from adalink_jax.cli.arguments import MODEL, gin_parser, register, table_console
from adalink_jax.cli.comparison_commands import load_pack
from adalink_jax.cli.run_commands import DATA, RUN
from adalink_jax.cli.sweep_command import make_all, make_run
from adalink_jax.errors import UserError

_PARTS = ("sizes", "regimes", "tasks", "methods", "grid", "tuned_on")
STUDY = {f"Study.{name}": "a study's file, such as --gin_file=gin/studies/miniature.gin" for name in _PARTS}


def study(argv: list[str]) -> int:
    """`adalink study`; status 1 where something has failed."""
    parser = _parser()
    flags, rest = configuration.parse_flags(argv)
    options = parser.parse_args(rest)
    if not flags.files:
        parser.error("give at least one --gin_file, such as --gin_file=gin/studies/miniature.gin")
    if options.parallel < 1:
        parser.error("--parallel must be at least 1")
    if options.element is not None and (options.run or options.size or options.task):
        parser.error("--element goes with none of --run, --size, --task")
    if options.follow:
        from adalink_jax.experiments.sweeps.runner import follow

        follow(options.follow)
    register()
    made = _Configured(flags)
    if options.element is not None:
        return _element(made, options.element)
    made.check_asked(options)
    if options.run:
        return _run(made, options)
    _show(made, options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = gin_parser(
        "study",
        "Show a scaling study: model size x base x task x method, and what of it is done. Bases are trained first, then learning\n"
        "rates are tuned at each size, then every run is a pack of seeds, scored once on test. What is finished is not made\n"
        "again: neither what lies in MODEL_DIR, nor what Study.kept holds of it. `adalink report` says what it found.",
        "adalink study --gin_file=gin/studies/miniature.gin --gin.MODEL_DIR=\"'runs/miniature'\" \\\n"
        "    --gin.DATA_DIR=\"'../shared/data'\" --gin.VOCABULARY=\"'runs/miniature/vocabulary'\" --run",
    )
    parser.add_argument("--run", action="store_true", help="make what is not done; give it again after a stop")
    parser.add_argument("--parallel", type=int, default=1, metavar="N", help="how many at once (1)")
    parser.add_argument("--size", action="append", metavar="NAME", help="only what is of this size; repeatable")
    parser.add_argument("--task", action="append", metavar="NAME", help="only what is on this task; repeatable")
    parser.add_argument(
        "--element", metavar="NAME", help="make this one alone, in this process (runs/..., tuning/..., bases/...)"
    )
    parser.add_argument("--follow", type=int, help=argparse.SUPPRESS)  # the process that this one ends with
    return parser


class _Configured:
    """The study that gin describes, and gin's configuration of each of its cells."""

    def __init__(self, flags: configuration.GinFlags):
        from adalink_jax.experiments.scaling import study as description

        self.flags = flags
        ours = [binding for binding in flags.bindings if binding[0] == "MODEL_DIR" or binding[0].startswith("Study.")]
        mine = configuration.GinFlags(flags.files, tuple(ours), flags.search_paths)
        configuration.load(mine, require_all=False)
        configuration.require(STUDY)
        if isinstance(folder := configuration.bindings().get("Study.model_dir", ""), str) and "REQUIRED" in folder:
            raise UserError("MODEL_DIR is not set; add --gin.MODEL_DIR=\"'runs/NAME'\".")
        self.study = description.Study()
        self.cells = description.cells(self.study)
        self._folders = {}

    def command(self, cell) -> str:
        """What makes it."""
        return {"bases": "train", "tuning": "tune", "runs": "pack"}[cell.stage]

    def flags_of(self, cell, rate: float | None = None) -> configuration.GinFlags:
        """See `study.flags_of`."""
        from adalink_jax.experiments.scaling.study import flags_of

        return flags_of(self.study, cell, self.flags, rate)

    def rate(self, cell) -> float | None:
        """The learning rate of a run; None until it is tuned."""
        from adalink_jax.experiments.scaling.cell_folder import chosen_rate
        from adalink_jax.experiments.scaling.study import tuning_of

        result = self.folder(tuning_of(self.study, cell)).result()
        return None if result is None else chosen_rate(result)

    def folder(self, cell):
        """Its folder; its settings are checked when it is first asked for."""
        from adalink_jax.data.vocabularies import fingerprint
        from adalink_jax.experiments.scaling.cell_folder import CellFolder
        from adalink_jax.training.run import identity_of

        if cell in self._folders:
            return self._folders[cell]
        rate = self.rate(cell) if cell.stage == "runs" else None
        command = self.command(cell)
        try:
            flags = self.flags_of(cell, rate)
            if command == "train":
                configuration.load(flags)
                configuration.require(MODEL | DATA | RUN)
            else:
                load_pack(flags, command)
        except UserError as e:
            raise UserError(f"{cell.name}: {configuration.original_message(e)}") from e
        settings = configuration.bindings()
        steps = ast.literal_eval(settings["train.total_steps" if command == "train" else "train_pack.total_steps"])
        identity = identity_of(settings)
        if (vocabulary := identity.get("PublishedData.vocabulary")) is not None:
            identity["PublishedData.vocabulary"] = repr(fingerprint(ast.literal_eval(vocabulary)))
        found = CellFolder(self.study, cell, self._base_of(cell), identity, steps)
        if cell.stage != "runs" or rate is not None:
            self._folders[cell] = found
        return found

    def _base_of(self, cell):
        """The folder of what a cell starts from; None of a base that starts from random weights."""
        from adalink_jax.experiments.scaling.study import BASES, Cell

        if cell.stage != BASES:
            return self.folder(cell.base)
        regimes = list(self.study.regimes)
        before = regimes[: regimes.index(cell.regime)]
        return self.folder(Cell(BASES, cell.size, before[-1])) if before else None

    def asked(self, cell, options) -> bool:
        """Whether --size and --task ask for a cell; a base is on no task."""
        return (not options.size or cell.size in options.size) and (
            not options.task or not cell.task or cell.task in options.task
        )

    def check(self) -> None:
        """Refuses what was made with other settings; runs whose learning rate is not tuned have none to compare."""
        for cells in self.cells.values():
            for cell in cells:
                if cell.stage != "runs" or self.rate(cell) is not None:
                    self.folder(cell).check()

    def keep(self) -> None:
        """Keeps the results of all that is made: a run may have been killed before it did, or nothing was to be kept then."""
        for cells in self.cells.values():
            for cell in cells:
                folder = self.folder(cell)
                if folder.made() and (cell.stage != "runs" or self.rate(cell) is not None):
                    folder.keep()

    def needed(self, options) -> dict[str, list]:
        """What is not done and asked for, by stage; bases only where something starts from them."""
        from adalink_jax.experiments.scaling.study import BASES, RUNS, TUNING

        tuning, runs = (
            [cell for cell in self.cells[stage] if self.asked(cell, options) and not self.folder(cell).finished()]
            for stage in (TUNING, RUNS)
        )
        regimes = list(self.study.regimes)
        used = {(cell.size, cell.regime) for cell in (*runs, *tuning)}
        chain = {(size, earlier) for size, regime in used for earlier in regimes[: regimes.index(regime) + 1]}
        bases = [
            cell for cell in self.cells[BASES] if (cell.size, cell.regime) in chain and not self.folder(cell).made()
        ]
        return {BASES: bases, TUNING: tuning, RUNS: runs}

    def check_bases(self, options) -> None:
        """Refuses to train a base again from which runs are done: it would be another one, and no run of it comparable with those."""
        from adalink_jax.experiments.scaling.study import BASES, RUNS

        needed = self.needed(options)
        for base in needed[BASES]:
            done = [cell for cell in self.cells[RUNS] if cell.base == base and self.folder(cell).finished()]
            if done and any(cell.base == base for cell in needed[RUNS]):
                raise UserError(
                    f"{len(done)} runs from {base.name} are done, and {self.folder(base).path} is not there: trained again it would be "
                    f"another base, whose runs cannot be compared with those. Bring that folder, delete the results of those runs, or begin anew "
                    f"with another MODEL_DIR and Study.kept."
                )

    def check_asked(self, options) -> None:
        """Refuses sizes and tasks that the study has not."""
        for name, asked, known in (("size", options.size, self.study.sizes), ("task", options.task, self.study.kinds)):
            for value in asked or ():
                if value not in known:
                    raise UserError(f"--{name} {value}: the study has {', '.join(known)}.")


def _show(made: _Configured, options) -> None:
    from rich.table import Table

    from adalink_jax.experiments.scaling.study import AXES

    console = table_console()
    made.check()
    for stage, every in made.cells.items():
        cells = [cell for cell in every if made.asked(cell, options)]
        if not cells:
            continue
        table = Table(title=f"{stage}: {len(cells)}", title_justify="left")
        axes = [axis for axis in AXES if getattr(cells[0], axis)]
        rows: dict[tuple, list] = {}
        for cell in cells:
            folder = made.folder(cell)
            rows.setdefault(tuple(cell.axes()[axis] for axis in axes if axis != "task"), []).append(folder)
        for heading in (*(axis for axis in axes if axis != "task"), "done", "of", "going on"):
            table.add_column(heading, justify="right" if heading in ("done", "of") else "left")
        for key, folders in rows.items():
            done = sum(folder.result() is not None for folder in folders)
            others = [folder.state() for folder in folders if folder.result() is None]
            told = ", ".join(f"{others.count(state)} {state}" for state in dict.fromkeys(others) if state != "new")
            style = "green" if done == len(folders) else None
            table.add_row(*key, str(done), str(len(folders)), told, style=style)
        console.print(table)
    console.print("--run makes what is not done.")


def _element(made: _Configured, name: str) -> int:
    found = [cell for cells in made.cells.values() for cell in cells if cell.name == name]
    if not found:
        raise UserError(f"The study has no {name}; `adalink study` shows what it has.")
    [cell] = found
    rate = made.rate(cell) if cell.stage == "runs" else None
    if cell.stage == "runs" and rate is None:
        raise UserError(f"The learning rate of {name} is not tuned; --run does that first.")
    folder = made.folder(cell)
    command = [made.command(cell), *made.flags_of(cell, rate).arguments()]
    status = make_run(folder, command, f"{cell.stage}: {cell.name}", made.study.model_dir)
    if status == 0:
        folder.keep()
    return status


def _run(made: _Configured, options) -> int:
    from rich.console import Console

    if "://" in made.study.model_dir:
        raise UserError(f"--run needs a folder with locks and logs, and {made.study.model_dir} is a bucket.")
    made.check()
    made.keep()
    made.check_bases(options)
    console, regimes = Console(highlight=False), list(made.study.regimes)
    steps = [("bases", regime) for regime in regimes] + [("tuning", None), ("runs", None)]
    for stage, regime in steps:
        cells = [cell for cell in made.needed(options)[stage] if regime is None or cell.regime == regime]
        if not cells:
            continue
        console.rule(f"{stage}{f' ({regime})' if regime else ''}: {len(cells)} to make", align="left")
        folders = {cell.name: made.folder(cell) for cell in cells}
        if not make_all("study", made.flags, folders, options.parallel, console):
            return 1
    console.print("All is done: `adalink report` says what was found.")
    return 0
