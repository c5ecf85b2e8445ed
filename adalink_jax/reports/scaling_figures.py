"""The figures of a scaling study: scores and gaps against size, trained parameters, learning rates."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adalink_jax.experiments.scaling.cell_folder import trials
from adalink_jax.reports import style
from adalink_jax.reports.fits import BySize
from adalink_jax.reports.statistics import mean
from adalink_jax.reports.study_runs import StudyRuns

FADED = ("--", ":", "-.")  # lines of all bases but the last, whose lines are solid
Looks = Mapping[str, Mapping[str, Any]]  # method -> arguments of matplotlib's lines


def looks_of(methods: Sequence[str]) -> Looks:
    """Each method's color and marker, the same in every figure; hollow markers once the colors repeat."""
    count = len(style.COLOURS)
    return {
        method: {"color": style.COLOURS[i % count], "marker": style.MARKERS[i % count]}
        | ({"markerfacecolor": "white"} if i >= count else {})
        for i, method in enumerate(dict.fromkeys(methods))
    }


def against_size(
    runs: StudyRuns,
    methods: Sequence[str],
    values: Callable[[str, str, str], BySize],
    label: Callable[[str], str],
    looks: Looks,
) -> Figure:
    """Draws a panel per task, with a line per method and base; markers are hollow for all bases but the last.

    Args:
      runs: of the study.
      methods: to draw.
      values: (task, regime, method) -> size -> seed -> value.
      label: task -> label of the y axis.
      looks: of the methods.
    """
    figure, axes = style.panels(len(runs.metrics))
    drawn_sizes = {size: n for size, n in runs.sizes.items() if any(key[0] == size for key in runs.scores)}
    for task, axis in zip(runs.metrics, axes):
        for i, method in enumerate(methods):
            for k, regime in enumerate(runs.regimes):
                last = k == len(runs.regimes) - 1
                base_look = (
                    {"linestyle": "-"} if last else {"linestyle": FADED[k % len(FADED)], "markerfacecolor": "white"}
                )
                if by_size := values(task, regime, method):
                    look = {**looks[method], **base_look, "label": f"{method}, {regime}"}
                    _draw_means(axis, runs, by_size, shift=0.03 * (i - len(methods) / 2), look=look)
        axis.set_xscale("log")
        axis.set_xticks(list(drawn_sizes.values()), list(drawn_sizes))
        axis.minorticks_off()
        axis.set(title=task, xlabel="parameters of the base", ylabel=style.upright(label(task)))
    style.legend(figure, axes)
    return figure


def _draw_means(axis: Axes, runs: StudyRuns, by_size: BySize, shift: float, look: Mapping[str, Any]) -> None:
    """Draws means and intervals; `shift` keeps the bars of several methods apart."""
    x = np.array([runs.sizes[size] for size in by_size]) * (1 + shift)
    estimates = [mean(list(seeds.values())) for seeds in by_size.values()]
    bars = np.array([[e.value - e.low, e.high - e.value] for e in estimates]).T
    axis.errorbar(x, [e.value for e in estimates], yerr=np.nan_to_num(bars), capsize=2, **look)


def against_trained(runs: StudyRuns, methods: Sequence[str], looks: Looks) -> Figure:
    """Draws a panel per task: scores against trained parameters, on the last base."""
    figure, axes = style.panels(len(runs.metrics))
    for task, axis in zip(runs.metrics, axes):
        for method in methods:
            if by_size := runs.by_size(task, runs.regimes[-1], method):
                x = [runs.trained[size, task, method] for size in by_size]
                y = [mean(list(scores.values())).value for scores in by_size.values()]
                axis.plot(x, y, linestyle=":", linewidth=0.8, label=method, **looks[method])
        label = style.upright(f"{runs.metrics[task]} on test")
        axis.set(xscale="log", title=task, xlabel="trained parameters", ylabel=label)
        style.within_shares(axis, runs.metrics[task])
    style.legend(figure, axes)
    return figure


def against_rate(tuning: Sequence[Mapping[str, Any]], looks: Looks) -> Figure:
    """Draws a panel per task: the validation score against the learning rate, for each method and size."""
    tasks, sizes, methods = (list(dict.fromkeys(row[name] for row in tuning)) for name in ("task", "size", "method"))
    figure, axes = style.panels(len(tasks))
    dashes = dict(zip(sizes, itertools.cycle(("-", "--", ":", "-."))))
    for method in methods:
        axes[0].plot([], [], label=method, **looks[method])
    for size in sizes:
        axes[0].plot([], [], color="black", linestyle=dashes[size], label=size)
    for row in tuning:
        axis = axes[tasks.index(row["task"])]
        rates, scores = zip(*((trial.learning_rate, trial.mean) for trial in trials(row).trials))
        axis.plot(rates, scores, linestyle=dashes[row["size"]], **looks[row["method"]])
        label = style.upright(f"{row['metric']} on validation")
        axis.set(xscale="log", title=row["task"], xlabel="learning rate", ylabel=label)
    for axis, task in zip(axes, tasks):
        style.within_shares(axis, next(row["metric"] for row in tuning if row["task"] == task))
    style.legend(figure, axes)
    return figure
