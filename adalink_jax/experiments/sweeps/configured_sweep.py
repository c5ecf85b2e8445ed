"""A sweep as gin describes it, and gin's configuration of each of its runs."""

import os
from collections.abc import Callable

from rich.console import Console

from adalink_jax import configuration
from adalink_jax.configuration import GinFlags
from adalink_jax.configuration.requirements import RUN, SWEEP
from adalink_jax.errors import UserError
from adalink_jax.experiments.run_configuration import bound_model_dir, load_pack, load_settings, total_steps
from adalink_jax.experiments.sweeps import hardware_plan, runner
from adalink_jax.experiments.sweeps.run_folder import RunFolder
from adalink_jax.experiments.sweeps.spending import Spending
from adalink_jax.experiments.sweeps.sweep import Sweep, SweepRun, expand
from adalink_jax.files.places import check_run_folder, is_remote
from adalink_jax.launching.job import ARRAY_INDEX
from adalink_jax.training.run_checkpoints import identity_of


class ConfiguredSweep:
    """The sweep that gin describes.

    Args:
      flags: gin's flags, of the whole sweep.

    Attributes:
      sweep: its description.
      runs: all runs, in order.
      model_dir: the sweep's folder.

    Raises:
      UserError: if the description is not valid.
    """

    def __init__(self, flags: GinFlags):
        self._flags = flags
        configuration.load(flags, require_all=False)
        configuration.require(SWEEP | RUN)
        sweep = Sweep()  # pyright: ignore[reportCallIssue]  gin gives the arguments
        self.sweep, self._command = sweep, "pack" if sweep.pack else "train"
        self.runs = expand(sweep, [name for name, _ in flags.bindings if name != "MODEL_DIR"])
        self.model_dir = bound_model_dir("train.model_dir")

    def folders(self) -> dict[str, RunFolder]:
        """Name -> folder of each run.

        Raises:
          UserError: if the settings of a run are not valid, or its folder was made with others.
        """
        folders = {run.name: self._folder(run) for run in self.runs}
        for folder in folders.values():
            folder.check()
        return folders

    def plan(self, topology: str, on_compile: Callable[[str], None]) -> list[hardware_plan.Program]:
        """Plans the sweep (see `hardware_plan.plan`)."""
        runs = {run.name: (self._plan_flags(run), self._settings(run)) for run in self.runs}
        return hardware_plan.plan(runs, topology, f"{self.model_dir}/.plans", on_compile)

    def make_one(self, which: str, main: Callable[[list[str]], int]) -> int:
        """Makes or resumes one run in this process (see `RunFolder.make`).

        Args:
          which: the run's number or name; "" for the number that the launcher gave this process.
          main: runs an `adalink` command.

        Raises:
          UserError: if there is no such run.
        """
        which = which or os.environ.get(ARRAY_INDEX, "")
        if not which:
            raise UserError(f"--element has no number, and {ARRAY_INDEX} is not set; give the number of a run.")
        run = next((run for run in self.runs if which in (str(run.number), run.name)), None)
        if run is None:
            raise UserError(
                f"There is no run {which!r}; the sweep has {len(self.runs)}, from 0 to {len(self.runs) - 1}."
            )
        check_run_folder(self.model_dir)
        command = [self._command, *self._flags_of(run).arguments()]
        title = f"Run {run.number} of {len(self.runs)}: {run.name}"
        return self._folder(run).make(lambda: main(command), title, self.model_dir)

    def make_all(self, parallel: int, console: Console, chips: int | None = None) -> dict[str, str]:
        """Makes all unfinished runs; returns name -> reason of the failed ones (see `runner.run_all`).

        Args:
          parallel: number of runs at once.
          console: shows the progress.
          chips: of this machine, which `Sweep.max_chip_hours` needs.

        Raises:
          UserError: see `folders`; also for a folder in a bucket, which has no locks, and once the chip-hours are used.
        """
        if is_remote(self.model_dir):
            raise UserError(
                f"--run needs a folder with locks and logs, and {self.model_dir} is a bucket; use --element for each run."
            )
        check_run_folder(self.model_dir)
        folders, most = self.folders(), self.sweep.max_chip_hours
        spending = None
        if most is not None:
            if chips is None:
                raise UserError("Sweep.max_chip_hours needs --topology, the chips of this machine, such as h100:8.")
            spending = Spending(f"{self.model_dir}/.chip_hours", chips, most)
        return runner.run_all(["sweep", *self._flags.arguments()], folders, parallel, console, spending)

    def _flags_of(self, run: SweepRun) -> GinFlags:
        return run.flags(self._flags, f"{self.model_dir}/{run.name}")

    def _plan_flags(self, run: SweepRun) -> GinFlags:
        """The flags of `adalink plan`, which reads the file of a pack only if it is given."""
        flags = self._flags_of(run)
        if self._command != "pack":
            return flags
        flags = load_pack(flags, self._command)
        return GinFlags(("gin/runs/pack.gin", *flags.files), flags.bindings, flags.search_paths)

    def _settings(self, run: SweepRun) -> dict[str, str]:
        return load_settings(self._flags_of(run), self._command, f"Run {run.name}")

    def _folder(self, run: SweepRun) -> RunFolder:
        settings = self._settings(run)
        identity = {
            name: text for name, text in identity_of(settings).items() if not name.startswith(("Sweep.", "Comparison."))
        }
        steps = total_steps(settings, self._command)
        return RunFolder(f"{self.model_dir}/{run.name}", dict(run.point.bindings), identity, steps)
