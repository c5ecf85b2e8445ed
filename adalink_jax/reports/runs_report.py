"""The report of any folder of runs: their table, curves by step, time and FLOPs, a map of what was varied, sample predictions."""

import json
from collections.abc import Sequence

import numpy as np
from etils import epath

from adalink_jax.files.whole_file import read_json
from adalink_jax.reports import style
from adalink_jax.reports.fits import mean
from adalink_jax.reports.page import Part, Report, Table
from adalink_jax.reports.results import DONE, Results, collect
from adalink_jax.training.outputs import PICTURE, SAMPLES

BY = ("step", "minutes of steps (steps x median step time)", "TFLOPs of steps (their matrix products)")
CURVES = 7  # more lines than colours cannot be told apart


def make(folder: str, command: str) -> Report:
    """The report of all runs below `folder`.

    Raises:
      UserError: if there is none.
    """
    found = collect(folder)
    scored = [name for name in found.metrics if name.startswith("test/")]
    with style.applied():
        parts = [_table(found, scored), _map(found, scored), *_curves(folder, found), _samples(folder, found)]
    done = sum(state == DONE for state in found.table["state"].to_pylist())
    summary = f"{found.table.num_rows} runs below {folder}, {done} finished. Where there is a metric, the step was chosen on validation, and test was read once."
    return Report(f"Runs in {epath.Path(folder).name}", command, summary, [part for part in parts if part is not None])


def _table(found: Results, scored: Sequence[str]) -> Part:
    measured = [name for name in (*found.metrics, "trained", "step", "steps", "seconds", "step_seconds", "step_flops")
                if found.table[name].null_count < found.table.num_rows]  # fmt: skip
    columns = ["run", "state", *found.differing(), *measured]
    rows = [[row[name] for name in columns] for row in found.table.select(columns).to_pylist()]
    best = ""
    if scored and (value := found.table[scored[0]]).null_count < len(value):
        best = f"The settings that differ, and what was measured; {scored[0]} is that of the step that was best on validation."
    return Part("Runs", best, Table(columns, rows))


def _map(found: Results, scored: Sequence[str]) -> Part | None:
    """The first metric's mean over the two settings that were varied most, but for seeds."""
    done = [row for row in found.table.to_pylist() if row["state"] == DONE]
    scored = [name for name in scored if any(row[name] is not None for row in done)]
    values = lambda name: list(dict.fromkeys(row[name] for row in done if row[name] is not None))
    varied = [name for name in found.differing() if "seed" not in name.lower() and len(values(name)) > 1]
    if len(varied) < 2 or not scored:
        return None
    across, down = sorted(varied, key=lambda name: -len(values(name)))[:2]
    order = lambda name: sorted(values(name), key=lambda x: (isinstance(x, str), x))
    grid = np.full((len(order(down)), len(order(across))), np.nan)
    rows = []
    for i, one in enumerate(order(down)):
        for j, other in enumerate(order(across)):
            scores = [
                row[scored[0]]
                for row in done
                if (row[down], row[across]) == (one, other) and row[scored[0]] is not None
            ]
            if scores:
                grid[i, j] = np.mean(scores)
                rows.append((one, other, mean(scores), len(scores)))
    figure, [axis] = style.panels(1, columns=1, height=0.35 * len(order(down)) + 1.2)
    image = axis.imshow(grid, aspect="auto", cmap="cividis")
    axis.grid(False)
    axis.set_xticks(range(len(order(across))), order(across), rotation=30, ha="right")
    axis.set_yticks(range(len(order(down))), order(down))
    axis.set(xlabel=across, ylabel=down)
    middle = np.nanmean([np.nanmin(grid), np.nanmax(grid)])
    for (i, j), value in np.ndenumerate(grid):
        if np.isfinite(value):
            axis.text(
                j, i, f"{value:.2f}", ha="center", va="center", color="white" if value < middle else "black", fontsize=6
            )
    figure.colorbar(image, ax=axis, label=scored[0])
    return Part(
        "Map of the sweep",
        "Means over all else that was varied.",
        Table((down, across, scored[0], "runs"), rows),
        figure,
    )


def _curves(folder: str, found: Results) -> list[Part]:
    """The training loss and the first validation metric of the best runs, by step, by minutes and by FLOPs of steps."""
    scored = [name for name in found.metrics if name.startswith("validation/")]
    rows = found.table.to_pylist()
    if scored:
        rows = sorted(rows, key=lambda row: -np.inf if row[scored[0]] is None else row[scored[0]], reverse=True)
    chosen = [(row["run"], _metrics(folder, row["run"])) for row in rows[:CURVES]]
    chosen = [(name, lines) for name, lines in chosen if lines]
    wanted = ["train/loss", *scored[:1]]
    of_step = {row["run"]: (1, (row["step_seconds"] or 0) / 60, (row["step_flops"] or 0) / 1e12) for row in rows}
    if not chosen:
        return []
    figure, axes = style.panels(len(BY) * len(wanted), columns=len(wanted))
    data = []
    for i, (name, lines) in enumerate(chosen):
        for k, metric in enumerate(wanted):
            points = [(line["step"], line[metric]) for line in lines if metric in line]
            data += [(name, metric, step, value) for step, value in points]
            if not points:
                continue
            steps, values = np.array(points).T
            look = {
                "color": style.COLOURS[i],
                "marker": style.MARKERS[i],
                "markevery": max(1, len(steps) // 8),
                "label": name,
            }
            for j, each in enumerate(of_step[name]):
                if each:
                    axes[j * len(wanted) + k].plot(steps * each, values, **look)
    for k, metric in enumerate(wanted):
        for j, label in enumerate(BY):
            axes[j * len(wanted) + k].set(xlabel=label, ylabel=metric)
    style.legend(figure, axes)
    text = f"The {len(chosen)} best by {scored[0]}." if scored and len(rows) > CURVES else ""
    return [Part("Curves", text, Table(("run", "metric", "step", "value"), data), figure)]


def _metrics(folder: str, run: str) -> list[dict]:
    path = next((p for p in (epath.Path(folder) / run, epath.Path(folder)) if (p / "metrics.jsonl").exists()), None)
    if path is None:
        return []
    lines = []
    for line in (path / "metrics.jsonl").read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:  # the last may have been cut short by a kill
            break
    return lines


def _samples(folder: str, found: Results) -> Part | None:
    """Predictions of the best run that has some, and its picture; of what has no images the texts alone."""
    scored = [name for name in found.metrics if name.startswith("validation/")]
    rows = [row for row in found.table.to_pylist() if scored and row[scored[0]] is not None]
    for row in sorted(rows, key=lambda row: -row[scored[0]]):
        path = next((p for p in (epath.Path(folder) / row["run"], epath.Path(folder)) if (p / SAMPLES).exists()), None)
        said = None if path is None else read_json(path / SAMPLES)
        if said is None:
            continue
        columns = ("inputs", "target", "before", "after")
        table = Table(columns, [[sample[name] for name in columns] for sample in said["samples"]])
        pictures = {f"{row['run']}: {PICTURE}": (path / PICTURE).read_bytes()} if (path / PICTURE).exists() else {}
        return Part(
            "Sample predictions", f"On test, of {row['run']}, the best by {scored[0]}.", table, pictures=pictures
        )
    return None
