"""The report of any folder of runs: a table, curves by step, time and FLOPs, a map of what was varied, sample predictions."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from matplotlib.figure import Figure

from adalink_jax.data.images import read_image
from adalink_jax.files.metric_log import has_metrics, read_metrics
from adalink_jax.files.places import path_of
from adalink_jax.files.typed_json import Form, read_state
from adalink_jax.reports import style
from adalink_jax.reports.page import Part, Report, Table
from adalink_jax.reports.results import DONE, Results, collect
from adalink_jax.reports.statistics import mean
from adalink_jax.training.confusion import OTHER
from adalink_jax.training.outputs import CONFUSION, PICTURE, SAMPLES, SUMMARY

BY = ("step", "minutes of steps (steps x median step time)", "TFLOPs of steps (their matrix products)")
CURVES = 7  # as many as there are colors


class _Sample(Form):
    inputs: str
    target: str
    before: str
    after: str


class _Samples(Form):
    """`samples.json`."""

    samples: list[_Sample]


def make(folder: str, command: str) -> Report:
    """Makes the report of all runs below `folder`.

    Raises:
      UserError: if there is no run.
    """
    results = collect(folder)
    scores = [name for name in results.metrics if name.startswith("test/")]
    with style.applied():
        parts = [
            _table(results, scores),
            _map(results, scores),
            _curves(folder, results),
            _samples(folder, results),
            _confusion(folder, results),
        ]
    summary = (
        f"{results.table.num_rows} runs below {folder}, {results.finished} finished. For runs with a metric, the step was chosen on "
        f"validation, and test was read once."
    )
    for note in filter(None, (results.untrained_note(), results.learned_note(), results.environments_note())):
        summary += f" {note}"
    return Report(f"Runs in {path_of(folder).name}", command, summary, [part for part in parts if part is not None])


def _table(results: Results, scores: Sequence[str]) -> Part:
    columns = results.summary_columns()
    rows = [[row[name] for name in columns] for row in results.table.select(columns).to_pylist()]
    text = ""
    if scores and (value := results.table[scores[0]]).null_count < len(value):
        text = f"The settings that differ, and the measurements; {scores[0]} is of the step with the best validation score."
    return Part("Runs", text, Table(columns, rows))


def _map(results: Results, scores: Sequence[str]) -> Part | None:
    """The first metric's mean over the two settings with the most values, seeds apart."""
    done = [row for row in results.table.to_pylist() if row["state"] == DONE]
    scores = [name for name in scores if any(row[name] is not None for row in done)]
    values = lambda name: list(dict.fromkeys(row[name] for row in done if row[name] is not None))
    varied = [name for name in results.differing() if "seed" not in name.lower() and len(values(name)) > 1]
    if len(varied) < 2 or not scores:
        return None
    across, down = sorted(varied, key=lambda name: -len(values(name)))[:2]
    columns, lines = (sorted(values(name), key=lambda x: (isinstance(x, str), x)) for name in (across, down))
    grid = np.full((len(lines), len(columns)), np.nan)
    rows = []
    for i, line in enumerate(lines):
        for j, column in enumerate(columns):
            cell = [row[scores[0]] for row in done if (row[down], row[across]) == (line, column)]
            if cell := [score for score in cell if score is not None]:
                grid[i, j] = np.mean(cell)
                rows.append((line, column, mean(cell), len(cell)))
    figure = _draw_map(grid, (down, lines), (across, columns), scores[0])
    table = Table((down, across, scores[0], "runs"), rows)
    return Part("Map of the sweep", "Means over all other settings.", table, figure)


def _draw_map(grid: np.ndarray, down: tuple[str, list], across: tuple[str, list], label: str) -> Figure:
    """Draws `grid`; `down` and `across` are each axis's name and values."""
    figure, [axis] = style.panels(1, columns=1, height=0.35 * len(down[1]) + 1.2)
    low, high = np.nanmin(grid), np.nanmax(grid)
    low = low if low < high else high - 0.1  # of equal scores, matplotlib would draw a scale beyond them
    image = axis.imshow(grid, aspect="auto", cmap="cividis", vmin=low, vmax=high)
    axis.grid(False)
    shown = lambda values: [style.upright(str(value)) for value in values]
    axis.set_xticks(range(len(across[1])), shown(across[1]), rotation=30, ha="right")
    axis.set_yticks(range(len(down[1])), shown(down[1]))
    axis.set(xlabel=across[0], ylabel=style.upright(down[0]))
    middle = (low + high) / 2
    for i, j in np.argwhere(np.isfinite(grid)):
        color = "white" if grid[i, j] < middle else "black"
        axis.text(j, i, f"{grid[i, j]:.2f}", ha="center", va="center", color=color, fontsize=6)
    figure.colorbar(image, ax=axis, label=label)
    return figure


