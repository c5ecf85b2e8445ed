"""The report of a scaling study, from the results that were kept (see `study_folder`): what the data say, with intervals, whichever way."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from adalink_jax.errors import UserError
from adalink_jax.experiments.scaling.cell_folder import chosen_rate
from adalink_jax.reports import style
from adalink_jax.reports.fits import Runs, difference, mean, power_law, trend
from adalink_jax.reports.page import Part, Report, Table

OURS = "AdaLink"
FADED = ("--", ":", "-.")  # lines of all bases but the last, which has whole ones


def make(results: Sequence[Mapping], command: str, ours: str = OURS) -> Report:
    """The report.

    Args:
      results: of `read_results`.
      command: what shows the same again.
      ours: the method whose variants ("AdaLink, ...") are compared with it.

    Raises:
      UserError: if no run is finished, or runs of one base were made from several.
    """
    runs = Runs.of(results)
    if not runs.scores:
        raise UserError("No run of the study is finished: there is nothing to report.")
    _check_bases(results)
    reference = next(row["reference"] for row in results if row["stage"] == "runs")
    tuning = [row for row in results if row["stage"] == "tuning"]
    methods = runs.names(3)
    sizes_of = lambda method: {size for size, _, _, name in runs.scores if name == method}
    everywhere = [m for m in methods if sizes_of(m) >= sizes_of(reference)]
    others = [m for m in methods if m != reference]
    variants = [m for m in methods if m.startswith(f"{ours}, ")]
    drawn = [m for m in everywhere if m not in variants]
    looks = _looks([*methods, *(row["method"] for row in tuning)])
    with style.applied():
        parts = [
            _scores(runs, everywhere, drawn, looks),
            _gaps(runs, others, [m for m in drawn if m != reference], reference, looks),
            _shrinks(runs, others, reference),
            _regimes(runs, others, reference),
            _power_laws(runs, everywhere),
            _variants(runs, ours, variants),
            _trained(runs, methods, looks),
            _rates(tuning, looks),
            _carried(tuning),
            _bases(results),
            _everything(runs),
        ]
    count = sum(len(seeds) for seeds in runs.scores.values())
    versions = sorted({f"{name} {version}" for row in results for name, version in row["versions"].items()})
    axes = {"size": runs.names(0), "task": runs.metrics, "method": methods}
    counted = ", ".join(f"{len(names)} {axis}{'s' * (len(names) != 1)}" for axis, names in axes.items())
    summary = (
        f"{len(runs.scores)} packs, {count} runs, {counted}. Scores are measured once on test; steps and learning rates were chosen on validation. "
        f"Intervals are of 95 %. {', '.join(versions)}."
    )
    return Report("A scaling study", command, summary, [part for part in parts if part is not None])


def _check_bases(results: Sequence[Mapping]) -> None:
    """Differences are paired within a base, so all of its runs must have started from the same one."""
    found: dict[tuple, dict[str, Mapping]] = {}
    for row in results:
        if row["stage"] == "runs":
            found.setdefault((row["size"], row["regime"]), {})[row["base"]["fingerprint"]] = row
    for (size, regime), bases in found.items():
        if len(bases) > 1:
            told = " and ".join(f"{row['task']} by {row['method']}" for row in list(bases.values())[:2])
            raise UserError(
                f"The runs of {size}, {regime} were made from {len(bases)} bases ({told}), and cannot be compared; delete those of one."
            )


def _points(
    axis, sizes: Mapping[str, int], values: Mapping[str, Mapping[int, float]], shift: float, **style_of
) -> None:
    x = np.array([sizes[size] for size in values]) * (1 + shift)
    estimates = [mean(list(seeds.values())) for seeds in values.values()]
    y = np.array([estimate.value for estimate in estimates])
    around = np.array([[e.value - e.low, e.high - e.value] for e in estimates]).T
    axis.errorbar(x, y, yerr=np.nan_to_num(around), capsize=2, **style_of)


def _size_axis(axis, sizes: Mapping[str, int]) -> None:
    axis.set_xscale("log")
    axis.set_xticks(list(sizes.values()), list(sizes))
    axis.minorticks_off()
    axis.set_xlabel("parameters of the base")


def _looks(methods: Sequence[str]) -> dict[str, dict]:
    """Each method's colour and marker, the same in every figure; hollow markers where the colours begin again."""
    count = len(style.COLOURS)
    return {
        method: {"color": style.COLOURS[i % count], "marker": style.MARKERS[i % count]}
        | ({"markerfacecolor": "white"} if i >= count else {})
        for i, method in enumerate(dict.fromkeys(methods))
    }


