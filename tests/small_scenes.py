"""A task of a few scenes of digits, for tests that need all images of a task."""

import functools

import seqio
import tensorflow as tf

from adalink_jax.data import digits, metrics
from adalink_jax.data.seqio_tasks import OUTPUT_FEATURES

ROWS = {"train": 60, "validation": 20, "test": 30}


@functools.cache
def _scenes(split):
    return {name: column[: ROWS[split]] for name, column in digits.compose("digits_reverse", split).items()}


def _dataset(split, shuffle_files, seed=None):
    del shuffle_files, seed
    return tf.data.Dataset.from_tensor_slices(_scenes(split))


seqio.TaskRegistry.add(
    "few_scenes",
    source=seqio.FunctionDataSource(_dataset, splits=list(ROWS)),
    preprocessors=[
        functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=True),
        seqio.preprocessors.append_eos_after_trim,
    ],
    output_features=OUTPUT_FEATURES,
    metric_fns=[metrics.accuracy],
)
