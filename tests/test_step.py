"""The split of the parameters and the step: what moves, what has gradients, and the value of the loss."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import init, random_batch, tiny_pali

from adalink_jax import AdaLinkAdapter, AdaptedModel
from adalink_jax.errors import UserError
from adalink_jax.models import paths
from adalink_jax.training import optimizers, partition
from adalink_jax.training.step import CrossEntropy, TrainState, check_batch, make_train_step


def make(expressions=("adapter/.*",), optimizer=None, scan_layers=False, batch_size=8, dropout=0.0, **step_options):
    backbone = tiny_pali(scan_layers=scan_layers, dropout_rate=dropout)
    model = AdaptedModel(backbone, AdaLinkAdapter(rank=4))
    batch = random_batch(backbone, batch_size, 6, 4, seed=1)
    trainable, frozen = partition.split(init(model, batch, 0), expressions)
    optimizer = optimizer or optimizers.adamw(0.01)
    state = TrainState(jnp.int32(0), trainable, optimizer.init(trainable))
    return make_train_step(model, optimizer, **step_options), state, frozen, batch


def leaves(tree):
    return {name: np.asarray(leaf) for name, leaf in paths.flatten(tree).items()}


@pytest.mark.parametrize("scan_layers", [False, True])
def test_only_the_adapter_moves_and_every_frozen_leaf_keeps_its_bits(scan_layers):
    step, state, frozen, batch = make(scan_layers=scan_layers)
    before, frozen_before = leaves(state.trainable), leaves(frozen)
    step = jax.jit(step, donate_argnums=0)
    for _ in range(3):
        state, metrics = step(state, frozen, batch)
    assert set(before) == {f"adapter/{kind}/{matrix}" for kind in ("image", "text") for matrix in ("down", "up")}
    for name, leaf in leaves(state.trainable).items():
        assert (leaf != before[name]).any(), name
    for name, leaf in leaves(frozen).items():
        assert leaf.tobytes() == frozen_before[name].tobytes(), name
    assert np.isfinite(metrics["loss"])


def test_no_optimizer_state_exists_for_a_frozen_leaf():
    _, state, frozen, _ = make()
    trainable_sizes = sum(leaf.size for leaf in jax.tree.leaves(state.trainable))
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert moments == 2 * trainable_sizes  # AdamW's two moments


def test_the_adapter_step_computes_no_gradient_of_a_frozen_leaf():
    """Counted from the compiled programs of the unrolled pali_nano, without remat, as shipped."""
    from adalink_jax import PaLI, T5Config, ViTConfig

    language = T5Config(264, 64, 8, 8, 128, 2, 2)
    backbone = PaLI(language, ViTConfig((8, 16), 4, 64, 8, 256, 2, channels=1))
    model = AdaptedModel(backbone, AdaLinkAdapter(rank=16))
    batch = backbone.abstract_batch(128, 24, 4)
    params = jax.eval_shape(lambda: nn.meta.unbox(model.init(jax.random.key(0), _zeros(batch))["params"]))

    def flops(expressions):
        trainable, frozen = partition.split(params, expressions)
        optimizer = optimizers.adamw(0.01)
        state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), trainable, jax.eval_shape(optimizer.init, trainable))
        step = jax.jit(make_train_step(model, optimizer))
        return step.lower(state, frozen, batch).compile().cost_analysis()["flops"]

    assert flops(["adapter/.*"]) <= 0.75 * flops(["backbone/.*"])


def _zeros(abstract):
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract)


def test_microbatches_give_the_whole_batch_s_gradients():
    """Rows have different numbers of tokens, so a mean of means would differ."""
    sgd = optimizers.grouped(optax.sgd(1.0), {"adapter/image/up": optax.sgd(0.5)})
    results = []
    for microbatches in (1, 2, 4):
        step, state, frozen, batch = make(optimizer=sgd, microbatches=microbatches)
        results.append(jax.jit(step)(state, frozen, batch))
    for state, metrics in results[1:]:
        np.testing.assert_allclose(metrics["loss"], results[0][1]["loss"], rtol=1e-6)
        for name, leaf in leaves(state.trainable).items():
            np.testing.assert_allclose(leaf, leaves(results[0][0].trainable)[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_loss_is_the_weighted_mean_over_the_global_batch():
    step, state, frozen, batch = make()
    model = AdaptedModel(tiny_pali(), AdaLinkAdapter(rank=4))
    logits = jax.jit(model.apply)({"params": partition.merge(state.trainable, frozen)}, batch)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["decoder_target_tokens"])
    weights = batch["decoder_loss_weights"]
    _, metrics = jax.jit(step)(state, frozen, batch)
    np.testing.assert_allclose(metrics["loss"], (losses * weights).sum() / weights.sum(), rtol=1e-6)
    assert metrics["tokens"] == weights.sum() < weights.size


def test_label_smoothing_and_z_loss_are_t5x_s():
    rng = np.random.default_rng(0)
    logits, targets = jnp.asarray(rng.normal(size=(2, 3, 11)), jnp.float32), rng.integers(0, 11, (2, 3))
    smoothing, z_loss = 0.1, 0.01
    low = smoothing / 10
    soft = np.full((2, 3, 11), low)
    np.put_along_axis(soft, targets[..., None], 1 - smoothing, axis=-1)
    expected = optax.softmax_cross_entropy(logits, soft) + (soft * np.log(soft)).sum(-1)
    expected = expected + z_loss * jax.nn.logsumexp(logits, axis=-1) ** 2
    losses = CrossEntropy(z_loss, smoothing)(logits, jnp.asarray(targets))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_groups_have_learning_rates_of_their_own():
    rates = {"adapter/image/.*": optimizers.adamw(0.5)}
    step, state, frozen, batch = make(optimizer=optimizers.grouped(optimizers.adamw(0.25), rates))
    after, metrics = jax.jit(step)(state, frozen, batch)
    assert metrics["learning_rate/adapter/image/.*"] == 0.5
    assert metrics["learning_rate/default"] == 0.25
    moved = {name: np.abs(leaf - leaves(state.trainable)[name]).max() for name, leaf in leaves(after.trainable).items()}
    # Adam's first step has the size of the learning rate.
    np.testing.assert_allclose(moved["adapter/image/up"], 0.5, rtol=1e-3)
    np.testing.assert_allclose(moved["adapter/text/up"], 0.25, rtol=1e-3)


def test_a_group_that_matches_nothing_is_an_error():
    with pytest.raises(UserError, match="'adapter/imagee/.\\*' matches no parameter"):
        make(optimizer=optimizers.grouped(optimizers.adamw(0.1), {"adapter/imagee/.*": optimizers.adamw(0.2)}))


def test_dropout_follows_the_step_s_number():
    step, state, frozen, batch = make(dropout=0.5)
    step = jax.jit(step)
    again = lambda number: step(state.replace(step=jnp.int32(number)), frozen, batch)[1]["loss"]
    assert again(0) == again(0)
    assert again(0) != again(1)


@pytest.mark.parametrize("name, schedule", [
    ("constant", lambda: optimizers.constant(0.1)),
    ("cosine", lambda: optimizers.warmup_cosine(0.1, total_steps=20, warmup_steps=5)),
    ("rsqrt", lambda: optimizers.warmup_rsqrt(0.1, warmup_steps=5)),
])  # fmt: skip
def test_schedules(name, schedule):
    values = [float(schedule()(step)) for step in (0, 5, 20)]
    expected = {"constant": [0.1, 0.1, 0.1], "cosine": [0.0, 0.1, 0.0], "rsqrt": [0.0, 0.1, 0.05]}[name]
    np.testing.assert_allclose(values, expected, atol=1e-7)


def test_the_logged_learning_rate_is_the_applied_one():
    schedule = optimizers.warmup_cosine(0.1, total_steps=20, warmup_steps=5)
    for make_optimizer in (optimizers.adamw, optimizers.adafactor):
        step, state, frozen, batch = make(optimizer=make_optimizer(schedule, clip_norm=1.0))
        step = jax.jit(step)
        for number in range(3):
            state, metrics = step(state, frozen, batch)
            np.testing.assert_allclose(metrics["learning_rate"], schedule(number), rtol=1e-6)


def test_expressions_match_whole_unscanned_paths():
    tree = {
        "backbone": {"encoder": {"layers_0": {"w": jnp.zeros(2)}, "layers_1": {"w": jnp.zeros(2)}}},
        "adapter": {"up": jnp.zeros(1)},
    }
    trainable, frozen = partition.split(tree, ["backbone/encoder/layers_1/.*", "adapter/.*"])
    assert set(paths.flatten(trainable)) == {"adapter/up", "backbone/encoder/layers_1/w"}
    assert set(paths.flatten(frozen)) == {"backbone/encoder/layers_0/w"}
    assert set(paths.flatten(partition.merge(trainable, frozen))) == set(paths.flatten(tree))
    for bad in ("adapter", "up", "encoder/.*"):
        with pytest.raises(UserError, match="matches no parameter"):
            partition.split(tree, [bad])
    with pytest.raises(UserError, match="not a valid regular expression"):
        partition.split(tree, ["adapter/(.*"])


def test_picking_layers_of_a_scanned_stack_names_the_unrolled_setting():
    tree = {"encoder": {"layers": {"w": jnp.zeros((3, 2))}}}
    assert partition.split(tree, [r"encoder/layers_\d+/.*"])[1] == {}
    with pytest.raises(UserError, match="picks 1 of the 3 layers of encoder/layers/w.*SCAN_LAYERS = False"):
        partition.split(tree, ["encoder/layers_2/.*"])


def test_a_batch_that_does_not_divide_names_the_nearest():
    check_batch(128, 4, 8)
    with pytest.raises(UserError, match="BATCH_SIZE = 100 .* 8 devices .* 4 microbatches; the nearest that does is 96"):
        check_batch(100, 4, 8)


def test_groups_are_clipped_by_the_norm_of_all_gradients():
    params = {"adapter/image/up": jnp.ones(3), "adapter/text/up": jnp.ones(2)}
    gradients = {"adapter/image/up": jnp.array([3.0, 0.0, 0.0]), "adapter/text/up": jnp.array([0.0, 4.0])}
    sgd = lambda learning_rate: optimizers._with_logged_rate(optax.sgd, learning_rate, 1.0)
    optimizer = optimizers.grouped(sgd(1.0), {"adapter/image/.*": sgd(0.5)})
    clipped, _ = optax.clip_by_global_norm(1.0).update(gradients, optax.EmptyState())
    updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(updates["adapter/image/up"], -0.5 * clipped["adapter/image/up"], rtol=1e-6)
    np.testing.assert_allclose(updates["adapter/text/up"], -clipped["adapter/text/up"], rtol=1e-6)
    alone, _ = sgd(1.0).update(gradients, sgd(1.0).init(params), params)
    np.testing.assert_allclose(alone["adapter/text/up"], -clipped["adapter/text/up"], rtol=1e-6)