def _per_task(runs: Runs, methods: Sequence[str], values, label, looks: Mapping[str, dict]):
    """A panel for each task, in it a line for each method and base; hollow markers are of all bases but the last."""
    tasks = list(runs.metrics)
    figure, axes = style.panels(len(tasks))
    regimes = runs.names(1)
    for task, axis in zip(tasks, axes):
        for i, method in enumerate(methods):
            for k, regime in enumerate(regimes):
                found = values(regime, task, method)
                if found:
                    of_base = (
                        {"linestyle": "-"}
                        if k == len(regimes) - 1
                        else {"linestyle": FADED[k % len(FADED)], "markerfacecolor": "white"}
                    )
                    _points(
                        axis, runs.sizes, found, 0.03 * (i - len(methods) / 2), label=f"{method}, {regime}", **looks[method] | of_base,
                    )  # fmt: skip
        shown = {size: n for size, n in runs.sizes.items() if any(key[0] == size for key in runs.scores)}
        _size_axis(axis, shown)
        axis.set(title=task, ylabel=style.upright(label(task)))
    style.legend(figure, axes)
    return figure


def _scores(runs: Runs, methods: Sequence[str], drawn: Sequence[str], looks: Mapping[str, dict]) -> Part:
    figure = _per_task(runs, drawn, runs.by_size, lambda task: f"{runs.metrics[task]} on test", looks)
    rows = [
        (task, regime, size, method, mean(list(scores.values())), len(scores))
        for (size, regime, task, method), scores in runs.scores.items()
        if method in methods
    ]
    columns = ("task", "base", "size", "method", "score on test", "seeds")
    text = "Means over the seeds and their intervals." + _left_out(methods, drawn)
    return Part("Score against size", text, Table(columns, rows), figure)


def _left_out(methods: Sequence[str], drawn: Sequence[str]) -> str:
    names = [method for method in methods if method not in drawn]
    return f" In the table alone: {'; '.join(names)}." if names else ""


def _gaps(runs: Runs, methods: Sequence[str], drawn: Sequence[str], reference: str, looks: Mapping[str, dict]) -> Part:
    values = lambda regime, task, method: runs.gaps(regime, task, method, reference)
    figure = _per_task(runs, drawn, values, lambda task: f"gap ({runs.metrics[task]})", looks)
    for axis in figure.axes:
        axis.axhline(0, color="black", linewidth=0.6)
    rows = [
        (task, regime, method, size, mean(list(gap.values()), signed=True))
        for task in runs.metrics
        for regime in runs.names(1)
        for method in methods
        for size, gap in values(regime, task, method).items()
    ]
    text = f"What a method lacks of {reference}, paired by seed; below zero it is ahead." + _left_out(methods, drawn)
    return Part(f"Gap to {reference}", text, Table(("task", "base", "method", "size", "gap"), rows), figure)


def _shrinks(runs: Runs, methods: Sequence[str], reference: str) -> Part | None:
    rows = []
    for task in runs.metrics:
        for regime in runs.names(1):
            for method in methods:
                gaps = runs.gaps(regime, task, method, reference)
                if (found := trend(runs, gaps)) is not None:
                    said = {1: "grows", -1: "shrinks", 0: "cannot be told"}[found.sign]
                    rows.append((task, regime, method, len(gaps), found, said))
    if not rows:
        return None
    text = (
        "The change of the gap for ten times the parameters: the slope of a line over the logarithm of the size, with "
        "Student's interval. It speaks of these sizes, not of larger ones."
    )
    columns = ("task", "base", "method", "sizes", "change of the gap", "with size the gap")
    return Part("Does the gap shrink with size?", text, Table(columns, rows))


