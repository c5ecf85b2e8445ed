"""What a sweep needs on hardware that is not here: one plan for each program that its runs have, remembered in a folder.

Runs that differ in seeds, in the learning rate's peak, in the task or the files that they start from have one program.
"""

import dataclasses
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

from etils import epath

from adalink_jax.configuration import GinFlags
from adalink_jax.errors import UserError
from adalink_jax.files.whole_file import read_json, write_json
from adalink_jax.training.outputs import versions

NO_MATTER = (
    "Sweep.", "Comparison.", "train.model_dir", "train.metric", "train_pack.model_dir", "train_pack.metric",
    "train_pack.patience", "Setup.random_seed", "Setup.initial_", "Setup.checkpoint_renames", "Setup.allow_other_base",
    "DatasetConfig.seed", "DatasetConfig.mixture_or_task_", "DatasetConfig.train_examples", "PublishedData.",
    "warmup_cosine.peak", "warmup_constant.peak",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Program:
    """Runs of one program.

    Attributes:
      runs: their names.
      plan: what `adalink plan --json` says of one.
    """

    runs: tuple[str, ...]
    plan: Mapping

    @property
    def chip_hours(self) -> float | None:
        """Of all its runs, at best; None if the chips' speed is not known."""
        each = self.plan["estimated_chip_hours"]
        return None if each is None else each * len(self.runs)


def plan(
    runs: Mapping[str, tuple[GinFlags, Mapping[str, str]]], topology: str, folder: str, told: Callable[[str], None]
) -> list[Program]:
    """Plans each program once; those that were planned before are read from `folder`.

    Args:
      runs: name -> the flags of `adalink train` for it, and its settings.
      topology: as `adalink plan` takes it.
      folder: of remembered plans.
      told: called with the run whose program is compiled next.

    Raises:
      UserError: what `adalink plan` answers to a run's settings.
    """
    programs: dict[str, list[str]] = {}
    for name, (_, settings) in runs.items():
        programs.setdefault(_digest(settings, topology), []).append(name)
    out = []
    for digest, names in programs.items():
        path = epath.Path(folder) / f"{digest}.json"
        made = read_json(path)
        if made is None:
            told(names[0])
            made = _planned(names[0], runs[names[0]][0], topology)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, made)
        out.append(Program(tuple(names), made))
    return out


def _digest(settings: Mapping[str, str], topology: str) -> str:
    kept = {name: value for name, value in settings.items() if not name.startswith(NO_MATTER)}
    return hashlib.sha256(json.dumps([kept, topology, versions()], sort_keys=True).encode()).hexdigest()[:16]


def _planned(name: str, flags: GinFlags, topology: str) -> dict:
    command: Sequence[str] = [sys.executable, "-m", "adalink_jax", "plan", "--quick", "--json", "--topology", topology]
    done = subprocess.run([*command, *flags.arguments()], capture_output=True, text=True)
    if done.returncode not in (0, 1) or not done.stdout.strip().startswith("{"):
        lines = done.stderr.strip().splitlines() or [f"`adalink plan` ended with status {done.returncode}"]
        raise UserError(f"Run {name} cannot be planned: {lines[-1].removeprefix('error: ')}")
    return json.loads(done.stdout.strip().splitlines()[-1])
