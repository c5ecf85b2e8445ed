"""Host memory while a base model is loaded, compared with the size of its arrays.

    python benchmarks/loading.py [--folder DIR]

Writes a T5 1.1 of 1.04 B parameters (width and MLP of the XL size, 8 + 8 layers, all values different) in three formats to DIR, about
10 GB, and loads each in a separate process, unrolled and scanned, stored as float32 and as bfloat16.

Overhead = peak of the process - its memory before loading - the arrays. It is compared with the largest leaf. CPU only, where the
device's memory is the host's. Results: docs/results/loading.md.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import numpy as np  # noqa: E402
from rich import box  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import track  # noqa: E402
from rich.table import Table  # noqa: E402

from adalink_jax import T5, AdaptedModel, T5Config, checkpoints, parallel  # noqa: E402
from adalink_jax.checkpoints.source import Source
from adalink_jax.files.leaves import Leaf  # noqa: E402
from adalink_jax.models import paths  # noqa: E402
from adalink_jax.training.setup import Setup, abstract_params, load_parameters  # noqa: E402

SIZES = {"vocab_size": 32128, "emb_dim": 2048, "num_heads": 32, "head_dim": 64, "mlp_dim": 5120,
         "num_encoder_layers": 8, "num_decoder_layers": 8}  # fmt: skip
FORMATS = {"native": "bfloat16", "hf": "float32", "t5x": "float32"}
LIMIT = 1.3


def model(scan_layers: bool) -> AdaptedModel:
    """The model, without parameters."""
    return AdaptedModel(T5(T5Config(**SIZES, scan_layers=scan_layers)))


def made_up(folder: pathlib.Path) -> Source:
    """A checkpoint whose values are computed when they are read."""

    def leaf(name, shape, seed):
        def read(index):
            rows = np.arange(index[0].start, index[0].stop, dtype=np.float32)
            rest = int(np.prod(shape[1:], dtype=np.int64))
            values = np.sin(rows[:, None] * rest + np.arange(rest, dtype=np.float32) + seed) * 0.05
            return values.astype(np.float32).reshape(len(rows), *shape[1:])[(slice(None), *index[1:])]

        return Leaf(shape, np.dtype(np.float32), name, read, (1, *shape[1:]))

    tree = parallel.unbox(abstract_params(model(False)))["backbone"]
    shapes = paths.unscanned_shapes(paths.flatten(tree))
    leaves = {name: leaf(name, shape, seed) for seed, (name, shape) in enumerate(shapes.items())}
    settings = {"mlp_activations": ("gelu", "linear"), "relpos_max_distance": 128}
    return Source("made up", "made up", "1B", leaves, folder, {"language": settings})


def measure(path: str, dtype: str, scan_layers: bool) -> dict:
    """Loads `path` in this process; bytes and seconds."""
    mesh, rules = parallel.make_mesh(), parallel.logical_axis_rules()
    jax.block_until_ready(jax.jit(lambda x: x + 1)(np.zeros(8)))
    with parallel.use_mesh(mesh, rules):
        setup = Setup(model(scan_layers), initial_checkpoint_path=path, frozen_dtype=dtype)
        abstract_params(setup.model)
        with open("/proc/self/statm", encoding="utf-8") as file:
            before = int(file.read().split()[1]) * resource.getpagesize()
        started = time.time()
        params = jax.block_until_ready(load_parameters(setup, mesh, rules).frozen)
    leaves = jax.tree.leaves(params)
    return {
        "before": before,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "arrays": sum(x.nbytes for x in leaves),
        "largest": max(x.nbytes for x in leaves),
        "parameters": sum(x.size for x in leaves),
        "seconds": time.time() - started,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="folder for the checkpoints, which are kept; by default they are deleted")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        path, dtype, scanned = options.measure
        print(json.dumps(measure(path, dtype, scanned == "scanned")))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(options.folder or temporary)
        source = made_up(folder)
        for to, dtype in track(FORMATS.items(), "writing", console=Console(stderr=True)):
            if not (folder / to).exists():
                checkpoints.convert(source, folder / to, to, dtype)
        table = Table(title=f"Host memory while loading {source.parameters:,} parameters, MB", box=box.MARKDOWN)
        for heading in (
            "from",
            "file",
            "to",
            "layers",
            "arrays",
            "peak - before",
            "overhead",
            "largest leaf",
            "ratio",
            "s",
        ):
            table.add_column(heading, justify="left" if heading in ("from", "file", "to", "layers") else "right")
        worst = 0.0
        for to, stored in FORMATS.items():
            for dtype in ("bfloat16", "float32"):
                for layers in ("unrolled", "scanned"):
                    command = [sys.executable, __file__, "--measure", str(folder / to), dtype, layers]
                    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                    row = json.loads(out.splitlines()[-1])
                    used = row["peak"] - row["before"]
                    overhead = used - row["arrays"]
                    ratio = overhead / row["largest"]
                    worst = max(worst, ratio)
                    sizes = [f"{n / 1e6:,.0f}" for n in (row["arrays"], used, overhead, row["largest"])]
                    table.add_row(to, stored, dtype, layers, *sizes, f"{ratio:.2f}", f"{row['seconds']:.0f}")
        Console(width=120).print(table)
        print(f"largest overhead: {worst:.2f} of the largest leaf (the aim: below {LIMIT})")


if __name__ == "__main__":
    main()
