"""Scenes of real handwritten digits, without any download and without TensorFlow.

The images are scikit-learn's 1,797 digits of 8 x 8 pixels (UCI, Alpaydin and Kaynak, 1998). They are split into train,
validation and test *before* scenes are composed, so no pixel of a test scene is ever trained on. A scene is `NUM_DIGITS` digits
side by side; the answer to a question about it follows from the labels.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

NUM_DIGITS = 2
SCENE_SHAPE = (8, 8 * NUM_DIGITS, 1)
SCENES = {"train": 40_000, "validation": 500, "test": 1_000}
_IMAGES = {"train": slice(0, 1197), "validation": slice(1197, 1497), "test": slice(1497, 1797)}

Answer = Callable[[list[int]], str]


def _spaced(digits: Iterable[int]) -> str:
    return " ".join(map(str, digits))


QUESTIONS: dict[str, tuple[str, Answer]] = {
    "read": ("read the digits", _spaced),
    "first": ("first digit", lambda d: str(d[0])),
    "last": ("last digit", lambda d: str(d[-1])),
    "largest": ("largest digit", lambda d: str(max(d))),
    "smallest": ("smallest digit", lambda d: str(min(d))),
    "sum": ("sum of the digits", lambda d: str(sum(d))),
    "reverse": ("read from right to left", lambda d: _spaced(d[::-1])),
    "plus_one": ("first digit plus one", lambda d: str(d[0] + 1)),
}

TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "plain": lambda digits: digits,
    "inverted": lambda digits: 16 - digits,
    "rotated": lambda digits: np.rot90(digits, axes=(-2, -1)),
}


@dataclasses.dataclass(frozen=True)
class Scenes:
    """One question about scenes with one transformation of the digits."""

    question: str
    transform: str = "plain"


# The tasks that the bundled bases are pre-trained on, and those that they are adapted to.
CAPTION = {"digits_read": Scenes("read")}
INSTRUCT = {f"digits_{name}": Scenes(name) for name in ("read", "first", "last", "largest", "smallest", "sum")}
ADAPTATION = {
    "digits_reverse": Scenes("reverse"),  # a new instruction
    "digits_plus_one": Scenes("plus_one"),  # a new mapping
    "digits_inverted": Scenes("read", "inverted"),  # an image shift
    "digits_rotated": Scenes("read", "rotated"),  # an image shift
    "digits_inverted_reverse": Scenes("reverse", "inverted"),  # both
}
TASKS = {**CAPTION, **INSTRUCT, **ADAPTATION}


@functools.cache
def _digit_images() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    data: Any = load_digits()  # annotated as a tuple, which is another mode of it
    order = np.random.RandomState(0).permutation(len(data.target))
    return data.images[order].astype(np.float32), data.target[order]


def compose(name: str, split: str) -> dict[str, np.ndarray]:
    """Returns all scenes of a task's split.

    Returns:
      `image` float32 [n, 8, 8 * NUM_DIGITS, 1] in [-1, 1]; `inputs` and `targets`, n strings each.

    Raises:
      KeyError: if there is no such task or split.
    """
    task = TASKS[name]
    images, labels = (array[_IMAGES[split]] for array in _digit_images())
    rng = np.random.default_rng([list(_IMAGES).index(split), NUM_DIGITS])
    chosen = rng.integers(len(images), size=(SCENES[split], NUM_DIGITS))
    digits = TRANSFORMS[task.transform](images[chosen])  # [n, NUM_DIGITS, 8, 8]
    scenes = digits.transpose(0, 2, 1, 3).reshape(-1, *SCENE_SHAPE) / 8 - 1
    prompt, answer = QUESTIONS[task.question]
    targets = [answer(row) for row in labels[chosen].tolist()]
    return {
        "image": np.ascontiguousarray(scenes, np.float32),
        "inputs": np.array([prompt] * len(targets)),
        "targets": np.array(targets),
    }
