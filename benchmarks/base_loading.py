"""Memory, time and bytes read of a base that several processes load, from a disk and from a bucket with latency; and of writing it.

    python -m benchmarks.base_loading [--parameters 1B] [--processes 1,2,4] [--places disk,bucket] [--serial] [--write] [--folder DIR]

Writes a T5 1.1 with random bfloat16 values, in the native format and as a Hugging Face folder, and loads it as a job of so many processes of
this machine, stored as bfloat16: whole in each of them (`copies`), and split over them (`fsdp`). Columns are the largest of a job's
processes: `arrays`, what it holds at the end; `beyond`, peak of its memory - its memory before - the arrays; `read`, bytes that it read of the
files. `total` is what all of them read, divided by the files' size. The bucket is a stand-in: each call takes --latency, carries
--call_bandwidth, and all calls of a process share --bandwidth. CPU only, Linux. Results: docs/results/base_loading.md.
"""

import argparse
import contextlib
import functools
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax  # noqa: E402
import ml_dtypes  # noqa: E402
import numpy as np  # noqa: E402
from etils import epath  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import track  # noqa: E402

from adalink_jax import T5, AdaptedModel, T5Config, checkpoints, parallel  # noqa: E402
from adalink_jax.checkpoints.source import Source  # noqa: E402
from adalink_jax.files import network_calls  # noqa: E402
from adalink_jax.files.leaves import Leaf  # noqa: E402
from adalink_jax.models import paths  # noqa: E402
from adalink_jax.training.setup import Setup, abstract_params, load_parameters  # noqa: E402
from benchmarks import slow_bucket  # noqa: E402

SMALL = {"emb_dim": 512, "num_heads": 6, "head_dim": 64, "mlp_dim": 1024}
XL = {"emb_dim": 2048, "num_heads": 32, "head_dim": 64, "mlp_dim": 5120}
SIZES = {"77M": (SMALL, 8), "1B": (XL, 8), "3B": (XL, 24)}  # widths, layers of each side
FORMATS, PLACES, LAYOUTS = ("native", "hf"), ("disk", "bucket"), ("copies", "fsdp")
NUMBERS = ("arrays, MB", "beyond, MB", "read, MB", "total", "calls", "s")
WRITTEN = ("beyond to write, MB", "largest leaf, MB", "s to write")
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def model(parameters: str) -> AdaptedModel:
    """The model, without parameters."""
    widths, layers = SIZES[parameters]
    sizes = {"vocab_size": 32128, "num_encoder_layers": layers, "num_decoder_layers": layers, "scan_layers": True}
    return AdaptedModel(T5(T5Config(**widths, **sizes)))


def made_up(parameters: str, folder: pathlib.Path) -> Source:
    """A checkpoint of random values, which are made when they are read."""
    tree = parallel.unbox(abstract_params(model(parameters)))["backbone"]
    shapes = paths.unscanned_shapes(paths.flatten(tree))

    @functools.lru_cache(maxsize=1)
    def values(name: str) -> np.ndarray:
        rng = np.random.default_rng(list(shapes).index(name))
        bits = rng.integers(0, 2**16, shapes[name], np.uint16) & np.uint16(0x807F) | np.uint16(0x3C80)
        return bits.view(BFLOAT16)  # of either sign, about 1/64

    leaf = lambda name, shape: Leaf(
        shape, BFLOAT16, name, lambda index: values(name)[index], (1, *shape[1:]) if shape else ()
    )
    leaves = {name: leaf(name, shape) for name, shape in shapes.items()}
    settings = {"mlp_activations": ("gelu", "linear"), "relpos_max_distance": 128}
    return Source("made up", "made up", parameters, leaves, epath.Path(folder), {"language": settings})


def memory(field: str) -> int:
    """`VmRSS` or `VmHWM` of this process, in bytes."""
    status = pathlib.Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split(f"{field}:")[1].split()[0]) * 1024


