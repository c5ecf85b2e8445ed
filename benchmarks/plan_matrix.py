"""The smallest TPU slices on which large models fit, for AdaLink and for full fine-tuning: `adalink plan`, without a TPU.

    python benchmarks/plan_matrix.py [--out runs/plan_matrix] [--only NAME ...] [--long | --open]

For each model, method and chip: the smallest slice on which the step and an evaluation fit, and the smallest with at least four times
as many chips. Fully sharded (gin/meshes/fsdp.gin; over half of the chips and tensor parallel over 2, or a quarter and 4, if a size does
not divide), frozen weights in bfloat16, REMAT full, AdamW, one row per chip and at least 128 rows. Compiled with `adalink plan --quick`;
a slice that misses by less than a fifth is compiled again without it, which takes ten times as long. Each cell has a file, so rerunning
the command resumes it; a few hours on two cores. Writes table.md to --out. With --long: AdaLink with long inputs, by compiler flags and
attention, in long.md. With --open: AdaLink on the open successors of PaLI, on TPU slices and H100s, in open.md.
"""

import argparse
import json
import pathlib
import subprocess
import sys

from rich.progress import Progress

from adalink_jax.models.attention import KINDS
from adalink_jax.parallel.accelerators import ACCELERATORS, parse_topology

# Model -> image size in pixels, or None; tokens in and out.
MODELS = {
    "t5_1_1_xl": (None, 512, 128),
    "blip2_flan_t5_xl": (224, 64, 64),
    "pali_3_5b": (812, 64, 64),
    "t5_1_1_xxl": (None, 512, 128),
    "pali_17b": (588, 64, 64),
    "ul2_20b": (None, 512, 128),
    "pali_x_55b": (756, 64, 64),
}
# Of --open, likewise; inputs of T5Gemma 2 have the places of 256 visual tokens.
OPEN = {
    "t5gemma2_4b": (None, 384, 64),
    "t5gemma_9b": (None, 512, 128),
    "paligemma2_28b_224": (224, 64, 64),
}
# Long inputs, of --long: model -> image size, tokens in and out; the slice.
LONG = (
    ("t5_1_1_xl", (None, 512, 128), "v5e:4x8"),
    ("t5_1_1_xl", (None, 2048, 128), "v5e:4x8"),
    ("pali_x_55b", (756, 64, 64), "v6e:4x8"),
    ("pali_3_5b", (1064, 64, 64), "v5p:2x2x2"),
)
# What --long compares: the settings of a column.
COMPARED = (
    ("COMPILER_FLAGS 'none', ATTENTION 'reference'", ("--gin.COMPILER_FLAGS='none'", "--gin.ATTENTION='reference'")),
    *(
        (f"ATTENTION {kind!r}", (f"--gin.ATTENTION={kind!r}",))
        for kind in KINDS
        if kind in ("reference", "blockwise", "pallas")
    ),
)
METHODS = ("adalink", "full")
CHIPS = ("v5e", "v5p", "v6e")
GPUS = ("1", "2", "4", "8", "16", "32")
NEARLY = 1.2  # times a chip's memory: --quick programs need more than others


