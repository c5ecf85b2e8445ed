"""The pictures of `compare` and `report`: nothing is cut off, no panel is empty, no axis of shares ends beyond 1."""

import dataclasses
import json

import numpy as np
import pytest
from etils import epath
from matplotlib.figure import Figure
from test_results import write_run

from adalink_jax.cli.main import main
from adalink_jax.experiments.comparisons.compare import Compared, Row
from adalink_jax.reports import comparison_report, runs_report

LONG = "AdaLink of rank 64 on the texts and the pictures, started from the vocabulary and trained with another schedule"


def inside(figure):
    """Whether all that is drawn is inside the figure."""
    figure.draw_without_rendering()
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    return drawn.x0 > -0.02 and drawn.y0 > -0.02 and drawn.x1 < width + 0.02 and drawn.y1 < height + 0.02


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved as files."""
    saved = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **how: (saved.append(self), save(self, *args, **how))[1])
    return saved


def test_a_comparison_with_long_names_and_scores_near_1(tmp_path, figures):
    row = Row(LONG, 0.1, 5, None, 4096, (0.999, 1.0, 0.99), (1.0, 1.0, 0.97), (10, 10, 10), 0.1, 10, 10)
    rows = (row, dataclasses.replace(row, name="LoRA"))
    compared = Compared(rows, "task_" * 30, "accuracy", 400, (0, 1, 2))
    comparison_report.draw(epath.Path(tmp_path / "comparison.png"), compared)
    [figure] = figures
    assert inside(figure) and figure.axes[0].get_xlim()[1] == 1.0
    comparison_report.draw(epath.Path(tmp_path / "other.png"), dataclasses.replace(compared, metric="cider"))
    assert figures[-1].axes[0].get_xlim()[1] > 1.0


def test_the_scores_of_a_study_end_at_1():
    from test_scaling import report_of

    near_1 = lambda n, regime, method: 0.995
    figures = {part.title: part.figure for part in report_of(near_1, noise=0.02).parts if part.figure is not None}
    for title in ("Score against size", "Score against trained parameters", "Sensitivity to the learning rate"):
        assert [axis.get_ylim()[1] <= 1.0 for axis in figures[title].axes] == [True] * len(figures[title].axes), title
    assert figures["Gap to full fine-tuning"].axes[0].get_ylim()[0] < 0


@pytest.mark.parametrize("timed", [True, False])
def test_a_report_of_runs_with_long_names(tmp_path, timed):
    for rate in (0.1, 0.01):
        for rank in (1, 4):
            folder = tmp_path / "runs" / f"{'_'.join(LONG.split())}_rank_{rank}_rate_{rate}"
            settings = {"AdaLinkAdapter.rank": str(rank), "LEARNING_RATE": str(rate), "KINDS": f"{LONG!r}"}
            more = {} if timed else {"step_seconds": None, "step_flops": None}
            write_run(folder, rank=rank, seed=0, accuracy=1.0, sweep=False, settings=settings, **more)
            lines = [{"step": i, "validation/accuracy": min(1.0, i / 5), "train/loss": 1 / i} for i in range(1, 9)]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = runs_report.make(str(tmp_path / "runs"), "adalink report")
    curves = next(part.figure for part in page.parts if part.title == "Curves")
    assert all(inside(part.figure) for part in page.parts if part.figure is not None)
    assert len(curves.axes) == (6 if timed else 2) and all(axis.lines for axis in curves.axes)
    of_scores = [axis for axis in curves.axes if "accuracy" in axis.get_ylabel()]
    assert of_scores and all(axis.get_ylim()[1] == 1.0 for axis in of_scores)
    assert np.max([axis.get_ylim()[1] for axis in curves.axes]) > 1.0  # the loss
    argv = ["report", str(tmp_path / "runs"), "--out", str(tmp_path / "page.html"), "--figures", str(tmp_path / "f")]
    assert main(argv) == 0 and (tmp_path / "f" / "curves.pdf").exists()
