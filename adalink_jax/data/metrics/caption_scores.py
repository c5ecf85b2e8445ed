"""CIDEr, BLEU and ROUGE-L of captions, equal to the numbers of the COCO caption evaluation (Chen et al. 2015).

Captions are tokenised as in that evaluation (`ptb_tokenizer`). CIDEr and BLEU split the tokenised line at white space of any
kind, ROUGE-L at blanks only; the two differ if a token holds a no-break space, as telephone numbers do.
"""

import collections
import functools
import math
import operator
from collections.abc import Sequence

import numpy as np
from rapidfuzz.distance import LCSseq

from adalink_jax.data.metrics import metric_arguments
from adalink_jax.data.metrics.ptb_tokenizer import tokenize

MAX_N = 4
SIGMA = 6.0  # tokens: the width of the penalty on a length that differs from a reference's
BETA = 1.2  # weight of recall against precision in ROUGE-L
_TINY, _SMALL = 1e-15, 1e-9  # the evaluation's constants: an empty candidate has a score of nearly 0

Caption = str
References = str | Sequence[str]
Lines = list[list[str]]  # for each image, its references as lines of tokens
Counts = collections.Counter[tuple[str, ...]]  # of n-grams
Vector = tuple[list[dict[tuple[str, ...], float]], list[float], int]  # see `_weights`


def cider(targets: Sequence[References], predictions: Sequence[Caption]) -> dict[str, float]:
    """CIDEr-D, from 0 to 10 (Vedantam et al. 2015); papers print it times 100, so that 1.2 here is their 120.

    For each length n from 1 to 4, n-grams are weighted by their count and by the log of the number of images over the
    number of images whose references hold them. The score is the mean over n and references of the cosine between the
    weights, the candidate's clipped to the reference's, times `exp(-(difference in length)^2 / (2 * 6^2))`, times 10. **It
    depends on the set**: compare scores on the same images only; for a single image it is 0.

    Args:
      targets: the references of each image, one string or several.
      predictions: one caption per image.

    Raises:
      UserError: if there are no targets, not one prediction for each, or a target without a reference.
    """
    return _cider(*_tokenized("cider", targets, predictions))


def _cider(references: Lines, candidates: list[str]) -> dict[str, float]:
    counted = [[_ngrams(line.split()) for line in lines] for lines in references]
    frequency = Counts(ngram for counts in counted for ngram in set().union(*counts))
    weights = functools.partial(_weights, frequency=frequency, images=len(references))
    scores = []
    for image, line in zip(counted, candidates):
        candidate = weights(_ngrams(line.split()))
        scores.append(10.0 * np.mean([_cosine(candidate, weights(counts)) for counts in image]))
    return {"cider": float(np.mean(scores))}


def bleu(targets: Sequence[References], predictions: Sequence[Caption]) -> dict[str, float]:
    """`bleu_1` to `bleu_4` of the whole set, shares in [0, 1] as in the COCO evaluation (Papineni et al. 2002).

    Papers print them times 100. The length of a caption is compared with that of its closest reference, or the shorter of
    two that are as close. Not smoothed: without any common 4-gram in the set `bleu_4` is practically 0.

    Args, Raises: as for `cider`.
    """
    return _bleu(*_tokenized("bleu", targets, predictions))


def _bleu(references: Lines, candidates: list[str]) -> dict[str, float]:
    matches, possible = np.zeros(MAX_N), np.zeros(MAX_N)
    length = closest = 0
    for lines, candidate in zip(references, candidates):
        words, several = candidate.split(), [line.split() for line in lines]
        most = functools.reduce(operator.or_, map(_ngrams, several))  # the highest count of each in any reference
        for ngram, count in (_ngrams(words) & most).items():
            matches[len(ngram) - 1] += count
        possible += [max(0, len(words) - n) for n in range(MAX_N)]
        length += len(words)
        closest += min((abs(len(reference) - len(words)), len(reference)) for reference in several)[1]
    precision = np.cumprod((matches + _TINY) / (possible + _SMALL)) ** (1.0 / np.arange(1, MAX_N + 1))
    ratio = (length + _TINY) / (closest + _SMALL)
    score = precision * (math.exp(1.0 - 1.0 / ratio) if ratio < 1.0 else 1.0)
    return {f"bleu_{n + 1}": float(score[n]) for n in range(MAX_N)}


