"""The house's style of figures: one set of colours that the colour-blind can tell apart, sizes of a paper's columns, units on axes."""

import base64
import io
import textwrap

import matplotlib
from cycler import cycler
from matplotlib.figure import Figure

# Okabe and Ito (2008), without yellow, which is faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
COLUMN, PAGE = 3.25, 6.75  # inches: one column and a page of two
SETTINGS = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "legend.fontsize": 7, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "lines.linewidth": 1.2,
    "lines.markersize": 4, "legend.frameon": False, "svg.fonttype": "none", "svg.hashsalt": "adalink", "pdf.fonttype": 42,
    "axes.prop_cycle": cycler(color=COLOURS),
}  # fmt: skip


def applied():
    """The style, while entered: everything of a figure is drawn under it."""
    return matplotlib.rc_context(SETTINGS)


def panels(count: int, columns: int = 2, height: float = 2.3, share_y: bool = False):
    """A figure of a page's width with `count` panels.

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
    """The label of a y axis, in lines that are no longer than a panel is high."""
    return textwrap.fill(label, 24, break_long_words=False)


def legend(figure: Figure, axes) -> None:
    """One legend for all panels, under them, of as many columns as the figure is wide enough for."""
    found = {}
    for axis in axes:
        found |= dict(reversed(pair) for pair in zip(*axis.get_legend_handles_labels()))
    with applied():
        for columns in range(min(len(found), 4), 0, -1):
            drawn = figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns)
            if drawn.get_window_extent().width <= 0.95 * figure.bbox.width or columns == 1:
                break
            drawn.remove()


def svg(figure: Figure) -> str:
    """The figure as an element of HTML."""
    out = io.StringIO()
    with applied():
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def save(figure: Figure, path) -> None:
    """As the vector file that its name says: .pdf or .svg."""
    with applied(), path.open("wb") as file:
        figure.savefig(
            file, format=path.suffix[1:], metadata={"CreationDate" if path.suffix == ".pdf" else "Date": None}
        )


def embedded(picture: bytes, kind: str = "png") -> str:
    """A picture as a URL that needs no network."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
