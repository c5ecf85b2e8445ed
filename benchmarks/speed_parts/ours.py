"""The programs of this package: a training step by AdaLink, LoRA or in full, decoding, and the matrix product."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adalink_jax import AdaLinkAdapter, AdaptedModel, LoRA, T5Config, parallel
from adalink_jax.adapters import fresh_params
from adalink_jax.models import paths
from adalink_jax.models.decoding import BeamSearch, Sampling
from adalink_jax.models.t5 import T5
from adalink_jax.training import optimizers
from adalink_jax.training.flops import count_flops
from adalink_jax.training.setup import Setup, load_parameters
from adalink_jax.training.step import TrainState, make_train_step
from benchmarks.speed_parts.work import Model, Work

Program = tuple[Callable[[], Any], dict[str, Any]]  # what is timed, and facts about it


def backbone(model: Model, **changes: Any) -> T5:
    """The T5 of these sizes."""
    sizes = {name: getattr(model, name) for name in ("vocab_size", "emb_dim", "num_heads", "head_dim", "mlp_dim")}
    layers = {"num_encoder_layers": model.layers, "num_decoder_layers": model.layers}
    return T5(T5Config(**sizes | layers | changes))


def random_batch(vocab_size: int, rows: int, inputs: int, targets: int) -> dict[str, np.ndarray]:
    """Rows without padding, the same for every library: ids from 3 on."""
    rng = np.random.default_rng(0)
    ids = rng.integers(3, vocab_size, (rows, inputs)).astype(np.int32)
    out = rng.integers(3, vocab_size, (rows, targets)).astype(np.int32)
    shifted = np.concatenate([np.zeros((rows, 1), np.int32), out[:, :-1]], axis=1)
    weights = np.ones((rows, targets), np.float32)
    return {
        "encoder_input_tokens": ids, "decoder_input_tokens": shifted, "decoder_target_tokens": out,
        "decoder_loss_weights": weights,
    }  # fmt: skip


def _timed_step(adapted: AdaptedModel, trainable: dict, frozen: dict, batch: dict, mesh: Any) -> Program:
    """A compiled step by AdamW that keeps its state and returns the loss; inside the mesh's context."""
    optimizer = optimizers.adamw(1e-3)
    state = parallel.on_mesh(TrainState(jnp.int32(0), trainable, optimizer.init(trainable)), mesh)
    train_step = make_train_step(adapted, optimizer)
    placed = parallel.put_batch(batch, mesh)
    flops = count_flops(train_step, state, frozen, placed)
    jitted = jax.jit(train_step, donate_argnums=0)
    compiled = jitted.lower(state, frozen, placed).compile()  # not run: on CPUs it refuses arguments of four bits
    holder = [state]

    def run() -> float:
        holder[0], metrics = jitted(holder[0], frozen, placed)
        return float(metrics["loss"])

    return run, {"flops": flops} | _memory(compiled)


def _memory(program: jax.stages.Compiled) -> dict[str, Any]:
    """Bytes of a program's temporaries and arguments."""
    memory = program.memory_analysis()
    return {"temporaries": memory and memory.temp_size_in_bytes, "arguments": memory and memory.argument_size_in_bytes}


def step(work: Work, model: Model, base: str, name: str, dtype: str | None) -> Program:
    """The row's training step by `name`: adalink, lora or full.

    Args:
      work, model, base: what is measured, and the folder of the weights.
      name: the method.
      dtype: FROZEN_DTYPE, with scanned layers; None for float32 and unrolled ones.
    """
    adapter = {"adalink": AdaLinkAdapter(rank=model.rank), "lora": LoRA(rank=model.lora_rank), "full": None}[name]
    base_model = backbone(model, scan_layers=dtype is not None)
    adapted, trainable = AdaptedModel(base_model, adapter), (".*",) if adapter is None else ("adapter/.*",)
    batch = random_batch(model.vocab_size, work.batch, work.inputs, work.targets)
    mesh, rules = parallel.make_mesh(), parallel.logical_axis_rules()
    with parallel.use_mesh(mesh, rules):
        setup = Setup(adapted, trainable, initial_checkpoint_path=base, frozen_dtype=dtype or "float32")
        params = load_parameters(setup, mesh, rules)
        return _timed_step(adapted, params.trainable, params.frozen, batch, mesh)


def random_step(adapted: AdaptedModel, batch: dict, dtype: str = "float32") -> Program:
    """A step of an adapter on a frozen backbone of random weights, which never leave the device.

    Args:
      adapted: the model.
      batch: see `random_batch`.
      dtype: of the frozen leaves.
    """
    mesh, rules = parallel.make_mesh(), parallel.logical_axis_rules()

    def fresh() -> tuple[dict, dict]:
        leaves = paths.flatten(parallel.unbox(fresh_params(adapted, 0)))
        trainable = {name: leaf for name, leaf in leaves.items() if name.startswith("adapter/")}
        return trainable, {name: leaf.astype(dtype) for name, leaf in leaves.items() if name not in trainable}

    with parallel.use_mesh(mesh, rules):
        trainable, frozen = jax.jit(fresh, out_shardings=parallel.replicated(mesh))()
        return _timed_step(adapted, trainable, frozen, batch, mesh)


def decode(work: Work, model: Model, base: str, dtype: str | None) -> Program:
    """The row's decoding, with the arguments of `step`. Its limit counts the FLOPs of one forward pass over inputs and outputs: 2 a parameter and token."""
    adapted = AdaptedModel(backbone(model, scan_layers=dtype is not None))
    decoding = Sampling(min_length=work.targets - 1) if work.beams == 1 else BeamSearch(work.beams)
    batch = random_batch(model.vocab_size, work.batch, work.inputs, work.targets)
    mesh, rules = parallel.make_mesh(), parallel.logical_axis_rules()
    with parallel.use_mesh(mesh, rules):
        setup = Setup(adapted, initial_checkpoint_path=base, frozen_dtype=dtype or "float32")
        params = load_parameters(setup, mesh, rules).tree()
        rows = {name: np.repeat(x, work.beams, axis=0) for name, x in batch.items()}
        flops = count_flops(lambda params, batch: adapted.apply({"params": params}, batch), params, rows)
        inputs = parallel.put_batch({"encoder_input_tokens": batch["encoder_input_tokens"]}, mesh)
        generate = lambda params, batch: (
            adapted.apply({"params": params}, batch, work.targets, decoding, method="generate").ids
        )
        jitted = jax.jit(generate)
        compiled = jitted.lower(params, inputs).compile()
    return lambda: np.asarray(jitted(params, inputs))[0, 0].tolist(), {"flops": flops} | _memory(compiled)


def matmul(model: Model) -> Program:
    """A float32 product of two square matrices; `flops` of it, for the machine's rate."""
    size = model.matmul
    x = jnp.asarray(np.random.default_rng(0).standard_normal((size, size), np.float32))
    product = jax.jit(lambda a, b: a @ b)
    return lambda: float(product(x, x)[0, 0]), {"flops": 2 * size**3}


def prepare(contender: str, work: Work, model: Model, base: str) -> Program:
    """The program of one of this package's contenders."""
    if contender == "matmul":
        return matmul(model)
    _, name, *dtypes = contender.split()
    dtype = dtypes[0] if dtypes else None
    return decode(work, model, base, dtype) if name == "decoding" else step(work, model, base, name, dtype)
