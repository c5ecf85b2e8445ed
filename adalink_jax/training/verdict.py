"""Whether a run learned anything: its score beside those of the untrained model and of methods without a model."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adalink_jax import timings
from adalink_jax.data import DatasetConfig, Task, score_baselines
from adalink_jax.training.evaluation import combined

Scores = Mapping[str, float]
BUNDLED = "bundled:"  # how the path of a base in this package begins
BY_HEART = 0.9  # of a score, with --overfit
FALLING = (
    0.05  # what a loss loses from the third quarter of the steps to the last, as a share, while it is still falling
)


@timings.phase("baselines")
def baselines_of(tasks: Sequence[Task], data: DatasetConfig) -> dict[str, dict[str, float]]:
    """Test scores of each method without a model, by its name: for several tasks, as `Result.scores` has them.

    They use the training examples that the run uses. With `data.overfit` nothing is scored: any method learns those by heart.
    """
    if data.overfit is not None:
        return {}
    of_tasks = {task.name: score_baselines(task, "test", data.train_examples, data.seed) for task in tasks}
    scored = {}
    for same in zip(*of_tasks.values()):
        name = " or ".join(dict.fromkeys(baseline.name for baseline in same))
        scored[name] = combined({task: baseline.scores for task, baseline in zip(of_tasks, same)})
    return scored


@dataclasses.dataclass(frozen=True)
class Training:
    """What decides the order of what to try next.

    Attributes:
      losses: of the logged steps, in order.
      base: INITIAL_CHECKPOINT_PATH.
      overfit: the number of examples that were trained on and scored; None without --overfit.
    """

    losses: Sequence[float]
    base: str | Mapping[str, str | None] | None = None
    overfit: int | None = None

    @property
    def remedies(self) -> str:
        """A sentence with what to try, the likeliest first."""
        first, others = [], ["another LEARNING_RATE"]
        paths = self.base.values() if isinstance(self.base, Mapping) else [self.base]
        if any((path or "").startswith(BUNDLED) for path in paths):
            first.append("another base (INITIAL_CHECKPOINT_PATH), for the bundled ones know digits alone")
        else:
            others.append("a base that knows such data")
        if self._loss_still_fell:
            first.append("more TRAIN_STEPS, for the loss was still falling")
        else:
            others.insert(1, "more TRAIN_STEPS")
        others = f"{', '.join(others)}, or longer targets (TASK_FEATURE_LENGTHS)"
        return f"Try first {'; then '.join([*first, others])}." if first else f"Try {others}."

    @property
    def _loss_still_fell(self) -> bool:
        quarter = len(self.losses) // 4
        if not quarter:
            return False
        before, after = (float(np.mean(x)) for x in (self.losses[-2 * quarter : -quarter], self.losses[-quarter:]))
        return after < (1 - FALLING) * before


def nothing_learned(
    metric: str, step: int, score: float, before: float | None, baselines: Mapping[str, Scores], training: Training
) -> str | None:
    """One sentence if a run learned nothing, or less than a method without a model, and one with what to try; None if it learned
    something.

    Args:
      metric: the metric that selected the step; higher is better.
      step: the best step by validation.
      score: its score on test.
      before: that of the untrained model; None if it was not scored.
      baselines: see `baselines_of`.
      training: decides what to try first.
    """
    if step == 0 and before == 1:
        return (
            f"There was nothing to learn: {metric} on test is 1 before any step. Take a harder task, or a METRIC that tells such "
            "outputs apart."
        )
    untrained = "" if before is None else f", whose {metric} on test is {before:.4f}"
    if step == 0:
        problem = f"Nothing was learned: no step was better on validation than the untrained model{untrained}"
    elif training.overfit is not None and score < BY_HEART:
        problem = (
            f"Not learned by heart: {metric} is {score:.4f} on the {training.overfit} examples that were trained on"
        )
    elif beaten := [
        (scores[metric], name) for name, scores in baselines.items() if scores.get(metric, score - 1) >= score
    ]:
        value, name = max(beaten)
        problem = f"Little was learned: {metric} on test is {score:.4f}, and {name} alone has {value:.4f}"
    else:
        return None
    return f"{problem}. {training.remedies}"


def after_overfit(metric: str, score: float, training: Training) -> str | None:
    """What --overfit showed, and what to do next, if the examples were learned by heart; else None."""
    if training.overfit is None or score < BY_HEART:
        return None
    return (
        f"Learned by heart: {metric} is {score:.4f} on the {training.overfit} examples that were trained on, so this set-up can learn. "
        f"Next, train on all examples: the same command without --overfit, and with another MODEL_DIR."
    )


def whose_scores(step: int, initial_adapter: str | None) -> str:
    """Whose scores those of the best step are, in words: those of step 0 are not an adapter's that was trained.

    Args:
      step: the best step by validation.
      initial_adapter: INITIAL_ADAPTER_PATH.
    """
    if step:
        return "the trained model"
    return "the frozen base" if initial_adapter is None else "the adapter that the run started from"


def frozen_and_adapted(summary: Mapping[str, Any]) -> dict[str, float]:
    """The run's scores on test by what people call them; of step 0 there is no adapted model, but the frozen one alone."""
    shown = ("frozen_", "adapted_") if summary["step"] else ("frozen_",)
    return {name.replace("_", " "): value for name, value in summary.items() if name.startswith(shown)}
