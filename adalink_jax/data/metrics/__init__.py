"""Metrics over decoded strings: `(targets, predictions) -> {name: value}`, as seqio's metric functions are.

Free of TensorFlow and seqio. Shares are in [0, 1], never percent; each function says where its scale is another. A target
is one string, or several where a question has several right answers or an image several captions.
"""

from adalink_jax.data.metrics import glue, labels
from adalink_jax.data.metrics.anls import anls
from adalink_jax.data.metrics.captions import bleu, captions, cider, rouge_l
from adalink_jax.data.metrics.exact import accuracy, exact_match
from adalink_jax.data.metrics.squad import squad
from adalink_jax.data.metrics.vqa import vqa_accuracy

__all__ = [
    "accuracy",
    "anls",
    "bleu",
    "captions",
    "cider",
    "exact_match",
    "glue",
    "labels",
    "rouge_l",
    "squad",
    "vqa_accuracy",
]
