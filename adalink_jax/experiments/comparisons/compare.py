"""Methods side by side on one task and base: each tuned with as many trials, over the same seeds, scored once on test.

    MODEL_DIR/<method>/tune       learning rates, scored on validation
    MODEL_DIR/<method>/budget     all seeds, TRAIN_STEPS, the learning rate that was chosen
    MODEL_DIR/<method>/plateau    all seeds, that learning rate, constant, until validation gets no better

Each is a pack, so a comparison that was stopped goes on where it was, and a method may be added later.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence

import gin
from etils import epath

from adalink_jax.errors import UserError
from adalink_jax.experiments.comparisons.cost import step_cost
from adalink_jax.experiments.comparisons.tune import tune
from adalink_jax.training.packs.run_pack import train_pack

TUNE, PACK, PLATEAU = "gin/runs/tune.gin", "gin/runs/pack.gin", "gin/runs/plateau.gin"
Configure = Callable[[Sequence[str], Mapping[str, str]], None]


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
      methods: name, for the tables -> its gin file and any bindings, such as `('gin/adapters/lora.gin', 'RANK = 4')`. The
        others are compared with the first.
      model_dir: folder of the comparison.
      seeds: of the runs that are scored on test.
      tuning_seeds: of the trials.
      plateau_steps: the most steps of a run to its plateau; None leaves these runs out.
    """

    methods: Mapping[str, Sequence[str]]
    model_dir: str
    seeds: Sequence[int] = (0, 1, 2, 3, 4)
    tuning_seeds: Sequence[int] = (0,)
    plateau_steps: int | None = None

    def __post_init__(self):
        folders = [slug(name) for name in self.methods]
        twice = next((folder for folder in folders if folders.count(folder) > 1 or not folder), None)
        if twice is not None:
            raise UserError(
                f"Comparison.methods: each name needs letters or digits of its own; {twice!r} is not unique."
            )
        if len(self.methods) < 2:
            raise UserError("Comparison.methods names fewer than two methods; there is nothing to compare.")
        if len(self.seeds) < 2:
            raise UserError("Comparison.seeds has fewer than two seeds; an interval needs two, and better five.")


@dataclasses.dataclass(frozen=True)
class Row:
    """What was found of one method.

    Attributes:
      name: the method's.
      learning_rate: chosen of `trials`.
      trials: runs that it was chosen from.
      edge: see `Tuned.edge`.
      trainable: parameters.
      budget, plateau: each seed's score on test, in the order of the seeds; `plateau` () where it was left out.
      plateau_steps: each seed's steps to its best.
      step_seconds, peak_bytes: see `step_cost`.
      file_bytes: of what leaves a run: the adapter's folder, or the trained model's.
    """

    name: str
    learning_rate: float
    trials: int
    edge: str | None
    trainable: int
    budget: tuple[float, ...]
    plateau: tuple[float, ...]
    plateau_steps: tuple[int, ...]
    step_seconds: float
    peak_bytes: int
    file_bytes: int


@dataclasses.dataclass(frozen=True)
class Found:
    """What a comparison found.

    Attributes:
      rows: of the methods.
      task: its name.
      metric: what the scores are.
      steps: of the equal budget.
      seeds: of the runs that were scored on test.
    """

    rows: tuple[Row, ...]
    task: str
    metric: str
    steps: int
    seeds: tuple[int, ...]


def slug(name: str) -> str:
    """A method's name as a folder's."""
    return re.sub(r"\W+", "_", name).strip("_").lower()


def compare(
    comparison: Comparison,
    configure: Configure,
    settings: Callable[[], dict[str, str]],
    config_text: Callable[[], str],
    on_part: Callable[[str, str], None] = lambda method, part: None,
) -> Found:
    """Makes, or goes on with, all of a comparison's runs.

    Args:
      comparison: what.
      configure: `(files, macros)`: replaces gin's configuration by the comparison's, with a method's and a run's file under
        it and `macros` (name -> literal) over it.
      settings, config_text: see `train_pack`.
      on_part: told what comes next.

    Raises:
      as `train_pack`.
    """
    rows, options = [], {"settings": settings, "config_text": config_text}
    for name, (file, *bindings) in comparison.methods.items():
        folder = epath.Path(comparison.model_dir) / slug(name)
        own = dict(map(_parsed, bindings))

        def part(run_file: str, what: str, name=name, file=file, own=own, folder=folder, **macros):
            on_part(name, what)
            configure((file, run_file), own | {key: repr(value) for key, value in macros.items()})
            return str(folder / what)

        tuned = tune(part(TUNE, "tune", SEEDS=tuple(comparison.tuning_seeds)), **options)
        trials = sum(len(trial.scores) for trial in tuned.trials)
        if rows and trials != rows[0].trials:
            raise UserError(
                f"{name} has {trials} trials and {rows[0].name} {rows[0].trials}; give every method as many LEARNING_RATES."
            )
        chosen = {"LEARNING_RATES": (tuned.learning_rate,), "SEEDS": tuple(comparison.seeds)}
        budget = train_pack(model_dir=part(PACK, "budget", **chosen), **options)
        plateau = {"members": []}
        if comparison.plateau_steps is not None:
            steps = {"TRAIN_STEPS": comparison.plateau_steps}
            plateau = train_pack(model_dir=part(PLATEAU, "plateau", **chosen, **steps), **options)
        part(PACK, "cost", **chosen)
        cost = _remembered(folder / "cost.json", step_cost)
        score = f"adapted_{budget['metric']}"
        rows.append(
            Row(
                name,
                tuned.learning_rate,
                trials,
                tuned.edge,
                budget["members"][0]["trainable"],
                tuple(member[score] for member in budget["members"]),
                tuple(member[score] for member in plateau["members"]),
                tuple(member["step"] for member in plateau["members"]),
                cost["step_seconds"],
                cost["peak_bytes"],
                _size(folder / "budget" / "members" / budget["members"][0]["name"]),
            )
        )
    budget = {"task": budget["task"], "metric": budget["metric"], "steps": budget["total_steps"]}
    return Found(tuple(rows), **budget, seeds=tuple(comparison.seeds))


def _parsed(binding: str) -> tuple[str, str]:
    name, equals, value = binding.partition("=")
    if not equals:
        raise UserError(f"Comparison.methods takes bindings like 'RANK = 4', not {binding!r}.")
    return name.strip(), value.strip()


def _remembered(path: epath.Path, make: Callable[[], dict]) -> dict:
    if not path.exists():
        path.write_text(json.dumps(make()))
    return json.loads(path.read_text())


def _size(folder: epath.Path) -> int:
    """Bytes of the trained files of one run."""
    kept = folder / ("model" if (folder / "model").exists() else "adapter")
    return sum(file.stat().length for file in kept.iterdir())
