"""Compares one pack of 16 members with 16 sequential runs: `adalink pack` and `adalink train` as a user types them, including
start-up, compilation, evaluation and files.

    python benchmarks/pack.py [--steps 100] [--members 16] [--out runs/pack_benchmark]

AdaLink of rank 16 on `pali_nano_instruct` and `digits_reverse`, batches of 32, one seed per member. Prints both times, their ratio,
and the largest difference of the adapters. --out must be empty: nothing is resumed.
"""

import argparse
import pathlib
import subprocess
import sys
import time

import numpy as np
from rich.progress import track
from safetensors.numpy import load_file

COMMON = ["--gin_file=gin/models/pali_nano.gin", "--gin_file=gin/adapters/adalink.gin", "--gin_file=gin/tasks/digits.gin",
          "--gin.INITIAL_CHECKPOINT_PATH='bundled:pali_nano_instruct'", "--gin.MIXTURE_OR_TASK_NAME='digits_reverse'",
          "--gin.RANK=16", "--gin.BATCH_SIZE=32"]  # fmt: skip


def timed(command: str, *flags: str) -> float:
    """Runs one command; returns its seconds."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "adalink_jax", command, *COMMON, *flags], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stdout[-1000:] + done.stderr[-3000:])
    return time.perf_counter() - started


def main() -> None:
    """Times both, and compares the adapters."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/pack_benchmark"))
    options = parser.parse_args()
    if options.out.exists() and any(options.out.iterdir()):
        sys.exit(f"{options.out} is not empty; name another folder with --out.")
    seeds = tuple(range(options.members))
    steps = [f"--gin.TRAIN_STEPS={options.steps}", f"--gin.EVAL_PERIOD={options.steps}"]
    packed = timed("pack", *steps, f"--gin.SEEDS={seeds}", f"--gin.MODEL_DIR='{options.out}/pack'")
    alone, differences = 0.0, []
    for seed in track(seeds, "one after another"):
        folder = options.out / f"seed_{seed}"
        flags = [f"--gin.RANDOM_SEED={seed}", f"--gin.DATA_SEED={seed}", f"--gin.MODEL_DIR='{folder}'"]
        alone += timed("train", "--gin_file=gin/runs/finetune.gin", *steps, *flags)
        member = next((options.out / "pack" / "members").glob(f"*_seed_{seed}"))
        trees = [load_file(run / "adapter_last" / "adapter_model.safetensors") for run in (folder, member)]
        differences += [np.abs(trees[0][name] - trees[1][name]).max() for name in trees[0]]
    print(f"{options.members} runs of {options.steps} steps, one after another: {alone:.0f} s")
    print(f"one pack of {options.members}: {packed:.0f} s")
    print(f"{alone / packed:.1f} times as fast; the adapters differ by {max(differences):.0e} at most")


if __name__ == "__main__":
    main()