def rouge_l(targets: Sequence[References], predictions: Sequence[Caption]) -> dict[str, float]:
    """ROUGE-L in [0, 1], the mean over images (Lin 2004), as the COCO evaluation defines it.

    The score is `(1 + 1.2^2) * p * r / (r + 1.2^2 * p)`, where p is the best precision of the longest common subsequence over
    all references, and r its best recall, perhaps with another reference.

    Args, Raises: as for `cider`.
    """
    return _rouge_l(*_tokenized("rouge_l", targets, predictions))


def _rouge_l(references: Lines, candidates: list[str]) -> dict[str, float]:
    return {"rouge_l": float(np.mean([_subsequence_f(*pair) for pair in zip(references, candidates)]))}


def captions(targets: Sequence[References], predictions: Sequence[Caption]) -> dict[str, float]:
    """`cider`, `bleu_1` to `bleu_4` and `rouge_l`; captions are tokenised once. Args, Raises: as for `cider`."""
    lines = _tokenized("captions", targets, predictions)
    return _cider(*lines) | _bleu(*lines) | _rouge_l(*lines)


def _weights(counts: Counts, frequency: Counts, images: int) -> Vector:
    """TF-IDF weights of n-grams over a set of images.

    Args:
      counts: the n-grams of a line.
      frequency: the number of images whose references hold each n-gram.
      images: the number of images.

    Returns:
      The weights for each n, their norms, and the number of bigrams.
    """
    weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(MAX_N)]
    for ngram, count in counts.items():
        weights[len(ngram) - 1][ngram] = count * (math.log(images) - math.log(frequency.get(ngram, 1)))
    norms = [math.sqrt(sum(value * value for value in of_length.values())) for of_length in weights]
    return weights, norms, sum(count for ngram, count in counts.items() if len(ngram) == 2)


def _cosine(candidate: Vector, reference: Vector) -> float:
    """The mean over n of the clipped cosines, with the penalty for a different length (in bigrams, as in the evaluation)."""
    (weights, norms, length), (reference_weights, reference_norms, reference_length) = candidate, reference
    cosines = []
    for own_weights, other, norm, other_norm in zip(weights, reference_weights, norms, reference_norms):
        product = sum(min(value, other[ngram]) * other[ngram] for ngram, value in own_weights.items() if ngram in other)
        cosines.append(product / (norm * other_norm) if norm and other_norm else product)
    return sum(cosines) / MAX_N * math.exp(-((length - reference_length) ** 2) / (2.0 * SIGMA**2))


def _subsequence_f(references: list[str], candidate: str) -> float:
    words, several = candidate.split(" "), [reference.split(" ") for reference in references]
    common = [LCSseq.similarity(reference, words) for reference in several]
    precision = max(length / len(words) for length in common)
    recall = max(length / len(reference) for reference, length in zip(several, common))
    if not precision:
        return 0.0
    return (1.0 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _ngrams(words: Sequence[str]) -> Counts:
    return Counts(tuple(words[i : i + n]) for n in range(1, MAX_N + 1) for i in range(len(words) - n + 1))


def _tokenized(metric: str, targets: Sequence[References], predictions: Sequence[Caption]) -> tuple[Lines, list[str]]:
    """The lines of tokens of each image's references, and of each prediction."""
    references = metric_arguments.references(metric, targets, predictions)
    return [[tokenize(line) for line in lines] for lines in references], [tokenize(line) for line in predictions]
