"""What tasks score without a model: always the commonest answer, and a classifier of scikit-learn that fits in seconds.

A run that does not beat them has learned less than it seems. The classifier reads words and pictures coarsely: TF-IDF of words and
pairs of words, and thumbnails. It is a logistic regression where there are few different answers, a ridge regression where the
answers are numbers, and otherwise the answer of the nearest training example. Where answers are sets of labels, it is one logistic
regression for each label.
"""

import collections
import dataclasses
import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from adalink_jax.data.feature_converter import has_image, text_of
from adalink_jax.data.images import decode_image, load_image, picture_array
from adalink_jax.data.label_sets import LabelSets
from adalink_jax.data.task_protocol import Example, Task

COMMONEST, MEAN = "the commonest answer", "the mean answer"
LOGISTIC, RIDGE, NEAREST = "logistic regression", "ridge regression", "the nearest training example's answer"
PER_LABEL = "logistic regression of each label"
MOST_TEXTS, MOST_PICTURES = 10_000, 2_000  # examples that are read of a split
FEW_ANSWERS = 50
_THUMBNAIL = (16, 16, 3)


@dataclasses.dataclass(frozen=True)
class Baseline:
    """Scores without a model.

    Attributes:
      name: what it is, such as `the commonest answer`.
      scores: metric -> value, as `Task.score` has them; those that are undefined for equal predictions are left out.
    """

    name: str
    scores: dict[str, float]


def score_baselines(
    task: Task, split: str = "test", train_examples: int | None = None, seed: int = 0
) -> list[Baseline]:
    """Scores the commonest answer of the training split (of numbers: the mean) and the classifier.

    At most `MOST_TEXTS` examples of each split are read, and `MOST_PICTURES` of a task with pictures.

    Args:
      task: the task.
      split: the split to score.
      train_examples: how many examples of the training split are used, the first in the order of `seed`; None for all.
      seed: see `train_examples`.
    """
    most = MOST_PICTURES if task.has_images else MOST_TEXTS
    train = list(itertools.islice(task.examples("train", seed), min(most, train_examples or most)))
    examples = list(itertools.islice(task.examples(split), most))
    answers = [text_of(example["targets_pretokenized"]) for example in train]
    if not train or not examples:
        return []
    predictions = {}
    numbers = None if task.labels is not None else as_numbers(answers)
    if numbers is not None:
        predictions[MEAN] = [_like(answers, numbers.mean())] * len(examples)
    else:
        predictions[COMMONEST] = [collections.Counter(answers).most_common(1)[0][0]] * len(examples)
    if (features := _features(train, examples)) is not None:
        name, predictions_of = _classifier(answers, numbers, task.labels)
        predictions[f"{features.name} with {name}"] = predictions_of(features.train, features.scored)
    without_images = [{name: x for name, x in example.items() if name != "image"} for example in examples]
    return [
        Baseline(name, {metric: x for metric, x in task.score(without_images, texts).items() if np.isfinite(x)})
        for name, texts in predictions.items()
    ]


def as_numbers(answers: Sequence[str]) -> np.ndarray | None:
    """The answers as numbers; None if they are not, or are so few different ones that they are names of classes."""
    try:
        values = np.array([float(answer) for answer in answers])
    except ValueError:
        return None
    return values if len(set(answers)) > FEW_ANSWERS and np.isfinite(values).all() else None


def _like(answers: Sequence[str], value: float) -> str:
    """A number with as many decimals as the answers have at most."""
    return f"{value:.{max(len(answer.partition('.')[2]) for answer in answers)}f}"


def _classifier(answers: Sequence[str], numbers: np.ndarray | None, labels: LabelSets | None) -> tuple[str, Any]:
    """The name of a method, and a function of both splits' features that gives predictions as texts."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.neighbors import NearestNeighbors
    from sklearn.preprocessing import MultiLabelBinarizer

    def nearest(train, scored):
        neighbours = NearestNeighbors(n_neighbors=1, metric="cosine").fit(train)
        return [answers[i] for i in neighbours.kneighbors(scored, return_distance=False)[:, 0]]

    def logistic(train, scored):
        with warnings.catch_warnings():  # one that has not converged is good enough
            warnings.simplefilter("ignore", ConvergenceWarning)
            return LogisticRegression(C=10.0, max_iter=300).fit(train, answers).predict(scored).tolist()

    def per_label(train, scored):
        assert labels is not None
        binarizer = MultiLabelBinarizer().fit(sets)
        classifier = OneVsRestClassifier(LogisticRegression(C=10.0, max_iter=300))
        with warnings.catch_warnings():  # of labels that all examples have, too
            warnings.simplefilter("ignore")
            columns = classifier.fit(train, binarizer.transform(sets)).predict(scored)
        return list(map(labels.text, binarizer.inverse_transform(columns)))

    def ridge(train, scored):
        return [_like(answers, x) for x in Ridge().fit(train, numbers).predict(scored)]

    if labels is not None:
        sets = list(map(labels.split, answers))
        return (PER_LABEL, per_label) if 1 < len(set().union(*sets)) <= FEW_ANSWERS else (NEAREST, nearest)
    if numbers is not None:
        return RIDGE, ridge
    few = 1 < len(set(answers)) <= min(FEW_ANSWERS, len(answers) // 2)  # a class has two examples or more
    return (LOGISTIC, logistic) if few else (NEAREST, nearest)


@dataclasses.dataclass(frozen=True)
class _Features:
    """Sparse float arrays [examples, features] of two splits, and what they are made of."""

    name: str
    train: Any
    scored: Any


def _features(train: Sequence[Example], scored: Sequence[Example]) -> _Features | None:
    """TF-IDF of inputs that differ, and thumbnails; None if there is nothing that differs."""
    from scipy import sparse
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [[text_of(example["inputs_pretokenized"]) for example in part] for part in (train, scored)]
    names, parts = [], []
    if len(set(texts[0])) > 1:
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\w+|[^\w\s]")
        names.append("TF-IDF")
        parts.append((vectorizer.fit_transform(texts[0]), vectorizer.transform(texts[1])))
    if any(map(has_image, train)):
        pixels = [np.array([_thumbnail(example) for example in part], np.float32) for part in (train, scored)]
        middle, spread = pixels[0].mean(axis=0), pixels[0].std(axis=0).mean()
        if spread:  # scaled to the length of TF-IDF's rows, which is 1
            names.append("thumbnails")
            parts.append([sparse.csr_array((x - middle) / (spread * x.shape[1] ** 0.5)) for x in pixels])
    if not parts:
        return None
    name = " and ".join(names)
    return _Features(name, *(sparse.hstack(part, format="csr") for part in zip(*parts)))


def _thumbnail(example: Example) -> np.ndarray:
    """The pixels of a small picture in [-1, 1], in one row; zeros for an example without one."""
    file, image = text_of(example.get("image_file", "")), example.get("image", b"")
    if file:
        return load_image(file, _THUMBNAIL).ravel()
    if isinstance(image, bytes):
        return decode_image(image, _THUMBNAIL, "A picture").ravel() if image else np.zeros(_THUMBNAIL).ravel()
    pixels = ((np.asarray(image) + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
    return picture_array(pixels, _THUMBNAIL, "A picture").ravel()
