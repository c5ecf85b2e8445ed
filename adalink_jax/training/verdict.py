"""Whether a run learned anything: its score beside those of the untrained model and of methods without a model."""

from collections.abc import Mapping, Sequence

from adalink_jax import timings
from adalink_jax.data import DatasetConfig, Task, score_baselines
from adalink_jax.training.evaluation import combined

Scores = Mapping[str, float]
REMEDY = (
    "Try another LEARNING_RATE, more TRAIN_STEPS, a base that knows such data, or longer targets (TASK_FEATURE_LENGTHS)"
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


def nothing_learned(
    metric: str, step: int, score: float, before: float | None, baselines: Mapping[str, Scores]
) -> str | None:
    """One sentence if a run learned nothing, or less than a method without a model; None if it learned something.

    Args:
      metric: the metric that selected the step; higher is better.
      step: the best step by validation.
      score: its score on test.
      before: that of the untrained model; None if it was not scored.
      baselines: see `baselines_of`.
    """
    untrained = "" if before is None else f", whose {metric} on test is {before:.4f}"
    if step == 0:
        return f"Nothing was learned: no step was better on validation than the untrained model{untrained}. {REMEDY}."
    beaten = [(scores[metric], name) for name, scores in baselines.items() if scores.get(metric, score - 1) >= score]
    if not beaten:
        return None
    value, name = max(beaten)
    return f"Little was learned: {metric} on test is {score:.4f}, and {name} alone has {value:.4f}. {REMEDY}."
