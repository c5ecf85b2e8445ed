"""A study as gin describes it: the folder of each cell, what is left to do, and doing it in order."""

import ast
import dataclasses
from collections.abc import Callable, Sequence

from rich.console import Console

from adalink_jax import configuration
from adalink_jax.configuration import GinFlags
from adalink_jax.configuration.requirements import STUDY
from adalink_jax.data.vocabularies import fingerprint
from adalink_jax.errors import UserError
from adalink_jax.experiments.run_configuration import bound_model_dir, load_settings, total_steps
from adalink_jax.experiments.scaling import study as studies
from adalink_jax.experiments.scaling.cell_folder import CellFolder, chosen_rate
from adalink_jax.experiments.scaling.study import BASES, RUNS, TUNING, Cell, Study
from adalink_jax.experiments.sweeps import runner
from adalink_jax.files.places import check_run_folder, is_remote
from adalink_jax.training.run_checkpoints import identity_of

COMMANDS = {BASES: "train", TUNING: "tune", RUNS: "pack"}


@dataclasses.dataclass(frozen=True)
class Selection:
    """A part of a study: cells of some sizes and tasks; no names select all."""

    sizes: Sequence[str] = ()
    tasks: Sequence[str] = ()

    def has(self, cell: Cell) -> bool:
        """Whether a cell is selected; a base belongs to every task."""
        return (not self.sizes or cell.size in self.sizes) and (
            not self.tasks or not cell.task or cell.task in self.tasks
        )