def _regimes(runs: Runs, methods: Sequence[str], reference: str) -> Part | None:
    regimes = runs.names(1)
    if len(regimes) < 2:
        return None
    first, last = regimes[0], regimes[-1]
    rows = []
    for task in runs.metrics:
        for method in methods:
            before, after = (runs.gaps(regime, task, method, reference) for regime in (first, last))
            for size in runs.sizes:
                if size in before and size in after:
                    found = difference(after[size], before[size])
                    said = {1: "wider", -1: "narrower", 0: "cannot be told"}[found.sign]
                    rows.append((task, method, size, found, said))
    if not rows:
        return None
    text = f"The gap to {reference} from the base {last}, less that from {first}, paired by seed."
    return Part(
        f"Does the gap shrink from {first} to {last}?",
        text,
        Table(("task", "method", "size", "change of the gap", "it is"), rows),
    )


def _power_laws(runs: Runs, methods: Sequence[str]) -> Part | None:
    rows = []
    for task in runs.metrics:
        for regime in runs.names(1):
            for method in methods:
                errors = {
                    size: {seed: 1 - score for seed, score in scores.items()}
                    for size, scores in runs.by_size(regime, task, method).items()
                }
                if len(errors) < 3:
                    continue
                largest = list(errors)[-1]
                seen = {size: seeds for size, seeds in errors.items() if size != largest}
                whole, part = power_law(runs, errors), power_law(runs, seen, at=largest)
                if whole is None or part is None:
                    continue
                measured = mean(list(errors[largest].values()))
                apart = measured.low > part.predicted.high or measured.high < part.predicted.low
                exponent, predicted = (dataclasses.replace(x, signed=False) for x in (whole.exponent, part.predicted))
                said = "are apart" if apart else "overlap"
                rows.append((task, regime, method, exponent, round(whole.c, 3), largest, predicted, measured, said))
    if not rows:
        return None
    text = (
        "error = 1 - score = a N^-b + c, fitted to the means; the offset c is 0 where there are fewer than four sizes. The error of the largest "
        "size is predicted from the smaller ones alone, and compared with what was measured. Intervals of fits are those of the seeds: "
        "they know nothing of whether a power law is right, nor of bases trained with other seeds."
    )
    columns = (
        "task",
        "base",
        "method",
        "exponent b",
        "offset c",
        "predicted at",
        "error, predicted",
        "error, measured",
        "the intervals",
    )
    return Part("Power laws, and a prediction that was checked", text, Table(columns, rows))


def _variants(runs: Runs, ours: str, variants: Sequence[str]) -> Part | None:
    rows = []
    for (size, regime, task, method), scores in runs.scores.items():
        if method in variants and (usual := runs.scores.get((size, regime, task, ours))):
            found = difference(scores, usual)
            said = {1: "better", -1: "worse", 0: "cannot be told"}[found.sign]
            trained = [runs.trained[size, task, name] for name in (method, ours)]
            rows.append((method.removeprefix(f"{ours}, "), task, regime, size, *trained, found, said))
    if not rows:
        return None
    text = f"Each variant's score less that of {ours} as it is in the rest of the study, paired by seed, at the same learning rate."
    columns = ("variant", "task", "base", "size", "trained", f"{ours}'s", "difference", "it is")
    return Part("Ranks and modalities", text, Table(columns, sorted(rows, key=lambda row: (row[0], row[1]))))