def _curves(folder: str, results: Results) -> Part | None:
    """The training loss and the first validation metric of the best runs, by step, by minutes and by FLOPs of steps."""
    rows, score = _best_first(results)
    chosen = [
        (row, read_metrics(inside if has_metrics(inside := path_of(folder) / row["run"]) else path_of(folder)))
        for row in rows[:CURVES]
    ]
    chosen = [(row, lines) for row, lines in chosen if lines]
    if not chosen:
        return None
    metrics = ["train/loss", *([score] if score else [])]
    metrics = [metric for metric in metrics if any(metric in line for _, lines in chosen for line in lines)]
    units = [(1, (row["step_seconds"] or 0) / 60, (row["step_flops"] or 0) / 1e12) for row, _ in chosen]
    measured = [j for j in range(len(BY)) if any(unit[j] for unit in units)]
    if not metrics:
        return None
    figure, axes = style.panels(len(measured) * len(metrics), columns=len(metrics))
    data = []
    for i, (row, lines) in enumerate(chosen):
        for k, metric in enumerate(metrics):
            points = [(line["step"], line[metric]) for line in lines if metric in line]
            data += [(row["run"], metric, step, value) for step, value in points]
            if not points:
                continue
            steps, values = np.array(points).T
            look: dict[str, Any] = {"color": style.COLOURS[i], "marker": style.MARKERS[i], "label": row["run"]}
            for place, j in enumerate(measured):
                if unit := units[i][j]:
                    axis = axes[place * len(metrics) + k]
                    axis.plot(steps * unit, values, markevery=max(1, len(steps) // 8), clip_on=False, **look)
    for axis, (j, metric) in zip(axes, itertools.product(measured, metrics)):
        axis.set(xlabel=BY[j], ylabel=style.upright(metric))
        style.within_shares(axis, metric)
    style.legend(figure, axes)
    text = f"The {len(chosen)} best by {score}." if score and len(rows) > CURVES else ""
    return Part("Curves", text, Table(("run", "metric", "step", "value"), data), figure)


def _best_first(results: Results) -> tuple[list[dict[str, Any]], str | None]:
    """All rows, the best by the first validation metric first, and the metric's column; unsorted and None without one."""
    score = next((name for name in results.metrics if name.startswith("validation/")), None)
    rows = results.table.to_pylist()
    if score is not None:
        rows.sort(key=lambda row: -np.inf if row[score] is None else row[score], reverse=True)
    return rows, score


def _folder_of(folder: str, row: dict[str, Any], file: str) -> epath.Path:
    """The folder of a row's run, below `folder` or `folder` itself: the one that has `file`."""
    inside = path_of(folder) / row["run"]
    return inside if (inside / file).exists() else path_of(folder)


def _samples(folder: str, results: Results) -> Part | None:
    """Predictions of the best run that has samples, with its picture if there are images."""
    rows, score = _best_first(results)
    if score is None:
        return None
    for row in rows:
        path = _folder_of(folder, row, SAMPLES)
        contents = None if row[score] is None else read_state(path / SAMPLES, _Samples)
        if contents is None:
            continue
        columns = ("inputs", "target", "before", "after")
        table = Table(columns, [[sample[name] for name in columns] for sample in contents["samples"]])
        pictures = {f"{row['run']}: {PICTURE}": read_image(str(path / PICTURE))} if (path / PICTURE).exists() else {}
        return Part("Sample predictions", f"On test, of {row['run']}, the best by {score}.", table, pictures=pictures)
    return None


def _confusion(folder: str, results: Results) -> Part | None:
    """The confusion matrices of the best run that has any."""
    rows, score = _best_first(results)
    if score is None:
        return None
    for row in rows:
        path = _folder_of(folder, row, SUMMARY)
        pictures = sorted(path.glob(f"{CONFUSION}*.png"), key=str) if row[score] is not None else []
        if pictures:
            shown = {f"{row['run']}: {picture.name}": read_image(str(picture)) for picture in pictures}
            text = f"On test, of {row['run']}, the best by {score}. `{OTHER}` counts answers that are not the name of a class."
            return Part("Confusion matrix", text, pictures=shown)
    return None
