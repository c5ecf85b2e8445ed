"""Run by test_loop.py on one device and on eight: steps that transfer data implicitly, of a run and of a pack.

python loop_program.py FOLDER
"""

import sys

import jax
import jax.numpy as jnp
from helpers import random_batch, tiny_pali

from adalink_jax import AdaLinkAdapter, AdaptedModel, checkpoints, parallel
from adalink_jax.data import DatasetConfig
from adalink_jax.training import optimizers
from adalink_jax.training.loop import Period, run_loop
from adalink_jax.training.packs.members import Member
from adalink_jax.training.packs.pack import load_pack, make_packed_step
from adalink_jax.training.setup import Setup, load_parameters
from adalink_jax.training.step import TrainState, make_train_step


class Repeated:
    """An iterator that yields one batch again and again."""

    def __init__(self, batch):
        self.batch = batch

    def __next__(self):
        return self.batch


def check(name, step, state, frozen, *, broken, batch, mesh):
    """The sound step trains, with an action that may transfer; the broken step is refused."""
    losses = []
    options = {"mesh": mesh, "on_metrics": lambda step, metrics, rate: losses.append(metrics["loss"])}
    copied = jax.tree.map(jnp.copy, state)
    actions = [Period(2, lambda state: float(state.step) + jnp.zeros(2)[0])]
    run_loop(jax.jit(step), copied, frozen, Repeated(batch), total_steps=3, after_steps=actions, **options)
    assert len(losses) == 3
    try:
        run_loop(broken, state, frozen, Repeated(batch), total_steps=3, after_steps=[], **options)
    except jax.errors.JaxRuntimeError as e:
        assert "Disallowed host-to-device transfer" in str(e), e
        print(f"{name}: refused", flush=True)


def main(folder):
    model = AdaptedModel(tiny_pali(num_heads=8, head_dim=4), AdaLinkAdapter(rank=4))
    batch = random_batch(model.backbone, 8, 6, 4, seed=0)
    mesh, rules = parallel.make_mesh(), parallel.logical_axis_rules()
    optimizer = optimizers.adamw(optimizers.warmup_cosine(1e-3, 3, 1), clip_norm=1.0)
    with parallel.use_mesh(mesh, rules):
        params = load_parameters(Setup(model, ("adapter/.*", "backbone/.*")), mesh, rules)
        state = TrainState(jnp.int32(0), params.trainable, optimizer.init(params.trainable))
        step = make_train_step(model, optimizer, shards=parallel.shards_of(params.trainable, mesh))
        compiled = jax.jit(step)
        broken = lambda state, frozen, batch: compiled(state, frozen, jax.device_get(batch))
        state = parallel.on_mesh(state, mesh)
        check("run", step, state, params.frozen, broken=broken, batch=batch, mesh=mesh)

        checkpoints.save_base(folder, params.tree()["backbone"], "tiny", {})
        dataset = DatasetConfig("digits_reverse", {"inputs": 6, "targets": 4}, 8)
        setup = Setup(model, ("adapter/.*",), dataset, folder)
        pack = load_pack(setup, [Member(0.1, 0), Member(0.2, 1)], mesh, rules)
        state = TrainState(jnp.int32(0), pack.trainable, jax.jit(jax.vmap(optimizer.init))(pack.trainable))
        packed = jax.jit(make_packed_step(pack.model, optimizer))
        members = jax.device_get(pack.members)
        step = lambda state, frozen, batch: packed(state, pack.members, frozen, batch)
        broken = lambda state, frozen, batch: packed(state, members, frozen, batch)
        state = parallel.on_mesh(state, mesh)
        check("pack", step, state, pack.params.frozen, broken=broken, batch=batch, mesh=mesh)


if __name__ == "__main__":
    main(*sys.argv[1:])
