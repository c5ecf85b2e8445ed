"""The bundled tasks, registered with seqio: scenes of handwritten digits (`adalink_jax.data.digits`)."""

import functools

import seqio
import tensorflow as tf

from adalink_jax.data import digits, metrics

VOCABULARY = seqio.ByteVocabulary()

OUTPUT_FEATURES = {
    "inputs": seqio.Feature(VOCABULARY, add_eos=True),
    "targets": seqio.Feature(VOCABULARY, add_eos=True),
    "image": seqio.Feature(seqio.PassThroughVocabulary(0), add_eos=False, dtype=tf.float32, rank=3),
}


def _digits(split: str, shuffle_files: bool, seed: int | None = None, *, name: str) -> tf.data.Dataset:
    del shuffle_files, seed  # the scenes are in memory; seqio shuffles the examples
    scenes = digits.compose(name, split)
    return tf.data.Dataset.from_tensor_slices(scenes)  # pyright: ignore[reportArgumentType]  # takes dicts too


for _name in digits.TASKS:
    _source = seqio.FunctionDataSource(functools.partial(_digits, name=_name), splits=list(digits.SCENES))
    seqio.TaskRegistry.add(
        _name,
        source=_source,  # pyright: ignore[reportArgumentType]  # seqio's classes do not match its protocol
        preprocessors=[
            functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=True),
            seqio.preprocessors.append_eos_after_trim,
        ],
        output_features=OUTPUT_FEATURES,
        metric_fns=[metrics.accuracy],
    )

seqio.MixtureRegistry.add("digits_instruct", list(digits.INSTRUCT), default_rate=1.0)
