"""The sections that `benchmarks/speed.py` writes into docs/results/speed.md, between `<!-- speed: NAME -->` and `<!-- end -->`."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
from collections.abc import Callable
from typing import Any

from benchmarks.speed_parts import gpu, growth
from benchmarks.speed_parts.work import DTYPES, MATMUL, QUANTISED, ROWS

Cell = dict[str, Any]

# Seconds before, on two quiet cores, measured by hand in November 2026, with 230 GFLOP/s of the matrix product.
THEN = {
    "step-128": {"torch adalink": 2.92, "peft lora": 2.52, "ours adalink": 1.53, "ours lora": 1.74, "ours full": 2.75, "limit": 0.59},
    "step-512": {"torch adalink": 3.72, "ours adalink": 3.06, "ours full": 4.77, "limit": 1.35},
    "greedy-32": {"transformers": 3.09, "ours decoding": 3.14, "limit": 0.74},
    "greedy-1": {"transformers": 1.11, "ours decoding": 0.59},
}  # fmt: skip
COLUMNS = {
    "torch adalink": "PyTorch AdaLink", "transformers": "transformers", "peft lora": "PEFT LoRA", "peft prompt": "PEFT prompt",
    "t5x full": "t5x full", "ours adalink": "ours AdaLink", "ours lora": "ours LoRA", "ours full": "ours full",
    "ours decoding": "ours decoding",
}  # fmt: skip
MAIN = {"step": ("torch adalink", "ours adalink"), "decode": ("transformers", "ours decoding")}


def here() -> dict[str, Any]:
    """The machine, versions and day of a measurement."""
    model = next(
        (x.split(":")[1].strip() for x in _lines("/proc/cpuinfo") if x.startswith("model name")), platform.machine()
    )
    versions = {"python": platform.python_version(), **installed()}
    described = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "machine": model, "cores": os.cpu_count(), "versions": versions, "revision": described.stdout.strip(),
        "day": datetime.date.today().isoformat(),
    }  # fmt: skip


def installed() -> dict[str, str]:
    """Versions of the libraries that are installed."""
    from adalink_jax.version import __version__

    out = {"adalink-jax": __version__}
    for name in ("jax", "jaxlib", "flax", "numpy", "torch", "transformers", "peft", "t5x"):
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return out


def _lines(path: str) -> list[str]:
    return pathlib.Path(path).read_text(encoding="utf-8").splitlines() if os.path.exists(path) else []


def read(out: pathlib.Path) -> dict[str, Cell]:
    """The finished cells by name."""
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(out.glob("*.json"))}


def _environment(cells: list[Cell]) -> str:
    """One line: day, machine, versions; all that occur."""
    seen = lambda value: ", ".join(dict.fromkeys(str(value(cell)) for cell in cells))
    versions = seen(lambda cell: ", ".join(f"{name} {version}" for name, version in cell["versions"].items()))
    return f"{seen(lambda cell: cell['day'])}; {seen(lambda cell: cell['machine'])}, {seen(lambda cell: cell['cores'])} cores; {versions}; revision {seen(lambda cell: cell['revision'])}."


def _table(heads: list[str], rows: list[list[str]], left: int = 1) -> str:
    rule = ["---"] * left + ["---:"] * (len(heads) - left)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, rule, *rows))


def _seconds(x: float) -> str:
    return f"{x:.2f}" if x >= 0.1 else f"{x:.3f}"


def table(cells: dict[str, Cell]) -> str:
    """The rows of the first table, then and now, with ratios and limits."""
    measured = [(work, cells[work.name]) for work in ROWS if work.name in cells]
    if not measured:
        return ""
    names = [name for name in COLUMNS if any(name in cell["seconds"] for _, cell in measured)]
    heads = [
        "work",
        "",
        *(COLUMNS[name] for name in names),
        "ours / theirs",
        "limit",
        "ours / limit",
        "temporaries, GB",
    ]
    rows = []
    for work, cell in measured:
        theirs_name, our_name = MAIN[work.kind]
        median = {name: statistics.median(times) for name, times in cell["seconds"].items()}
        limit = cell["facts"][our_name]["flops"] / cell["matmul_rate"]
        then = THEN.get(work.name, {})
        for when, values in (("then", then), ("now", median | {"limit": limit})):
            if values:
                value = lambda name, values=values: _seconds(values[name]) if name in values else "-"
                ratio = lambda a, b, values=values: (
                    f"{values[a] / values[b]:.2f}" if a in values and b in values else "-"
                )
                used = cell["facts"][our_name]["temporaries"] if when == "now" else None
                space = f"{used / 1e9:.2f}" if used else "-"
                rows.append([work.title if when == "now" or not then else "", when, *map(value, names), ratio(our_name, theirs_name),
                             value("limit"), ratio(our_name, "limit"), space])  # fmt: skip
    first = min(len(cell["seconds"][MATMUL]) for _, cell in measured)
    rates = [cell["matmul_rate"] / 1e9 for _, cell in measured]
    missing = sorted(
        {
            f"{name} ({x['missing']} is not installed)"
            for _, cell in measured
            for name, x in cell["facts"].items()
            if "missing" in x
        }
    )
    lines = [
        _table(heads, rows, 2), "",
        f"Seconds; medians of {first} turns or more. The limit is the FLOPs of our step's matrix products (a forward pass, for decoding) at the "
        f"rate of a float32 product in the same turns, {min(rates):.0f} to {max(rates):.0f} GFLOP/s now. Temporaries are those of our "
        f"AdaLink's step, or of decoding. {_environment([cell for _, cell in measured])}",
        *([f"Not measured: {', '.join(missing)}."] if missing else []), "",
        *_spread(measured),
    ]  # fmt: skip
    return "\n".join(lines).rstrip()


def _spread(measured: list[tuple[Any, Cell]]) -> list[str]:
    """The ratios of single turns, and whether both sides computed the same."""
    rows = []
    for work, cell in measured:
        theirs_name, our_name = MAIN[work.kind]
        if theirs_name not in cell["seconds"]:
            continue
        ratios = [b / a for a, b in zip(cell["seconds"][theirs_name], cell["seconds"][our_name])]
        results = [cell["facts"][name]["first"] for name in (theirs_name, our_name)]
        equal = (
            "the same tokens"
            if work.kind == "decode" and results[0][: len(results[1])] == results[1]
            else (f"losses {results[0]:.4f} and {results[1]:.4f}" if work.kind == "step" else "other tokens")
        )
        rows.append([work.title, f"{min(ratios):.2f} to {max(ratios):.2f}", equal])
    return [_table(["work", "ours / theirs in single turns", "first results, theirs and ours"], rows)] if rows else []


def quantised(cells: dict[str, Cell]) -> str:
    """Our step and decoding with the frozen base in each dtype."""
    measured = [(work, cells[work.name]) for work in QUANTISED if work.name in cells]
    rows = []
    for work, cell in measured:
        median = [statistics.median(cell["seconds"][name]) for name in work.contenders]
        size = lambda name, key, cell=cell: f"{cell['facts'][name][key] / 1e6:,.0f}"
        for name, dtype, seconds in zip(work.contenders, DTYPES, median):
            title = work.title if dtype == DTYPES[0] else ""
            ratio = f"{seconds / median[0]:.2f}"
            rows.append([title, dtype, _seconds(seconds), ratio, size(name, "arguments"), size(name, "temporaries")])
    heads = ["work", "stored as", "seconds", "ratio to float32", "arguments, MB", "temporaries, MB"]
    environment = _environment([cell for _, cell in measured]) if measured else ""
    return (
        f"{_table(heads, rows, 2)}\n\nMedians of turns; scanned layers, float32 activations. {environment}"
        if rows
        else ""
    )


def curves(cells: dict[str, Cell]) -> str:
    """A sentence per curve."""
    lines = []
    for name, curve in growth.CURVES.items():
        points = sorted(
            (cell for key, cell in cells.items() if key.startswith(f"{name}-")), key=lambda cell: cell["point"]
        )
        if len(points) > 1:
            lines.append("- " + sentence(curve, points))
    measured = [cell for name in growth.CURVES for key, cell in cells.items() if key.startswith(f"{name}-")]
    return "\n".join([*lines, "", _environment(measured)]) if lines else ""


def sentence(curve: growth.Curve, points: list[Cell]) -> str:
    """From the first to the last point, with the fitted slope of time and memory."""
    x, seconds, size = ([cell[name] for cell in points] for name in ("point", "seconds", "bytes"))
    ends = f"from {x[0]:,} to {x[-1]:,} {curve.title} {curve.time} go from {_seconds(seconds[0])} to {_seconds(seconds[-1])} s"
    memory = f"{curve.memory} from {size[0] / 1e9:.3g} to {size[-1] / 1e9:.3g} GB"
    if curve.power:
        slopes = f"exponents {growth.power(x, seconds):.2f} and {growth.power(x, size):.2f}"
    else:
        unit = {"rank": "unit of rank", "adapters in the bank": "adapter", "layers per stack": "layer"}.get(
            curve.title, curve.title
        )
        slopes = f"{growth.slope(x, seconds) * 1e3:.3g} ms and {growth.slope(x, size) / 1e6:.3g} MB per {unit}"
    return f"**{curve.title}** ({curve.setting}): {ends}, {memory}; {slopes} by least squares."


def figure(cells: dict[str, Cell], file: pathlib.Path) -> None:
    """Draws each curve's time and memory; in `file`'s format."""
    from adalink_jax.reports import style

    drawn = {name: sorted((cell for key, cell in cells.items() if key.startswith(f"{name}-")), key=lambda cell: cell["point"])
             for name in growth.CURVES}  # fmt: skip
    drawn = {name: points for name, points in drawn.items() if len(points) > 1}
    if not drawn:
        return
    with style.applied():
        drawing, axes = style.panels(2 * len(drawn), 2, height=1.5)
        panels = iter(axes)
        for name, points in drawn.items():
            curve, x = growth.CURVES[name], [cell["point"] for cell in points]
            for key, scale, what, unit in (("seconds", 1, curve.time, "s"), ("bytes", 1e-9, curve.memory, "GB")):
                axis, y = next(panels), [cell[key] * scale for cell in points]
                axis.plot(x, y, marker="o")
                axis.set(title=what, xlabel=curve.title, ylabel=unit, xscale="log")
                axis.set_xticks(x, [f"{point:,}" for point in x])
                axis.set_xticks([], minor=True)
                if max(y) > 100 * min(y):
                    axis.set_yscale("log")
                else:
                    axis.set_ylim(0, 1.1 * max(y))
        drawing.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def gpu_table(cells: dict[str, Cell]) -> str:
    """The GPU's table; "not measured" without one."""
    measured = [cell for key, cell in cells.items() if key.startswith("gpu-")]
    if not any("rate" in cell for cell in measured):
        return "Not measured: no GPU was at hand. `python -m benchmarks.speed --parts gpu --page docs/results/speed.md` fills this in, in ten minutes of one."
    from adalink_jax.parallel.accelerators import ACCELERATORS

    rows = []
    for cell in measured:
        chip = next(
            (x for x in ACCELERATORS.values() if x.name in (cell.get("device") or "").lower().replace(" ", "")), None
        )
        rate = cell.get("rate")
        mfu = f"{cell['flops'] / cell['seconds'] / chip.peak_flops:.0%}" if chip and "flops" in cell else "-"
        rows.append([cell["model"], cell["method"], str(cell.get("rows", "-")), f"{rate:.1f}" if rate else f"not measured: {cell['missing']}",
                     mfu, f"{gpu.WANTED[cell['model']]}", f"{gpu.PUBLISHED[cell['model']]}"])  # fmt: skip
    heads = [
        "model",
        "method",
        "rows",
        "sequences/s",
        "MFU",
        "wanted (one H100)",
        "published full pre-training (H100, fp8)",
    ]
    devices = ", ".join(sorted({str(cell.get("device")) for cell in measured if "rate" in cell}))
    return _table(heads, rows, 2) + f"\n\nbfloat16, {gpu.INPUTS}/{gpu.TARGETS}, on {devices}. {_environment(measured)}"


