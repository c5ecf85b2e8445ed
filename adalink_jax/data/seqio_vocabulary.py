"""Vocabularies of `load_vocabulary` as seqio's. Invariant: the ids are the same in both."""

from collections.abc import Sequence

import numpy as np
import seqio
import tensorflow as tf

from adalink_jax.data.feature_converter import text_of
from adalink_jax.data.transformers_vocabulary import EOS, TransformersVocabulary
from adalink_jax.data.vocabularies import ByteVocabulary, SentencePieceVocabulary, find_vocabulary, load_vocabulary
from adalink_jax.errors import UserError


def seqio_vocabulary(path: str) -> seqio.Vocabulary:
    """Returns seqio's vocabulary with the ids of `load_vocabulary(path)`.

    Raises:
      UserError: if there is no vocabulary, it is damaged, or its inputs do not end with EOS, as seqio's tasks have them.
    """
    vocabulary, file = load_vocabulary(path), find_vocabulary(path)
    if (vocabulary.before, vocabulary.after) != ((), (EOS,)):
        raise UserError(
            f"The tokenizer of {path} begins inputs with {list(vocabulary.before)} and ends them with {list(vocabulary.after)}; "
            f"tasks of seqio end them with EOS alone, so use a task of own files (docs/data.md)."
        )
    if isinstance(vocabulary, ByteVocabulary):
        return seqio.ByteVocabulary()
    if isinstance(vocabulary, TransformersVocabulary):
        return _HuggingFaceVocabulary(vocabulary, str(file))
    extra_ids = vocabulary.vocab_size - SentencePieceVocabulary(str(file), extra_ids=0).vocab_size
    return seqio.SentencePieceVocabulary(str(file), extra_ids)


class _HuggingFaceVocabulary(seqio.Vocabulary):
    """The tokenizer of a Hugging Face folder; two of one folder are equal, as the tasks of a mixture must have one vocabulary."""

    def __init__(self, vocabulary: TransformersVocabulary, folder: str):
        super().__init__()
        self._vocabulary, self._folder = vocabulary, folder

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _HuggingFaceVocabulary) and self._folder == other._folder

    def __hash__(self) -> int:
        return hash(self._folder)

    @property
    def eos_id(self) -> int:
        return EOS

    @property
    def unk_id(self) -> None:
        """None: seqio would read ids beyond the vocabulary as unknown, and `transformers` skips them."""

    @property
    def _base_vocab_size(self) -> int:
        return self._vocabulary.vocab_size

    def _encode(self, s: str) -> list[int]:
        return self._vocabulary.encode(s)

    def _decode(self, ids: Sequence[int]) -> str:
        return self._vocabulary.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        encode = lambda text: np.array(self._vocabulary.encode(text_of(text)), np.int32)
        ids = tf.numpy_function(encode, [s], tf.int32)
        ids.set_shape([None])
        return ids

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        decode = lambda row: self._vocabulary.decode(row).encode()
        if ids.shape.rank == 1:
            return tf.numpy_function(decode, [ids], tf.string)
        return tf.map_fn(self._decode_tf, ids, fn_output_signature=tf.string)
