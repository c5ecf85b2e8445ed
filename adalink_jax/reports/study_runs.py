"""The scores of a study's finished runs, by size, base, task and method."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class StudyRuns:
    """The runs of a study, with the sizes of their bases.

    Attributes:
      scores: (size, regime, task, method) -> seed -> score on test.
      sizes: name -> parameters of the base, ascending.
      metrics: task -> name of its score.
      trained: (size, task, method) -> trained parameters.
    """

    scores: Mapping[tuple[str, str, str, str], Mapping[int, float]]
    sizes: Mapping[str, int]
    metrics: Mapping[str, str]
    trained: Mapping[tuple[str, str, str], int]

    @classmethod
    def of(cls, results: Sequence[Mapping[str, Any]]) -> "StudyRuns":
        """Reads the runs out of a study's results (see `cell_folder`)."""
        scores, sizes, metrics, trained = {}, {}, {}, {}
        for row in results:
            if row["stage"] == "runs":
                sizes[row["size"]] = row["frozen"] or row["trained"]  # full fine-tuning trains the whole base
                scores[row["size"], row["regime"], row["task"], row["method"]] = dict(zip(row["seed"], row["test"]))
                metrics[row["task"]] = row["metric"]
                trained[row["size"], row["task"], row["method"]] = row["trained"]
        return cls(scores, dict(sorted(sizes.items(), key=lambda item: item[1])), metrics, trained)

    @property
    def regimes(self) -> list[str]:
        """The bases' regimes, in order."""
        return list(dict.fromkeys(regime for _, regime, _, _ in self.scores))

    @property
    def methods(self) -> list[str]:
        """The methods, in order."""
        return list(dict.fromkeys(method for *_, method in self.scores))

    def lines(self, methods: Sequence[str]) -> Iterator[tuple[str, str, str]]:
        """(task, regime, method), of some methods, in order."""
        return ((task, regime, method) for task in self.metrics for regime in self.regimes for method in methods)

    def by_size(self, task: str, regime: str, method: str) -> dict[str, Mapping[int, float]]:
        """Size -> seed -> score, of the sizes with finished runs."""
        scores = {size: self.scores.get((size, regime, task, method)) for size in self.sizes}
        return {size: seeds for size, seeds in scores.items() if seeds}

    def gaps(self, task: str, regime: str, method: str, reference: str) -> dict[str, dict[int, float]]:
        """Size -> seed -> the reference's score less the method's, of the seeds that both have."""
        scores, references = self.by_size(task, regime, method), self.by_size(task, regime, reference)
        pair = lambda seeds, other: {seed: other[seed] - score for seed, score in seeds.items() if seed in other}
        gaps = {size: pair(scores[size], references[size]) for size in scores if size in references}
        return {size: seeds for size, seeds in gaps.items() if seeds}
