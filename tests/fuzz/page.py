"""The page of a run: counts, with the command, versions, machine and date."""

import argparse
import datetime
import importlib.metadata
import os
import pathlib
import platform
import re

from fuzz import outcomes
from fuzz.engine import Tally

_PACKAGES = ("jax", "orbax-checkpoint", "numpy", "pyarrow", "pillow", "pydantic", "hypothesis")
_TEXT = """# Bad input

<!-- not run: six minutes -->

    {command}

**{finding}**

Inputs are drawn by [hypothesis](https://hypothesis.readthedocs.io) from a seed: sound files with one to three edits (bits, cuts,
values of their JSON, sizes, names, pipes, links, devices, holes), tables written from random texts, archives and pictures with odd
members and sizes, wrong values of gin settings, and shell payloads in every value of every launcher, whose scripts run under fakes of
`gcloud`, `sbatch`, `srun`, `kubectl` and `adalink`. Each goes through a command in a process that is replaced if it dies.

| outcome | what it means |
|---|---|
| accepted, equal | the values are those that were written, or the command does what it did with the sound input |
| accepted, differs | nothing protects what was changed: no digest is stated, or it was made anew after the change |
| refused in one sentence | exit status 2; the sentence names the file or the setting, and what to do. For `adalink init` also 1: the task is written, with what a run will refuse |
| accepted though changed | a digest or a declared fact contradicts it, a row is lost, or a payload ran |
| refused unclearly | several lines, control characters, no name of the thing, no remedy, or another exit status |
| over its time, its memory | more than {seconds:g} s, more than {megabytes:,.0f} MB |

{counts}

{where}
"""


def write_page(
    path: pathlib.Path, rows: list[list[str]], tally: Tally, options: argparse.Namespace, seconds: float
) -> None:
    """Writes the page as Markdown."""
    failures, total = tally.of(*outcomes.FAILURES), tally.of(*outcomes.ALL)
    arguments = f"--inputs {options.inputs} --seed {options.seed}" + (
        f' --kinds "{options.kinds}"' if options.kinds else ""
    )
    finding = f"{total:,} inputs: " + (
        f"{failures:,} failed."
        if failures
        else "none was accepted though changed, none ended in a traceback or a hang."
    )
    line = lambda cells: f"| {' | '.join(cells)} |"
    counts = [line(rows[0]), "|---|" + "---:|" * (len(rows[0]) - 1), *map(line, rows[1:])]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    where = (
        f"{datetime.date.today()}, {platform.system()} on {platform.machine()}, {os.cpu_count()} CPUs ({_processor()}), Python "
        f"{platform.python_version()}, {versions}; {options.workers} worker{'s' * (options.workers > 1)}, {seconds / 60:.0f} minutes."
    )
    page = _TEXT.format(
        command=f'make fuzz FUZZ_ARGS="{arguments}"'.replace('"--kinds', '--kinds'), finding=finding, counts="\n".join(counts),
        where=where, seconds=options.seconds, megabytes=options.megabytes,
    )  # fmt: skip
    path.write_text(page, encoding="utf-8")


def _processor() -> str:
    text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    found = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return found[1] if found else platform.processor()
