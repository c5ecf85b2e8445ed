"""The style of all figures: colors that are distinct to color-blind readers, and the widths of a paper's columns."""

import base64
import contextlib
import io
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
from cycler import cycler
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adalink_jax.files.whole_file import writing

# Okabe and Ito (2008), without yellow, which is faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
COLUMN, PAGE = 3.25, 6.75  # inches: one column and a page of two
SETTINGS: dict[Any, Any] = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "legend.fontsize": 7, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "lines.linewidth": 1.2,
    "lines.markersize": 4, "legend.frameon": False, "svg.fonttype": "none", "svg.hashsalt": "adalink", "pdf.fonttype": 42,
    "axes.prop_cycle": cycler(color=COLOURS),
}  # fmt: skip


_BEYOND_ONE = ("cider", "rmse", "mae", "loss")
_PER_INCH = 14  # characters of a legend


def applied() -> contextlib.AbstractContextManager[None]:
    """Applies the style inside the context; every part of a figure must be drawn there."""
    return matplotlib.rc_context(SETTINGS)


def panels(count: int, columns: int = 2, height: float = 2.3, share_y: bool = False) -> tuple[Figure, list[Axes]]:
    """Makes a figure with `count` panels, as wide as a page, or as a paper's column if `columns` is 1.

    Args:
      count: number of panels.
      columns: panels per row.
      height: of a panel, in inches.
      share_y: whether panels share their y axis.

    Returns:
      The figure, and its panels in order.
    """
    rows = -(-count // columns)
    with applied():
        figure = Figure(figsize=(PAGE if columns > 1 else COLUMN, height * rows + 0.4), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharey=share_y)
    flat = [axis for row in grid for axis in row]
    for axis in flat[count:]:
        axis.set_visible(False)
    return figure, flat[:count]


def upright(label: str) -> str:
    """Breaks the label of a y axis into lines that are no longer than a panel is high."""
    return textwrap.fill(label, 24, break_long_words=False)


def within_shares(axis: Axes, metric: str, of: str = "y") -> None:
    """Ends the axis of a score that cannot exceed 1 there: an interval or a margin may reach beyond."""
    if metric.split("/")[-1] in _BEYOND_ONE:
        return
    low, high = sorted(axis.get_ylim() if of == "y" else axis.get_xlim())
    axis.set(**{f"{of}lim": (low, min(high, 1.0))} if low < 1.0 else {})


def legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """Draws one legend for all panels, below them, with as many columns as fit into the figure's width."""
    handles = {}
    for axis in axes:
        handles |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels())}
    width = int(_PER_INCH * figure.get_figwidth())
    handles = {textwrap.fill(label, width): handle for label, handle in handles.items()}
    with applied():
        for columns in range(min(len(handles), 4), 0, -1):
            drawn = figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns)
            if drawn.get_window_extent().width <= 0.95 * figure.bbox.width or columns == 1:
                break
            drawn.remove()


def svg(figure: Figure) -> str:
    """The figure as an HTML element."""
    out = io.StringIO()
    with applied():
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def save(figure: Figure, path: epath.Path) -> None:
    """Writes a vector file, .pdf or .svg by its name."""
    with applied(), writing(path) as file:
        figure.savefig(
            file, format=path.suffix[1:], metadata={"CreationDate" if path.suffix == ".pdf" else "Date": None}
        )


def embedded(picture: bytes, kind: str = "png") -> str:
    """A picture as a URL that contains it."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
