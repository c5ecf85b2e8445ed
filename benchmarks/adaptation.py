"""Trains every adaptation task on both bundled bases, by AdaLink and by full fine-tuning; each cell is one `adalink train`.

    python benchmarks/adaptation.py [--out runs/adaptation] [--steps 400]

Finished cells are not run again. The learning rate of each method is chosen on *validation* of one task (digits_reverse on
pali_nano_instruct) from the same number of trials; test is scored once per cell. Writes `adaptation.md` and `adaptation.json` to --out.
"""

import argparse
import json
import pathlib
import subprocess
import sys

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from adalink_jax.data import digits

METHODS = {
    "AdaLink": ["--gin_file=gin/adapters/adalink.gin", "--gin.RANK=16"],
    "full fine-tuning": ["--gin_file=gin/adapters/full.gin"],
    "AdaLink, image only": ["--gin_file=gin/adapters/adalink.gin", "--gin.RANK=16", "--gin.KINDS=('image',)"],
    "AdaLink, text only": ["--gin_file=gin/adapters/adalink.gin", "--gin.RANK=16", "--gin.KINDS=('text',)"],
}
TRIALS = {"AdaLink": (0.003, 0.01, 0.03), "full fine-tuning": (0.0003, 0.001, 0.003)}
BASES = ("pali_nano_instruct", "pali_nano_raw")
TRIAL_CELL = ("pali_nano_instruct", "digits_reverse")


def train(folder: pathlib.Path, base: str, task: str, flags: list[str], steps: int, rate: float) -> dict:
    """Trains one cell; returns its summary."""
    if not (folder / "summary.json").exists():
        command = [
            sys.executable, "-m", "adalink_jax.train", "--gin_file=gin/models/pali_nano.gin",
            "--gin_file=gin/tasks/digits.gin", "--gin_file=gin/runs/finetune.gin", *flags,
            f"--gin.MODEL_DIR='{folder}'", f"--gin.INITIAL_CHECKPOINT_PATH='bundled:{base}'",
            f"--gin.MIXTURE_OR_TASK_NAME='{task}'", f"--gin.TRAIN_STEPS={steps}", f"--gin.LEARNING_RATE={rate}",
            "--gin.EVAL_PERIOD=100",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
    return json.loads((folder / "summary.json").read_text())


def best_validation(folder: pathlib.Path) -> float:
    """The best validation accuracy that a run logged after its first step."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return max(row["validation/accuracy"] for row in rows if "validation/accuracy" in row and row["step"])


def table(results: list[dict], rates: dict[str, float], steps: int) -> str:
    """The results as Markdown."""
    lines = [f"Accuracy on test (1,000 scenes), {steps} steps of 128, one seed.", ""]
    trials = ", ".join(f"{method} {rate:g} of {TRIALS[method]}" for method, rate in rates.items())
    lines += [f"Learning rates chosen on validation of `{TRIAL_CELL[1]}` on `{TRIAL_CELL[0]}`: {trials}.", ""]
    for base in BASES:
        lines += [f"### {base}", "", "| task | frozen | " + " | ".join(METHODS) + " |"]
        lines += ["|---|---|" + "---|" * len(METHODS)]
        for task in digits.ADAPTATION:
            row = {r["method"]: r for r in results if r["base"] == base and r["task"] == task}
            scores = [f"{row[m]['adapted']:.3f}" if m in row else "" for m in METHODS]
            lines.append(f"| {task} | {next(iter(row.values()))['frozen']:.3f} | " + " | ".join(scores) + " |")
        lines.append("")
    counts = {r["method"]: r["trainable"] for r in results}
    return "\n".join([*lines, "Trained parameters: " + ", ".join(f"{m} {n:,}" for m, n in counts.items()) + ".", ""])


def main() -> None:
    """Chooses the learning rates, trains every cell, writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/adaptation"))
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    out = options.out.resolve()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    cells = [(base, task, method) for method in METHODS for base in BASES for task in digits.ADAPTATION]
    with Progress(*columns) as progress:
        bar = progress.add_task("runs", total=sum(map(len, TRIALS.values())) + len(cells))
        rates = {}
        for method, trials in TRIALS.items():
            scores = {}
            for rate in trials:
                folder = out / "trials" / f"{method.replace(' ', '_')}-{rate:g}"
                train(folder, *TRIAL_CELL, METHODS[method], options.steps, rate)
                scores[rate] = best_validation(folder)
                progress.advance(bar)
            rates[method] = max(scores, key=scores.get)
        results = []
        for base, task, method in cells:
            progress.update(bar, description=f"{base} {task} {method}")
            rate = rates[method.split(",")[0]]
            folder = out / base / task / method.replace(", ", "-").replace(" ", "_")
            summary = train(folder, base, task, METHODS[method], options.steps, rate)
            results.append({
                "base": base, "task": task, "method": method, "learning_rate": rate, "seconds": summary["seconds"],
                "frozen": summary["frozen_accuracy"], "adapted": summary["adapted_accuracy"],
                "trainable": summary["trainable"],
            })  # fmt: skip
            progress.advance(bar)
    (out / "adaptation.json").write_text(
        json.dumps({"rates": rates, "steps": options.steps, "cells": results}, indent=1)
    )
    (out / "adaptation.md").write_text(table(results, rates, options.steps))
    print((out / "adaptation.md").read_text())


if __name__ == "__main__":
    main()