class ConfiguredStudy:
    """The study that gin describes.

    Args:
      flags: gin's flags, of the whole study.

    Attributes:
      study: the description.
      cells: all cells, by stage, in order.

    Raises:
      UserError: if the description is not valid.
    """

    def __init__(self, flags: GinFlags):
        self._flags = flags
        described = [(name, text) for name, text in flags.bindings if name == "MODEL_DIR" or name.startswith("Study.")]
        configuration.load(GinFlags(flags.files, tuple(described), flags.search_paths), require_all=False)
        configuration.require(STUDY)
        bound_model_dir("Study.model_dir")  # refuses an unset MODEL_DIR
        self.study = Study()  # pyright: ignore[reportCallIssue]  gin gives the arguments
        self.cells = studies.cells(self.study)
        self._folders: dict[Cell, CellFolder] = {}

    def select(self, sizes: Sequence[str] | None, tasks: Sequence[str] | None) -> Selection:
        """The selection of `--size` and `--task`.

        Raises:
          UserError: for a size or a task that the study does not have.
        """
        for flag, names, known in (("size", sizes, self.study.sizes), ("task", tasks, self.study.kinds)):
            for name in names or ():
                if name not in known:
                    raise UserError(f"--{flag} {name}: the study has {', '.join(known)}.")
        return Selection(sizes or (), tasks or ())

    def rate(self, cell: Cell) -> float | None:
        """The learning rate of a run; None until it is tuned."""
        result = self.folder(studies.tuning_of(self.study, cell)).result()
        return None if result is None else chosen_rate(result)

    def folder(self, cell: Cell) -> CellFolder:
        """A cell's folder; the first call checks the cell's settings.

        Raises:
          UserError: if they are not valid.
        """
        if cell in self._folders:
            return self._folders[cell]
        rate = self.rate(cell) if cell.stage == RUNS else None
        command = COMMANDS[cell.stage]
        settings = load_settings(studies.flags_of(self.study, cell, self._flags, rate), command, cell.name)
        identity = identity_of(settings)
        if (vocabulary := identity.get("PublishedData.vocabulary")) is not None:
            identity["PublishedData.vocabulary"] = repr(fingerprint(ast.literal_eval(vocabulary)))
        base = studies.base_before(self.study, cell) if cell.stage == BASES else cell.base
        base_folder = None if base is None else self.folder(base)
        folder = CellFolder(self.study, cell, base_folder, identity, total_steps(settings, command))
        if cell.stage != RUNS or rate is not None:
            self._folders[cell] = folder
        return folder

    def tuned(self) -> list[Cell]:
        """All cells but the runs whose learning rate is not tuned yet."""
        every = [cell for stage in self.cells.values() for cell in stage]
        return [cell for cell in every if cell.stage != RUNS or self.rate(cell) is not None]

    def check(self) -> None:
        """Refuses what was made with other settings.

        Raises:
          UserError: names it.
        """
        for cell in self.tuned():
            self.folder(cell).check()

    def needed(self, selection: Selection) -> dict[str, list[Cell]]:
        """The selected cells that are left to make, by stage; bases only if one of these starts from them."""
        tuning, runs = (
            [cell for cell in self.cells[stage] if selection.has(cell) and not self.folder(cell).finished()]
            for stage in (TUNING, RUNS)
        )
        bases = [base for base in studies.bases_of(self.study, [*runs, *tuning]) if not self.folder(base).trained()]
        return {BASES: bases, TUNING: tuning, RUNS: runs}

    def make_one(self, name: str, main: Callable[[list[str]], int]) -> int:
        """Makes or resumes one cell in this process, and keeps its result (see `RunFolder.make`).

        Args:
          name: the cell's.
          main: runs an `adalink` command.

        Raises:
          UserError: if there is no such cell, or its learning rate is not tuned.
        """
        cell = next((cell for stage in self.cells.values() for cell in stage if cell.name == name), None)
        if cell is None:
            raise UserError(f"The study has no {name}; `adalink study` shows its cells.")
        rate = self.rate(cell) if cell.stage == RUNS else None
        if cell.stage == RUNS and rate is None:
            raise UserError(f"The learning rate of {name} is not tuned; --run does that first.")
        check_run_folder(self.study.model_dir)
        folder = self.folder(cell)
        command = [COMMANDS[cell.stage], *studies.flags_of(self.study, cell, self._flags, rate).arguments()]
        status = folder.make(lambda: main(command), f"{cell.stage}: {cell.name}", self.study.model_dir)
        if status == 0:
            folder.keep()
        return status

    def make_all(self, selection: Selection, parallel: int, console: Console) -> dict[str, str]:
        """Makes everything selected that is left to make, stage by stage; stops after a stage with failures.

        Args:
          selection: the part of the study.
          parallel: number of cells at once.
          console: shows the progress.

        Returns:
          Name -> reason, of the cells that failed.

        Raises:
          UserError: for a folder in a bucket, or one that was made with other settings, or a lost base.
          Stopped, Preempted: see `Runner.run`.
        """
        if is_remote(self.study.model_dir):
            raise UserError(f"--run needs a folder with locks and logs, and {self.study.model_dir} is a bucket.")
        check_run_folder(self.study.model_dir)
        self.check()
        for cell in self.tuned():  # a process may have been killed before it kept its result
            if (folder := self.folder(cell)).trained():
                folder.keep()
        self._check_bases(selection)
        stages = [(BASES, regime) for regime in self.study.regimes] + [(TUNING, ""), (RUNS, "")]
        for stage, regime in stages:
            todo = [cell for cell in self.needed(selection)[stage] if regime in ("", cell.regime)]
            if not todo:
                continue
            console.rule(f"{stage}{regime and f' ({regime})'}: {len(todo)} to make", align="left")
            folders = {cell.name: self.folder(cell) for cell in todo}
            if failed := runner.run_all(["study", *self._flags.arguments()], folders, parallel, console):
                return failed
        return {}

    def _check_bases(self, selection: Selection) -> None:
        """Refuses to train a base again if runs from it are finished: new runs could not be compared with those."""
        needed = self.needed(selection)
        for base in needed[BASES]:
            done = [cell for cell in self.cells[RUNS] if cell.base == base and self.folder(cell).finished()]
            if done and any(cell.base == base for cell in needed[RUNS]):
                raise UserError(
                    f"{len(done)} runs from {base.name} are finished, but {self.folder(base).path} is missing: a base trained "
                    f"again would be another one, whose runs cannot be compared with those. Bring that folder back, delete the "
                    f"results of those runs, or start again with another MODEL_DIR and Study.kept."
                )
