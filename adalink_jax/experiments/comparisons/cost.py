"""The cost of one training step of a method: time, and memory as the compiler counts it."""

import statistics
import time

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax

from adalink_jax import parallel
from adalink_jax.errors import UserError
from adalink_jax.training.setup import Setup, load_parameters
from adalink_jax.training.step import TrainState, make_train_step

WARM, TIMED = 3, 15


@gin.configurable
def step_cost(setup: Setup, optimizer: optax.GradientTransformation) -> dict[str, float]:
    """Compiles and times one adapter's training step, on a batch of padding with the shape of the data.

    Args:
      setup: model and data; its base is read.
      optimizer: for the trainable tree.

    Returns:
      `step_seconds`, the median of `TIMED` steps; `peak_bytes`, the arguments, outputs and temporaries of the compiled step, less
      what it updates in place.
    """
    shapes = setup.train_batch(setup.data.batch_size)
    mesh, rules = parallel.make_mesh(), parallel.logical_axis_rules()
    batch = {name: np.ones(leaf.shape, leaf.dtype) for name, leaf in shapes.items()}
    with parallel.use_mesh(mesh, rules):
        params = load_parameters(setup, mesh, rules)
        state = TrainState(jnp.int32(0), params.trainable, optimizer.init(params.trainable))
        step = jax.jit(make_train_step(setup.model, optimizer), donate_argnums=0)
        placed = parallel.put_batch(batch, mesh)
        compiled = step.lower(
            state, params.frozen, placed
        ).compile()  # not run: on CPUs it refuses arguments of four bits
        seconds = []
        for _ in range(WARM + TIMED):
            started = time.perf_counter()
            state, _ = jax.block_until_ready(step(state, params.frozen, placed))
            seconds.append(time.perf_counter() - started)
    memory = compiled.memory_analysis()
    if memory is None:
        raise UserError(f"JAX reports no memory of compiled programs on {jax.default_backend()}.")
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return {
        "step_seconds": statistics.median(seconds[WARM:]),
        "peak_bytes": total - memory.alias_size_in_bytes,
    }
