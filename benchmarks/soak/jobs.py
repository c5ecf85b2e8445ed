"""The jobs that the soak kills: for each, its command line, how far it got by its files, and what its result is.

Each runs in a folder of its own, with relative names of what it writes, so that equal results have equal bytes.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from safetensors.numpy import load_file

# Files that tell when and how often a job was started, and those that only this machine needs.
TRACES = (
    "starts.jsonl",
    "goodput.json",
    "lock",
    "log.txt",
    "attempts.jsonl",
    "tensorboard",
    "checkpoints",
    "best",
    "compilation_cache",
)
# What killed processes may leave beside files that were being written, and what belongs to this machine alone.
HIDDEN = re.compile(r"\.(.+\.)?(partial|lock|[0-9a-f]{8})|\.compilation_cache")
# Values that are measured, or the segments of a resumed run. A process that makes no step measures none.
MEASURED = (
    "seconds",
    "step_seconds",
    "step_flops",
    "segments",
    "input_wait",
    "train/examples_per_second",
    "train/input_wait",
    "timing/step_seconds",
    "timing/target_tokens_per_second",
)

Contents = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Job:
    """One command line.

    Attributes:
      name: its own.
      arguments: of `adalink`; `{inputs}` stands for the folder of the inputs.
      progress: maps the job's folder to a number that must never become smaller, 0 for none: what a restart finds.
      contents: maps the job's folder to its result.
      folders: that exist before.
      refuses: a second process is refused while one works; otherwise it waits, or shares the work.
    """

    name: str
    arguments: tuple[str, ...]
    progress: Callable[[pathlib.Path], int] = lambda place: 0
    contents: Callable[[pathlib.Path], Contents] = lambda place: contents(place)
    folders: tuple[str, ...] = ()
    refuses: bool = True

    @property
    def command(self) -> str:
        """The command that it is a job of."""
        return self.arguments[0]

    @property
    def slug(self) -> str:
        """Its name as a file's."""
        return re.sub(r"\W+", "_", self.name)


