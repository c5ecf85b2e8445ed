"""Metrics over decoded strings: `(targets, predictions) -> {name: value}`, as seqio's metric functions are.

Free of TensorFlow and seqio. Shares are in [0, 1], never percent; functions with another scale say so. A target is one
string, or several if a question has several right answers or an image several captions.
"""

import importlib
from types import ModuleType

from adalink_jax.data.metrics import glue_scores, labels
from adalink_jax.data.metrics.caption_scores import bleu, captions, cider, rouge_l
from adalink_jax.data.metrics.class_scores import balanced_accuracy, macro_f1
from adalink_jax.data.metrics.exact import accuracy, exact_match
from adalink_jax.data.metrics.label_scores import label_sets
from adalink_jax.data.metrics.levenshtein import anls
from adalink_jax.data.metrics.number_scores import mae, pearson, rmse, spearman
from adalink_jax.data.metrics.vqa_accuracy import vqa_accuracy
from adalink_jax.data.metrics.word_overlap import squad

__all__ = [
    "accuracy",
    "anls",
    "balanced_accuracy",
    "bleu",
    "captions",
    "cider",
    "exact_match",
    "glue_scores",
    "label_sets",
    "labels",
    "macro_f1",
    "mae",
    "pearson",
    "rmse",
    "rouge_l",
    "spearman",
    "squad",
    "vqa_accuracy",
]


def __getattr__(name: str) -> ModuleType:
    if name in ("glue", "vqa"):  # old names of `glue_scores` and `vqa_accuracy`; importing them warns
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
