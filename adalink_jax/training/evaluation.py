"""Scores by decoding every example of a split exactly once, for any batch size and number of processes."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import jax
import numpy as np
from jax.sharding import Mesh

from adalink_jax import parallel, timings
from adalink_jax.adapters import AdaptedModel
from adalink_jax.data import FeatureConverter, Task, has_image, lacks_image, padded_batches, text_of
from adalink_jax.data.metrics.number_scores import LOWER_IS_BETTER
from adalink_jax.errors import UserError
from adalink_jax.models import paths
from adalink_jax.models.decoding import Decoded, Decoding, sampling_keys
from adalink_jax.training.confusion import Confusion, confusion
from adalink_jax.training.decoder_weights import decoder_weights, placed
from adalink_jax.training.packs.pack import map_members
from adalink_jax.training.partition import Leaves

NUM_SAMPLES = 12  # examples that a run shows of a split


def check_metric(metric: str | None) -> None:
    """Raises:
    UserError: for a METRIC of which the highest value is not the best.
    """
    if metric is not None and metric.rpartition("/")[2] in LOWER_IS_BETTER:
        raise UserError(
            f"METRIC is {metric!r}, of which lower is better, and the highest chooses the step; take 'pearson'."
        )


@dataclasses.dataclass
class Result:
    """Scores of one split.

    Attributes:
      scores: metric -> value; with several tasks also `task/metric`, and `metric` is then their mean.
      samples: the first examples with their predictions, `{"inputs", "target", "prediction", "image" (or absent)}`.
      confusions: task -> which class was predicted for which; of tasks of few classes, scored by accuracy.
    """

    scores: dict[str, float]
    samples: list[dict]
    confusions: dict[str, Confusion] = dataclasses.field(default_factory=dict)

    def selecting_score(self, metric: str) -> float:
        """The score that selects a step.

        Raises:
          UserError: if the task has no such metric.
        """
        if metric not in self.scores:
            raise UserError(
                f"METRIC is {metric!r}, but the task has {', '.join(sorted(self.scores))}; name one of them."
            )
        return self.scores[metric]

    def tagged(self, split: str) -> dict[str, float]:
        """The scores under their names in the metric files, `split/metric`."""
        return {f"{split}/{name}": value for name, value in self.scores.items()}


def make_generate(model: AdaptedModel, length: int, decoding: Decoding) -> Callable:
    """The program of an evaluation: `(trainable, frozen, batch, **constants) -> ids` int32 [B, T] of the best output.

    The batch has the `sampling_ids` int32 [B, 3] beside the encoder's features: the step, and the numbers of task and row.

    Args:
      model: the model to score.
      length: T, the largest number of tokens of an output.
      decoding: how outputs are decoded.
    """
    kind = decoder_weights()

    def generate(trainable, frozen, batch, **constants):
        leaves = placed(model, {**trainable, **frozen}, kind)
        variables = {"params": paths.unflatten(leaves), **constants}
        keys = sampling_keys(0, batch["sampling_ids"])
        decoded = cast(Decoded, model.apply(variables, batch, length, decoding, keys, method="generate"))
        return decoded.ids[:, 0]

    return generate


def make_generate_packed(generate: Callable, at_once: int | None) -> Callable:
    """`((trainable, padding), frozen, batch) -> ids` int32 [A, B, T]: `generate` for each member of a pack (see `map_members`)."""
    return lambda members, frozen, batch: map_members(
        lambda member: generate(member[0], frozen, batch, padding={"adapter": member[1]}), members, at_once
    )


class Evaluator:
    """Decoding and the tasks' own metrics.

    Args:
      model: the model to score.
      tasks: each is scored by its own metrics.
      converter: examples -> features.
      batch_size: rows per compiled batch; the last is padded, and its padding is not counted.
      mesh: where the batches go.
      decoding: how outputs are decoded; the best of several counts.
      at_once: for a pack, see `map_members`.
    """

    def __init__(
        self,
        model: AdaptedModel,
        tasks: Sequence[Task],
        converter: FeatureConverter,
        batch_size: int,
        mesh: Mesh,
        decoding: Decoding,
        at_once: int | None = None,
    ):
        self._tasks, self._converter, self._batch_size, self._mesh = tasks, converter, batch_size, mesh
        cut, before_end = decoding.stop.cut if decoding.stop else str, model.backbone.token_ids.before_end
        self._text = lambda task, ids: cut(task.decode(before_end(ids)))
        generate = make_generate(model, converter.task_feature_lengths["targets"], decoding)
        self._generate = jax.jit(generate)
        self._generate_packed = jax.jit(make_generate_packed(generate, at_once))

    def __call__(
        self,
        trainable: Leaves,
        frozen: Leaves,
        split: str,
        step: int,
        num_samples: int = 0,
        between: Callable[[], None] = lambda: None,
    ) -> Result:
        """Scores `split`.

        Args:
          trainable, frozen: all parameters, by name.
          split: a split of every task.
          step: the step of the parameters. The draws of a decoding that samples depend on it, except on `test`, where the scores of the
            frozen model and of the selected step share their draws.
          num_samples: how many examples to return, spread over the tasks.
          between: called between batches (it may raise to stop).
        """
        generate = lambda batch: self._generate(trainable, frozen, batch)[None]
        return self._score(generate, split, step, num_samples, between)[0]

    def of_pack(
        self,
        trainable: Leaves,
        padding: Mapping,
        frozen: Leaves,
        split: str,
        step: int,
        num_samples: int = 0,
        between: Callable[[], None] = lambda: None,
    ) -> list[Result]:
        """Scores the members of a pack; one result per member.

        Args:
          trainable: the members' leaves by name, the A members on axis 0.
          padding: `Members.padding`.
          frozen, split, step, num_samples, between: as for a single model.
        """
        generate = lambda batch: self._generate_packed((trainable, padding), frozen, batch)
        return self._score(generate, split, step, num_samples, between)

    @timings.phase("evaluation")
    def _score(
        self, generate: Callable, split: str, step: int, num_samples: int, between: Callable[[], None]
    ) -> list[Result]:
        """Scores A models at once: `generate(batch)` returns their ids, int32 [A, B, T]."""
        per_task: dict[str, list[dict]] = {}
        samples: list[list[list[dict]]] = []
        confusions: list[dict[str, Confusion]] = []
        share = -(-num_samples // len(self._tasks))
        local_rows = parallel.local_rows(self._batch_size, self._mesh).tolist()
        scores = lambda task, examples, by_model: [task.score(examples, texts) for texts in by_model]
        step = 0 if split == "test" else step
        for task_number, task in enumerate(self._tasks):
            examples, predictions, first = [], [], []
            converter = dataclasses.replace(self._converter, task_name=task.name)
            for batch, rows in padded_batches(task.examples(split), converter, self._batch_size, local_rows):
                between()
                batch.pop("decoder_input_tokens")  # decoding sees the inputs only
                numbers = [(step, task_number, len(examples) + row) for row in local_rows]
                batch["sampling_ids"] = np.array(numbers, np.int32)
                with timings.phase("decoding"):
                    ids = parallel.settle(generate(parallel.put_batch(batch, self._mesh)))
                    ids = parallel.to_host(ids)[:, : len(rows)]
                predictions.append([[self._text(task, row) for row in member] for member in ids])
                first += [_sample(example, converter) for example in rows[: share - len(first)]]
                examples += [{name: x for name, x in row.items() if name != "image"} for row in rows]
            by_model = [sum(parts, []) for parts in zip(*predictions)]
            per_task[task.name] = parallel.once(scores, task, examples, by_model)
            matrices = _confusions(task.name, per_task[task.name], examples, by_model)
            confusions = [old | new for old, new in zip(confusions or [{}] * len(matrices), matrices)]
            samples.append([[x | {"prediction": text} for x, text in zip(first, texts)] for texts in by_model])
        return [
            Result(
                combined({name: by_model[i] for name, by_model in per_task.items()}),
                list(itertools.chain.from_iterable(of_task[i] for of_task in samples))[:num_samples],
                confusions[i],
            )
            for i in range(len(samples[0]))
        ]


def printable(text: str) -> str:
    """`text` with a dot for each unprintable character (an untrained model writes any byte)."""
    return "".join(c if c.isprintable() else "\N{MIDDLE DOT}" for c in text)


def _sample(example: dict, converter: FeatureConverter) -> dict:
    text = lambda name: text_of(example[f"{name}_pretokenized"])
    sample: dict = {"inputs": text("inputs"), "target": text("targets")}
    if has_image(example) and not lacks_image(example):
        sample["image"] = converter.preparation.shown(converter.image(example))
    return sample


def _confusions(
    name: str, scores: Sequence[Mapping[str, float]], examples: Sequence[dict], by_model: Sequence[Sequence[str]]
) -> list[dict[str, Confusion]]:
    """For each model the matrix of the task `name`, if it has one."""
    if "accuracy" not in scores[0] or "targets_pretokenized" not in examples[0]:
        return [{} for _ in by_model]
    targets = [text_of(example["targets_pretokenized"]) for example in examples]
    matrices = (confusion(targets, texts) for texts in by_model)
    return [{} if matrix is None else {name: matrix} for matrix in matrices]


def combined(per_task: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Scores of several tasks as `Result.scores` has them."""
    metrics = sorted(set().union(*per_task.values()))
    mean = {m: float(np.mean([scores[m] for scores in per_task.values() if m in scores])) for m in metrics}
    if len(per_task) == 1:
        return mean
    return mean | {f"{task}/{m}": value for task, scores in per_task.items() for m, value in scores.items()}
