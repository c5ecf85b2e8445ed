"""Contact sheets: sample images with the model's inputs and predictions. Matplotlib is imported when one is drawn."""

import io
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any

from adalink_jax.training.evaluation import printable

GREEN, RED, GREY = "#1a7f37", "#cf222e", "#57606a"
COLUMNS = 4
NORMAL, BOLD = (34, 3), (26, 4)  # letters per line and lines that fit in a column: at 10 points, and at 12 in bold


def contact_sheet(samples: Sequence[dict], title: str, before: Sequence[str] | None = None) -> bytes:
    """A PNG of images, each with its input above it, and below it the prediction, and the target where the two differ.

    Args:
      samples: `Result.samples` with an `image`, float32 [height, width, 1 or 3] in [-1, 1].
      title: one line above the images.
      before: for each sample the prediction before training.
    """
    import matplotlib

    with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings():  # a $ is a dollar
        warnings.filterwarnings("ignore", "Glyph .* missing")  # it is drawn as a box
        return _draw(samples, title, before)


def _draw(samples: Sequence[dict], title: str, before: Sequence[str] | None) -> bytes:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows = -(-len(samples) // COLUMNS)
    below = [_below(sample, None if before is None else before[i]) for i, sample in enumerate(samples)]
    longest = max(sum(text.count("\n") + 1 for text, _ in lines) for lines in below)
    height = 1.7 + 0.19 * (longest + max(_wrapped(sample["inputs"]).count("\n") for sample in samples))
    layout = ConstrainedLayoutEngine(h_pad=0.14)  # inches around each image and its text
    figure = Figure(figsize=(2.9 * COLUMNS, height * rows + 0.6), layout=layout, dpi=110)
    figure.suptitle(title, fontsize=13, fontweight="bold")
    no_ticks: dict[str, Any] = {
        "xticks": [],
        "yticks": [],
    }  # the layout would measure those of an axis that is off, too
    grid = figure.subplots(rows, COLUMNS, squeeze=False, subplot_kw=no_ticks)
    for axis in grid.flat:
        axis.set_axis_off()
    for axis, sample, lines in zip(grid.flat, samples, below):
        image = ((sample["image"] + 1) / 2).squeeze().clip(0, 1)
        axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(_wrapped(sample["inputs"]), fontsize=10, color=GREY)
        offset = 4.0  # points
        for i, (text, colour) in enumerate(lines):
            size = 12 if i == 0 else 10
            axis.annotate(text, (0.5, 0), (0, -offset), xycoords="axes fraction", textcoords="offset points", ha="center",
                          va="top", fontsize=size, color=colour, fontweight="bold" if i == 0 else "normal")  # fmt: skip
            offset += 1.35 * size * (text.count("\n") + 1)
    out = io.BytesIO()
    figure.savefig(out, format="png", bbox_inches="tight")
    return out.getvalue()


def _below(sample: dict, before: str | None) -> list[tuple[str, str]]:
    """The lines under an image, with their colours."""
    right = sample["prediction"] == sample["target"]
    after = "" if before is None else "after: "
    lines = [(_wrapped(after + printable(sample["prediction"]), BOLD), GREEN if right else RED)]
    if not right:
        lines.append((_wrapped(f"right: {sample['target']}"), GREY))
    if before is not None:
        lines.append((_wrapped(f"before: {printable(before)}"), GREY))
    return lines


def _wrapped(text: str, fits: tuple[int, int] = NORMAL) -> str:
    letters, lines = fits
    return "\n".join(textwrap.wrap(text, letters, max_lines=lines, placeholder=" ...")) or " "
