"""Tunes the learning rate of one method: a pack of learning rates and seeds, chosen on validation; test is never read."""

import csv
import io
from typing import Any

from etils import epath

from adalink_jax.experiments.comparisons.learning_rate import TUNED, Tuned, choose
from adalink_jax.files.places import path_of
from adalink_jax.files.whole_file import write_text, writing
from adalink_jax.training.packs.run_pack import train_pack

CURVE, PLOT = "curve.csv", "curve.png"


def tune(model_dir: str, **options: Any) -> tuple[Tuned, str]:
    """Trains the pack that gin describes, and writes `tuned.gin`, the curve and its plot into its folder.

    Args:
      model_dir: the pack's folder.
      **options: `settings`, `config_text` and `macros` of `train_pack`.

    Returns:
      The choice, and the name of the metric.
    """
    summary = train_pack(model_dir=model_dir, test=False, **options)  # gin gives the other arguments
    members, metric = summary["members"], summary["metric"]
    tuned = choose([x["learning_rate"] for x in members], [x["validation"] for x in members])
    folder, seeds = path_of(model_dir), len(tuned.trials[0].scores)
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(["learning_rate", "mean", *(f"seed_{i + 1}" for i in range(seeds))])
    table.writerows([trial.learning_rate, trial.mean, *trial.scores] for trial in tuned.trials)
    write_text(folder / CURVE, text.getvalue())
    draw_curve(folder / PLOT, tuned, metric)
    tried = ", ".join(f"{trial.learning_rate:g} {trial.mean:.4f}" for trial in tuned.trials)
    write_text(
        folder / TUNED,
        f"# Chosen by `adalink tune` for the highest {metric} on validation, mean over {seeds} seed"
        f"{'s' if seeds > 1 else ''}: {tried}.\n\nLEARNING_RATE = {tuned.learning_rate!r}\n",
    )
    return tuned, metric


def draw_curve(path: epath.Path, tuned: Tuned, metric: str) -> None:
    """Draws the score against the learning rate: the mean, each seed, and the choice."""
    from matplotlib.figure import Figure  # only where a figure is drawn

    figure = Figure(figsize=(6, 3.6), layout="constrained", dpi=110)
    axis = figure.subplots()
    rates = [trial.learning_rate for trial in tuned.trials]
    axis.plot(rates, [trial.mean for trial in tuned.trials], color="#1f6feb", label="mean")
    for trial in tuned.trials:
        axis.plot([trial.learning_rate] * len(trial.scores), trial.scores, "o", color="#57606a", markersize=3)
    axis.axvline(tuned.learning_rate, color="#1a7f37", linestyle="--", label=f"chosen: {tuned.learning_rate:g}")
    axis.set(xscale="log", xlabel="learning rate", ylabel=f"{metric} on validation")
    axis.legend()
    with writing(path) as file:
        figure.savefig(file, format="png")
