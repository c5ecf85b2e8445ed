"""The command: `python -m fuzz`."""

import argparse
import pathlib
import sys
import tempfile
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from fuzz import outcomes
from fuzz.engine import Limits, Tally, fuzz
from fuzz.page import write_page
from fuzz.targets import TARGETS


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    out = argparse.ArgumentParser(prog="python -m fuzz", description=sys.modules["fuzz"].__doc__.split("\n")[0])
    out.add_argument("--inputs", type=int, default=3100, help="number of inputs in all (3100)")
    out.add_argument("--seed", type=int, default=0, help="seed of the inputs (0)")
    out.add_argument("--kinds", help=f"some of: {', '.join(TARGETS)}")
    out.add_argument("--workers", type=int, default=2, help="processes that run inputs (2)")
    out.add_argument("--seconds", type=float, default=10, help="the most seconds of one input (10)")
    out.add_argument("--megabytes", type=float, default=2000, help="the most memory of one input (2000)")
    out.add_argument("--only", type=int, metavar="N", help="run the input of this number alone")
    out.add_argument("--out", type=pathlib.Path, help="a new folder for failing inputs; by default a temporary one")
    out.add_argument("--page", type=pathlib.Path, metavar="FILE.md", help="write the counts there")
    return out


def shares(inputs: int, kinds: list[str]) -> dict[str, int]:
    """The number of inputs of each kind."""
    total = sum(TARGETS[kind].share for kind in kinds)
    return {kind: max(1, round(inputs * TARGETS[kind].share / total)) for kind in kinds}


def table(tally: Tally, kinds: list[str]) -> list[list[str]]:
    """The counts, a row per kind of input, with a heading and a last row of sums."""
    columns = [name for name in outcomes.ALL if tally.of(name) or name in outcomes.FAILURES]
    rows = [["input", *columns, "inputs", "longest, s", "largest, MB"]]
    for kind in kinds:
        counts = [tally.counts[kind, name] for name in columns]
        rows.append(
            [
                kind,
                *map(str, counts),
                str(sum(counts)),
                f"{tally.slowest.get(kind, 0):.1f}",
                f"{tally.largest.get(kind, 0):.0f}",
            ]
        )
    sums = [tally.of(name) for name in columns]
    rows.append(["all", *map(str, sums), str(sum(sums)), f"{max(tally.slowest.values(), default=0):.1f}",
                 f"{max(tally.largest.values(), default=0):.0f}"])  # fmt: skip
    return rows


def main() -> int:
    """Runs the inputs, prints the counts and where failing inputs are; returns 1 if there are any."""
    options = parser().parse_args()
    kinds = [kind.strip() for kind in options.kinds.split(",")] if options.kinds else list(TARGETS)
    if unknown := [kind for kind in kinds if kind not in TARGETS]:
        sys.exit(f"There is no kind {unknown[0]!r}; there are: {', '.join(TARGETS)}.")
    out = options.out or pathlib.Path(tempfile.mkdtemp(prefix="adalink-fuzz-"))
    counts, began = shares(options.inputs, kinds), time.monotonic()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:
        task = bar.add_task("inputs", total=1 if options.only is not None else sum(counts.values()))
        failures = 0

        def on_outcome(kind: str, number: int, outcome: outcomes.Outcome) -> None:
            nonlocal failures
            failures += outcome.is_failure
            bar.update(task, advance=1, description=f"{kind}, {failures} failures")

        tally = fuzz(
            "fuzz.targets", counts, options.seed, out, workers=options.workers,
            limits=Limits(options.seconds, options.megabytes), on_outcome=on_outcome, only=options.only,
        )  # fmt: skip
    rows = table(tally, kinds)
    shown = Table(*rows[0])
    for row in rows[1:]:
        shown.add_row(*row)
    console = Console(width=200)
    console.print(shown)
    for (kind, outcome, detail), count in tally.causes.most_common():
        folder = tally.kept.get((kind, outcome, detail))
        console.print(f"{count} x {kind}: {outcome}, {detail} ({folder})", markup=False, soft_wrap=True)
    if options.page:
        write_page(options.page, rows, tally, options, time.monotonic() - began)
    return int(tally.of(*outcomes.FAILURES) > 0)


if __name__ == "__main__":
    sys.exit(main())
