"""ANLS, the score of DocVQA: one minus the normalised edit distance to the nearest answer, or 0 if all are far."""

from collections.abc import Sequence

from adalink_jax.data.metrics import metric_arguments

THRESHOLD = 0.5


def anls(targets: Sequence[str | Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    """Average normalised Levenshtein similarity in [0, 1] (Biten et al. 2019, "Scene Text Visual Question Answering").

    A question's score is the best over its answers of `1 - d` if `d < 0.5`, else 0, where `d` is the edit distance over the
    length of the longer string. Case and repeated white space are ignored (Mathew et al. 2021, "DocVQA").

    Args:
      targets: one answer for each prediction, or several that are all right.
      predictions: strings.

    Raises:
      UserError: if there are no targets, or not one prediction for each, or a target has no answer.
    """
    metric_arguments.paired("anls", targets, predictions)
    metric_arguments.strings("anls", predictions)
    several = metric_arguments.references("anls", targets)
    scores = [max(similarity(answer, p) for answer in answers) for answers, p in zip(several, predictions)]
    return {"anls": sum(scores) / len(scores)}


def similarity(answer: str, prediction: str) -> float:
    """The similarity of two strings in [0, 1]; 0 if the normalised distance is 0.5 or more; 1 for two empty strings."""
    answer, prediction = _plain(answer), _plain(prediction)
    longer = max(len(answer), len(prediction))
    if not longer:
        return 1.0
    distance = edit_distance(answer, prediction) / longer
    return 1.0 - distance if distance < THRESHOLD else 0.0


def edit_distance(a: str, b: str) -> int:
    """The Levenshtein distance: the fewest insertions, deletions and replacements that turn `a` into `b`."""
    previous = list(range(len(b) + 1))
    for i, from_a in enumerate(a, 1):
        current = [i]
        for j, from_b in enumerate(b, 1):
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (from_a != from_b)))
        previous = current
    return previous[-1]


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
