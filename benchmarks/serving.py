"""The cost of each method in serving: latency of one request and throughput of a batch, relative to the frozen base model.

    python benchmarks/serving.py [--gin_file=gin/models/flan_t5_base.gin] [--inputs 64] [--outputs 32] [--batch_size 32] [--rounds 15]

Greedy decoding of a fixed number of tokens by a compiled program, with random weights (the time does not depend on them), in float32 on
CPUs and bfloat16 elsewhere. The methods run in turns in one process; a ratio is the median over the rounds of a method's time divided by
the base's in the same round, with its quartiles.
"""

import argparse
import dataclasses
import time

import gin
import jax
import jax.numpy as jnp
import numpy as np

from adalink_jax import T5, AdaLinkAdapter, AdaptedModel, T5Config, configuration, parallel
from adalink_jax.adapters import LoRA, PromptTuning, fold_adapter, fresh_params, stack_adapters
from adalink_jax.cli.arguments import register
from adalink_jax.models.decoding import Sampling
from adalink_jax.serving import shipped

BASE = "frozen base"
BANK = 8  # adapters in a bank
WARM = 2


def configured(file: str | None) -> T5:
    """The model of a gin file; without one, a T5 1.1 of width 512 and 6 + 6 layers, about 40 M parameters."""
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if file is None:
        return T5(T5Config(8128, 512, 8, 64, 1024, 6, 6, dtype=dtype))
    register()
    flags, _ = configuration.parse_flags([f"--gin_file={file}"])
    backbone = shipped.configured_backbone(flags)
    gin.clear_config()
    return T5(dataclasses.replace(backbone.config, dtype=dtype))


def methods(backbone: T5) -> dict:
    """Name -> (model, parameters, number of adapters in a bank or None)."""
    base = fresh(AdaptedModel(backbone))["backbone"]
    adapter_of = lambda module, seed=0: fresh(AdaptedModel(backbone, module), seed)["adapter"]
    with_base = lambda adapter: {"backbone": base, "adapter": adapter}
    adalink, prompt, lora = AdaLinkAdapter(rank=64), PromptTuning(length=20), LoRA(rank=8)
    folded = fold_adapter(adalink, adapter_of(adalink), base)
    table = T5(dataclasses.replace(backbone.config, encoder_embedding=True))
    bank, stacked = stack_adapters(backbone, [(adalink, adapter_of(adalink, seed)) for seed in range(BANK)])
    return {
        BASE: (AdaptedModel(backbone), {"backbone": base}, None),
        "AdaLink, rank 64": (AdaptedModel(backbone, adalink), with_base(adapter_of(adalink)), None),
        "AdaLink, folded": (AdaptedModel(table), {"backbone": folded}, None),
        f"a bank of {BANK} AdaLinks": (AdaptedModel(backbone, bank), with_base(stacked), BANK),
        "prompt tuning, 20 vectors": (AdaptedModel(backbone, prompt), with_base(adapter_of(prompt)), None),
        "LoRA, rank 8": (AdaptedModel(backbone, lora), with_base(adapter_of(lora)), None),
    }


def fresh(model: AdaptedModel, seed: int = 0) -> dict:
    """Random parameters."""
    return jax.jit(lambda: parallel.unbox(fresh_params(model, seed)))()


def program(model: AdaptedModel, params: dict, batch: dict, outputs: int):
    """A compiled function that decodes `batch`."""
    decoding = Sampling(min_length=outputs - 1)  # all outputs have the same length
    generate = jax.jit(lambda p, b: model.apply({"params": p}, b, outputs, decoding, method="generate").ids)
    compiled = generate.lower(params, batch).compile()
    return lambda: jax.block_until_ready(compiled(params, batch))


def timed(models: dict, rows: int, inputs: int, outputs: int, rounds: int) -> dict[str, np.ndarray]:
    """Name -> seconds of each round."""
    rng = np.random.default_rng(0)
    runs = {}
    for name, (model, params, adapters) in models.items():
        tokens = rng.integers(3, model.backbone.config.vocab_size, (rows, inputs))
        batch = {"encoder_input_tokens": jnp.asarray(tokens, jnp.int32)}
        if adapters is not None:
            batch["adapter_index"] = jnp.asarray(1 + np.arange(rows) % adapters, jnp.int32)
        runs[name] = program(model, params, batch, outputs)
    seconds = {name: [] for name in runs}
    for _ in range(WARM + rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {name: np.array(values[WARM:]) for name, values in seconds.items()}


def main() -> None:
    """Times all methods and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--gin_file", metavar="FILE", help="a text model; by default one of about 40 M parameters")
    parser.add_argument("--inputs", type=int, default=64, help="tokens of the input")
    parser.add_argument("--outputs", type=int, default=32, help="tokens of the output")
    parser.add_argument("--batch_size", type=int, default=32, help="rows of the batch whose throughput is measured")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    backbone = configured(options.gin_file)
    models = methods(backbone)
    sizes = sum(leaf.size for leaf in jax.tree.leaves(models[BASE][1]))
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}; a base of {sizes:,} parameters, {backbone.config.dtype}; "
          f"{options.inputs} tokens in, {options.outputs} out, {options.rounds} rounds\n")  # fmt: skip
    one = timed(models, 1, options.inputs, options.outputs, options.rounds)
    many = timed(models, options.batch_size, options.inputs, options.outputs, options.rounds)
    print(
        f"| | one request, ms | relative to the base | {options.batch_size} requests, tokens/s | time, relative to the base |\n|---|---:|---:|---:|---:|"
    )
    for name in models:
        cells = [f"{1e3 * np.median(one[name]):.1f}", ratio(one, name)]
        cells += [f"{options.batch_size * options.outputs / np.median(many[name]):,.0f}", ratio(many, name)]
        print(f"| {name} | {' | '.join(cells)} |")


def ratio(seconds: dict[str, np.ndarray], name: str) -> str:
    """The median ratio over the rounds, and its quartiles."""
    low, middle, high = np.quantile(seconds[name] / seconds[BASE], (0.25, 0.5, 0.75))
    return "1" if name == BASE else f"{middle:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main()
