"""The report of a comparison: Markdown, CSV and a plot."""

import dataclasses
import textwrap
from collections.abc import Sequence

import numpy as np
from etils import epath
from matplotlib.figure import Figure

from adalink_jax.experiments.comparisons.compare import Compared, Row
from adalink_jax.files.whole_file import write_text, writing
from adalink_jax.reports import style
from adalink_jax.reports.page import Table
from adalink_jax.reports.statistics import mean


def title(compared: Compared) -> str:
    """The line above the table."""
    seeds = f"{len(compared.seeds)} seeds, each for initialization, dropout and the order of the data"
    return f"{compared.task}: {compared.metric} on test ({seeds})"


def write(folder: epath.Path, compared: Compared) -> list[str]:
    """Writes the report; returns the names of its files."""
    write_text(folder / "comparison.md", f"{title(compared)}\n\n{markdown(compared)}")
    write_text(folder / "comparison.csv", as_csv(compared))
    draw(folder / "comparison.png", compared)
    return ["comparison.md", "comparison.csv", "comparison.png"]


def markdown(compared: Compared) -> str:
    """The table; its first row is the reference, and brackets hold 95 % intervals over the seeds."""
    rows, metric, steps = compared.rows, compared.metric, compared.steps
    first, plateaus = rows[0], all(row.plateau for row in rows)
    heading = ["method", "trained", "trials", "learning rate", f"{metric}, {steps} steps", f"less {first.name}, paired"]
    if plateaus:
        heading += [f"{metric} at its plateau", f"less {first.name}, paired", "steps to it"]
    heading += ["ms per step", "memory of a step, MB", "file, kB"]
    lines = ["| " + " | ".join(heading) + " |", "|---|" + "---:|" * (len(heading) - 1)]
    for row in rows:
        edge = f" ({row.edge} tried)" if row.edge else ""
        cells = [row.name, f"{row.trainable:,}", str(row.trials), f"{row.learning_rate:g}{edge}", str(mean(row.budget))]
        cells.append("" if row is first else _less(row.budget, first.budget))
        if plateaus:
            cells += [str(mean(row.plateau)), "" if row is first else _less(row.plateau, first.plateau)]
            cells.append(f"{np.mean(row.plateau_steps):.0f}")
        cells += [f"{1e3 * row.step_seconds:.1f}", f"{row.peak_bytes / 1e6:.1f}", f"{row.file_bytes / 1e3:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _less(values: Sequence[float], reference: Sequence[float]) -> str:
    return str(mean([a - b for a, b in zip(values, reference)], signed=True))


def as_csv(compared: Compared) -> str:
    """All numbers, one line per method, with one column per score and seed."""
    rows, seeds = compared.rows, compared.seeds
    plain = [
        field.name for field in dataclasses.fields(Row) if field.name not in ("budget", "plateau", "plateau_steps")
    ]
    per_seed = [name for name in ("budget", "plateau", "plateau_steps") if getattr(rows[0], name)]
    columns = [*plain, *(f"{name}_seed_{seed}" for name in per_seed for seed in seeds)]
    scores = lambda row: (value for name in per_seed for value in getattr(row, name))
    return Table(columns, [[*(getattr(row, name) for name in plain), *scores(row)] for row in rows]).csv()


def draw(path: epath.Path, compared: Compared) -> None:
    """Draws one line per method: each seed's score, the mean and its interval, at the budget and at the plateau."""
    rows = compared.rows
    names = [textwrap.fill(f"{row.name} ({row.trainable:,})", 36) for row in rows]
    title = textwrap.fill(compared.task, 60)
    lines = max(name.count("\n") + 1 for name in names)
    height = 1.6 + 0.2 * title.count("\n") + max(0.42, 0.2 * lines) * len(rows)
    figure = Figure(figsize=(7.5, height), layout="constrained", dpi=110)
    axis = figure.subplots()
    kinds = [("budget", "#1f6feb", -0.12), ("plateau", "#bf8700", 0.12)]
    for kind, colour, shift in kinds if all(row.plateau for row in rows) else kinds[:1]:
        for i, row in enumerate(rows):
            values = getattr(row, kind)
            estimate = mean(values)
            axis.plot(values, [i + shift] * len(values), "o", color=colour, alpha=0.35, markersize=4, clip_on=False)
            axis.plot([estimate.low, estimate.high], [i + shift] * 2, color=colour, linewidth=2)
            label = kind if i == 0 else None
            axis.plot([estimate.value], [i + shift], "|", color=colour, markersize=14, markeredgewidth=2, label=label)
    axis.set_yticks(range(len(rows)), names)
    axis.invert_yaxis()
    style.within_shares(axis, compared.metric, "x")
    axis.set(xlabel=f"{compared.metric} on test; each seed, their mean and its 95 % interval")
    figure.suptitle(title)
    axis.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)  # beside nothing that is drawn
    with writing(path) as file:
        figure.savefig(file, format="png")
