"""The members of a pack: their settings, their batches, and their progress."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import gin
import numpy as np

from adalink_jax.adapters import AdaptedModel
from adalink_jax.data import BatchIterator, DatasetConfig, FeatureConverter, Task, train_batches
from adalink_jax.errors import UserError
from adalink_jax.training.setup import Setup
from adalink_jax.typed_values import PositiveFloat


@dataclasses.dataclass(frozen=True)
class Member:
    """The settings of one member.

    Attributes:
      learning_rate: the peak of its schedule.
      seed: of its initial values, its dropout and the order of its data.
      rank: of its adapter; None for the method's own.
    """

    learning_rate: float
    seed: int
    rank: int | None = None

    @property
    def name(self) -> str:
        """The name of its folder."""
        rank = "" if self.rank is None else f"rank_{self.rank}_"
        return f"{rank}lr_{float(self.learning_rate)!r}_seed_{self.seed}"

    def setup(self, setup: Setup) -> Setup:
        """The setup that it would be trained with alone."""
        model = setup.model
        if self.rank is not None:
            model = AdaptedModel(model.backbone, with_rank(model.adapter, self.rank))
        dataset = dataclasses.replace(setup.data, seed=self.seed)
        return dataclasses.replace(setup, model=model, random_seed=self.seed, dataset=dataset)


@gin.configurable
def learning_rates_around(
    center: PositiveFloat, factors: Sequence[PositiveFloat] = (0.1, 0.3, 1.0, 3.0, 10.0)
) -> tuple[float, ...]:
    """`center` times each of `factors`, to three digits: the rates that `adalink tune` tries."""
    return tuple(float(f"{center * factor:.3g}") for factor in factors)


def grid(learning_rates: Sequence[float], seeds: Sequence[int], ranks: Sequence[int] | None) -> list[Member]:
    """Every combination of rank, learning rate and seed.

    Raises:
      UserError: for an empty list and a repeated value.
    """
    axes = [
        ("LEARNING_RATES", learning_rates, "numbers"),
        ("SEEDS", seeds, "integers"),
        ("RANKS", (None,) if ranks is None else ranks, "integers"),
    ]
    for name, values, numbers in axes:
        if not values or len(set(values)) < len(values):
            raise UserError(f"{name} is {values!r}; it must be a tuple of one or more {numbers}, each once.")
    return [Member(rate, seed, rank) for rank in ranks or (None,) for rate in learning_rates for seed in seeds]


def own_batches(members: Sequence[Member]) -> bool:
    """Whether each member has its own batch, [B, A, ...]; members with the same seed share one, [B, ...]."""
    return len({member.seed for member in members}) > 1


def with_rank(adapter: nn.Module | None, rank: int) -> nn.Module:
    """`adapter`, and every adapter that it is composed of, at another rank.

    Raises:
      UserError: if the method has no rank.
    """

    def parts(module: nn.Module) -> dict[str, tuple]:
        fields = {field.name: getattr(module, field.name) for field in dataclasses.fields(module)}
        composed = lambda value: isinstance(value, tuple) and any(isinstance(x, nn.Module) for x in value)
        return {name: value for name, value in fields.items() if composed(value)}

    def changed(module: nn.Module) -> nn.Module:
        changes: dict[str, Any] = {name: tuple(map(changed, value)) for name, value in parts(module).items()}
        if hasattr(module, "rank"):
            changes["rank"] = rank
        return module.clone(parent=None, name=None, **changes)

    def has_rank(module: nn.Module) -> bool:
        return hasattr(module, "rank") or any(has_rank(x) for value in parts(module).values() for x in value)

    if adapter is None or not has_rank(adapter):
        name = "full fine-tuning" if adapter is None else type(adapter).__name__
        raise UserError(f"RANKS is set, but {name} has no rank; leave RANKS at None.")
    return changed(adapter)


class Batches:
    """The members' batches: one iterator per seed. Leaves are [B, A, ...] if `own_batches`, else [B, ...].

    Args:
      iterators: seed -> its batches.
      seeds: the members' seeds.
    """

    def __init__(self, iterators: dict[int, BatchIterator], seeds: Sequence[int]):
        self._iterators, self._seeds = iterators, seeds

    @classmethod
    def of(
        cls, dataset: DatasetConfig, task: Task, members: Sequence[Member], converter: FeatureConverter
    ) -> "Batches":
        """The members' batches, each in the order of its seed."""
        seeds = [member.seed for member in members]
        of_seed = lambda seed: dataclasses.replace(dataset, seed=seed)
        return cls({seed: train_batches(task, of_seed(seed), converter) for seed in set(seeds)}, seeds)

    def __next__(self) -> dict[str, np.ndarray]:
        batches = {seed: next(iterator) for seed, iterator in self._iterators.items()}
        if len(batches) == 1:
            return batches[self._seeds[0]]
        by_member = [batches[seed] for seed in self._seeds]
        return {name: np.stack([batch[name] for batch in by_member], axis=1) for name in by_member[0]}

    def get_state(self) -> dict:
        """The positions, by seed."""
        return {str(seed): iterator.get_state() for seed, iterator in self._iterators.items()}

    def set_state(self, state: dict) -> None:
        """Moves to the positions that `get_state` returned."""
        for seed, iterator in self._iterators.items():
            iterator.set_state(state[str(seed)])


@dataclasses.dataclass
class Progress:
    """Each member's progress, JSON-able.

    Attributes:
      scores: the best score on validation.
      steps: the step of the best score.
      stale: evaluations since then.
      last: the step of its last evaluation before its plateau.
    """

    scores: list[float | None]
    steps: list[int]
    stale: list[int]
    last: list[int]

    @classmethod
    def start(cls, count: int) -> "Progress":
        """The progress before the first evaluation."""
        return cls([None] * count, [0] * count, [0] * count, [0] * count)

    def add(self, step: int, scores: Sequence[float], patience: int | None) -> np.ndarray:
        """Records an evaluation; returns bool [A], which members have improved."""
        better = np.zeros(len(scores), bool)
        for i, score in enumerate(scores):
            if self.at_plateau(i, patience):
                continue
            self.last[i] = step
            best = self.scores[i]
            better[i] = best is None or score > best
            if better[i]:
                self.scores[i], self.steps[i], self.stale[i] = score, step, 0
            else:
                self.stale[i] += 1
        return better

    def at_plateau(self, number: int, patience: int | None) -> bool:
        """Whether a member has not improved for `patience` evaluations, so that its best is final."""
        return patience is not None and self.stale[number] >= patience
