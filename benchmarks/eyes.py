"""What a run's own measurements cost a step: the gradient's norm of each part, and the state that is kept if a step is not finite.

    python benchmarks/eyes.py [--steps 100]

Three programs of one training step alternate, step by step: as a run compiles it, without the norms per part, and without the choice
between the new state and the old one either. The table has what each adds to the median CPU time of all cores, which other programs disturb
little, and to the FLOPs and bytes that the compiler counts. Weights are random. What a run does for `timing/...` after a logged step is timed on its own.
"""

import argparse
import contextlib
import statistics
import time
from unittest import mock

import jax
import jax.numpy as jnp

from adalink_jax.adapters import AdaLinkAdapter, AdaptedModel, fresh_params
from adalink_jax.models import PaLI, T5Config, ViTConfig, paths
from adalink_jax.parallel import unbox
from adalink_jax.training import optimizers, partition, speed
from adalink_jax.training.not_finite import holding
from adalink_jax.training.step import TrainState, make_train_step

NANO = PaLI(T5Config(264, 64, 8, 8, 128, 2, 2), ViTConfig((8, 16), 4, 64, 8, 256, 2, channels=1))
SMALL = PaLI(
    T5Config(32128, 512, 6, 64, 1024, 8, 8), ViTConfig((112, 112), 16, 384, 6, 1536, 6)
)  # fmt: skip
CASES = {  # model, batch, lengths of inputs and targets, what is trained
    "pali_nano, AdaLink": (NANO, 128, (24, 4), "adapter/.*"),
    "T5 1.1 small with a ViT, AdaLink": (SMALL, 8, (64, 16), "adapter/.*"),
}


def variants(model, trainable: str, batch):
    """The compiled steps by name, each with a state of its own; and the frozen leaves."""
    params = jax.jit(lambda: unbox(fresh_params(model, 0)))()
    chosen, frozen = partition.split(paths.flatten(params), (trainable,))
    optimizer = optimizers.adamw(1e-3, clip_norm=1.0)
    compiled = {}
    for name in ("the run's", "without norms per part", "without both"):
        step = make_train_step(model, optimizer)
        step = step if name == "without both" else holding(step)
        leaves = jax.tree.map(jnp.copy, chosen)
        state = TrainState(jnp.int32(0), leaves, optimizer.init(leaves))
        none = mock.patch("adalink_jax.training.step.grad_norms", lambda grads: {})
        with none if name != "the run's" else contextlib.nullcontext():
            compiled[name] = [jax.jit(step, donate_argnums=0).lower(state, frozen, batch).compile(), state]
    return compiled, frozen


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="of each program; a fifth of them for the larger model")
    options = parser.parse_args()
    print(
        "| case | CPU time of a step | norms per part, %: time | FLOPs | bytes | keeping the state, %: time | FLOPs | bytes |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for case, (backbone, rows, lengths, trainable) in CASES.items():
        model = AdaptedModel(backbone, AdaLinkAdapter(rank=16 if backbone is NANO else 64))
        shapes = backbone.abstract_batch(rows, *lengths)
        batch = {name: jax.random.uniform(jax.random.key(1), x.shape).astype(x.dtype) for name, x in shapes.items()}
        batch["decoder_target_tokens"] = batch["decoder_target_tokens"] + 5
        compiled, frozen = variants(model, trainable, batch)
        times = {name: [] for name in compiled}
        for _ in range(1 + (options.steps if backbone is NANO else options.steps // 5)):
            for name, (step, state) in compiled.items():
                begin = time.process_time()
                compiled[name][1] = jax.block_until_ready(step(state, frozen, batch))[0]
                times[name].append(time.process_time() - begin)
        cpu = [statistics.median(values[1:]) for values in times.values()]
        costs = [step.cost_analysis() for step, _ in compiled.values()]
        columns = [f"{cpu[0] * 1e3:.0f} ms"]
        for more, less in ((0, 1), (1, 2)):
            for values in (cpu, [cost["flops"] for cost in costs], [cost["bytes accessed"] for cost in costs]):
                columns.append(f"{(values[more] / values[less] - 1) * 100:+.2f}")
        print(f"| {case} | {' | '.join(columns)} |", flush=True)
    begin = time.perf_counter()
    for _ in range(1000):
        speed.measured(0.1, {"tokens": 100.0}, 10)
    print(f"\nThe values of `timing/...` take {(time.perf_counter() - begin) * 1e3:.1f} µs at each logged step.")


if __name__ == "__main__":
    main()
