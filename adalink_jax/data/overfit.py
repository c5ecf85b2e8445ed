"""A few training examples as all of a task's splits: whether a set-up can learn at all."""

import itertools
from collections.abc import Iterable, Sequence

from adalink_jax.data.task_protocol import Example, Task
from adalink_jax.errors import UserError


class OverfitTask:
    """A task whose splits are the same few examples, those that come first in the order of a seed.

    The training split repeats them until they fill a batch.

    Args:
      task: the task.
      count: number of examples.
      batch_size: rows of a batch.
      seed: draws them.

    Raises:
      UserError: if there are fewer than `count`.
    """

    def __init__(self, task: Task, count: int, batch_size: int, seed: int):
        self.name, self.vocab_size, self.eos, self.has_images = task.name, task.vocab_size, task.eos, task.has_images
        self.encode, self.decode, self.score, self.labels = task.encode, task.decode, task.score, task.labels
        self._examples: Sequence[Example] = list(itertools.islice(task.examples("train", seed), count))
        if len(self._examples) < count:
            raise UserError(f"--overfit is {count}, and {task.name} has {len(self._examples)} to train on; lower it.")
        self._repeats = -(-batch_size // count)
        self.notes = [*task.notes, f"trained and scored on the same {count} examples: the scores say nothing of others"]

    def examples(self, split: str, seed: int | None = None, start: int = 0) -> Iterable[Example]:
        """See `Task.examples`; a seed changes nothing."""
        repeats = self._repeats if split == "train" else 1
        return itertools.islice(itertools.chain.from_iterable([self._examples] * repeats), start, None)
