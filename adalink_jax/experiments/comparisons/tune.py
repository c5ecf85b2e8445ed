"""The learning rate of one method: a pack of learning rates and seeds, chosen on validation; test is never read."""

import csv
import dataclasses
from collections.abc import Callable

import numpy as np
from etils import epath
from matplotlib.figure import Figure

from adalink_jax.training.packs.run_pack import train_pack

TUNED, CURVE, PLOT = "tuned.gin", "curve.csv", "curve.png"


@dataclasses.dataclass(frozen=True)
class Trial:
    """One learning rate.

    Attributes:
      learning_rate: its peak.
      scores: each seed's best on validation.
    """

    learning_rate: float
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return float(np.mean(self.scores))


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What was chosen.

    Attributes:
      learning_rate: of the highest mean; the lowest such.
      trials: by learning rate, ascending.
      metric: what `scores` are.
    """

    learning_rate: float
    trials: tuple[Trial, ...]
    metric: str

    @property
    def edge(self) -> str | None:
        """ "lowest" or "highest" where the chosen one is that of several, so that a better one may lie outside."""
        ends = {self.trials[0].learning_rate: "lowest", self.trials[-1].learning_rate: "highest"}
        return ends.get(self.learning_rate) if len(self.trials) > 1 else None


def choose(summary: dict) -> Tuned:
    """From the summary of a pack."""
    scores: dict[float, list[float]] = {}
    for member in summary["members"]:
        scores.setdefault(member["learning_rate"], []).append(member["validation"])
    trials = tuple(Trial(rate, tuple(values)) for rate, values in sorted(scores.items()))
    return Tuned(max(trials, key=lambda trial: trial.mean).learning_rate, trials, summary["metric"])


def tune(model_dir: str, settings: Callable[[], dict[str, str]], config_text: Callable[[], str]) -> Tuned:
    """Trains the pack that gin describes, and writes what follows from it into its folder.

    Args:
      model_dir: the pack's folder.
      settings, config_text: see `train_pack`.
    """
    tuned = choose(train_pack(model_dir=model_dir, test=False, settings=settings, config_text=config_text))
    folder = epath.Path(model_dir)
    with (folder / CURVE).open("w") as file:
        table = csv.writer(file)
        table.writerow(["learning_rate", "mean", *(f"seed_{i + 1}" for i in range(len(tuned.trials[0].scores)))])
        table.writerows([trial.learning_rate, trial.mean, *trial.scores] for trial in tuned.trials)
    draw_curve(folder / PLOT, tuned)
    tried = ", ".join(f"{trial.learning_rate:g} {trial.mean:.4f}" for trial in tuned.trials)
    seeds = len(tuned.trials[0].scores)
    (folder / TUNED).write_text(
        f"# Chosen by `adalink tune` for the highest {tuned.metric} on validation, mean over {seeds} seed"
        f"{'s' if seeds > 1 else ''}: {tried}.\n\nLEARNING_RATE = {tuned.learning_rate!r}\n"
    )
    return tuned


def draw_curve(path: epath.Path, tuned: Tuned) -> None:
    """Score against learning rate: the mean, each seed, and the chosen one."""
    figure = Figure(figsize=(6, 3.6), layout="constrained", dpi=110)
    axis = figure.subplots()
    rates = [trial.learning_rate for trial in tuned.trials]
    axis.plot(rates, [trial.mean for trial in tuned.trials], color="#1f6feb", label="mean")
    for trial in tuned.trials:
        axis.plot([trial.learning_rate] * len(trial.scores), trial.scores, "o", color="#57606a", markersize=3)
    axis.axvline(tuned.learning_rate, color="#1a7f37", linestyle="--", label=f"chosen: {tuned.learning_rate:g}")
    axis.set(xscale="log", xlabel="learning rate", ylabel=f"{tuned.metric} on validation")
    axis.legend()
    with path.open("wb") as file:
        figure.savefig(file, format="png")
