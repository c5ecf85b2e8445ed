"""What a base in eight bits or four costs an adapter: AdaLink, LoRA and the frozen base, each trained on each precision of the base, and
adapters of the exact base on the quantised one and the other way round.

    python benchmarks/quantised.py [--out runs/quantised] [--study runs/miniature --data-dir FOLDER] [--steps 400]

The bundled bases, and those that the study in miniature has trained in --study (docs/studies.md says what its DATA_DIR holds). Every cell is
a pack of five seeds (`adalink pack`) in a folder of its own, so rerunning the command resumes it. Writes quantised.md, quantised.svg and
quantised.json to --out: means over the seeds on the test set, and differences from float32 paired by seed, with 95 % intervals.
"""

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping

import numpy as np
from etils import epath
from matplotlib.figure import Figure
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from adalink_jax.data import digits
from adalink_jax.reports import style
from adalink_jax.reports.statistics import difference, mean
from adalink_jax.serving import Predictor
from adalink_jax.serving.opening import open_base

DTYPES = ("float32", "bfloat16", "int8", "fp8", "int4", "nf4")
SEEDS = (0, 1, 2, 3, 4)
TASKS = ("digits_reverse", "digits_inverted")
PROJECTIONS = (
    r"encoder/.*/attention/(query|value)",
    r"decoder/.*/encoder_decoder_attention/(query|value)",
)
METHODS = {
    "AdaLink": ["--gin_file=gin/adapters/adalink.gin", "--gin.RANK=16"],
    "LoRA": ["--gin_file=gin/adapters/lora.gin", "--gin.RANK=4", f"--gin.PROJECTIONS={PROJECTIONS!r}"],
}
Scores = Mapping[int, float]  # seed -> accuracy on test


@dataclasses.dataclass(frozen=True)
class Base:
    """A base model, and how the tasks of digits are given to it.

    Attributes:
      path: see INITIAL_CHECKPOINT_PATH.
      model, tasks: their gin files.
      prefix: of the names of the tasks in that file.
      vocabulary: None for the base's own.
      lengths: TASK_FEATURE_LENGTHS.
      settings: further settings of training, name -> value.
    """

    path: str
    model: str
    tasks: str = "gin/tasks/digits.gin"
    prefix: str = ""
    vocabulary: str | None = None
    lengths: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"inputs": 24, "targets": 4})
    settings: Mapping[str, object] = dataclasses.field(default_factory=lambda: {"BATCH_SIZE": 64})


BUNDLED = {
    name: Base(f"bundled:{name}", "gin/models/pali_nano.gin") for name in ("pali_nano_instruct", "pali_nano_raw")
}


def bases_of(study: pathlib.Path, data_dir: pathlib.Path) -> dict[str, Base]:
    """The bases that a study in miniature has trained, the small ones first; their batches are as in the study."""
    folders = [model.parent for model in (study / "bases").glob("*/model")]
    size = lambda folder: float(folder.name.partition("m.")[0].replace("_", "."))
    vocabulary = str(study / "vocabulary")
    lengths = {"inputs": 16, "targets": 8}  # the questions have at most 9 of its tokens
    settings = {"DATA_DIR": str(data_dir), "VOCABULARY": vocabulary, "BATCH_SIZE": 32}
    model = lambda folder: f"gin/models/pali_mini_{folder.name.partition('.')[0]}.gin"
    return {
        f"mini_{folder.name}": Base(
            str(folder / "model"), model(folder), "gin/tasks/miniature.gin", "mini_", vocabulary, lengths, settings
        )
        for folder in sorted(folders, key=lambda folder: (size(folder), folder.name))
    }


def train(folder: pathlib.Path, base: Base, task: str, method: str, dtype: str, steps: int) -> dict:
    """Trains a pack of all seeds, unless it is there already; returns its summary."""
    if not (folder / "summary.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "INITIAL_CHECKPOINT_PATH": base.path, "MIXTURE_OR_TASK_NAME": base.prefix + task, "MODEL_DIR": str(folder),
            "TASK_FEATURE_LENGTHS": dict(base.lengths), "TRAIN_STEPS": steps, "EVAL_PERIOD": steps // 4, "SEEDS": SEEDS,
            "FROZEN_DTYPE": dtype, **base.settings,
        }  # fmt: skip
        files = [f"--gin_file={name}" for name in (base.model, base.tasks, "gin/runs/pack.gin")]
        flags = [*files, *METHODS[method], *(f"--gin.{name}={value!r}" for name, value in settings.items())]
        with (folder / "log.txt").open("w") as log:
            subprocess.run([sys.executable, "-m", "adalink_jax", "pack", *flags], stdout=log, stderr=log, check=True)
    return json.loads((folder / "summary.json").read_text())


def adapters_of(folder: pathlib.Path) -> dict[int, str]:
    """Seed -> the adapter's folder of a pack's member."""
    summary = json.loads((folder / "summary.json").read_text())
    return {member["seed"]: str(folder / "members" / member["name"] / "adapter") for member in summary["members"]}


