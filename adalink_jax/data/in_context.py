"""Examples in the prompt, for the frozen base: what k-shot training is compared with (Brown et al., 2020)."""

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from adalink_jax.data.feature_converter import text_of
from adalink_jax.data.tasks import Task
from adalink_jax.data.vocabularies import EOS
from adalink_jax.errors import UserError

SHOTS = "shots"  # the score that says how many examples fitted, on average


class InContextTask:
    """A task of text whose inputs have solved examples before them: `inputs targets inputs targets ... inputs`, between spaces.

    The examples are the first of the training split in the order of a seed, the same for every input. Where all of them and an
    input are too long together, the first are left out; the score `shots` is the mean number that stayed.

    Args:
      task: what is asked.
      count: examples.
      seed: draws them.
      lengths: `{"inputs": L, ...}`, in tokens.

    Raises:
      UserError: for a task with images, examples without their text, and fewer examples, or room, than `count`.
    """

    def __init__(self, task: Task, count: int, seed: int, lengths: Mapping[str, int]):
        if task.has_images:
            raise UserError(f"{task.name} has images; in_context_examples are for tasks of text.")
        self._task, self._room = task, lengths["inputs"]
        self.name, self.vocab_size, self.has_images = task.name, task.vocab_size, False
        found = list(itertools.islice(task.examples("train", seed), count))
        if len(found) < count:
            raise UserError(f"in_context_examples is {count}, and {task.name} has {len(found)} to train on; lower it.")
        self._shots = [f"{self._text(example, 'inputs')} {self._text(example, 'targets')}" for example in found]
        taken = len(self._ids("", count))
        if taken > self._room:
            raise UserError(
                f"The {count} in_context_examples of {task.name} take {taken} tokens, and TASK_FEATURE_LENGTHS has {self._room} for "
                f"inputs; raise it, or lower in_context_examples."
            )
        self.notes = [
            *task.notes,
            f"{count} training examples stand before each input; they take {taken} of {self._room} tokens",
        ]

    def examples(self, split: str, seed: int | None = None, start: int = 0) -> Iterable[dict]:
        """See `Task.examples`; each has the number of its `shots`."""
        for example in self._task.examples(split, seed, start):
            text = self._text(example, "inputs")
            for kept in range(len(self._shots), -1, -1):
                ids = self._ids(text, kept)
                if len(ids) <= self._room or not kept:
                    break
            yield {**example, "inputs": np.asarray(ids[: self._room], np.int32), SHOTS: kept}

    def encode(self, text: str) -> list[int]:
        """See `Task.encode`."""
        return self._task.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """See `Task.decode`."""
        return self._task.decode(ids)

    def score(self, examples: Sequence[dict], predictions: Sequence[str]) -> dict[str, float]:
        """The task's own scores, and `shots`."""
        return {
            **self._task.score(examples, predictions),
            SHOTS: float(np.mean([example[SHOTS] for example in examples])),
        }

    def _ids(self, text: str, kept: int) -> list[int]:
        shots = self._shots[len(self._shots) - kept :]
        return [*self._task.encode(" ".join([*shots, text])), EOS]

    def _text(self, example: dict, side: str) -> str:
        if f"{side}_pretokenized" not in example:
            raise UserError(f"There is no text beside the ids of {self.name}, so no prompt can be written.")
        return text_of(example[f"{side}_pretokenized"])