@contextlib.contextmanager
def measured(result: dict, name: str) -> Iterator[None]:
    """Adds the seconds and the growth of the peak memory of what is within, which all processes begin and end together."""
    parallel.all_agree(True)
    pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
    before, started = memory("VmRSS"), time.perf_counter()
    yield
    parallel.all_agree(True)
    result |= {f"{name}_seconds": time.perf_counter() - started, f"{name}_peak": memory("VmHWM") - before}


class Counted:
    """A file on the disk that counts what is read of it."""

    total = 0

    def __init__(self, file):
        self._file = file

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def read(self, *size):
        values = self._file.read(*size)
        Counted.total += len(values)
        return values


def count_files() -> None:
    """Makes every file of weights that is opened from here on count what is read."""
    kind: Any = type(epath.Path("."))
    plain = kind.open

    def counted(self, *arguments, **options):
        file = plain(self, *arguments, **options)
        return Counted(file) if self.suffix == ".safetensors" and "://" not in os.fspath(self) else file

    kind.open = counted


def measure(case: dict) -> dict:
    """Loads a base as one process of a job, and writes it if the case says so."""
    if case["processes"] > 1:
        parallel.initialize(False, case["address"], case["processes"], case["index"])
    path = f"{case['folder']}/{case['format']}"
    count_files()
    network = slow_bucket.Network(**case["network"], folder=case["folder"])
    at_end = contextlib.ExitStack()
    if case["place"] == "bucket":
        path = f"gs://{case['format']}"
        at_end.enter_context(slow_bucket.in_use(network))
    if case["serial"]:
        network_calls.AT_ONCE = 1
    mesh = parallel.make_mesh()
    rules = parallel.logical_axis_rules(fsdp=case["layout"] == "fsdp")
    result = {}
    with at_end, parallel.use_mesh(mesh, rules):
        setup = Setup(model(case["parameters"]), initial_checkpoint_path=path, frozen_dtype="bfloat16")
        abstract_params(setup.model)
        jax.block_until_ready(jax.jit(lambda x: x + 1)(np.zeros(8)))
        with measured(result, "load"):
            params = jax.block_until_ready(load_parameters(setup, mesh, rules).frozen)
        leaves = jax.tree.leaves(params)
        result["arrays"] = sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards)
        result["read"] = Counted.total + network.nbytes
        result["calls"], result["most"] = network.calls, network.most
        if case["write"]:
            backbone = paths.unflatten(params)["backbone"]
            result["largest"] = max(
                4 * np.prod(shape, dtype=int) for shape in paths.unscanned_shapes(paths.flatten(backbone)).values()
            )
            with measured(result, "write"):
                checkpoints.save_base(f"{case['folder']}/written", backbone, "written", {})
    parallel.leave()
    return {name: float(x) for name, x in result.items()}


