"""SQuAD's exact match and word F1: the best over several answers, after SQuAD's normalisation."""

import collections
import re
import string
from collections.abc import Sequence

from adalink_jax.data.metrics import metric_arguments

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def squad(targets: Sequence[str | Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    """`exact_match` and `f1`, shares in [0, 1] (Rajpurkar et al. 2016, "SQuAD"; the evaluation of version 1.1).

    F1 is the harmonic mean of precision and recall over the words that prediction and answer share, counted with
    repetitions. It is 0 if they share none, and so if both are empty.

    Args:
      targets: one answer for each prediction, or several that are all right.
      predictions: strings.

    Raises:
      UserError: if there are no targets, or not one prediction for each, or a target has no answer.
    """
    references = metric_arguments.references("squad", targets, predictions)
    several = [[normalize(answer) for answer in answers] for answers in references]
    plain = [normalize(prediction) for prediction in predictions]
    return {
        "exact_match": sum(p in answers for answers, p in zip(several, plain)) / len(plain),
        "f1": sum(max(_word_f1(answer, p) for answer in answers) for answers, p in zip(several, plain)) / len(plain),
    }


def normalize(text: str) -> str:
    """Lowers text, removes ASCII punctuation and the articles a, an, the, and leaves single blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _word_f1(answer: str, prediction: str) -> float:
    expected, predicted = answer.split(), prediction.split()
    shared = sum((collections.Counter(expected) & collections.Counter(predicted)).values())
    return 2 * shared / (len(expected) + len(predicted)) if shared else 0.0
