"""The choice of a learning rate: the highest mean over the seeds on validation; the lowest rate among equals."""

import dataclasses
from collections.abc import Iterable

import numpy as np

TUNED = "tuned.gin"  # the choice, the last file that `adalink tune` writes


@dataclasses.dataclass(frozen=True)
class Trial:
    """One learning rate.

    Attributes:
      learning_rate: the schedule's peak.
      scores: the best score on validation, per seed.
    """

    learning_rate: float
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return float(np.mean(self.scores))


@dataclasses.dataclass(frozen=True)
class Tuned:
    """The chosen learning rate, and the trials that it was chosen from.

    Attributes:
      learning_rate: the chosen one.
      trials: by learning rate, ascending.
    """

    learning_rate: float
    trials: tuple[Trial, ...]

    @property
    def edge(self) -> str | None:
        """ "lowest" or "highest" if the chosen rate is at an end of those tried, so that a better one may be outside."""
        ends = {self.trials[0].learning_rate: "lowest", self.trials[-1].learning_rate: "highest"}
        return ends.get(self.learning_rate) if len(self.trials) > 1 else None


def choose(learning_rates: Iterable[float], scores: Iterable[float]) -> Tuned:
    """Chooses among learning rates.

    Args:
      learning_rates: of each run.
      scores: the best score on validation of each run.
    """
    by_rate: dict[float, list[float]] = {}
    for rate, score in zip(learning_rates, scores):
        by_rate.setdefault(rate, []).append(score)
    trials = tuple(Trial(rate, tuple(values)) for rate, values in sorted(by_rate.items()))
    return Tuned(max(trials, key=lambda trial: trial.mean).learning_rate, trials)
