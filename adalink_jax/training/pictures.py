"""The picture of a run: sample images with what the model says of them, before and after."""

from collections.abc import Sequence

from etils import epath
from matplotlib.figure import Figure

from adalink_jax.training.evaluation import printable

GREEN, RED, GREY = "#1a7f37", "#cf222e", "#57606a"


def draw_samples(path: str, samples: Sequence[dict], before: Sequence[str], title: str) -> None:
    """Writes a PNG.

    Args:
      path: the file.
      samples: `Result.samples` with an `image`, float32 [height, width, 1 or 3] in [-1, 1].
      before: for each sample what the model said before it was trained.
      title: one line above all.
    """
    columns = 4
    rows = -(-len(samples) // columns)
    figure = Figure(figsize=(2.9 * columns, 2.15 * rows + 0.6), layout="constrained", dpi=110)
    figure.suptitle(title, fontsize=13, fontweight="bold")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axis in grid.flat:
        axis.set_axis_off()
    for axis, sample, old in zip(grid.flat, samples, before):
        image = (sample["image"] + 1) / 2
        axis.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(sample["inputs"], fontsize=10, color=GREY)
        right = sample["prediction"] == sample["target"]
        lines = [(f"after: {printable(sample['prediction'])}", GREEN if right else RED)]
        lines.append((f"before: {printable(old)}", GREY))
        if not right:
            lines.insert(1, (f"right: {sample['target']}", GREY))
        for i, (text, colour) in enumerate(lines):
            size = 12 if i == 0 else 10
            axis.text(0.5, -0.06 - 0.17 * i, text, transform=axis.transAxes, ha="center", va="top", fontsize=size,
                      color=colour, fontweight="bold" if i == 0 else "normal")  # fmt: skip
    with epath.Path(path).open("wb") as file:
        figure.savefig(file, format="png", bbox_inches="tight")
