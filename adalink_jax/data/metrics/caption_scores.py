"""CIDEr, BLEU and ROUGE-L of captions, in the numbers of the COCO caption evaluation (Chen et al. 2015).

Captions are tokenised as that evaluation does it (`ptb_tokenizer`). CIDEr and BLEU cut the tokenised line at white space of
any kind and ROUGE-L at blanks only; that differs where a token holds a no-break space, as telephone numbers do.
"""

import collections
import math
from collections.abc import Sequence

import numpy as np

from adalink_jax.data.metrics import metric_arguments
from adalink_jax.data.metrics.ptb_tokenizer import tokenize

MAX_N = 4
SIGMA = 6.0  # tokens: the spread of the penalty on a length that differs from a reference's
BETA = 1.2  # weight of recall against precision in ROUGE-L
_TINY, _SMALL = 1e-15, 1e-9  # the evaluation's own: an empty candidate has a score of nearly 0

Caption = str
References = str | Sequence[str]
Lines = list[list[str]]  # of each image, its references as lines of tokens
Counts = collections.Counter


def cider(targets: Sequence[References], predictions: Sequence[Caption]) -> dict[str, float]:
    """CIDEr-D, from 0 to 10 (Vedantam et al. 2015); papers print it times 100, so that 1.2 here is their 120.

    Of each length n from 1 to 4, n-grams are weighted by how often they occur and by the log of the number of images over
    the images whose references hold them; the score is the mean over n and references of the cosine of the weights, each
    of the candidate clipped to the reference's, times `exp(-(difference in length)^2 / (2 * 6^2))`, times 10. **It depends
    on the set**: compare it on the same images only, and of one image alone it is 0.

    Args:
      targets: each the references of one image, one string or several.
      predictions: one caption an image.

    Raises:
      UserError: if there are no targets, not one prediction for each, or a target without reference.
    """
    return _cider(*_tokenized("cider", targets, predictions))


def _cider(references: Lines, candidates: list[str]) -> dict[str, float]:
    references = [[_ngrams(line.split()) for line in each] for each in references]
    frequency = collections.Counter(ngram for each in references for ngram in set().union(*each))
    weights = _Weights(frequency, images=len(references))
    scores = []
    for each, line in zip(references, candidates):
        candidate = weights(_ngrams(line.split()))
        scores.append(10.0 * np.mean([_cosine(candidate, weights(counts)) for counts in each]))
    return {"cider": float(np.mean(scores))}


def bleu(targets: Sequence[References], predictions: Sequence[Caption]) -> dict[str, float]:
    """`bleu_1` to `bleu_4` of the whole set, shares in [0, 1] as the COCO evaluation gives them (Papineni et al. 2002).

    Papers print them times 100. The length that is compared with a caption's is that of its closest reference, and of two
    as close the shorter. Not smoothed: not one common 4-gram in the set makes `bleu_4` practically 0.

    Args, Raises: as for `cider`.
    """
    return _bleu(*_tokenized("bleu", targets, predictions))


def _bleu(references: Lines, candidates: list[str]) -> dict[str, float]:
    found, possible = np.zeros(MAX_N), np.zeros(MAX_N)
    length = closest = 0
    for each, line in zip(references, candidates):
        words, each = line.split(), [reference.split() for reference in each]
        most = Counts()
        for reference in each:
            most |= _ngrams(reference)
        for ngram, count in (_ngrams(words) & most).items():
            found[len(ngram) - 1] += count
        possible += [max(0, len(words) - n) for n in range(MAX_N)]
        length += len(words)
        closest += min((abs(len(reference) - len(words)), len(reference)) for reference in each)[1]
    precision = np.cumprod((found + _TINY) / (possible + _SMALL)) ** (1.0 / np.arange(1, MAX_N + 1))
    ratio = (length + _TINY) / (closest + _SMALL)
    score = precision * (math.exp(1.0 - 1.0 / ratio) if ratio < 1.0 else 1.0)
    return {f"bleu_{n + 1}": float(score[n]) for n in range(MAX_N)}


