"""What a task is to the layers above: examples, a vocabulary, and a score of decoded strings."""

import contextlib
import dataclasses
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import gin

from adalink_jax.errors import UserError

if TYPE_CHECKING:
    from adalink_jax.data.user_files import FileTask


class Task(Protocol):
    """A data set with splits `train`, `validation` and `test`.

    Attributes:
      name: unique name.
      vocab_size: one more than the largest id in its examples.
      has_images: whether its examples have an `image` or `image_file`.
      notes: what a run tells of the data before it starts, a line each.
    """

    name: str
    vocab_size: int
    has_images: bool
    notes: Sequence[str]

    def examples(self, split: str, seed: int | None = None, start: int = 0) -> Iterable[dict]:
        """Tokenised examples, `{"inputs": ids, "targets": ids, "image": ..., "inputs_pretokenized": str, ...}`.

        An `image` is float32 [height, width, channels] in [-1, 1], or the bytes of a picture of any size; instead there
        may be an `image_file`, the path of one.

        Args:
          split: which split.
          seed: shuffles, by this alone; None keeps the order.
          start: examples to skip.
        """

    def encode(self, text: str) -> list[int]:
        """Text -> ids of the inputs' vocabulary, without EOS."""

    def decode(self, ids: Sequence[int]) -> str:
        """Predicted ids -> text."""

    def score(self, examples: Sequence[dict], predictions: Sequence[str]) -> dict[str, float]:
        """Metrics of the predictions for `examples`, which may come without their images."""


@gin.configurable
@dataclasses.dataclass(frozen=True)
class DatasetConfig:
    """Which data a run reads (t5x's names).

    Attributes:
      mixture_or_task_name: a registered seqio task or mixture; of files of one's own, what the task is called.
      task_feature_lengths: `{"inputs": L, "targets": T}`, in tokens.
      batch_size: rows of the global batch.
      mixture_or_task_module: imported first, so that its tasks are registered, either at import or by its function
        `register`, which is called with nothing whenever tasks are asked for; None for the scenes of digits.
      seed: seed of the order of the training examples.
      own_files: files of one's own; None where the task is seqio's.
      in_context_examples: solved examples that stand before each input where a model is evaluated, for a frozen base: `seed` draws
        them from the training split. Nothing can be trained with them.
      use_cached: read what seqio has cached of the task (`seqio_cache_tasks`), and refuse where it has not.
      train_examples: k-shot: train on so many examples, which `seed` draws from the training split; None for all.

    Raises:
      UserError: if `train_examples` are fewer than a batch; if a module of seqio's tasks, or its cache, is named beside files.
    """

    mixture_or_task_name: str
    task_feature_lengths: Mapping[str, int]
    batch_size: int
    mixture_or_task_module: str | None = None
    seed: int = 0
    train_examples: int | None = None
    own_files: "FileTask | None" = None
    use_cached: bool = False
    in_context_examples: int = 0

    def __post_init__(self):
        if self.own_files is not None and self.mixture_or_task_module is not None:
            raise UserError(
                "DatasetConfig has own_files and mixture_or_task_module; give one gin file of a task, not two."
            )
        if self.own_files is not None and self.use_cached:
            raise UserError("USE_CACHED_TASKS is True, and files of one's own are no task of seqio; set it to False.")
        if self.train_examples is not None and self.train_examples < self.batch_size:
            raise UserError(
                f"TRAIN_EXAMPLES is {self.train_examples} and BATCH_SIZE {self.batch_size}; an epoch needs a whole batch: "
                f"lower BATCH_SIZE."
            )


def get_tasks(config: DatasetConfig, on_rows: Callable[[int], None] = lambda count: None) -> tuple[Task, list[Task]]:
    """The task or mixture to train on, and the tasks in it to evaluate. seqio's need seqio, and so TensorFlow; own files do not.

    Args:
      config: which.
      on_rows: of own files, told how many more rows were read, now and then.

    Raises:
      UserError: if seqio is not installed, or there is no such task, with the nearest names; for files that cannot be used.
    """
    task, tasks = _found(config, on_rows)
    if config.in_context_examples:
        from adalink_jax.data.in_context import InContextTask

        shots = (config.in_context_examples, config.seed, config.task_feature_lengths)
        return task, [InContextTask(each, *shots) for each in tasks]
    return task, tasks


def _found(config: DatasetConfig, on_rows: Callable[[int], None]) -> tuple[Task, list[Task]]:
    if config.own_files is not None:
        task = config.own_files.load(config.mixture_or_task_name, config.task_feature_lengths, on_rows)
        return task, [task]
    return seqio_sources().get_tasks(
        config.mixture_or_task_name, config.mixture_or_task_module, config.task_feature_lengths, config.use_cached
    )


def seqio_sources():
    """The module `seqio_source`, which imports TensorFlow.

    Raises:
      UserError: if seqio is not installed.
    """
    try:
        with _quiet():
            from adalink_jax.data import seqio_source
    except ModuleNotFoundError as e:
        raise UserError(f"seqio tasks need seqio and TensorFlow, and {e.name} is missing: pip install seqio.") from e
    return seqio_source


@contextlib.contextmanager
def _quiet():
    """Holds back what native code writes to stderr; TensorFlow greets on being imported, whatever its log level."""
    sys.stderr.flush()
    shown = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(shown, held.read())
            raise
        finally:
            os.dup2(shown, 2)
            os.close(shown)
