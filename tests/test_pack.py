"""Packed training gives each adapter the same result as training it alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import init, random_batch, tiny_pali

from adalink_jax import AdaLinkAdapter, AdaptedModel, Chain, LoRA, NormTuning, PromptTuning
from adalink_jax.adapters import abstract_params, unpad
from adalink_jax.errors import UserError
from adalink_jax.models import paths
from adalink_jax.models.quantised import Storage
from adalink_jax.training import optimizers
from adalink_jax.training.packs.pack import Members, make_packed_step, pack_adapters
from adalink_jax.training.step import TrainState, make_train_step

METHODS = {
    "adalink": lambda size: AdaLinkAdapter(rank=size, phi="gelu"),
    "adept": lambda size: Chain((AdaLinkAdapter(rank=size, share=True), PromptTuning(length=3))),
    "lora": lambda size: LoRA(rank=size),
    "norm_tuning": lambda size: NormTuning(),
}
SIZES, SEEDS, RATES, STEPS = (1, 3, 3), (0, 1, 2), (1e-3, 1e-3, 5e-4), 50


SLOW = [(method, n, "float32") for method, n in (("adept", 1), ("lora", 1), ("lora", 3), ("norm_tuning", 2))]
SLOW += [("adalink", 3, "int8"), ("lora", 3, "int4")]


@pytest.mark.parametrize(
    "method, at_once, dtype",
    [("adalink", 3, "float32"), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
def test_each_member_is_trained_as_it_would_be_alone(method, at_once, dtype):
    backbone = tiny_pali(dropout_rate=0.1)
    batches = [random_batch(backbone, 4, 6, 5, seed) for seed in range(5)]
    modules = [METHODS[method](size) for size in SIZES]
    fresh = [init(AdaptedModel(backbone, module), batches[0], seed) for module, seed in zip(modules, SEEDS)]
    frozen = paths.unflatten(Storage(dtype).of(paths.flatten({"backbone": fresh[0]["backbone"]})))
    optimizer = lambda rate: optimizers.adamw(
        optimizers.warmup_cosine(rate, STEPS, 10), weight_decay=0.01, clip_norm=1.0
    )

    with jax.default_matmul_precision("highest"):
        alone, losses = [], []
        for module, params, seed, rate in zip(modules, fresh, SEEDS, RATES):
            step = jax.jit(make_train_step(AdaptedModel(backbone, module), optimizer(rate), seed=seed))
            mine = {"adapter": params["adapter"]}
            state = TrainState(jnp.int32(0), mine, optimizer(rate).init(mine))
            for i in range(STEPS):
                state, metrics = step(state, frozen, batches[i % 5])
            alone.append(state.trainable["adapter"])
            losses.append(metrics)

        model, params, padding = pack_adapters(backbone, [(m, p["adapter"]) for m, p in zip(modules, fresh)])
        packed = {"adapter": params}
        members = Members(jnp.array(SEEDS, jnp.int32), jnp.array(RATES), padding)
        state = TrainState(jnp.int32(0), packed, jax.vmap(optimizer(1.0).init)(packed))
        step = jax.jit(make_packed_step(model, optimizer(1.0), at_once=at_once))
        for i in range(STEPS):
            state, metrics = step(state, members, frozen, batches[i % 5])

    assert int(state.step) == STEPS
    for i, expected in enumerate(alone):
        mine = jax.tree.map(lambda x, i=i: x[i], state.trainable["adapter"])
        found = unpad(mine, abstract_params(AdaptedModel(backbone, modules[i]))["adapter"])
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), found, expected)
        moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), expected, fresh[i]["adapter"])
        assert min(jax.tree.leaves(moved)) > 1e-3
        for name in ("loss", "grad_norm", "tokens", "learning_rate"):
            np.testing.assert_allclose(metrics[name][i], losses[i][name], rtol=1e-4, err_msg=name)


def test_adapters_that_differ_in_more_than_size_are_refused():
    backbone = tiny_pali()
    pair = lambda module: (module, init(AdaptedModel(backbone, module), random_batch(backbone, 1, 6, 5, 0))["adapter"])
    with pytest.raises(UserError, match="differ in AdaLinkAdapter.phi"):
        pack_adapters(backbone, [pair(AdaLinkAdapter(rank=2, phi="relu")), pair(AdaLinkAdapter(rank=3))])
    with pytest.raises(UserError, match="prompts of a pack must be of one length"):
        pack_adapters(backbone, [pair(PromptTuning(2)), pair(PromptTuning(3))])