def run(case: dict) -> dict:
    """The largest of what the processes of a job measured, and what they read together."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        case = case | {"address": f"localhost:{free.getsockname()[1]}"}
    command = lambda i: [sys.executable, "-m", "benchmarks.base_loading", "--measure", json.dumps(case | {"index": i})]
    processes = [subprocess.Popen(command(i), stdout=subprocess.PIPE, text=True) for i in range(case["processes"])]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"A process failed: {case}")
    results = [json.loads(output.splitlines()[-1]) for output in outputs]
    largest = {name: max(result[name] for result in results) for name in results[0]}
    return largest | {"total": sum(result["read"] for result in results)}


def spread(values: list[float]) -> str:
    """Median, and least and most of several."""
    middle = f"{np.median(values):.1f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.1f} to {max(values):.1f})"


def write_bases(folder: pathlib.Path, parameters: str, formats: list[str], console: Console) -> None:
    """Writes what is missing of the base in the formats."""
    missing = [to for to in formats if not (folder / to).exists()]
    if not missing:
        return
    source = made_up(parameters, folder)
    needed = source.nbytes * (len(missing) + 2)  # and what --write writes, in float32
    if shutil.disk_usage(folder).free < 1.2 * needed:
        raise SystemExit(f"{folder} has no room for {needed / 1e9:.0f} GB; give another --folder.")
    for to in track(missing, "writing the base", console=console):
        checkpoints.convert(source, folder / to, to)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", choices=SIZES, default="77M")
    parser.add_argument("--processes", default="1,2", help="numbers of processes")
    parser.add_argument("--places", default="disk,bucket")
    parser.add_argument("--formats", default="native,hf")
    parser.add_argument("--layouts", default="copies,fsdp", help="with several processes")
    parser.add_argument("--serial", action="store_true", help="also read the bucket one block after the other")
    parser.add_argument("--write", action="store_true", help="also write what was loaded from the disk, in float32")
    parser.add_argument("--latency", type=float, default=0.05, help="seconds of each call to the bucket")
    parser.add_argument("--call_bandwidth", type=float, default=100, help="MB per second of one call")
    parser.add_argument("--bandwidth", type=float, default=1000, help="MB per second of a process")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--folder", help="folder for the bases, which are kept; by default they are deleted")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(json.loads(options.measure))))
        return
    network = {
        "latency": options.latency,
        "call_bandwidth": options.call_bandwidth * 1e6,
        "bandwidth": options.bandwidth * 1e6,
    }
    formats, places = options.formats.split(","), options.places.split(",")
    cases = [
        {"format": form, "place": place, "processes": count, "layout": layout, "serial": serial}
        for form in formats
        for place in places
        for count in map(int, options.processes.split(","))
        for layout in (options.layouts.split(",") if count > 1 else ["copies"])
        for serial in ((False, True) if options.serial and place == "bucket" else (False,))
    ]
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(options.folder or temporary) / options.parameters
        folder.mkdir(parents=True, exist_ok=True)
        write_bases(folder, options.parameters, formats, console)
        size = {form: sum(f.stat().st_size for f in (folder / form).glob("*.safetensors")) for form in formats}
        print_row(["from", "place", "processes", "layout", "blocks", *NUMBERS, *(WRITTEN if options.write else ())])
        print_row(["---"] * 5 + ["---:"] * (len(NUMBERS) + (len(WRITTEN) if options.write else 0)))
        for case in track(cases, "loading", console=console):
            case["write"] = options.write and case["place"] == "disk"
            about = {"folder": str(folder), "parameters": options.parameters, "network": network}
            rows = [run(case | about) for _ in range(options.repeats)]
            shutil.rmtree(folder / "written", ignore_errors=True)
            layout = case["layout"] if case["processes"] > 1 else "-"
            blocks = "one by one" if case["serial"] else "at once"
            print_row(
                [case["format"], case["place"], str(case["processes"]), layout, blocks]
                + numbers(rows, size[case["format"]], case["write"])
            )


def print_row(cells: list[str]) -> None:
    """Prints a row of the table at once, as the measurement may be cut short."""
    print("|", " | ".join(cells), "|", flush=True)


def numbers(rows: list[dict], size: int, is_written: bool) -> list[str]:
    """The cells of `NUMBERS` and `WRITTEN` for the repeats of one case, whose files have `size` bytes."""
    of = lambda name: [row[name] for row in rows]
    megabytes = lambda values: f"{max(values) / 1e6:,.0f}"
    beyond = [row["load_peak"] - row["arrays"] for row in rows]
    cells = [megabytes(values) for values in (of("arrays"), beyond, of("read"))]
    cells += [f"{max(of('total')) / size:.2f}", f"{max(of('calls')):,.0f}", spread(of("load_seconds"))]
    if is_written:
        cells += [megabytes(of("write_peak")), megabytes(of("largest")), spread(of("write_seconds"))]
    return cells


if __name__ == "__main__":
    main()
