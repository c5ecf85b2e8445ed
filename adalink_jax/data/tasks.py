"""Which data a run reads, and how its tasks are found: a seqio task or mixture, or a task over the user's own files."""

import contextlib
import dataclasses
import os
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gin

from adalink_jax.data.in_context import InContextTask
from adalink_jax.data.mixing_rates import MixtureOf
from adalink_jax.data.overfit import OverfitTask
from adalink_jax.data.task_protocol import Task
from adalink_jax.data.user_files import FileTask
from adalink_jax.errors import UserError
from adalink_jax.typed_values import NonNegativeInt, PositiveInt, Seed

FAR = 100_000  # examples that are read and dropped before it is worth a word


@gin.configurable
@dataclasses.dataclass(frozen=True)
class DatasetConfig:
    """Which data a run reads (t5x's names).

    Attributes:
      mixture_or_task_name: a registered seqio task or mixture; with `own_files`, any name for the task.
      task_feature_lengths: `{"inputs": L, "targets": T}`, in tokens.
      batch_size: rows of the global batch.
      mixture_or_task_module: module to import first, so that its tasks are registered, either at import or by its function
        `register`, which is called without arguments whenever tasks are requested; None for the bundled scenes of digits.
      seed: seed of the order of the training examples.
      own_files: a task over the user's own files; None for a seqio task.
      mixture: tasks to mix, in place of a registered mixture, whose name is then any; None for what `mixture_or_task_name` names.
      task_cache: a folder of tasks that `adalink cache-task` wrote, from which each host reads its own rows; None reads the tasks
        themselves.
      in_context_examples: number of solved examples to put before each input in evaluation of a frozen base; `seed` draws
        them from the training split. Training with them is refused.
      use_cached: read the task from seqio's cache (`seqio_cache_tasks`), and refuse if it is not cached.
      pack: train on rows that hold several examples each (`packed_examples`); evaluation stays one example per row.
      train_examples: k-shot: train on this many examples, which `seed` draws from the training split; None for all.
      overfit: train and score on this many examples, which `seed` draws from the training split (`--overfit`); None is off.

    Raises:
      UserError: if `train_examples` are fewer than a batch, or there is `overfit` beside them or beside `in_context_examples`; for `pack` with files that worker processes read; if `own_files` come with a module of seqio tasks or with
        `use_cached`, or with a `task_cache` or `mixture`, or for both kinds of cache.
    """

    mixture_or_task_name: str
    task_feature_lengths: Mapping[str, PositiveInt]
    batch_size: PositiveInt
    mixture_or_task_module: str | None = None
    seed: Seed = 0
    train_examples: PositiveInt | None = None
    own_files: FileTask | None = None
    use_cached: bool = False
    mixture: MixtureOf | None = None
    task_cache: str | None = None
    in_context_examples: NonNegativeInt = 0
    pack: bool = False
    overfit: PositiveInt | None = None

    def __post_init__(self):
        missing = next((side for side in ("inputs", "targets") if side not in self.task_feature_lengths), None)
        if missing is not None:
            raise UserError(
                f"TASK_FEATURE_LENGTHS has no {missing!r}; set it to {{'inputs': L, 'targets': T}}, in tokens."
            )
        if self.own_files is not None and self.mixture_or_task_module is not None:
            raise UserError(
                "DatasetConfig has own_files and mixture_or_task_module; give one gin file of a task, not two."
            )
        if self.own_files is not None and self.use_cached:
            raise UserError("USE_CACHED_TASKS is True, but your own files are not a seqio task; set it to False.")
        if self.own_files is not None and (self.task_cache is not None or self.mixture is not None):
            name = "TASK_CACHE" if self.task_cache is not None else "MIXTURE"
            raise UserError(
                f"{name} is for seqio's tasks, and your own files are read by number without it; leave it out."
            )
        if self.task_cache is not None and self.use_cached:
            raise UserError("TASK_CACHE and USE_CACHED_TASKS (seqio's cache) are both set; set one of them.")
        if self.pack and self.own_files is not None and self.own_files.workers:
            raise UserError(
                f"PACK_EXAMPLES is True and WORKERS {self.own_files.workers}, but worker processes make rows of one example; set "
                f"WORKERS to 0."
            )
        if self.overfit is not None and self.train_examples is not None:
            raise UserError("--overfit and TRAIN_EXAMPLES both choose the examples to train on; give one of them.")
        if self.overfit is not None and self.in_context_examples:
            raise UserError("in_context_examples are for frozen models, and --overfit trains one; give one of them.")
        if self.train_examples is not None and self.train_examples < self.batch_size:
            raise UserError(
                f"TRAIN_EXAMPLES is {self.train_examples} and BATCH_SIZE {self.batch_size}; an epoch needs a whole batch: "
                f"lower BATCH_SIZE."
            )

    def stream_note(self, processes: int, position: Mapping[str, Any]) -> str | None:
        """What reading a seqio task costs a job of several processes, or one that resumes far into the data; None for others.

        Args:
          processes: their number.
          position: where the data is, see `BatchIterator.get_state`.
        """
        is_stream = self.own_files is None and self.task_cache is None
        if not is_stream or self.overfit is not None or self.train_examples is not None:
            return None
        skipped = int(position.get("example", int(position.get("batch", 0)) * self.batch_size))
        if processes == 1 and skipped < FAR:
            return None
        name = self.mixture_or_task_name
        return (
            f"Every process reads and tokenises all of {name}, and skips to a step by reading what is before it (here {skipped:,} examples); "
            f"`adalink cache-task {name if self.mixture is None else 'TASK'} FOLDER` writes it once, and TASK_CACHE reads only a process's own rows."
        )


def get_tasks(
    config: DatasetConfig, on_rows: Callable[[int], None] = lambda count: None
) -> tuple[Task, Sequence[Task]]:
    """Returns the task or mixture to train on, and the tasks in it to evaluate.

    seqio tasks need seqio, and so TensorFlow; the user's own files do not.

    Args:
      config: the data to read.
      on_rows: called now and then with the number of rows read since its last call; for own files only.

    Raises:
      UserError: if seqio is not installed, if there is no such task (the message names the nearest), or if files cannot be
        used.
    """
    lengths = config.task_feature_lengths
    if config.own_files is not None:
        task = config.own_files.load(config.mixture_or_task_name, lengths, on_rows)
        tasks = [task]
    else:
        task, tasks = seqio_sources().get_tasks(
            config.mixture_or_task_name,
            config.mixture_or_task_module,
            lengths,
            config.use_cached,
            config.task_cache,
            config.mixture,
        )
    if config.overfit is not None:
        if len(tasks) > 1:
            raise UserError(
                f"--overfit is for one task, and {task.name} is a mixture of {len(tasks)}; name one of them."
            )
        task = OverfitTask(tasks[0], config.overfit, config.batch_size, config.seed)
        return task, [task]
    if config.in_context_examples:
        return task, [InContextTask(scored, config.in_context_examples, config.seed, lengths) for scored in tasks]
    return task, tasks


def seqio_sources() -> types.ModuleType:
    """Imports the module `seqio_source`, and with it TensorFlow.

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
def _quiet() -> Iterator[None]:
    """Holds back what native code writes to stderr: importing TensorFlow prints a banner, whatever its log level."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as buffer:
        os.dup2(buffer.fileno(), 2)
        try:
            yield
        except BaseException:
            buffer.seek(0)
            os.write(stderr, buffer.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
