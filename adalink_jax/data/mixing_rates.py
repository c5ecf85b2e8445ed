"""A mixture that a configuration states: which tasks, and at which rates."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import gin

from adalink_jax.errors import UserError
from adalink_jax.typed_values import PositiveFloat, PositiveInt


class Sized(Protocol):
    """A task that knows its size."""

    def size(self, split: str, seed: int) -> int:
        """The number of examples of a split."""
        ...


@gin.configurable
@dataclasses.dataclass(frozen=True)
class MixtureOf:
    """Tasks that are mixed, whose names are registered.

    With names alone the rate of a task is `min(size * scale, maximum) ** (1 / temperature)`, as of `seqio.mixing_rate_num_examples`
    (T5's examples-proportional and temperature-scaled mixing, Raffel et al., 2020, section 3.5.2), where size is the number of its
    preprocessed training examples.

    Attributes:
      tasks: `{name: rate}`, or names alone.
      temperature: 1 mixes in proportion to the sizes, larger ones more equally.
      maximum: larger sizes count as this; None leaves them.
      scale: multiplies the sizes before `maximum`.

    Raises:
      UserError: for no tasks, a task named twice, and a temperature, maximum or scale beside stated rates, which would change nothing.
    """

    tasks: Mapping[str, float] | Sequence[str]
    temperature: PositiveFloat = 1.0
    maximum: PositiveInt | None = None
    scale: PositiveFloat = 1.0

    def __post_init__(self):
        if isinstance(self.tasks, str) or not self.tasks:
            raise UserError(
                f"MIXTURE is {self.tasks!r}; give names of tasks, ('a', 'b'), or rates, {{'a': 1.0, 'b': 2.0}}."
            )
        if len(set(self.tasks)) != len(self.tasks):
            raise UserError(f"MIXTURE names a task twice: {', '.join(self.tasks)}; leave one out.")
        if isinstance(self.tasks, Mapping) and (self.temperature, self.maximum, self.scale) != (1.0, None, 1.0):
            raise UserError(
                "MIXTURE states rates, and MIXTURE_TEMPERATURE, MIXTURE_MAXIMUM and MIXTURE_SCALE make rates of sizes; give names alone, or "
                "leave these out."
            )

    def rate(self, name: str, task: Sized) -> float:
        """The rate of one of the tasks."""
        if isinstance(self.tasks, Mapping):
            return float(self.tasks[name])
        scaled = task.size("train", 0) * self.scale
        return (scaled if self.maximum is None else min(scaled, self.maximum)) ** (1 / self.temperature)
