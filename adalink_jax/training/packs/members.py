"""The members of a pack: what each has of its own, their batches, and how each comes on."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import flax.linen as nn
import gin
import numpy as np

from adalink_jax.adapters import AdaptedModel
from adalink_jax.data import DatasetConfig, FeatureConverter, Task, train_batches
from adalink_jax.errors import UserError
from adalink_jax.training.setup import Setup


@dataclasses.dataclass(frozen=True)
class Member:
    """What one member has of its own.

    Attributes:
      learning_rate: the peak of its schedule.
      seed: of its first values, its dropout and the order of its data.
      rank: of its adapter; None for the method's own.
    """

    learning_rate: float
    seed: int
    rank: int | None = None

    @property
    def name(self) -> str:
        """Of its folder."""
        rank = "" if self.rank is None else f"rank_{self.rank}_"
        return f"{rank}lr_{float(self.learning_rate)!r}_seed_{self.seed}"

    def setup(self, setup: Setup) -> Setup:
        """What it would be trained with alone."""
        model = setup.model
        if self.rank is not None:
            model = AdaptedModel(model.backbone, with_rank(model.adapter, self.rank))
        dataset = dataclasses.replace(setup.dataset, seed=self.seed)
        return dataclasses.replace(setup, model=model, random_seed=self.seed, dataset=dataset)


@gin.configurable
def learning_rates_around(center: float, factors: Sequence[float] = (0.1, 0.3, 1.0, 3.0, 10.0)) -> tuple[float, ...]:
    """`center` times each of `factors`, to three digits: what `adalink tune` tries."""
    return tuple(float(f"{center * factor:.3g}") for factor in factors)


def grid(learning_rates: Sequence[float], seeds: Sequence[int], ranks: Sequence[int] | None) -> list[Member]:
    """Every combination.

    Raises:
      UserError: for an empty list, a value that stands twice, and what is no number.
    """
    axes = {"LEARNING_RATES": learning_rates, "SEEDS": seeds, "RANKS": (None,) if ranks is None else ranks}
    for name, values in axes.items():
        kind = float | int if name == "LEARNING_RATES" else int
        right = isinstance(values, (tuple, list)) and all(isinstance(x, kind) or x is None for x in values)
        if not right or not values or len(set(values)) < len(values):
            numbers = "numbers" if name == "LEARNING_RATES" else "integers"
            raise UserError(f"{name} is {values!r}; it must be a tuple of one or more {numbers}, each once.")
    product = itertools.product(axes["RANKS"], learning_rates, seeds)
    return [Member(rate, seed, rank) for rank, rate, seed in product]


def own_batches(members: Sequence[Member]) -> bool:
    """Whether each has a batch of its own, [B, A, ...]; members of one seed share theirs, [B, ...]."""
    return len({member.seed for member in members}) > 1


def with_rank(adapter: nn.Module | None, rank: int) -> nn.Module:
    """`adapter`, and every adapter that it is made of, at another rank.

    Raises:
      UserError: if it has none.
    """

    def parts(module):
        fields = {field.name: getattr(module, field.name) for field in dataclasses.fields(module)}
        return {name: value for name, value in fields.items() if isinstance(value, tuple) and _modules(value)}

    def changed(module):
        inside = {name: tuple(map(changed, value)) for name, value in parts(module).items()}
        own = {"rank": rank} if hasattr(module, "rank") else {}
        return module.clone(parent=None, name=None, **inside, **own)

    def has_rank(module):
        return hasattr(module, "rank") or any(has_rank(x) for value in parts(module).values() for x in value)

    if adapter is None or not has_rank(adapter):
        name = "full fine-tuning" if adapter is None else type(adapter).__name__
        raise UserError(f"RANKS is set, but {name} has no rank; leave RANKS at None.")
    return changed(adapter)


def _modules(values: tuple) -> bool:
    return any(isinstance(value, nn.Module) for value in values)


class Batches:
    """The members' batches: one iterator a seed.

    Args:
      iterators: seed -> its batches.
      seeds: of the members.

    Leaves are [B, A, ...] where `own_batches`, else [B, ...].
    """

    def __init__(self, iterators: dict[int, Iterator], seeds: Sequence[int]):
        self._iterators, self._seeds = iterators, seeds

    @classmethod
    def of(
        cls, dataset: DatasetConfig, task: Task, members: Sequence[Member], converter: FeatureConverter
    ) -> "Batches":
        """Those of the members, each in the order of its seed."""
        seeds = [member.seed for member in members]
        of_seed = lambda seed: dataclasses.replace(dataset, seed=seed)
        return cls({seed: train_batches(task, of_seed(seed), converter) for seed in set(seeds)}, seeds)

    def __next__(self) -> dict[str, np.ndarray]:
        batches = {seed: next(iterator) for seed, iterator in self._iterators.items()}
        if len(batches) == 1:
            return batches[self._seeds[0]]
        mine = [batches[seed] for seed in self._seeds]
        return {name: np.stack([batch[name] for batch in mine], axis=1) for name in mine[0]}

    def get_state(self) -> dict:
        """The positions, by seed."""
        return {str(seed): iterator.get_state() for seed, iterator in self._iterators.items()}

    def set_state(self, state: dict) -> None:
        """Goes to positions that `get_state` gave."""
        for seed, iterator in self._iterators.items():
            iterator.set_state(state[str(seed)])


@dataclasses.dataclass
class Progress:
    """Of each member, as JSON can hold it.

    Attributes:
      scores: the best on validation.
      steps: of the best.
      stale: evaluations since then.
      last: the step of its last evaluation before its plateau.
    """

    scores: list[float | None]
    steps: list[int]
    stale: list[int]
    last: list[int]

    @classmethod
    def start(cls, count: int) -> "Progress":
        """Before the first evaluation."""
        return cls([None] * count, [0] * count, [0] * count, [0] * count)

    def add(self, step: int, scores: Sequence[float], patience: int | None) -> np.ndarray:
        """Counts an evaluation; bool [A], which members are better than ever."""
        better = np.zeros(len(scores), bool)
        for i, score in enumerate(scores):
            if self.at_plateau(i, patience):
                continue
            self.last[i] = step
            better[i] = self.scores[i] is None or score > self.scores[i]
            if better[i]:
                self.scores[i], self.steps[i], self.stale[i] = score, step, 0
            else:
                self.stale[i] += 1
        return better

    def at_plateau(self, number: int, patience: int | None) -> bool:
        """Whether a member has been no better for so long that its best is final."""
        return patience is not None and self.stale[number] >= patience