def _trained(runs: Runs, methods: Sequence[str], looks: Mapping[str, dict]) -> Part:
    tasks = list(runs.metrics)
    figure, axes = style.panels(len(tasks))
    regime = runs.names(1)[-1]
    rows = []
    for task, axis in zip(tasks, axes):
        for method in methods:
            found = runs.by_size(regime, task, method)
            if not found:
                continue
            x = [runs.trained[size, task, method] for size in found]
            estimates = [mean(list(scores.values())) for scores in found.values()]
            axis.plot(x, [e.value for e in estimates], linestyle=":", linewidth=0.8, label=method, **looks[method])
            rows += [(task, method, size, n, e) for size, n, e in zip(found, x, estimates)]
        label = style.upright(f"{runs.metrics[task]} on test")
        axis.set(xscale="log", title=task, xlabel="trained parameters", ylabel=label)
    style.legend(figure, axes)
    text = f"On the base {regime}; the points of a method are its sizes."
    columns = ("task", "method", "size", "trained", "score on test")
    return Part("Score against trained parameters", text, Table(columns, rows), figure)


def _rates(tuning: Sequence[Mapping], looks: Mapping[str, dict]) -> Part | None:
    if not tuning:
        return None
    tasks = list(dict.fromkeys(row["task"] for row in tuning))
    sizes = list(dict.fromkeys(row["size"] for row in tuning))
    figure, axes = style.panels(len(tasks))
    rows = []
    dashes = dict(zip(sizes, itertools.cycle(("-", "--", ":", "-."))))
    for method in dict.fromkeys(row["method"] for row in tuning):
        axes[0].plot([], [], label=method, **looks[method])
    for size in sizes:
        axes[0].plot([], [], color="black", linestyle=dashes[size], label=size)
    for row in tuning:
        axis = axes[tasks.index(row["task"])]
        axis.plot(row["learning_rate"], row["validation"], linestyle=dashes[row["size"]], **looks[row["method"]])
        label = style.upright(f"{row['metric']} on validation")
        axis.set(xscale="log", title=row["task"], xlabel="learning rate", ylabel=label)
        rows += [
            (row["task"], row["method"], row["size"], rate, score)
            for rate, score in zip(row["learning_rate"], row["validation"])
        ]
    style.legend(figure, axes)
    columns = ("task", "method", "size", "learning rate", "score on validation")
    return Part("Sensitivity to the learning rate", "One seed each.", Table(columns, rows), figure)


def _carried(tuning: Sequence[Mapping]) -> Part | None:
    """What the learning rate of the smallest size would have lost at each other one."""
    smallest: dict[tuple, Mapping] = {}
    rows = []
    for row in tuning:
        first = smallest.setdefault((row["task"], row["method"], row["regime"]), row)
        rate, best = chosen_rate(first), chosen_rate(row)
        scores = dict(zip(row["learning_rate"], row["validation"]))
        if row is not first and rate in scores:
            lost = round(scores[best] - scores[rate], 4)
            rows.append((row["task"], row["method"], first["size"], rate, row["size"], best, scores[rate], scores[best], lost))  # fmt: skip
    if not rows:
        return None
    columns = (
        "task",
        "method",
        "smallest",
        "chosen there",
        "size",
        "chosen here",
        "score here with the smallest's",
        "with its own",
        "would be lost",
    )
    text = (
        "Every run has the learning rate that was chosen at its own size. Here: what a size would have lost with that of the smallest one. "
        "On validation, one seed; a difference of one seed may be noise."
    )
    return Part("Do learning rates carry over?", text, Table(columns, rows))


def _bases(results: Sequence[Mapping]) -> Part:
    rows = [
        (row["size"], row["regime"], row["parameters"], row["steps"], round(row["seconds"] / 60, 1))
        for row in sorted(results, key=lambda row: row.get("parameters", 0))
        if row["stage"] == "bases"
    ]
    return Part(
        "The bases",
        "Minutes are those of the last start alone, on the machine that trained them, other work included.",
        Table(("size", "base", "parameters", "steps", "minutes"), rows),
    )


def _everything(runs: Runs) -> Part:
    rows = [
        (task, regime, size, method, runs.trained[size, task, method], mean(list(scores.values())), len(scores))
        for (size, regime, task, method), scores in runs.scores.items()
    ]
    columns = ("task", "base", "size", "method", "trained", "score on test", "seeds")
    return Part("All scores", "", Table(columns, rows))
