"""Examples per second of greedy decoding, with a different adapter for each row of the batch, compared with the base model.

    python benchmarks/bank.py [--rows 64] [--repeats 30]

`pali_nano`, with as many adapters as rows. The programs run in turns; a ratio is one of medians, with the quartiles of the ratios of
single turns. Prints one row per method.
"""

import argparse
import statistics
import time

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from adalink_jax import AdaLinkAdapter, AdaptedModel, LoRA, PromptTuning, configuration, parallel
from adalink_jax.adapters import fresh_params, stack_adapters
from adalink_jax.cli.arguments import register

METHODS = {
    "AdaLink, rank 16": AdaLinkAdapter(rank=16),
    "prompt tuning, 20 vectors": PromptTuning(length=20),
    "LoRA, rank 8": LoRA(rank=8),
}
INPUTS, TARGETS = 24, 4


def backbone():
    """The model of gin/models/pali_nano.gin."""
    register()
    flags, _ = configuration.parse_flags(["--gin_file=gin/models/pali_nano.gin"])
    configuration.load(flags, require_all=False)
    return AdaptedModel().backbone


def main() -> None:
    """Compiles the programs, times them in turns, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    base = backbone()
    rng = np.random.default_rng(0)
    shapes = base.abstract_batch(options.rows, INPUTS, TARGETS)
    batch = {
        "encoder_input_tokens": rng.integers(3, 250, (options.rows, INPUTS)).astype(np.int32),
        "images": rng.uniform(-1, 1, shapes["images"].shape).astype(np.float32),
    }
    plain = parallel.unbox(fresh_params(AdaptedModel(base), 0))

    def program(model, params, batch):
        run = jax.jit(lambda params, batch: model.apply({"params": params}, batch, TARGETS, method="generate").ids)
        compiled = run.lower(params, batch).compile()
        placed = jax.device_put((params, batch))
        return lambda: jax.block_until_ready(compiled(*placed))

    programs = {"the base": program(AdaptedModel(base), plain, batch)}
    for name, module in METHODS.items():
        model = AdaptedModel(base, module)
        members = [(module, parallel.unbox(fresh_params(model, seed))["adapter"]) for seed in range(options.rows)]
        bank, stacked = stack_adapters(base, members)
        index = np.arange(1, options.rows + 1, dtype=np.int32)
        params = {**plain, "adapter": stacked}
        programs[name] = program(AdaptedModel(base, bank), params, {**batch, "adapter_index": index})
    seconds = {name: [] for name in programs}
    for turn in range(options.repeats + 3):
        for name, run in programs.items():
            started = time.perf_counter()
            run()
            if turn >= 3:
                seconds[name].append(time.perf_counter() - started)
    table = Table(title=f"Greedy decoding, {options.rows} rows, {options.rows} adapters", title_justify="left")
    for heading in ("", "examples/s", "relative to the base", "quartiles"):
        table.add_column(heading, justify="left" if not heading else "right")
    bare = seconds["the base"]
    for name, times in seconds.items():
        ratios = [a / b for a, b in zip(bare, times)]
        low, _, high = statistics.quantiles(ratios, n=4)
        ratio = statistics.median(bare) / statistics.median(times)
        rate = options.rows / statistics.median(times)
        table.add_row(name, f"{rate:,.0f}", f"{ratio:.3f}", f"{low:.3f} to {high:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
