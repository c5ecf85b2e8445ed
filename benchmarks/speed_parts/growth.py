"""How time and memory grow: with AdaLink's rank, the length of the input, the adapters of a bank, the depth, and the number of chips.

The first four are run here, each point in a process of its own; chips are planned from compiled programs (`adalink plan --quick`).
"""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adalink_jax import AdaLinkAdapter, AdaptedModel, parallel
from adalink_jax.adapters import fresh_params, stack_adapters
from adalink_jax.models.decoding import Sampling
from benchmarks.speed_parts import ours
from benchmarks.speed_parts.work import Model

CHIP = "v5p"
CHIPS = {8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8"}
ROWS_PER_CHIP = 4
BANK_RANK = 16


@dataclasses.dataclass(frozen=True)
class Curve:
    """One curve.

    Attributes:
      title: what grows, as the x axis names it.
      setting: what is measured, in one phrase.
      points: values of x.
      tiny: the same for `--tiny`.
      memory: what the memory is.
      time: what the seconds are.
      power: whether the sentence gives an exponent, rather than an increase per unit.
    """

    title: str
    setting: str
    points: tuple[int, ...]
    tiny: tuple[int, ...]
    memory: str = "temporaries of the step"
    time: str = "CPU seconds"
    power: bool = False


CURVES = {
    "rank": Curve("rank", "training step, 8 x 128/32", (1, 4, 16, 64, 256, 1024), (1, 4, 16)),
    "length": Curve("tokens in", "training step, one row, 32 tokens out", (128, 512, 2048, 8192), (16, 32, 64), power=True),
    "bank": Curve(
        "adapters in the bank", "greedy decoding of 32 rows, 32 in, 8 out, rank 16", (1, 16, 256, 4096), (1, 4, 16),
        "parameters of the bank",
    ),
    "depth": Curve("layers per stack", "training step, 8 x 128/32", (2, 4, 8, 16, 32), (1, 2, 4)),
    "chips": Curve(
        "chips", f"T5 XL on {CHIP}, 512/128, AdaLink, FSDP, {ROWS_PER_CHIP} rows per chip: the step at best, compiled and not run",
        tuple(CHIPS), (8, 16), "memory that a step needs per chip", "seconds of a step at best", power=True,
    ),
}  # fmt: skip


def prepare(curve: str, point: int, model: Model) -> ours.Program:
    """The program of one point, on random weights. Its `temporaries` are the curve's memory."""
    if curve == "bank":
        return _bank(point, model)
    rows, inputs, targets = (8, 128, 32) if curve != "length" else (1, point, 32)
    if curve == "rank":
        model = dataclasses.replace(model, rank=point)
    if curve == "depth":
        model = dataclasses.replace(model, layers=point)
    adapted = AdaptedModel(ours.backbone(model), AdaLinkAdapter(rank=model.rank))
    return ours.random_step(adapted, ours.random_batch(model.vocab_size, rows, inputs, targets))


def _bank(adapters: int, model: Model) -> ours.Program:
    """Decoding in which every row has another adapter of the bank."""
    rows, inputs, targets = 32, 32, 8
    base, module = ours.backbone(model), AdaLinkAdapter(rank=BANK_RANK)
    params = parallel.unbox(fresh_params(AdaptedModel(base, module), 0))
    bank, one = stack_adapters(base, [(module, params["adapter"])])
    stacked = jax.tree.map(lambda x: jnp.repeat(x, adapters, axis=0), one)
    batch = {
        "encoder_input_tokens": ours.random_batch(model.vocab_size, rows, inputs, targets)["encoder_input_tokens"],
        "adapter_index": (np.arange(rows, dtype=np.int32) * 31) % adapters + 1,
    }
    generate = lambda params, batch: (
        AdaptedModel(base, bank)
        .apply({"params": params}, batch, targets, Sampling(min_length=targets - 1), method="generate")
        .ids
    )
    arguments = jax.device_put(({"backbone": params["backbone"], "adapter": stacked}, batch))
    compiled = jax.jit(generate).lower(*arguments).compile()
    facts = {"temporaries": sum(x.nbytes for x in jax.tree.leaves(arguments[0]["adapter"]))}
    return lambda: np.asarray(compiled(*arguments))[0, 0].tolist(), facts


def plan(chips: int) -> dict[str, Any]:
    """The plan of one number of chips: `step_seconds`, `hbm_bytes` and more of `adalink plan --json`."""
    command = [
        sys.executable, "-m", "adalink_jax", "plan", "--gin_file=gin/models/t5_1_1_xl.gin", "--gin_file=gin/adapters/adalink.gin",
        "--gin_file=gin/meshes/fsdp.gin", "--gin.FROZEN_DTYPE='bfloat16'", "--gin.REMAT='full'",
        f"--gin.BATCH_SIZE={ROWS_PER_CHIP * chips}", "--gin.TASK_FEATURE_LENGTHS={'inputs': 512, 'targets': 128}",
        "--topology", f"{CHIP}:{CHIPS[chips]}", "--json", "--quick",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if not done.stdout.startswith("{"):
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(done.stdout)


def power(x: Sequence[float], y: Sequence[float]) -> float:
    """p of y = c x^p, by least squares of the logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """b of y = a + b x, by least squares."""
    return float(np.polyfit(x, y, 1)[0])
