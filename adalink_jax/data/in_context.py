"""Solved examples in the prompt of a frozen base: the baseline that k-shot training is compared with (Brown et al., 2020)."""

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from adalink_jax.data.feature_converter import text_of
from adalink_jax.data.task_protocol import Example, Task
from adalink_jax.errors import UserError

SHOTS = "shots"  # the score that reports how many examples fitted into the prompt, on average


class InContextTask:
    """A text task with solved examples before each input: `inputs targets inputs targets ... inputs`, joined by spaces.

    The solved examples are the first of the training split in the order of a seed, the same for every input. If they and an
    input do not fit together, leading examples are dropped; the score `shots` is the mean number that remained.

    Args:
      task: the task to evaluate.
      count: number of solved examples.
      seed: draws them.
      lengths: `{"inputs": L, ...}`, in tokens.

    Raises:
      UserError: if the task has images, if its examples lack their text, or if there are fewer than `count` examples or
        tokens for them.
    """

    def __init__(self, task: Task, count: int, seed: int, lengths: Mapping[str, int]):
        if task.has_images:
            raise UserError(f"{task.name} has images; in_context_examples are for tasks of text.")
        self._task, self._room = task, lengths["inputs"]
        self.name, self.vocab_size, self.eos, self.has_images = task.name, task.vocab_size, task.eos, False
        self.encode, self.decode, self.labels = task.encode, task.decode, task.labels
        examples = list(itertools.islice(task.examples("train", seed), count))
        if len(examples) < count:
            raise UserError(
                f"in_context_examples is {count}, and {task.name} has {len(examples)} to train on; lower it."
            )
        self._shots = [f"{self._text(example, 'inputs')} {self._text(example, 'targets')}" for example in examples]
        needed = len(self._ids("", count))
        if needed > self._room:
            raise UserError(
                f"The {count} in_context_examples of {task.name} take {needed} tokens, and TASK_FEATURE_LENGTHS has "
                f"{self._room} for inputs; raise it, or lower in_context_examples."
            )
        self.notes = [
            *task.notes,
            f"{count} training examples precede each input; they take {needed} of {self._room} tokens",
        ]

    def examples(self, split: str, seed: int | None = None, start: int = 0) -> Iterable[Example]:
        """See `Task.examples`; the key `shots` is the number of solved examples in the prompt."""
        for example in self._task.examples(split, seed, start):
            text, shots = self._text(example, "inputs"), len(self._shots)
            ids = self._ids(text, shots)
            while shots and len(ids) > self._room:
                shots -= 1
                ids = self._ids(text, shots)
            yield {**example, "inputs": np.asarray(ids[: self._room], np.int32), SHOTS: shots}

    def score(self, examples: Sequence[Example], predictions: Sequence[str]) -> dict[str, float]:
        """Returns the scores of the wrapped task, and `shots`."""
        shots = float(np.mean([example[SHOTS] for example in examples]))
        return {**self._task.score(examples, predictions), SHOTS: shots}

    def _ids(self, text: str, count: int) -> list[int]:
        """The prompt with the last `count` solved examples."""
        shots = self._shots[len(self._shots) - count :]
        return self._task.encode(" ".join([*shots, text]))

    def _text(self, example: Example, side: str) -> str:
        if f"{side}_pretokenized" not in example:
            raise UserError(f"{self.name} has ids but no text (`{side}_pretokenized`), so no prompt can be written.")
        return text_of(example[f"{side}_pretokenized"])
