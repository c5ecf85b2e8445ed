"""Kills one training run again and again: its final adapter must be bit-identical to that of an undisturbed run.

    python benchmarks/soak.py [--kills 50] [--out runs/soak] [--seed 0]

The run is `adalink quickstart` with a checkpoint every 12 steps and an evaluation every 18. Each start is killed (SIGKILL) at a
random moment after it has made progress; the next start resumes from what is on the disk. If a run ends before all kills are
spent, the next run begins in another folder. Prints what the killed runs were doing, and the time.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

from rich.progress import Progress

SETTINGS = {
    "TRAIN_STEPS": 240, "EVAL_PERIOD": 18, "CHECKPOINT_PERIOD": 12, "BATCH_SIZE": 40, "RANK": 4, "WARMUP_STEPS": 5,
}  # fmt: skip
LONGEST_SECONDS = 2.0  # from the first sign of progress to the kill


def start(model_dir: pathlib.Path, log: pathlib.Path) -> subprocess.Popen:
    """Starts or resumes the run."""
    flags = [f"--gin.MODEL_DIR='{model_dir}'", *(f"--gin.{name}={value}" for name, value in SETTINGS.items())]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(log.parent / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    with log.open("a", encoding="utf-8") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "adalink_jax", "quickstart", *flags], stdout=file, stderr=file,
            env={**os.environ, **cache},
        )  # fmt: skip


def steps(model_dir: pathlib.Path) -> list[int]:
    """Steps of the complete checkpoints."""
    folder = model_dir / "checkpoints"
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.exists() else []


def signs(model_dir: pathlib.Path) -> tuple:
    """What changes while a run makes progress."""
    metrics = model_dir / "metrics.jsonl"
    return steps(model_dir), metrics.stat().st_size if metrics.exists() else 0, (model_dir / "before.json").exists()


def fell_into(model_dir: pathlib.Path) -> str:
    """What a killed run was doing, by the files that it left."""
    for folder in (model_dir / "checkpoints", model_dir / "best"):
        if folder.exists() and any(not p.name.isdigit() for p in folder.iterdir()):
            return "a save"
    if not (model_dir / "before.json").exists():
        return "the first evaluations"
    rows = [line for line in (model_dir / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
    scored = {json.loads(row)["step"] for row in rows if "validation/" in row}
    newest = max(steps(model_dir), default=0)
    due = [step for step in range(0, newest + 12, SETTINGS["EVAL_PERIOD"]) if step not in scored]
    return "an evaluation" if due and due[0] <= newest else "a step"


def adapter(model_dir: pathlib.Path) -> bytes:
    """The bits of the final adapter."""
    return (model_dir / "adapter" / "adapter_model.safetensors").read_bytes()


def kill_once(model_dir: pathlib.Path, log: pathlib.Path, chance: random.Random) -> str | None:
    """Starts the run and kills it; returns what it was doing, or None if it ended first."""
    before, seen = signs(model_dir), steps(model_dir)
    process = start(model_dir, log)
    while process.poll() is None and signs(model_dir) == before:
        time.sleep(0.02)
    deadline = time.monotonic() + chance.uniform(0, LONGEST_SECONDS)
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
        process.wait()
    elif process.returncode:
        sys.exit(f"The run ended with status {process.returncode}:\n{log.read_text(encoding='utf-8')[-3000:]}")
    lost = max(seen, default=0) > max(steps(model_dir), default=0)
    if lost or "cannot be used" in log.read_text(encoding="utf-8"):
        sys.exit(
            f"A checkpoint was lost: {seen} before, {steps(model_dir)} after.\n{log.read_text(encoding='utf-8')[-3000:]}"
        )
    return None if process.returncode == 0 else fell_into(model_dir)


def main() -> None:
    """Kills and resumes runs, and compares their adapters."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/soak"))
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments of the kills")
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    chance, fell, runs, began = random.Random(options.seed), collections.Counter(), 0, time.monotonic()
    if start(options.out / "undisturbed", options.out / "undisturbed.log").wait():
        sys.exit((options.out / "undisturbed.log").read_text()[-3000:])
    with Progress() as bar:
        task = bar.add_task("kills", total=options.kills)
        while fell.total() < options.kills:
            model_dir, log = options.out / f"killed_{runs}", options.out / f"killed_{runs}.log"
            while fell.total() < options.kills and (into := kill_once(model_dir, log, chance)):
                fell[into] += 1
                bar.advance(task)
            if start(model_dir, log).wait():
                sys.exit(log.read_text()[-3000:])
            if adapter(model_dir) != adapter(options.out / "undisturbed"):
                sys.exit(f"{model_dir} ended with other bits than the undisturbed run.")
            runs += 1
    where = ", ".join(f"{count} in {what}" for what, count in fell.most_common())
    print(
        f"{fell.total()} kills of {runs} runs ({where}): every run ended with the bits of the undisturbed one, and no"
    )
    print(f"checkpoint was lost; {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
