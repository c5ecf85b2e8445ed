"""That all processes of a job read the same training data: checksums of the same rows, compared between them.

Invariant: nothing is trained on data that is known to differ; all processes end alike, with one sentence.
"""

import dataclasses
import hashlib
import json
from typing import Any

import gin
import jax
import numpy as np
from jax.experimental import multihost_utils

from adalink_jax.data import DatasetConfig, FeatureConverter, Task
from adalink_jax.data.task_protocol import NumberedTask
from adalink_jax.errors import UserError
from adalink_jax.typed_values import NonNegativeInt

ROWS = 32  # of a global batch; others at each comparison


@gin.configurable
@dataclasses.dataclass(frozen=True)
class DataAgreement:
    """Compares the processes' data: before the first step, every `every` steps, and at the end.

    Each process reads the same `ROWS` rows of a global batch, most of which are not its own. Compared are tasks whose rows are read by number
    (`NumberedTask`), with the digest of all of them where a cache states it; of others a position cannot be read without all before it.

    Attributes:
      every: steps between comparisons; 0 compares at the start and the end only.
    """

    every: NonNegativeInt = 1000

    def check(
        self, task: Task, dataset: DatasetConfig, converter: FeatureConverter, step: int, position: dict[str, Any]
    ) -> None:
        """Compares the data; every process must call it, after the same step. Does nothing in a job of one process.

        Args:
          task, dataset, converter: see `train_batches`.
          step: the number of steps done.
          position: where the data is, see `BatchIterator.get_state`.

        Raises:
          UserError: in all processes, if one has other data or another position than process 0.
        """
        if jax.process_count() == 1 or not isinstance(task, NumberedTask):
            return
        digests = np.asarray(multihost_utils.process_allgather(_digest(task, dataset, converter, step, position)))
        others = np.flatnonzero((digests != digests[0]).any(axis=1))
        if others.size:
            raise UserError(
                f"After step {step:,} the processes have different training data: process {', '.join(map(str, others))} not that of "
                f"process 0; give every host the same files (DATA, TASK_CACHE) and the same versions of packages, then rerun the command."
            )


def _digest(
    task: NumberedTask, dataset: DatasetConfig, converter: FeatureConverter, step: int, position: dict[str, Any]
) -> np.ndarray:
    """The SHA-256 of `ROWS` rows that follow from `step`, of the position, and of the data's size and digest; uint32 [8]."""
    stride = max(dataset.batch_size // ROWS, 1)
    size = task.size("train", dataset.seed)
    numbers = [(step * dataset.batch_size + row) % size for row in range(step % stride, dataset.batch_size, stride)]
    digest = hashlib.sha256(json.dumps([position, size, task.digest], sort_keys=True).encode())
    batch = converter(list(task.examples_at("train", dataset.seed, numbers)))
    for name, values in sorted(batch.items()):
        digest.update(f"{name} {values.shape} {values.dtype}".encode() + np.ascontiguousarray(values).tobytes())
    return np.frombuffer(digest.digest(), np.uint32)
