"""Kills every command that writes, again and again: each must resume or start clean, and end with an undisturbed run's result.

    python -m benchmarks.soak [--kills 110] [--commands train,infer] [--seed 0] [--out runs/soak]

A kill is SIGKILL, SIGTERM or SIGINT at a random moment, or while the command is frozen at a random change of its folder, inside a
save; meanwhile a second process in the same folder must be refused. A rerun resumes the soak. The table is OUT/table.md.
"""

import argparse
import dataclasses
import os
import pathlib
import platform
import signal
import time
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from adalink_jax.files.json_lines import append_json, read_json_lines
from benchmarks.soak import inputs
from benchmarks.soak.episodes import Episode, Killer, undisturbed
from benchmarks.soak.jobs import JOBS, Job

HEADINGS = ("command", "kills", "inside a save", "by SIGKILL", "resumed", "started clean", "second refused", "same result",
            "longest restart, s")  # fmt: skip


def main() -> int:
    """Runs the soak; returns 1 if anything was wrong."""
    commands = tuple(dict.fromkeys(job.command for job in JOBS))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=110, help="in all (110)")
    parser.add_argument("--commands", default=",".join(commands), help="separated by commas; by default all")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/soak"))
    options = parser.parse_args()
    chosen = options.commands.split(",")
    if unknown := set(chosen) - set(commands):
        parser.error(f"--commands: there is no {', '.join(sorted(unknown))}; there are {', '.join(commands)}")
    out = options.out.resolve() / f"seed_{options.seed}"
    out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it starts with & ignore it
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(out / "cache"))
    console = Console()
    console.print(f"seed {options.seed}; {out}", soft_wrap=True)
    inputs.write(out / "inputs")
    record = out / "episodes.jsonl"
    done = [Episode(**row) for row in read_json_lines(record)]  # pyright: ignore[reportArgumentType]
    quotas = {
        name: options.kills * (i + 1) // len(chosen) - options.kills * i // len(chosen) for i, name in enumerate(chosen)
    }
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        counted = lambda: sum(min(len_kills(done, name), quotas[name]) for name in chosen)
        task = bar.add_task("kills", total=options.kills, completed=counted())
        for job, number in turns(done, quotas):
            bar.update(task, description=job.name)
            killer = Killer(job, undisturbed(job, out, out / "inputs"), out, out / "inputs", options.seed)
            episode = killer.episode(number, quotas[job.command] - len_kills(done, job.command))
            append_json(record, dataclasses.asdict(episode))  # pyright: ignore[reportArgumentType]
            done.append(episode)
            bar.update(task, completed=counted())
            if not console.is_terminal or episode.wrong:
                state = "; ".join(episode.wrong) or "the same result"
                console.print(
                    f"{counted()} of {options.kills}: {job.name} {number}, {len(episode.kills)} kills: {state}"
                )
    text = table([episode for episode in done if episode.command in chosen], chosen)
    (out / "table.md").write_text(text, encoding="utf-8")
    console.print(Markdown(text) if console.is_terminal else text, soft_wrap=True)
    return int(any(episode.wrong for episode in done))


def len_kills(episodes: Iterable[Episode], command: str) -> int:
    """The number of kills of a command."""
    return sum(len(episode.kills) for episode in episodes if episode.command == command)


def turns(done: Sequence[Episode], quotas: dict[str, int]) -> Iterator[tuple[Job, int]]:
    """The next episodes, of each command's jobs in turn, until each command has its number of kills; `done` grows meanwhile."""
    while short := [name for name in quotas if len_kills(done, name) < quotas[name]]:
        for name in short:
            jobs = [job for job in JOBS if job.command == name]
            earlier = sum(episode.command == name for episode in done)
            yield jobs[earlier % len(jobs)], earlier


def table(episodes: Sequence[Episode], commands: Sequence[str]) -> str:
    """One row per command, in Markdown."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|---|" + "---:|" * (len(HEADINGS) - 1)]
    rows = [(name, [episode for episode in episodes if episode.command == name]) for name in commands]
    for name, group in [*rows, ("all", episodes)]:
        kills = [kill for episode in group for kill in episode.kills]
        seconds = [kill["second"] for kill in kills if "second" in kill]
        resumed = sum(kill["found"] > 0 for kill in kills)
        cells = (
            name, len(kills), sum(kill["inside"] for kill in kills), sum(kill["signal"] == "SIGKILL" for kill in kills),
            resumed, len(kills) - resumed, f"{sum(status == 4 for status in seconds)} of {len(seconds)}",
            f"{sum(not episode.wrong for episode in group)} of {len(group)}",
            max((episode.restart_seconds for episode in group), default=0),
        )  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    wrong = [f"- {episode.job} {episode.number}: {'; '.join(episode.wrong)}" for episode in episodes if episode.wrong]
    import jax

    about = (
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, Python {platform.python_version()}, jax {jax.__version__}"
    )
    return "\n".join([*lines, "", about + ".", *(["", *wrong] if wrong else []), ""])


if __name__ == "__main__":
    raise SystemExit(main())
