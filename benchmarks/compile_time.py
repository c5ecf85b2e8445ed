"""Seconds to compile the training step by the depth of the model, for a TPU that need not be here.

    python benchmarks/compile_time.py [--layers 6 12 24 48] [--topology v5e:4x8] [--quick]

`adalink plan` of T5 1.1 XL with different numbers of layers: fully sharded, frozen weights in bfloat16, REMAT full, AdaLink; scanned
(one compiled layer per stack, the default of the large models) and, with --unrolled, layer by layer. Each plan is a separate process.
"""

import argparse
import json
import os
import resource
import subprocess
import sys


def plan(layers: int, topology: str, scanned: bool, quick: bool) -> dict:
    """The output of `adalink plan --json`, with `cpu`, the command's CPU seconds, and `load`, the machine's load average at its end."""
    command = [
        sys.executable, "-m", "adalink_jax", "plan", "--gin_file=gin/models/t5_1_1_xl.gin", "--gin_file=gin/adapters/adalink.gin",
        "--gin_file=gin/meshes/fsdp.gin", "--gin.FROZEN_DTYPE='bfloat16'", "--gin.REMAT='full'",
        f"--gin.SCAN_LAYERS={scanned}", f"--gin.T5Config.num_encoder_layers={layers}",
        f"--gin.T5Config.num_decoder_layers={layers}", "--topology", topology, "--json",
        *(["--quick"] if quick else []),
    ]  # fmt: skip
    used = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    before = used()
    done = subprocess.run(command, capture_output=True, text=True)
    if not done.stdout.startswith("{"):
        sys.exit(done.stderr[-3000:])
    return json.loads(done.stdout) | {"cpu": used() - before, "load": os.getloadavg()[0]}


def main() -> None:
    """Prints the table, each line as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--layers", type=int, nargs="+", default=[6, 12, 24, 48], help="layers of the encoder, and of the decoder"
    )
    parser.add_argument("--topology", default="v5e:4x8")
    parser.add_argument("--quick", action="store_true", help="compile with the least optimization")
    parser.add_argument("--unrolled", action="store_true", help="also without SCAN_LAYERS")
    options = parser.parse_args()
    heads = ("layers a stack", "program", "frozen, GB a chip", "temporaries, GB a chip", "step compiled in, s",
             "decoding compiled in, s", "whole command, CPU s", "load average")  # fmt: skip
    print("| " + " | ".join(heads) + " |\n|---:|---|" + "---:|" * (len(heads) - 2), flush=True)
    for scanned in (True, False) if options.unrolled else (True,):
        for layers in options.layers:
            result = plan(layers, options.topology, scanned, options.quick)
            cells = (
                layers, "scanned" if scanned else "unrolled", f"{result['frozen_bytes'] / 1e9:.2f}",
                f"{result['temp_bytes'] / 1e9:.2f}", f"{result['compile_seconds']:.1f}",
                f"{result['eval_compile_seconds']:.1f}", f"{result['cpu']:.0f}", f"{result['load']:.1f}",
            )  # fmt: skip
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
