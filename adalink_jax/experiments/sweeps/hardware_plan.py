"""What a sweep needs on hardware that is not here: one plan per distinct program, cached in a folder.

Runs that differ only in seeds, the learning rate's peak, the task, or the files that they start from share a program.
"""

import dataclasses
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from adalink_jax.configuration import GinFlags
from adalink_jax.errors import UserError
from adalink_jax.files.places import path_of
from adalink_jax.files.typed_json import Form, read_state
from adalink_jax.files.whole_file import write_json
from adalink_jax.training.segments import versions

# Beginnings of the names of settings that do not change a program.
IRRELEVANT = (
    "Sweep.", "Comparison.", "train.model_dir", "train.metric", "train_pack.model_dir", "train_pack.metric",
    "train_pack.patience", "Setup.random_seed", "Setup.initial_", "Setup.checkpoint_renames", "Setup.allow_other_",
    "DatasetConfig.seed", "DatasetConfig.mixture_or_task_", "DatasetConfig.train_examples", "PublishedData.",
    "warmup_cosine.peak", "warmup_constant.peak", "check_environment.",
)  # fmt: skip


class _Plan(Form):
    """What is read of `adalink plan --json`."""

    fits: bool
    hbm_bytes: int
    eval_hbm_bytes: int | None
    estimated_step_seconds: float | None
    estimated_chip_hours: float | None


@dataclasses.dataclass(frozen=True)
class Program:
    """One program, and the runs that share it.

    Attributes:
      runs: their names.
      plan: the output of `adalink plan --json` for one of them.
    """

    runs: tuple[str, ...]
    plan: Mapping[str, Any]

    @property
    def chip_hours(self) -> float | None:
        """Chip-hours of all its runs, roughly; None if the chip's speed is not known."""
        per_run = self.plan["estimated_chip_hours"]
        return None if per_run is None else per_run * len(self.runs)


def plan(
    runs: Mapping[str, tuple[GinFlags, Mapping[str, str]]],
    topology: str,
    folder: str,
    on_compile: Callable[[str], None],
) -> list[Program]:
    """Plans each program once; reads earlier plans from `folder`.

    Args:
      runs: name -> the flags of `adalink train` for it, and its settings.
      topology: as `adalink plan` takes it.
      folder: the cache of plans.
      on_compile: called with the name of the run whose program is compiled next.

    Raises:
      UserError: if `adalink plan` refuses a run's settings.
    """
    programs: dict[str, list[str]] = {}
    for name, (_, settings) in runs.items():
        programs.setdefault(_digest(settings, topology), []).append(name)
    out = []
    for digest, names in programs.items():
        path = path_of(folder) / f"{digest}.json"
        result = read_state(path, _Plan)
        if result is None:
            on_compile(names[0])
            result = _run_plan(names[0], runs[names[0]][0], topology)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, result)
        out.append(Program(tuple(names), result))
    return out


def _digest(settings: Mapping[str, str], topology: str) -> str:
    relevant = {name: value for name, value in settings.items() if not name.startswith(IRRELEVANT)}
    return hashlib.sha256(
        json.dumps([relevant, topology, versions("jax", "flax", "optax")], sort_keys=True).encode()
    ).hexdigest()[:16]


def _run_plan(name: str, flags: GinFlags, topology: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "adalink_jax", "plan", "--quick", "--json", "--topology", topology]
    done = subprocess.run([*command, *flags.arguments()], capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode not in (0, 1) or not done.stdout.strip().startswith("{"):
        lines = done.stderr.strip().splitlines() or [f"`adalink plan` ended with status {done.returncode}"]
        raise UserError(f"Run {name} cannot be planned: {lines[-1].removeprefix('error: ')}")
    return json.loads(done.stdout.strip().splitlines()[-1])
