"""Vocabularies of `load_vocabulary` as seqio's. Invariant: the ids are the same in both, those of inputs with their beginning and end."""

import operator
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import seqio
import tensorflow as tf
from seqio.utils import Feature

from adalink_jax.data.feature_converter import text_of
from adalink_jax.data.transformers_vocabulary import CHAT, TransformersVocabulary
from adalink_jax.data.vocabularies import ByteVocabulary, SentencePieceVocabulary, find_vocabulary, load_vocabulary
from adalink_jax.errors import UserError


def seqio_vocabulary(path: str) -> seqio.Vocabulary:
    """Returns seqio's vocabulary with the ids of `load_vocabulary(path)`.

    Raises:
      UserError: if there is no vocabulary, or it is damaged.
    """
    vocabulary, file = load_vocabulary(path), find_vocabulary(path)
    if isinstance(vocabulary, ByteVocabulary):
        return seqio.ByteVocabulary()
    if isinstance(vocabulary, TransformersVocabulary):
        return HuggingFaceVocabulary(vocabulary, str(file))
    extra_ids = vocabulary.vocab_size - SentencePieceVocabulary(str(file), extra_ids=0).vocab_size
    return seqio.SentencePieceVocabulary(str(file), extra_ids)


def framed(vocabulary: seqio.Vocabulary) -> "HuggingFaceVocabulary | None":
    """The vocabulary, if its inputs do not just end with its EOS as seqio's do: Gemma's begin with BOS, a chat template has text around them."""
    if not isinstance(vocabulary, HuggingFaceVocabulary) or vocabulary.frame == ((), (vocabulary.eos_id,)):
        return None
    return vocabulary


def tokenize(
    dataset: tf.data.Dataset, output_features: Mapping[str, Feature], sequence_length: Mapping[str, int] | None
) -> tf.data.Dataset:
    """A preprocessor: `seqio.preprocessors.tokenize`, but for `inputs` of a `framed` vocabulary, which have their beginning and end and are
    cut as `input_ids` cuts them. `append_eos_after_trim` completes the rest; `add_eos` of such inputs is False.
    """
    vocabulary = framed(output_features["inputs"].vocabulary)
    if vocabulary is None:
        return seqio.preprocessors.tokenize(dataset, output_features)
    whole = vocabulary  # for the closure
    length = (sequence_length or {}).get("inputs")
    others = {name: feature for name, feature in output_features.items() if name != "inputs"}

    def with_inputs(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        text = example["inputs"]
        return {**example, "inputs_pretokenized": text, "inputs": whole.input_ids_tf(text, length)}

    return seqio.preprocessors.tokenize(dataset, others).map(with_inputs, num_parallel_calls=tf.data.AUTOTUNE)


def check_task(task: seqio.Task | seqio.Mixture) -> None:
    """Checks that a task's inputs are those of its vocabulary.

    Raises:
      UserError: if EOS ends inputs that the vocabulary does not end with it.
    """
    inputs = task.output_features.get("inputs")
    if inputs is not None and inputs.add_eos and (vocabulary := framed(inputs.vocabulary)):
        before, after = map(list, vocabulary.frame)
        raise UserError(
            f"The inputs of {task.name} end with EOS, and this vocabulary puts them between {before} and {after}: declare them with "
            f"add_eos=False, and tokenise them with adalink_jax.data.seqio_vocabulary.tokenize."
        )


def check_mixed(tasks: Sequence[seqio.Task], by_seqio: bool = False) -> None:
    """Checks that tasks can be mixed: that they have the same features, with one vocabulary, dtype and rank for each.

    Args:
      tasks: the tasks.
      by_seqio: whether seqio mixes them, which takes a model of SentencePiece in two places for two vocabularies.

    Raises:
      UserError: names the first two tasks that differ, and what differs.
    """
    same = operator.eq if by_seqio else _same
    for one, other in zip(tasks, tasks[1:]):
        features, others = one.output_features, other.output_features
        if set(features) != set(others):
            raise UserError(
                f"The tasks of a mixture need the same features: {one.name} has {', '.join(features)}, and {other.name} "
                f"{', '.join(others)}; leave one of them out, or declare them alike."
            )
        for name in features:
            left, right = features[name], others[name]
            if not same(left.vocabulary, right.vocabulary):
                shown, and_shown = _shown(left.vocabulary), _shown(right.vocabulary)
                if shown == and_shown:
                    and_shown = "another that is not equal to it"
                raise UserError(
                    f"The tasks of a mixture need one vocabulary: the {name} of {one.name} have {shown}, and those of {other.name} "
                    f"{and_shown}; leave one of them out, or declare both with the same object."
                )
            if (left.dtype, left.rank) != (right.dtype, right.rank):
                kinds = [f"{tf.as_dtype(feature.dtype).name} of rank {feature.rank}" for feature in (left, right)]
                raise UserError(
                    f"The tasks of a mixture need features of one kind: the {name} of {one.name} are {kinds[0]}, and those of {other.name} "
                    f"{kinds[1]}; leave one of them out, or declare them alike."
                )


def _same(one: seqio.Vocabulary, other: seqio.Vocabulary) -> bool:
    """Whether two vocabularies are one; a model of SentencePiece may be in two places."""
    if isinstance(one, seqio.SentencePieceVocabulary) and isinstance(other, seqio.SentencePieceVocabulary):
        facts = lambda vocabulary: (vocabulary.sp_model, vocabulary.vocab_size, vocabulary.eos_id, vocabulary.unk_id)
        return facts(one) == facts(other)
    return one == other


def _shown(vocabulary: seqio.Vocabulary) -> str:
    where = getattr(vocabulary, "sentencepiece_model_file", getattr(vocabulary, "folder", None))
    return f"{where or type(vocabulary).__name__} ({vocabulary.vocab_size:,} ids)"


class HuggingFaceVocabulary(seqio.Vocabulary):
    """The tokenizer of a Hugging Face folder; two of one folder are equal, as the tasks of a mixture must have one vocabulary.

    Attributes:
      frame: the ids before and after an input.
      folder: the folder; with `CHAT` before it, inputs are in its chat template.
    """

    def __init__(self, vocabulary: TransformersVocabulary, folder: str):
        super().__init__()
        self._vocabulary, self.folder = vocabulary, f"{CHAT}{folder}" if vocabulary.chat else folder
        self.frame = vocabulary.before, vocabulary.after

    def input_ids(self, text: str) -> list[int]:
        """The ids of an input with its beginning and end."""
        return self._vocabulary.input_ids(text)

    def input_ids_tf(self, text: tf.Tensor, length: int | None) -> tf.Tensor:
        """The ids of an input with its beginning and end, int32 [L], cut to `length`."""
        return _ids(lambda x: self._vocabulary.input_ids(x, length), text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HuggingFaceVocabulary) and self.folder == other.folder

    def __hash__(self) -> int:
        return hash(self.folder)

    @property
    def eos_id(self) -> int:
        return self._vocabulary.eos

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
        return _ids(self._vocabulary.encode, s)

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        decode = lambda row: self._vocabulary.decode(row).encode()
        if ids.shape.rank == 1:
            return tf.numpy_function(decode, [ids], tf.string)
        return tf.map_fn(self._decode_tf, ids, fn_output_signature=tf.string)


def _ids(encode: Callable[[str], list[int]], text: tf.Tensor) -> tf.Tensor:
    ids = tf.numpy_function(lambda x: np.array(encode(text_of(x)), np.int32), [text], tf.int32)
    ids.set_shape([None])
    return ids