PHASES = ("imports", "configuration", "data", "parameters", "evaluation", "batch", "step", "checkpoint", "results")


def startup(cells: dict[str, Cell]) -> str:
    """Seconds by phase of whole commands."""
    measured = [cell for key, cell in cells.items() if key.startswith("startup-")]
    rows = []
    for cell in measured:
        phases = {row["phase"]: row for row in cell.get("phases", ())}
        value = lambda name, key, phases=phases: f"{phases[name][key]:.2f}" if name in phases else "-"
        wait = f"{cell['input_wait']:.2%}" if "input_wait" in cell else "-"
        rows.append(
            [
                cell["command"],
                f"{cell['seconds']:.2f}",
                *(value(name, "seconds") for name in PHASES),
                value("step", "first"),
                wait,
            ]
        )
    heads = ["command", "process", *PHASES, "first step", "steps wait for data"]
    return f"{_table(heads, rows)}\n\nSeconds. {_environment(measured)}" if rows else ""


SECTIONS: dict[str, Callable[[dict[str, Cell]], str]] = {
    "table": table,
    "quantised": quantised,
    "startup": startup,
    "curves": curves,
    "gpu": gpu_table,
}


def text(out: pathlib.Path) -> str:
    """All sections."""
    cells = read(out)
    return "\n\n".join(filter(None, (section(cells) for section in SECTIONS.values())))


def rewrite(page: pathlib.Path, out: pathlib.Path) -> None:
    """Replaces the sections of a page for which there are results, and draws the figure beside it."""
    cells, written = read(out), page.read_text(encoding="utf-8")
    for name, section in SECTIONS.items():
        if new := section(cells):
            between = re.compile(rf"(<!-- speed: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
            written = between.sub(lambda match, new=new: f"{match[1]}\n{new}\n\n{match[2]}", written)
    page.write_text(written, encoding="utf-8")
    figure(cells, page.with_name("speed_growth.svg"))
