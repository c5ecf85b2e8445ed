"""Scores through real decoding: every example of a split once, whatever the batch size and number of processes."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from adalink_jax import parallel
from adalink_jax.data import FeatureConverter, Task, has_image, padded_batches, text_of
from adalink_jax.models.decoding import Decoding
from adalink_jax.training import partition
from adalink_jax.training.packs.pack import map_members


@dataclasses.dataclass
class Result:
    """Scores of one split.

    Attributes:
      scores: metric -> value; with several tasks also `task/metric`, and `metric` is then their mean.
      samples: the first examples with their predictions, `{"inputs", "target", "prediction", "image" (or absent)}`.
    """

    scores: dict[str, float]
    samples: list[dict]


def make_generate(model, length: int, decoding: Decoding) -> Callable:
    """The program of an evaluation: `(trainable, frozen, batch, **constants) -> ids` int32 [B, T] of the best output.

    Args:
      model: an `AdaptedModel`.
      length: T, tokens of an output at most.
      decoding: how outputs are made.
    """

    def generate(trainable, frozen, batch, **constants):
        params = partition.merge(trainable, frozen)
        key = jax.random.key(0)  # drawn from only if the decoding samples
        variables = {"params": params, **constants}
        return model.apply(variables, batch, length, decoding, key, method="generate").ids[:, 0]

    return generate


def make_generate_packed(generate: Callable, at_once: int | None) -> Callable:
    """`((trainable, padding), frozen, batch) -> ids` int32 [A, B, T]: `generate` of each member of a pack; `at_once` as of `map_members`."""

    def generate_packed(members, frozen, batch):
        one = lambda mine: generate(mine[0], frozen, batch, padding={"adapter": mine[1]})
        return map_members(one, members, at_once)

    return generate_packed


class Evaluator:
    """Decoding and the tasks' own metrics.

    Args:
      model: an `AdaptedModel`.
      tasks: each is scored by its own metrics.
      converter: examples -> features.
      batch_size: rows a compiled batch; the last is padded, and its padding is not counted.
      mesh: where the batches go.
      decoding: how outputs are made; the best of several counts.
      at_once: of a pack, see `map_members`.
    """

    def __init__(
        self,
        model,
        tasks: Sequence[Task],
        converter: FeatureConverter,
        batch_size: int,
        mesh,
        decoding: Decoding,
        at_once: int | None = None,
    ):
        self._tasks, self._converter, self._batch_size, self._mesh = tasks, converter, batch_size, mesh
        self._stop = decoding.stop
        generate = make_generate(model, converter.task_feature_lengths["targets"], decoding)
        self._generate = jax.jit(generate)
        self._generate_packed = jax.jit(make_generate_packed(generate, at_once))

    def __call__(
        self,
        trainable: dict,
        frozen: dict,
        split: str,
        num_samples: int = 0,
        between: Callable[[], None] = lambda: None,
    ) -> Result:
        """Scores `split`.

        Args:
          trainable: with `frozen`, all parameters.
          frozen: see there.
          split: a split of every task.
          num_samples: how many examples to return, spread over the tasks.
          between: called between batches (it may raise to stop).
        """
        generate = lambda batch: self._generate(trainable, frozen, batch)[None]
        return self._score(generate, split, num_samples, between)[0]

    def of_pack(
        self,
        trainable: dict,
        padding: dict,
        frozen: dict,
        split: str,
        num_samples: int = 0,
        between: Callable[[], None] = lambda: None,
    ) -> list[Result]:
        """The same of a pack, a result for each member.

        Args:
          trainable: the members' parameters, A of each on axis 0.
          padding: `Members.padding`.
          frozen, split, num_samples, between: as for one.
        """
        generate = lambda batch: self._generate_packed((trainable, padding), frozen, batch)
        return self._score(generate, split, num_samples, between)

    def _score(self, generate: Callable, split: str, num_samples: int, between: Callable[[], None]) -> list[Result]:
        """Of several models at once: `generate(batch)` gives the ids int32 [A, B, T] of A of them."""
        per_task: dict[str, list[dict]] = {}
        samples: list[list[dict]] = []
        share = -(-num_samples // len(self._tasks))
        mine = parallel.local_rows(self._batch_size, self._mesh)
        for task in self._tasks:
            examples, predictions, shown = [], [], []
            converter = dataclasses.replace(self._converter, task_name=task.name)
            for batch, rows in padded_batches(task.examples(split), converter, self._batch_size, mine):
                between()
                batch.pop("decoder_input_tokens")  # decoding sees the inputs only
                ids = parallel.settle(generate(parallel.put_batch(batch, self._mesh)))
                ids = parallel.to_host(ids)[:, : len(rows)]
                predictions.append([[self._text(task, row) for row in member] for member in ids])
                shown += [_shown(example, converter) for example in rows[: share - len(shown)]]
                examples += [{name: x for name, x in row.items() if name != "image"} for row in rows]  # scored without
            whole = [sum(parts, []) for parts in zip(*predictions)]
            per_task[task.name] = parallel.once(_scores, task, examples, whole)
            samples.append([[x | {"prediction": text} for x, text in zip(shown, texts)] for texts in whole])
        return [
            Result(
                _combine({name: scores[i] for name, scores in per_task.items()}),
                sum((each[i] for each in samples), [])[:num_samples],
            )
            for i in range(len(samples[0]))
        ]

    def _text(self, task: Task, ids: np.ndarray) -> str:
        text = task.decode(ids)
        return text if self._stop is None else self._stop.cut(text)


def printable(text: str) -> str:
    """`text` with a dot for each character that cannot be shown (an untrained model writes any byte)."""
    return "".join(c if c.isprintable() else "\N{MIDDLE DOT}" for c in text)


def _shown(example: dict, converter: FeatureConverter) -> dict:
    text = lambda name: text_of(example[f"{name}_pretokenized"])
    image = {"image": converter.image(example)} if has_image(example) else {}
    return {"inputs": text("inputs"), "target": text("targets"), **image}


def _scores(task: Task, examples: Sequence[dict], predictions: Sequence[Sequence[str]]) -> list[dict[str, float]]:
    return [task.score(examples, texts) for texts in predictions]


def _combine(per_task: dict[str, dict[str, float]]) -> dict[str, float]:
    metrics = sorted(set().union(*per_task.values()))
    mean = {m: float(np.mean([scores[m] for scores in per_task.values() if m in scores])) for m in metrics}
    if len(per_task) == 1:
        return mean
    return mean | {f"{task}/{m}": value for task, scores in per_task.items() for m, value in scores.items()}
