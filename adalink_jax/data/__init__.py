"""Tasks, feature conversion, vocabularies, metrics. Only `seqio_tasks`, `seqio_source` and the modules of `published`
that declare tasks import TensorFlow or seqio.

The training loop knows one thing of this layer: an iterator of NumPy batches whose position can be saved and restored
(`adalink_jax.data.iterators.BatchIterator`).
"""

from adalink_jax.data.feature_converter import INSTRUCTION, FeatureConverter, has_image, text_of
from adalink_jax.data.iterators import BatchIterator, EpochIterator, padded_batches, train_batches
from adalink_jax.data.published import PublishedData, SpanCorruption
from adalink_jax.data.tasks import DatasetConfig, Task, get_tasks, seqio_sources
from adalink_jax.data.user_files import FileTask
from adalink_jax.data.vision_cache import Tower, VisionCache
from adalink_jax.data.vocabularies import ByteVocabulary, SentencePieceVocabulary, WordPieceVocabulary, load_vocabulary

__all__ = [
    "INSTRUCTION",
    "BatchIterator",
    "ByteVocabulary",
    "DatasetConfig",
    "EpochIterator",
    "FeatureConverter",
    "FileTask",
    "PublishedData",
    "SentencePieceVocabulary",
    "SpanCorruption",
    "Task",
    "Tower",
    "VisionCache",
    "WordPieceVocabulary",
    "get_tasks",
    "has_image",
    "load_vocabulary",
    "padded_batches",
    "seqio_sources",
    "text_of",
    "train_batches",
]
