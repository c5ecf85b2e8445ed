"""Tasks, feature conversion, vocabularies, metrics.

Only the modules `seqio_...` and those of `published` that declare tasks import TensorFlow or seqio, and nothing
here imports JAX when it is imported. The training loop sees only an iterator of NumPy batches whose position can be saved and restored
(`adalink_jax.data.batch_order.BatchIterator`).
"""

from adalink_jax.data.baselines import Baseline, score_baselines
from adalink_jax.data.batch_order import BatchIterator, EpochIterator
from adalink_jax.data.batches import padded_batches, train_batches
from adalink_jax.data.feature_converter import INSTRUCTION, Batch, FeatureConverter, has_image, lacks_image, text_of
from adalink_jax.data.mixing_rates import MixtureOf
from adalink_jax.data.published import PublishedData, SpanCorruption
from adalink_jax.data.task_protocol import Example, Task
from adalink_jax.data.tasks import DatasetConfig, get_tasks, seqio_sources
from adalink_jax.data.transformers_vocabulary import TransformersVocabulary
from adalink_jax.data.user_files import FileTask
from adalink_jax.data.vision_cache import Tower, VisionCache
from adalink_jax.data.vocabularies import (
    ByteVocabulary,
    SentencePieceVocabulary,
    Vocabulary,
    check_rows,
    load_vocabulary,
)
from adalink_jax.data.wordpiece_vocabulary import WordPieceVocabulary

__all__ = [
    "INSTRUCTION",
    "Baseline",
    "Batch",
    "BatchIterator",
    "ByteVocabulary",
    "DatasetConfig",
    "EpochIterator",
    "Example",
    "FeatureConverter",
    "FileTask",
    "MixtureOf",
    "PublishedData",
    "SentencePieceVocabulary",
    "SpanCorruption",
    "Task",
    "Tower",
    "TransformersVocabulary",
    "VisionCache",
    "Vocabulary",
    "WordPieceVocabulary",
    "check_rows",
    "get_tasks",
    "has_image",
    "lacks_image",
    "load_vocabulary",
    "padded_batches",
    "score_baselines",
    "seqio_sources",
    "text_of",
    "train_batches",
]
