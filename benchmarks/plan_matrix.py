"""Which slices large models fit on, for AdaLink and for full fine-tuning: `adalink plan` over a matrix, compiled without a TPU.

    python benchmarks/plan_matrix.py [--out runs/plan_matrix] [--only NAME ...]

For each model, method and chip: the smallest slice on which the step and an evaluation fit, and the first with four times as many
chips. Fully sharded (gin/meshes/fsdp.gin; over half of the chips and tensor parallel over 2, or a quarter and 4, where a size does not
divide), frozen weights in bfloat16, REMAT full, AdamW, a row a chip and at least 128. Compiled with the
least effort (`adalink plan --quick`); a slice that misses by less than a fifth by that is compiled as a job is, which takes ten times as
long. One file a cell, so it goes on where it was stopped; some hours on two cores. Writes table.md into --out.
"""

import argparse
import json
import pathlib
import subprocess
import sys

from rich.progress import Progress

from adalink_jax.parallel.accelerators import ACCELERATORS, parse_topology

# Model -> what is read: image size in pixels, or None; tokens in and out.
MODELS = {
    "t5_1_1_xl": (None, 512, 128),
    "blip2_flan_t5_xl": (224, 64, 64),
    "pali_3_5b": (812, 64, 64),
    "t5_1_1_xxl": (None, 512, 128),
    "pali_17b": (588, 64, 64),
    "ul2_20b": (None, 512, 128),
    "pali_x_55b": (756, 64, 64),
}
METHODS = ("adalink", "full")
CHIPS = ("v5e", "v5p", "v6e")
NEARLY = 1.2  # of a chip's memory: the least effort's programs need more than a job's


def plan(model: str, method: str, topology: str, quick: bool, folder: pathlib.Path) -> dict:
    """One cell: from its file, or by `adalink plan`."""
    file = folder / f"{model}.{method}.{topology.replace(':', '.')}{'.quick' if quick else ''}.json"
    if not file.exists():
        size, inputs, targets = MODELS[model]
        image = [f"--gin.IMAGE_SIZE=({size}, {size})"] if size else []
        batch = max(128, parse_topology(topology).chips)
        command = [
            sys.executable, "-m", "adalink_jax", "plan", f"--gin_file=gin/models/{model}.gin",
            f"--gin_file=gin/adapters/{method}.gin", "--gin_file=gin/meshes/fsdp.gin", "--gin.FROZEN_DTYPE='bfloat16'",
            "--gin.REMAT='full'", f"--gin.BATCH_SIZE={batch}", *image,
            f"--gin.TASK_FEATURE_LENGTHS={{'inputs': {inputs}, 'targets': {targets}}}", "--topology", topology, "--json",
            *(["--quick"] if quick else []),
        ]  # fmt: skip
        for model_devices in (1, 2, 4):
            mesh = [f"--gin.MODEL_DEVICES={model_devices}"]
            done = subprocess.run([*command, *mesh], capture_output=True, text=True)
            if "does not divide" not in done.stderr:
                break
        if not done.stdout.startswith("{"):
            sys.exit(f"{' '.join(command)}\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"batch": batch, **json.loads(done.stdout)}, indent=1) + "\n")
    return json.loads(file.read_text())


def missed_by_little(each: dict) -> bool:
    """Whether a program that was compiled with the least effort is too large, but might fit as a job's."""
    needed = max(each["hbm_bytes"], each["eval_hbm_bytes"] or 0)
    return not each["fits"] and each["compile_seconds"] > 0 and needed < NEARLY * each["hbm_limit_bytes"]


def smallest(model: str, method: str, chip: str, folder: pathlib.Path) -> list[dict]:
    """Plans of the smallest slice that fits, and of the first with four times as many chips."""
    found = []
    for shape in ACCELERATORS[chip].slices:
        chips = parse_topology(f"{chip}:{shape}").chips
        if found and chips < 4 * found[0]["chips"]:
            continue
        each = plan(model, method, f"{chip}:{shape}", True, folder)
        if missed_by_little(each):
            each = plan(model, method, f"{chip}:{shape}", False, folder)
        if found or each["fits"]:
            found.append(each)
        if len(found) == 2:
            break
    return found


def row(model: str, method: str, each: dict) -> str:
    """A line of the table."""
    sent = ", ".join(
        f"{kind} {one['bytes'] / 1e9:.2f}" for kind, one in each["collectives"].items() if one["bytes"] > 5e6
    )
    parameters = (each["frozen_bytes"] + each["trainable_bytes"] + each["optimizer_bytes"]) / 1e9
    cells = (
        model, method, each["topology"], f"{each['mesh']['data']} x {each['mesh']['model']}", each["batch"], f"{parameters:.2f}",
        *(f"{each[name] / 1e9:.2f}" for name in ("temp_bytes", "hbm_bytes", "eval_hbm_bytes", "hbm_limit_bytes")), sent,
        f"{each['estimated_step_seconds']:.3f}", f"{each['estimated_mfu']:.0%}",
        f"{each['compile_seconds']:.0f}{'' if each['quick'] else ', usual effort'}",
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


HEADINGS = (
    "model", "method", "slice", "data x model", "rows", "parameters and optimizer, GB", "temporaries, GB", "a step needs, GB",
    "an evaluation needs, GB", "a chip has, GB", "collectives, GB", "step at best, s", "MFU at most", "compiled in, s",
)  # fmt: skip
HEAD = f"| {' | '.join(HEADINGS)} |\n|{'---|' * 3}{'---:|' * 7}---|{'---:|' * 3}"


def main() -> None:
    """Plans every cell, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/plan_matrix"))
    parser.add_argument("--only", nargs="*", default=list(MODELS), choices=list(MODELS), help="models")
    options = parser.parse_args()
    cells = [(model, method, chip) for model in options.only for method in METHODS for chip in CHIPS]
    lines = [HEAD]
    with Progress() as bar:
        task = bar.add_task("plans", total=len(cells))
        for model, method, chip in cells:
            bar.update(task, description=f"{model}, {method}, {chip}")
            found = smallest(model, method, chip, options.out)
            lines += [row(model, method, each) for each in found]
            if not found:
                lines.append(f"| {model} | {method} | {chip}: no slice |" + " - |" * (len(HEADINGS) - 3))
            bar.advance(task)
    (options.out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
