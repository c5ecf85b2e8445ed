"""Compares methods on one task and base: equally many tuning trials each, the same seeds, scored once on test.

    MODEL_DIR/<method>/tune       learning rates, scored on validation
    MODEL_DIR/<method>/budget     all seeds, TRAIN_STEPS, the chosen learning rate
    MODEL_DIR/<method>/plateau    all seeds, that learning rate, constant, until validation stops improving

Each is a pack, so a comparison that was stopped resumes where it was, and a method may be added later.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import gin
from etils import epath

from adalink_jax import configuration
from adalink_jax.configuration import GinFlags
from adalink_jax.configuration.requirements import COMPARISON, DATA, MODEL
from adalink_jax.errors import UserError
from adalink_jax.experiments.comparisons.cost import step_cost
from adalink_jax.experiments.comparisons.tune import tune
from adalink_jax.experiments.descriptions import check_names, check_seeds, slug, split_texts
from adalink_jax.files.places import RunFolder, path_of
from adalink_jax.files.typed_json import Form, read_state
from adalink_jax.files.whole_file import write_json
from adalink_jax.parallel import compiler_settings
from adalink_jax.training.packs.run_pack import train_pack
from adalink_jax.typed_values import PositiveInt, Seed

TUNE, PACK, PLATEAU = "gin/runs/tune.gin", "gin/runs/pack.gin", "gin/runs/plateau.gin"


class _Cost(Form):
    """`cost.json`, see `step_cost`."""

    step_seconds: float
    peak_bytes: float


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Comparison:
    """The description of a comparison.

    Attributes:
      methods: name, for the tables -> its gin file and any bindings, such as `('gin/adapters/lora.gin', 'RANK = 4')`. The
        first method is the reference of all others.
      model_dir: folder of the comparison.
      seeds: of the runs that are scored on test.
      tuning_seeds: of the trials.
      plateau_steps: maximum steps of a run to its plateau; None leaves these runs out.

    Raises:
      UserError: if two methods would share a folder, or there are too few methods or seeds.
    """

    methods: Mapping[str, Sequence[str]]
    model_dir: RunFolder
    seeds: Sequence[Seed] = (0, 1, 2, 3, 4)
    tuning_seeds: Sequence[Seed] = (0,)
    plateau_steps: PositiveInt | None = None

    def __post_init__(self):
        check_names(self.methods, "Comparison.methods")
        if len(self.methods) < 2:
            raise UserError("Comparison.methods names fewer than two methods; there is nothing to compare.")
        check_seeds(self.seeds, "Comparison.seeds")


@dataclasses.dataclass(frozen=True)
class Row:
    """The results of one method.

    Attributes:
      name: the method's.
      learning_rate: the one chosen among `trials`.
      trials: number of runs that it was chosen from.
      edge: see `Tuned.edge`.
      trainable: number of trained parameters.
      budget, plateau: the score on test of each seed, in the order of the seeds; `plateau` is () if it was left out.
      plateau_steps: the step of each seed's best score.
      step_seconds, peak_bytes: see `step_cost`.
      file_bytes: size of what leaves a run: the adapter's folder, or the trained model's.
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
class Compared:
    """The results of a comparison.

    Attributes:
      rows: one per method, the reference first.
      task: its name.
      metric: of the scores.
      steps: the equal budget.
      seeds: of the runs that were scored on test.
    """

    rows: tuple[Row, ...]
    task: str
    metric: str
    steps: int
    seeds: tuple[int, ...]


def read_comparison(flags: GinFlags) -> Comparison:
    """Loads gin's flags, and reads the comparison that they describe.

    Raises:
      UserError: if the configuration is not valid.
    """
    configuration.load(flags, extra_files=(PACK,), require_all=False)
    configuration.require(MODEL | DATA | COMPARISON)
    compiler_settings.set_environment()
    return Comparison()  # pyright: ignore[reportCallIssue]  gin gives the arguments


def compare(comparison: Comparison, flags: GinFlags, on_part: Callable[[str, str], None]) -> Compared:
    """Makes or resumes all runs of a comparison.

    Args:
      comparison: the description.
      flags: gin's flags, which it was read from.
      on_part: called with the method and the name of each part, before it starts.

    Raises:
      the errors of `train_pack`.
    """
    rows: list[Row] = []
    budget: dict[str, Any] = {}  # the summary of the last method's pack; its task, metric and steps are those of all
    for name, texts in comparison.methods.items():
        reference = rows[0] if rows else None
        row, budget = _compare_one(
            comparison, flags, name, texts, reference, lambda part, name=name: on_part(name, part)
        )
        rows.append(row)
    return Compared(tuple(rows), budget["task"], budget["metric"], budget["total_steps"], tuple(comparison.seeds))


def _compare_one(
    comparison: Comparison,
    flags: GinFlags,
    name: str,
    texts: Iterable[str],
    reference: Row | None,
    on_part: Callable[[str], None],
) -> tuple[Row, dict[str, Any]]:
    """The row of one method, and the summary of its pack of equal budget."""
    folder = path_of(comparison.model_dir) / slug(name)
    files, bindings = split_texts(texts, "Comparison.methods")
    options = {"settings": configuration.used_settings, "config_text": configuration.operative_config}

    def configure(run_file: str, part: str, **macros: object) -> str:
        on_part(part)
        current = flags
        for macro, text in [*bindings, *((macro, repr(value)) for macro, value in macros.items())]:
            current = current.binding(macro, text)
        configuration.load(current, extra_files=(*files, run_file))
        return str(folder / part)

    tuned, _ = tune(configure(TUNE, "tune", SEEDS=tuple(comparison.tuning_seeds)), **options)
    trials = sum(len(trial.scores) for trial in tuned.trials)
    if reference is not None and trials != reference.trials:
        raise UserError(
            f"{name} has {trials} trials and {reference.name} {reference.trials}; give every method as many LEARNING_RATES."
        )
    chosen = {"LEARNING_RATES": (tuned.learning_rate,), "SEEDS": tuple(comparison.seeds)}
    budget = train_pack(model_dir=configure(PACK, "budget", **chosen), **options)
    plateau: dict[str, Any] = {"members": []}
    if comparison.plateau_steps is not None:
        steps = {"TRAIN_STEPS": comparison.plateau_steps}
        plateau = train_pack(model_dir=configure(PLATEAU, "plateau", **chosen, **steps), **options)
    configure(PACK, "cost", **chosen)
    cost = read_state(folder / "cost.json", _Cost)
    if cost is None:
        cost = step_cost()  # pyright: ignore[reportCallIssue]  gin gives the arguments
        write_json(folder / "cost.json", cost)
    score, first = f"adapted_{budget['metric']}", budget["members"][0]
    row = Row(
        name=name,
        learning_rate=tuned.learning_rate,
        trials=trials,
        edge=tuned.edge,
        trainable=first["trainable"],
        budget=tuple(member[score] for member in budget["members"]),
        plateau=tuple(member[score] for member in plateau["members"]),
        plateau_steps=tuple(member["step"] for member in plateau["members"]),
        step_seconds=cost["step_seconds"],
        peak_bytes=cost["peak_bytes"],
        file_bytes=_size(folder / "budget" / "members" / first["name"]),
    )
    return row, budget


def _size(folder: epath.Path) -> int:
    """Size of the trained files of one run, in bytes."""
    trained = folder / ("model" if (folder / "model").exists() else "adapter")
    return sum(file.stat().length for file in trained.iterdir())