def scored(file: pathlib.Path, base: Base, task: str, dtype: str, adapters: Mapping[int, str]) -> Scores:
    """Accuracy on test of adapters, whatever precision they were trained on, on the base in `dtype`; without adapters of the base, as 0."""
    if not file.exists():
        settings = (("FROZEN_DTYPE", repr(dtype)), ("ALLOW_OTHER_PRECISION", "True"))
        _, opened = open_base(base.path, base.model, base.vocabulary, settings, "in BUNDLED")
        named = {str(seed): folder for seed, folder in adapters.items()}
        predictor = Predictor(dataclasses.replace(opened, adapters=named, task_feature_lengths=base.lengths))
        scenes = digits.compose(task, "test")
        # The study's tasks hold the same scenes as PNG files, of 8 bits.
        images = np.round((scenes["image"] + 1) * 127.5) / 127.5 - 1 if base.prefix else scenes["image"]
        texts, targets = [str(x) for x in scenes["inputs"]], [str(x) for x in scenes["targets"]]
        score = lambda name: float(np.mean(np.equal(predictor(texts, images, name), targets)))
        scores = {seed: score(str(seed)) for seed in adapters} or {0: score(None)}
        file.write_text(json.dumps(scores), encoding="utf-8")
    return {int(seed): score for seed, score in json.loads(file.read_text(encoding="utf-8")).items()}


def main() -> None:
    """Trains and scores every cell, writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/quantised"))
    parser.add_argument("--study", type=pathlib.Path, help="a folder of `make study`, which has trained bases")
    parser.add_argument("--data-dir", type=pathlib.Path, help="the study's DATA_DIR")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=tuple(digits.ADAPTATION))
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    if (options.study is None) != (options.data_dir is None):
        parser.error(
            "--study and --data-dir go together: the study's bases are adapted to tasks whose data sets are in its DATA_DIR"
        )
    bases = BUNDLED | (bases_of(options.study.resolve(), options.data_dir.resolve()) if options.study else {})
    cells = [(b, t, m, d) for b in bases for t in options.tasks for m in METHODS for d in DTYPES]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    rows = []
    out = options.out.resolve()
    with Progress(*columns) as progress:
        bar = progress.add_task("", total=len(cells))
        for base, task, method, dtype in cells:
            progress.update(bar, description=f"{base} {task} {method} {dtype}")
            where = lambda d, base=base, task=task, method=method: out / base / task / method / d
            summary = train(where(dtype), bases[base], task, method, dtype, options.steps)
            trained = {member["seed"]: member["adapted_accuracy"] for member in summary["members"]}
            frozen = scored(where(dtype) / "frozen.json", bases[base], task, dtype, {})
            row = {
                "base": base, "task": task, "method": method, "dtype": dtype, "frozen": frozen[0], "trained": trained,
            }  # fmt: skip
            if dtype != "float32":
                exact, here = adapters_of(where("float32")), adapters_of(where(dtype))
                row["from_exact"] = scored(where(dtype) / "from_exact.json", bases[base], task, dtype, exact)
                row["on_exact"] = scored(where(dtype) / "on_exact.json", bases[base], task, "float32", here)
            rows.append(row)
            progress.advance(bar)
    (out / "quantised.json").write_text(json.dumps(rows, indent=1))
    (out / "quantised.md").write_text(report(rows, options.steps))
    style.save(picture(rows), epath.Path(out / "quantised.svg"))
    print((out / "quantised.md").read_text())


def groups_of(rows: list[dict]) -> dict[tuple[str, str, str], list[dict]]:
    """`(base, task, method)` -> its rows; the first is that of float32."""
    groups: dict[tuple[str, str, str], list[dict]] = {}
    for row in rows:
        groups.setdefault((row["base"], row["task"], row["method"]), []).append(row)
    return groups


def report(rows: list[dict], steps: int) -> str:
    """The tables as Markdown."""
    lines = [
        f"Accuracy on test, {steps} steps, {len(SEEDS)} seeds; differences from the adapter trained and used on float32, paired by seed, with",
        "95 % intervals (none where all seeds agree).",
        "",
    ]
    for (base, task, method), group in groups_of(rows).items():
        lines += [f"### {base}, {task}, {method}", ""]
        lines += [
            "| stored as | frozen | trained on it | difference | float32's adapter on it | its adapter on float32 |",
            "|---|---:|---:|---|---|---|",
        ]
        exact = group[0]["trained"]
        for row in group:
            keys = () if row["dtype"] == "float32" else ("trained", "from_exact", "on_exact")
            changes = [str(difference(row[key], exact)) for key in keys] or [""] * 3
            trained = f"{mean([*row['trained'].values()]).value:.3f}"
            lines.append(f"| {row['dtype']} | {row['frozen']:.3f} | {trained} | {' | '.join(changes)} |")
        lines.append("")
    return "\n".join(lines)


def picture(rows: list[dict]) -> Figure:
    """Differences from float32 by dtype: of adapters trained on each precision, and of float32's adapters used on it."""
    groups = groups_of(rows)
    places = [*dict.fromkeys(key[:2] for key in groups)]
    figure, axes = style.panels(len(places))
    labels = {"trained": "trained on it", "from_exact": "trained on float32, used on it"}
    with style.applied():
        for axis, (base, task) in zip(axes, places):
            series = [(method, key) for method in METHODS for key in labels if (base, task, method) in groups]
            for i, (method, key) in enumerate(series):
                exact, *others = groups[base, task, method]
                changes = [difference(row[key], exact["trained"]) for row in others]
                values = [one.value for one in changes]
                ends = [[abs(a - b) if np.isfinite(b) else 0.0 for a, b in zip(values, side)] for side in
                        ([one.low for one in changes], [one.high for one in changes])]  # fmt: skip
                at = np.arange(len(changes)) + 0.15 * (i - 1.5)
                axis.errorbar(
                    at, values, ends, fmt=style.MARKERS[i], color=style.COLOURS[i], label=f"{method}, {labels[key]}"
                )
            axis.axhline(0, color="black", linewidth=0.8)
            axis.set(title=f"{base}, {task}", ylabel="accuracy - float32's")
            axis.set_xticks(range(len(DTYPES) - 1), DTYPES[1:])
    style.legend(figure, axes)
    return figure


if __name__ == "__main__":
    main()