def plan(
    file: pathlib.Path, model: str, method: str, topology: str, work: tuple[int | None, int, int], *flags: str
) -> dict:
    """The plan of one cell, from its file or by `adalink plan` with additional flags."""
    if not file.exists():
        size, inputs, targets = work
        image = [f"--gin.IMAGE_SIZE=({size}, {size})"] if size else []
        batch = max(128, parse_topology(topology).chips)
        command = [
            sys.executable, "-m", "adalink_jax", "plan", f"--gin_file=gin/models/{model}.gin",
            f"--gin_file=gin/adapters/{method}.gin", "--gin_file=gin/meshes/fsdp.gin", "--gin.FROZEN_DTYPE='bfloat16'",
            "--gin.REMAT='full'", f"--gin.BATCH_SIZE={batch}", *image,
            f"--gin.TASK_FEATURE_LENGTHS={{'inputs': {inputs}, 'targets': {targets}}}", "--topology", topology, "--json",
            *flags,
        ]  # fmt: skip
        for model_devices in (1, 2, 4):
            mesh = [f"--gin.MODEL_DEVICES={model_devices}"]
            done = subprocess.run([*command, *mesh], capture_output=True, text=True)
            if "does not divide" not in done.stderr:
                break
        if not done.stdout.startswith("{"):
            sys.exit(f"{' '.join(command)}\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"batch": batch, **json.loads(done.stdout)}, indent=1) + "\n", encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def cell_of(model: str, method: str, topology: str, quick: bool, folder: pathlib.Path) -> dict:
    """The plan of one cell of the matrix."""
    file = folder / f"{model}.{method}.{topology.replace(':', '.')}{'.quick' if quick else ''}.json"
    return plan(file, model, method, topology, (MODELS | OPEN)[model], *(["--quick"] if quick else []))


def missed_by_little(cell: dict) -> bool:
    """Whether a --quick program is too large, but might fit without --quick."""
    needed = max(cell["hbm_bytes"], cell["eval_hbm_bytes"] or 0)
    return not cell["fits"] and cell["compile_seconds"] > 0 and needed < NEARLY * cell["hbm_limit_bytes"]


def smallest(model: str, method: str, chip: str, folder: pathlib.Path) -> list[dict]:
    """Plans of the smallest slice that fits, and of the first with four times as many chips."""
    fitting = []
    for shape in ACCELERATORS[chip].slices or GPUS:
        chips = parse_topology(f"{chip}:{shape}").chips
        if fitting and chips < 4 * fitting[0]["chips"]:
            continue
        cell = cell_of(model, method, f"{chip}:{shape}", True, folder)
        if missed_by_little(cell):
            cell = cell_of(model, method, f"{chip}:{shape}", False, folder)
        if fitting or cell["fits"]:
            fitting.append(cell)
        if len(fitting) == 2:
            break
    return fitting


def bound(cell: dict) -> str:
    """What takes longest in a step."""
    return max(
        ("compute", "memory", "collectives"), key=lambda part: cell[f"estimated_{part.removesuffix('s')}_seconds"]
    )


def long_table(folder: pathlib.Path) -> list[str]:
    """Lines of a table: AdaLink with long inputs, by compiler flags and attention."""
    columns = ("step, s", "compute, s", "memory, s", "collectives, s", "MFU", "temporaries, GB")
    lines = [f"| model | in | slice | settings | {' | '.join(columns)} |", f"|---|---|---|---|{'---:|' * len(columns)}"]
    for model, work, topology in LONG:
        size, inputs, _ = work
        for number, (settings, flags) in enumerate(COMPARED):
            name = f"{model}.{size or inputs}.{topology.replace(':', '.')}.{number}.json"
            cell = plan(folder / "long" / name, model, "adalink", topology, work, *flags, "--quick")
            compiled = cell["temp_bytes"] is not None
            times = (
                f"{cell[f'estimated_{part}_seconds']:.3f}" if compiled else "-"
                for part in ("step", "compute", "memory", "collective")
            )  # fmt: skip
            cells = (
                model, f"{size} px" if size else f"{inputs} tokens", topology, settings, *times,
                f"{cell['estimated_mfu']:.0%}" if compiled else "-",
                f"{cell['temp_bytes'] / 1e9:.1f}" if compiled else f"does not fit: needs {cell['hbm_bytes'] / 1e9:.0f}",
            )  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    return lines


def row(model: str, method: str, cell: dict) -> str:
    """A line of the table."""
    sent = ", ".join(
        f"{kind} {one['bytes'] / 1e9:.2f}" for kind, one in cell["collectives"].items() if one["bytes"] > 5e6
    )
    parameters = (cell["frozen_bytes"] + cell["trainable_bytes"] + cell["optimizer_bytes"]) / 1e9
    cells = (
        model, method, cell["topology"], f"{cell['mesh']['data']} x {cell['mesh']['model']}", cell["batch"], f"{parameters:.2f}",
        *(f"{cell[name] / 1e9:.2f}" for name in ("temp_bytes", "hbm_bytes", "eval_hbm_bytes", "hbm_limit_bytes")), sent,
        f"{cell['estimated_step_seconds']:.3f}", bound(cell), f"{cell['estimated_mfu']:.0%}",
        f"{cell['estimated_evaluation_seconds']:.1f}",
        f"{cell['compile_seconds']:.0f}{'' if cell['quick'] else ', without --quick'}",
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


HEADINGS = (
    "model", "method", "slice", "data x model", "rows", "parameters and optimizer, GB", "temporaries, GB", "a step needs, GB",
    "an evaluation needs, GB", "a chip has, GB", "collectives, GB", "step, s", "bound by", "MFU", "evaluation, s", "compiled in, s",
)  # fmt: skip
HEAD = f"| {' | '.join(HEADINGS)} |\n|{'---|' * 3}{'---:|' * 7}---|---:|---|{'---:|' * 3}"


def main() -> None:
    """Plans every cell and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/plan_matrix"))
    parser.add_argument("--only", nargs="*", choices=[*MODELS, *OPEN], help="models")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--long", action="store_true", help="compare compiler flags and attention with long inputs")
    kinds.add_argument("--open", action="store_true", help="AdaLink on the open successors of PaLI, H100s too")
    options = parser.parse_args()
    if options.long:
        (options.out / "long.md").write_text("\n".join(long_table(options.out)) + "\n")
        return
    models, methods, chips = (OPEN, ("adalink",), (*CHIPS, "h100")) if options.open else (MODELS, METHODS, CHIPS)
    models = options.only or models
    cells = [(model, method, chip) for model in models for method in methods for chip in chips]
    lines = [HEAD]
    with Progress() as bar:
        task = bar.add_task("plans", total=len(cells))
        for model, method, chip in cells:
            bar.update(task, description=f"{model}, {method}, {chip}")
            plans = smallest(model, method, chip, options.out)
            lines += [row(model, method, cell) for cell in plans]
            if not plans:
                lines.append(f"| {model} | {method} | {chip}: no slice |" + " - |" * (len(HEADINGS) - 3))
            bar.advance(task)
    (options.out / ("open.md" if options.open else "table.md")).write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
