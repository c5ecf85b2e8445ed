"""The report of a scaling study, from its result files (see `cell_folder`): every finding with its interval."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from adalink_jax.errors import UserError
from adalink_jax.experiments.scaling.cell_folder import trials
from adalink_jax.reports import scaling_figures, style
from adalink_jax.reports.fits import power_law, trend
from adalink_jax.reports.page import Part, Report, Table
from adalink_jax.reports.scaling_figures import Looks
from adalink_jax.reports.statistics import INCONCLUSIVE, Estimate, difference, mean
from adalink_jax.reports.study_runs import StudyRuns
from adalink_jax.training.segments import environment_note

MAIN_METHOD = "AdaLink"
ONE_BASE = (
    "There is one base per size, and seeds vary the adapter, not the base: a base's luck is not in the intervals, and a trend "
    "may come from it."
)
Results = Sequence[Mapping[str, Any]]


def make(results: Results, command: str, main_method: str = MAIN_METHOD) -> Report:
    """Makes the report.

    Args:
      results: from `read_results`.
      command: reproduces the report.
      main_method: the method that is compared with its variants ("AdaLink, ...").

    Raises:
      UserError: if no run is finished, or runs of one base started from several.
    """
    runs = StudyRuns.of(results)
    if not runs.scores:
        raise UserError("No run of the study is finished: there is nothing to report.")
    _check_bases(results)
    reference = next(row["reference"] for row in results if row["stage"] == "runs")
    tuning = [row for row in results if row["stage"] == "tuning"]
    sizes_of = lambda method: {size for size, _, _, name in runs.scores if name == method}
    complete = [method for method in runs.methods if sizes_of(method) >= sizes_of(reference)]
    others = [method for method in runs.methods if method != reference]
    variants = [method for method in runs.methods if method.startswith(f"{main_method}, ")]
    drawn = [method for method in complete if method not in variants]
    looks = scaling_figures.looks_of([*runs.methods, *(row["method"] for row in tuning)])
    with style.applied():
        parts = [
            _scores(runs, complete, drawn, looks),
            _gaps(runs, others, [method for method in drawn if method != reference], reference, looks),
            _trends(runs, others, reference),
            _regimes(runs, others, reference),
            _power_laws(runs, complete),
            _variants(runs, main_method, variants),
            _trained(runs, looks),
            _rates(tuning, looks),
            _carried_rates(tuning),
            _bases(results),
            _all_scores(runs),
        ]
    return Report("A scaling study", command, _summary(results, runs), [part for part in parts if part is not None])


def _summary(results: Results, runs: StudyRuns) -> str:
    axes = {"size": {size for size, *_ in runs.scores}, "task": runs.metrics, "method": runs.methods}
    counts = ", ".join(f"{len(names)} {axis}{'s' * (len(names) != 1)}" for axis, names in axes.items())
    versions = sorted({f"{name} {version}" for row in results for name, version in row["versions"].items()})
    return (
        f"{len(runs.scores)} packs, {sum(map(len, runs.scores.values()))} runs, {counts}. Scores are measured once on test; steps and "
        "learning rates were chosen on validation. Intervals are 95 % confidence intervals over the seeds; seeds that all "
        f"agree give no interval. {', '.join(versions)}."
    ) + (f" {warning}" if (warning := environment_note(results, "results")) else "")


def _check_bases(results: Results) -> None:
    """Refuses runs of one base that started from different parameters: differences are paired within a base."""
    bases: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in results:
        if row["stage"] == "runs":
            bases.setdefault((row["size"], row["regime"]), {})[row["base"]["fingerprint"]] = row
    for (size, regime), by_fingerprint in bases.items():
        if len(by_fingerprint) > 1:
            examples = " and ".join(f"{row['task']} by {row['method']}" for row in list(by_fingerprint.values())[:2])
            raise UserError(
                f"The runs of {size}, {regime} were made from {len(by_fingerprint)} bases ({examples}), and cannot be compared; "
                f"delete those of one."
            )


def _part(title: str, text: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Part | None:
    """A part with a table; None without rows."""
    return Part(title, text, Table(columns, rows)) if rows else None


def _scores(runs: StudyRuns, methods: Sequence[str], drawn: Sequence[str], looks: Looks) -> Part:
    figure = scaling_figures.against_size(
        runs, drawn, runs.by_size, lambda task: f"{runs.metrics[task]} on test", looks
    )
    for axis, metric in zip(figure.axes, runs.metrics.values()):
        style.within_shares(axis, metric)
    rows = [
        (task, regime, size, method, mean(list(scores.values())), len(scores))
        for (size, regime, task, method), scores in runs.scores.items()
        if method in methods
    ]
    columns = ("task", "base", "size", "method", "score on test", "seeds")
    return Part("Score against size", "Means over the seeds." + _omitted(methods, drawn), Table(columns, rows), figure)


def _omitted(methods: Sequence[str], drawn: Sequence[str]) -> str:
    names = [method for method in methods if method not in drawn]
    return f" Only in the table: {'; '.join(names)}." if names else ""


def _gaps(runs: StudyRuns, methods: Sequence[str], drawn: Sequence[str], reference: str, looks: Looks) -> Part:
    gaps = lambda task, regime, method: runs.gaps(task, regime, method, reference)
    figure = scaling_figures.against_size(runs, drawn, gaps, lambda task: f"gap ({runs.metrics[task]})", looks)
    for axis in figure.axes:
        axis.axhline(0, color="black", linewidth=0.6)
    rows = [
        (*line, size, mean(list(gap.values()), signed=True))
        for line in runs.lines(methods)
        for size, gap in gaps(*line).items()
    ]
    text = f"The score of {reference} less the method's, paired by seed; below zero the method is ahead. {ONE_BASE}"
    columns = ("task", "base", "method", "size", "gap")
    return Part(f"Gap to {reference}", text + _omitted(methods, drawn), Table(columns, rows), figure)


def _trends(runs: StudyRuns, methods: Sequence[str], reference: str) -> Part | None:
    rows = []
    for line in runs.lines(methods):
        gaps = runs.gaps(*line, reference)
        if (change := trend(runs.sizes, gaps)) is not None:
            rows.append((*line, len(gaps), change, change.verdict("grows", "shrinks")))
    text = (
        "The change of the gap per tenfold of the parameters: the slope of a line over the logarithm of the size. It holds for "
        "these sizes, and says nothing about larger ones. Intervals are Welch's and Satterthwaite's: each size has noise of its "
        f"own. {ONE_BASE}"
    )
    columns = ("task", "base", "method", "sizes", "change of the gap (seeds alone)", "with size the gap")
    return _part("Does the gap shrink with size?", text, columns, rows)


def _regimes(runs: StudyRuns, methods: Sequence[str], reference: str) -> Part | None:
    first, last = runs.regimes[0], runs.regimes[-1]
    if first == last:
        return None
    rows = []
    for task in runs.metrics:
        for method in methods:
            before, after = (runs.gaps(task, regime, method, reference) for regime in (first, last))
            for size in runs.sizes:
                if not before.get(size, {}).keys() & after.get(size, {}).keys():
                    continue
                change = difference(after[size], before[size])
                rows.append((task, method, size, change, change.verdict("wider", "narrower")))
    text = f"The gap to {reference} from the base {last}, less that from {first}, paired by seed. {ONE_BASE}"
    columns = ("task", "method", "size", "change of the gap (seeds alone)", "verdict")
    return _part(f"Does the gap shrink from {first} to {last}?", text, columns, rows)


def _power_laws(runs: StudyRuns, methods: Sequence[str]) -> Part | None:
    rows = []
    for line in runs.lines(methods):
        errors = {
            size: {seed: 1 - score for seed, score in scores.items()} for size, scores in runs.by_size(*line).items()
        }
        if len(errors) < 3:
            continue
        *smaller, largest = errors
        law = power_law(runs.sizes, errors)
        prediction = power_law(runs.sizes, {size: errors[size] for size in smaller}, at=largest)
        if law is None or prediction is None or prediction.predicted is None:
            continue
        measured = mean(list(errors[largest].values()))
        exponent, predicted = (dataclasses.replace(x, signed=False) for x in (law.exponent, prediction.predicted))
        rows.append((*line, exponent, round(law.c, 3), largest, predicted, measured, _overlap(predicted, measured)))
    text = (
        "error = 1 - score = a N^-b + c, fitted to the means; the offset c is 0 with fewer than four sizes. The error of the largest "
        "size is predicted from the smaller ones alone, and compared with the measurement. The intervals of fits are percentiles "
        f"over draws of each mean; they do not cover whether a power law is right. {ONE_BASE}"
    )
    columns = ("task", "base", "method", "exponent b", "offset c", "predicted at", "error, predicted", "error, measured",
               "the intervals")  # fmt: skip
    return _part("Power laws, and a prediction that was checked", text, columns, rows)


def _overlap(one: Estimate, other: Estimate) -> str:
    if math.isnan(one.low + other.low):
        return INCONCLUSIVE
    return "are disjoint" if one.low > other.high or one.high < other.low else "overlap"


def _variants(runs: StudyRuns, main_method: str, variants: Sequence[str]) -> Part | None:
    rows = []
    for (size, regime, task, method), scores in runs.scores.items():
        main_scores = runs.scores.get((size, regime, task, main_method), {})
        if method in variants and scores.keys() & main_scores.keys():
            change = difference(scores, main_scores)
            trained = [runs.trained[size, task, name] for name in (method, main_method)]
            variant = method.removeprefix(f"{main_method}, ")
            rows.append((variant, task, regime, size, *trained, change, change.verdict("better", "worse")))
    text = f"Each variant's score less that of {main_method} as in the rest of the study, paired by seed, at the same learning rate."
    columns = ("variant", "task", "base", "size", "trained", f"{main_method}'s", "difference", "verdict")
    return _part("Ranks and modalities", text, columns, sorted(rows, key=lambda row: (row[0], row[1])))


def _trained(runs: StudyRuns, looks: Looks) -> Part:
    regime = runs.regimes[-1]
    rows = [
        (task, method, size, runs.trained[size, task, method], mean(list(scores.values())))
        for task in runs.metrics
        for method in runs.methods
        for size, scores in runs.by_size(task, regime, method).items()
    ]
    text = f"On the base {regime}; the points of a method are its sizes."
    columns = ("task", "method", "size", "trained", "score on test")
    figure = scaling_figures.against_trained(runs, runs.methods, looks)
    return Part("Score against trained parameters", text, Table(columns, rows), figure)


def _rates(tuning: Results, looks: Looks) -> Part | None:
    if not tuning:
        return None
    rows = [
        (row["task"], row["method"], row["size"], trial.learning_rate, trial.mean)
        for row in tuning
        for trial in trials(row).trials
    ]
    table = Table(("task", "method", "size", "learning rate", "score on validation"), rows)
    return Part(
        "Sensitivity to the learning rate",
        f"{_of_seeds(tuning)} each.".capitalize(),
        table,
        scaling_figures.against_rate(tuning, looks),
    )


def _of_seeds(tuning: Results) -> str:
    fewest = min((len(trial.scores) for row in tuning for trial in trials(row).trials), default=1)
    return "one seed" if fewest == 1 else f"the mean of {fewest} seeds"


def _carried_rates(tuning: Results) -> Part | None:
    """What each size would lose with the learning rate of the smallest size."""
    smallest: dict[tuple[str, str, str], Mapping[str, Any]] = {}
    rows = []
    for row in tuning:
        first = smallest.setdefault((row["task"], row["method"], row["regime"]), row)
        rate, best = trials(first).learning_rate, trials(row).learning_rate
        scores = {trial.learning_rate: trial.mean for trial in trials(row).trials}
        if row is not first and rate in scores:
            loss = round(scores[best] - scores[rate], 4)
            rows.append((row["task"], row["method"], first["size"], rate, row["size"], best, scores[rate], scores[best], loss))  # fmt: skip
    text = (
        "Every run uses the learning rate chosen at its own size. This table shows what a size would lose with the rate of the "
        f"smallest one. On validation, with {_of_seeds(tuning)}, so a difference may be noise."
    )
    columns = ("task", "method", "smallest", "chosen there", "size", "chosen here", "score here with the smallest's",
               "with its own", "would be lost")  # fmt: skip
    return _part("Do learning rates carry over?", text, columns, rows)


def _bases(results: Results) -> Part:
    rows = [
        (row["size"], row["regime"], row["parameters"], row["steps"], round(row["seconds"] / 60, 1))
        for row in sorted(results, key=lambda row: row.get("parameters", 0))
        if row["stage"] == "bases"
    ]
    text = "Minutes count the last start only, on the machine that trained the base, which also did other work."
    return Part("The bases", text, Table(("size", "base", "parameters", "steps", "minutes"), rows))


def _all_scores(runs: StudyRuns) -> Part:
    rows = [
        (task, regime, size, method, runs.trained[size, task, method], mean(list(scores.values())), len(scores))
        for (size, regime, task, method), scores in runs.scores.items()
    ]
    columns = ("task", "base", "size", "method", "trained", "score on test", "seeds")
    return Part("All scores", "", Table(columns, rows))
