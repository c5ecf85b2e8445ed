"""Confusion matrices: which class was predicted for which, as a picture. Matplotlib is imported when one is drawn."""

import collections
import dataclasses
import io
import textwrap
import warnings
from collections.abc import Sequence

import numpy as np

from adalink_jax.data.metrics.number_scores import as_number

MOST_CLASSES = 30
OTHER = "other"  # the column of predictions that are not the name of a class
_LETTERS, _LONGEST = 20, 40  # of a class's name: on a line, and in all
_EXAMPLES = 3  # of predictions that are no class


@dataclasses.dataclass(frozen=True)
class Confusion:
    """Counts of examples by class.

    Attributes:
      classes: their names, the C different targets: in order of their numbers, or by name.
      counts: int64 [C, C + 1]: true class, predicted class; the last column is of predictions that name no class.
      others: examples of such predictions, the commonest first.
    """

    classes: tuple[str, ...]
    counts: np.ndarray
    others: tuple[str, ...] = ()

    def others_note(self) -> str | None:
        """How many predictions are not the name of a class, with examples; None if each is."""
        count, total = int(self.counts[:, -1].sum()), int(self.counts.sum())
        if not count:
            return None
        examples = ", ".join(map(repr, map(_shortened, self.others)))
        return f"{count:,} of {total:,} answers name no class (`{OTHER}`), such as {examples}"


def confusion(targets: Sequence[str], predictions: Sequence[str]) -> Confusion | None:
    """Counts predictions; None unless there are 2 to `MOST_CLASSES` different targets, with two examples each on average."""
    names = set(targets)
    if not 2 <= len(names) <= min(MOST_CLASSES, len(targets) // 2):
        return None
    numbers = {name: as_number(name) for name in names}
    are_numbers = all(number is not None for number in numbers.values())
    classes = sorted(names, key=lambda name: (numbers[name] if are_numbers else 0.0, name))
    place = {name: i for i, name in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes) + 1), np.int64)
    others = collections.Counter(text for text in predictions if text not in place)
    for (true, predicted), count in collections.Counter(zip(targets, predictions)).items():
        counts[place[true], place.get(predicted, len(classes))] += count
    return Confusion(tuple(classes), counts, tuple(text for text, _ in others.most_common(_EXAMPLES)))


def draw(matrix: Confusion, title: str) -> bytes:
    """A PNG: true classes are rows, predicted ones columns; a cell has its count, and its color is the share of its row."""
    import matplotlib

    with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings():  # a $ is a dollar
        warnings.filterwarnings("ignore", "Glyph .* missing")  # it is drawn as a box
        return _draw(matrix, title)


def _draw(matrix: Confusion, title: str) -> bytes:
    from matplotlib.figure import Figure

    counts, size = matrix.counts, len(matrix.classes)
    cell = 0.62 if size <= 12 else 0.36  # inches
    names = [_wrapped(name) for name in matrix.classes]
    figure = Figure(figsize=(cell * (size + 1) + 3.6, cell * size + 2.8), layout="constrained", dpi=110)
    axis = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.axvline(size - 0.5, color="black", linewidth=1)
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if shares[row, column] > 0.55 else "black"
        weight = "bold" if row == column else "normal"
        small = 6 if size > 12 or count > 9999 else 10
        if count:
            axis.text(
                column, row, f"{count:,}", ha="center", va="center", fontsize=small, color=color, fontweight=weight
            )
    letters = 8 if size > 12 else 10
    upright = max(map(len, matrix.classes)) <= 4
    turned = {} if upright else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    other = f"({OTHER})" if OTHER in matrix.classes else OTHER
    axis.set_xticks(range(size + 1), [*names, other], fontsize=letters, **turned)
    axis.set_yticks(range(size), names, fontsize=letters)
    note = f"predicted ({OTHER}: an answer that names no class)" if counts[:, -1].any() else "predicted"
    axis.set(xlabel=note, ylabel="true")
    figure.suptitle(textwrap.fill(title, max(44, 9 * size)), fontsize=11, fontweight="bold")
    figure.colorbar(image, ax=axis, label="share of the row", shrink=0.8)
    out = io.BytesIO()
    figure.savefig(out, format="png", bbox_inches="tight")
    return out.getvalue()


def _wrapped(name: str) -> str:
    return textwrap.fill(_shortened(name), _LETTERS) or "(empty)"


def _shortened(name: str) -> str:
    shown = "".join(c if c.isprintable() else "\N{MIDDLE DOT}" for c in name)
    if len(shown) > _LONGEST:  # names often differ at their ends
        shown = f"{shown[: _LONGEST // 2]} ... {shown[-_LONGEST // 2 + 5 :]}"
    return shown
