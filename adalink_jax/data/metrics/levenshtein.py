"""ANLS, the score of DocVQA: one minus the normalised edit distance to the nearest answer, or 0 if all are far."""

from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from adalink_jax.data.metrics import metric_arguments

THRESHOLD = 0.5


def anls(targets: Sequence[str | Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    """Average normalised Levenshtein similarity in [0, 1] (Biten et al. 2019, "Scene Text Visual Question Answering").

    A question's score is the best over its answers of `1 - d` if that is at least 0.5, else 0, where `d` is the edit distance,
    without regard to case and repeated white space, over the length of the longer string as given. This is the rule of the
    evaluation script of DocVQA and InfographicVQA; the paper drops `d = 0.5` too.

    Args:
      targets: one answer for each prediction, or several that are all right.
      predictions: strings.

    Raises:
      UserError: if there are no targets, or not one prediction for each, or a target has no answer.
    """
    several = metric_arguments.references("anls", targets, predictions)
    scores = [max(similarity(answer, p) for answer in answers) for answers, p in zip(several, predictions)]
    return {"anls": sum(scores) / len(scores)}


def similarity(answer: str, prediction: str) -> float:
    """The similarity of two strings in [0, 1]; 0 if it is below 0.5; 1 for two empty strings."""
    # In upper case, as the script measures: some letters become two.
    length = max(len(answer.upper()), len(prediction.upper()), 1)
    score = 1.0 - Levenshtein.distance(answer, prediction, processor=_plain) / length
    return score if score >= THRESHOLD else 0.0


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