def rouge_l(targets: Sequence[References], predictions: Sequence[Caption]) -> dict[str, float]:
    """ROUGE-L in [0, 1], the mean over images (Lin 2004), as the COCO evaluation defines it.

    The best precision and the best recall of the longest common subsequence, each over all references and so perhaps of
    different ones, make `(1 + 1.2^2) * p * r / (r + 1.2^2 * p)`.

    Args, Raises: as for `cider`.
    """
    return _rouge_l(*_tokenized("rouge_l", targets, predictions))


def _rouge_l(references: Lines, candidates: list[str]) -> dict[str, float]:
    return {"rouge_l": float(np.mean([_subsequence_f(each, line) for each, line in zip(references, candidates)]))}


def captions(targets: Sequence[References], predictions: Sequence[Caption]) -> dict[str, float]:
    """`cider`, `bleu_1` to `bleu_4` and `rouge_l`, of captions that are tokenised once. Args, Raises: as for `cider`."""
    lines = _tokenized("captions", targets, predictions)
    return _cider(*lines) | _bleu(*lines) | _rouge_l(*lines)


class _Weights:
    """TF-IDF weights of n-grams over a set of images.

    Attributes:
      frequency: the number of images whose references hold an n-gram.
      images: the number of images.
    """

    def __init__(self, frequency: Counts, images: int):
        self._log_frequency = {ngram: math.log(count) for ngram, count in frequency.items()}
        self._log_images = math.log(images)

    def __call__(self, counts: Counts) -> tuple[list[dict], list[float], int]:
        """The weights of each length, their norms, and the number of pairs of words."""
        weights: list[dict] = [{} for _ in range(MAX_N)]
        for ngram, count in counts.items():
            weights[len(ngram) - 1][ngram] = count * (self._log_images - self._log_frequency.get(ngram, 0.0))
        norms = [math.sqrt(sum(value * value for value in each.values())) for each in weights]
        return weights, norms, sum(count for ngram, count in counts.items() if len(ngram) == 2)


def _cosine(candidate, reference) -> float:
    """The mean over n of the clipped cosines, with the penalty for a different length (in pairs of words, as there)."""
    (weights, norms, length), (reference_weights, reference_norms, reference_length) = candidate, reference
    cosines = []
    for each, other, norm, other_norm in zip(weights, reference_weights, norms, reference_norms):
        product = sum(min(value, other[ngram]) * other[ngram] for ngram, value in each.items() if ngram in other)
        cosines.append(product / (norm * other_norm) if norm and other_norm else product)
    return sum(cosines) / MAX_N * math.exp(-((length - reference_length) ** 2) / (2.0 * SIGMA**2))


def _subsequence_f(references: list[str], candidate: str) -> float:
    words = candidate.split(" ")
    each = [(reference.split(" "), _longest_common(reference.split(" "), words)) for reference in references]
    precision = max(common / len(words) for _, common in each)
    recall = max(common / len(reference) for reference, common in each)
    if not precision:
        return 0.0
    return (1.0 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    previous = [0] * (len(b) + 1)
    for word in a:
        current = [0]
        for j, other in enumerate(b):
            current.append(previous[j] + 1 if word == other else max(previous[j + 1], current[j]))
        previous = current
    return previous[-1]


def _ngrams(words: Sequence[str]) -> Counts:
    return Counts(tuple(words[i : i + n]) for n in range(1, MAX_N + 1) for i in range(len(words) - n + 1))


def _tokenized(metric: str, targets: Sequence[References], predictions: Sequence[Caption]) -> tuple[Lines, list[str]]:
    """Lines of tokens: of each image's references, and of each prediction."""
    metric_arguments.paired(metric, targets, predictions)
    metric_arguments.strings(metric, predictions)
    references = metric_arguments.references(metric, targets)
    return [[tokenize(line) for line in each] for each in references], [tokenize(line) for line in predictions]
