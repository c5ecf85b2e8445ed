"""Start-up: `adalink --help`, the quickstart and T5 base on a table, on a warm compilation cache; and how long their steps wait for data."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from typing import Any

from benchmarks.speed_parts.work import Model

T5_BASE = Model(emb_dim=768, num_heads=12, mlp_dim=2048, layers=12)
TABLE = "text,label\n" + "".join(
    f"sentence number {i} is {('bad', 'good')[i % 2]},{('no', 'yes')[i % 2]}\n" for i in range(400)
)
COMMANDS = {
    "help": ("--help",),
    "quickstart": ("quickstart", "--model_dir", "{run}", "--gin.TRAIN_STEPS=60"),
    "T5 base": (
        "train", "--gin_file=gin/models/t5_1_1_base.gin", "--gin_file=gin/adapters/adalink.gin",
        "--gin_file=gin/tasks/files.gin", "--gin_file=gin/runs/finetune.gin", "--gin.MODEL_DIR='{run}'",
        "--gin.INITIAL_CHECKPOINT_PATH='{base}'", "--gin.DATA='{table}'", "--gin.MIXTURE_OR_TASK_NAME='rows'",
        "--gin.INPUTS='{{text}}'", "--gin.TARGETS='{{label}}'", "--gin.VOCABULARY='bytes'", "--gin.METRICS=('accuracy',)",
        "--gin.METRIC='accuracy'", "--gin.TASK_FEATURE_LENGTHS={{'inputs': 32, 'targets': 8}}", "--gin.BATCH_SIZE=8",
        "--gin.TRAIN_STEPS=10", "--gin.WARMUP_STEPS=1",
    ),
}  # fmt: skip
CACHED_FROM = "0"  # seconds of compilation: small programs too


def measure(name: str, out: pathlib.Path) -> dict[str, Any]:
    """The second of two runs of a command, which finds its programs in the cache.

    Returns:
      `seconds` of the process, its `phases` (rows of `--timings`), and `input_wait` of a training.
    """
    places = {
        "run": out.absolute() / "startup",
        "base": out.absolute() / "t5_base",
        "table": out.absolute() / "rows.csv",
    }
    places["table"].write_text(TABLE, encoding="utf-8")
    if name == "T5 base":
        from benchmarks.speed_parts.theirs import write_base

        write_base(T5_BASE, places["base"])
    file = out.absolute() / "timings.partial"
    env = {
        **os.environ, "JAX_COMPILATION_CACHE_DIR": str(out.absolute() / "compilation_cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": CACHED_FROM,
    }  # fmt: skip
    words = [word.format(**places) for word in COMMANDS[name]]
    timed = [] if name == "help" else [f"--timings={file}"]
    seconds = 0.0
    for _ in range(2):
        shutil.rmtree(places["run"], ignore_errors=True)
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "adalink_jax", *words, *timed], env=env, capture_output=True, text=True
        )
        seconds = time.perf_counter() - began
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
    facts: dict[str, Any] = {"command": name, "seconds": seconds}
    if timed:
        summary = json.loads((places["run"] / "summary.json").read_text(encoding="utf-8"))
        facts |= {"phases": json.loads(file.read_text(encoding="utf-8")), "input_wait": summary["input_wait"]}
        file.unlink()
    return facts