def contents(place: pathlib.Path, *ignored: str) -> Contents:
    """The bytes of all files, or their JSON, without what was measured.

    Args:
      place: the job's folder.
      *ignored: names of further files to leave out.
    """
    read = {}
    for path in sorted(place.rglob("*")):
        parts = path.relative_to(place).parts
        if path.is_dir() or any(HIDDEN.fullmatch(part) or part in (*TRACES, *ignored) for part in parts):
            continue
        name = "/".join(parts)
        if path.suffix == ".json":
            read[name] = _unmeasured(json.loads(path.read_text(encoding="utf-8")))
        elif path.name == "metrics.jsonl":
            read[name] = [_unmeasured(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        else:
            read[name] = path.read_bytes()
    return read


def leftovers(place: pathlib.Path) -> list[str]:
    """Unfinished files and folders that killed processes left, under hidden names."""
    hidden = (path for path in place.rglob(".*") if HIDDEN.fullmatch(path.name) and path.name != ".compilation_cache")
    return sorted(str(path.relative_to(place)) for path in hidden)


def _unmeasured(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _unmeasured(x) for name, x in value.items() if name not in MEASURED}
    return [_unmeasured(x) for x in value] if isinstance(value, list) else value


def _steps(place: pathlib.Path) -> int:
    """The sum of the newest complete checkpoints' steps, and of the finished runs, of all runs in the folder."""
    newest: dict[pathlib.Path, int] = {}
    for path in place.rglob("checkpoints/*"):
        if path.name.isdigit():
            newest[path.parent] = max(newest.get(path.parent, 0), 1 + int(path.name))
    return sum(newest.values()) + len(list(place.rglob("summary.json")))


def _rows(place: pathlib.Path) -> int:
    """The rows that `infer` has recorded."""
    states = list(place.glob(".answers*.json"))
    if not states:
        return 10**6 if list(place.glob("answers*")) else 0
    return json.loads(states[0].read_text(encoding="utf-8"))["rows"]


def _parts(place: pathlib.Path) -> int:
    """The complete parts of the vision cache."""
    return len(list(place.glob("vision/part-*.json")))


def _features(place: pathlib.Path) -> Contents:
    """The vision cache by image: a stopped pass cuts it into other parts."""
    rows: dict[str, bytes] = {}
    for path in sorted(place.glob("vision/part-*.json")):
        part = load_file(path.with_suffix(".safetensors"))
        for key, features in zip(part["keys"], part["features"]):
            rows[key.tobytes().hex()] = np.ascontiguousarray(features).tobytes()
    about = json.loads((place / "vision/cache.json").read_text(encoding="utf-8"))
    strangers = {path.name: b"" for path in place.glob("vision/*") if not path.name.startswith((".", "part-", "lock"))}
    return rows | strangers | {"cache.json": about}


MODEL = (
    "--gin_file=gin/models/pali_nano.gin",
    "--gin_file={inputs}/task.gin",
    "--gin.INITIAL_CHECKPOINT_PATH='bundled:pali_nano_instruct'",
)
ADAPTER = ("--gin_file=gin/adapters/adalink.gin", "--gin.RANK=4")
FEW = ("--gin.TRAIN_STEPS=8", "--gin.EVAL_PERIOD=4", "--gin.CHECKPOINT_PERIOD=2", "--gin.WARMUP_STEPS=2")
OUT = "--gin.MODEL_DIR='out'"
INFER = (
    "infer", "{inputs}/rows.csv", "--gin_file=gin/models/pali_nano.gin", "--images", "{inputs}/pictures",
    "--gin.INITIAL_CHECKPOINT_PATH='bundled:pali_nano_instruct'", "--gin.VOCABULARY='bytes'", "--gin.BATCH_SIZE=2",
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 16, 'targets': 4}",
)  # fmt: skip

JOBS = (
    Job("train", ("train", *MODEL, *ADAPTER, "--gin_file=gin/runs/finetune.gin", OUT, "--gin.TRAIN_STEPS=60",
                  "--gin.EVAL_PERIOD=9", "--gin.CHECKPOINT_PERIOD=4", "--gin.WARMUP_STEPS=2"), _steps),
    Job("infer, a table", (*INFER[:2], "answers.csv", *INFER[2:]), _rows),
    Job("infer, for a server", (*INFER[:2], "answers.json", "--format", "vqav2", *INFER[2:]), _rows),
    Job("sweep", ("sweep", "--gin_file={inputs}/sweep.gin", OUT, "--run"), _steps),
    Job("tune", ("tune", *MODEL, *ADAPTER, *FEW, OUT, "--gin.FACTORS=(0.3, 1.0)"), _steps),
    Job("compare", ("compare", "--gin_file={inputs}/comparison.gin", OUT), _steps,
        lambda place: contents(place, "comparison.md", "comparison.csv", "comparison.png", "cost.json")),
    Job("cache-vision", ("cache-vision", *MODEL, "--gin_file=gin/runs/finetune.gin", "--gin.BATCH_SIZE=2",
                         "--gin.VISION_CACHE='vision'"), _parts, _features, refuses=False),
    Job("convert to t5x", ("convert", "{inputs}/t5", "checkpoint_1", "--to", "t5x")),
    Job("convert to t5x, into a folder", ("convert", "{inputs}/t5", "checkpoint_1", "--to", "t5x"), folders=("checkpoint_1",)),
    Job("convert to hf", ("convert", "{inputs}/t5", "out", "--to", "hf")),
    Job("convert to native", ("convert", "bundled:pali_nano_raw", "out", "--to", "native", "--dtype", "bfloat16")),
    Job("export to hf", ("export", "{inputs}/adapter", "out", "--to", "hf", "--base", "{inputs}/t5")),
    Job("export to torch", ("export", "{inputs}/adapter", "out", "--to", "torch")),
    Job("init", ("init", "{inputs}/pictures", "--base", "bundled:pali_nano_instruct", "--out", "task.gin")),
    Job("study", ("study", "--gin_file={inputs}/study.gin", OUT, "--run"), _steps),
    Job("pack", ("pack", *MODEL, *ADAPTER, *FEW, OUT, "--gin.SEEDS=(0, 1)"), _steps),
)  # fmt: skip
