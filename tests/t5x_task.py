"""seqio tasks as a t5x user registers them: importing this module declares them."""

import functools

import numpy as np
import seqio
import tensorflow as tf

LETTERS, LENGTH = "abcd", 4
ROWS = {"train": 512, "validation": 40, "test": 40}


def words(split: str) -> list[str]:
    """Random strings of letters, the same at each call."""
    rng = np.random.default_rng(list(ROWS).index(split))
    return ["".join(rng.choice(list(LETTERS), LENGTH)) for _ in range(ROWS[split])]


def _rows(split: str, shuffle_files: bool, seed: int | None = None, *, further: int) -> tf.data.Dataset:
    del shuffle_files, seed
    inputs = words(split)
    letter = lambda word: LETTERS[(LETTERS.index(word[0]) + further) % len(LETTERS)]
    return tf.data.Dataset.from_tensor_slices({"inputs": inputs, "targets": [letter(word) for word in inputs]})


def accuracy(targets, predictions):
    """The fraction of correct predictions."""
    return {"accuracy": float(np.mean([target == found for target, found in zip(targets, predictions)]))}


for _name, _further in (("first_letter", 0), ("next_letter", 1)):
    seqio.TaskRegistry.add(
        _name,
        source=seqio.FunctionDataSource(functools.partial(_rows, further=_further), splits=list(ROWS)),
        preprocessors=[
            functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=True),
            seqio.preprocessors.append_eos_after_trim,
        ],
        output_features={name: seqio.Feature(seqio.ByteVocabulary(), add_eos=True) for name in ("inputs", "targets")},
        metric_fns=[accuracy],
    )
