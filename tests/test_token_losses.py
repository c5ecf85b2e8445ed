"""The loss by way of a head: equal to the loss of all logits, forward and backward, and without those where the head is frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import init, random_batch, tiny_pali

from adalink_jax import AdaptedModel
from adalink_jax.adapters import AdaLinkAdapter, LoRA
from adalink_jax.training import partition, token_losses
from adalink_jax.training.flops import count_flops
from adalink_jax.training.step import CrossEntropy, make_loss

B, T, D, V = 3, 11, 16, 137
LOSSES = [CrossEntropy(), CrossEntropy(0.01, 0.1)]


@pytest.fixture(autouse=True)
def four_positions_at_a_time(monkeypatch):
    monkeypatch.setattr(token_losses, "CHUNK", 4 * B * V)


def case(dtype="float32"):
    rng = np.random.default_rng(0)
    states, kernel = (jnp.asarray(rng.normal(size=shape), dtype) for shape in ((B, T, D), (D, V)))
    weights = jnp.asarray(rng.random((B, T)), "float32")
    return states, kernel, rng.integers(0, V, (B, T)), weights


def head(kernel):
    return lambda states: (states @ kernel).astype(jnp.float32)


def chunked(loss, targets, weights):
    return lambda states, kernel: jnp.sum(weights * token_losses.token_losses(loss, head(kernel), states, targets))


def ordinary(loss, targets, weights):
    return lambda states, kernel: jnp.sum(weights * loss(head(kernel)(states), targets))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("arguments", [(0,), (0, 1)], ids=["frozen head", "trained head"])
def test_losses_and_gradients_are_those_of_all_logits(loss, arguments):
    states, kernel, targets, weights = case()
    of = lambda make: jax.jit(jax.value_and_grad(make(loss, targets, weights), arguments))(states, kernel)
    (total, gradients), (expected, expected_gradients) = of(chunked), of(ordinary)
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    for gradient, expected_gradient in zip(gradients, expected_gradients):
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-6)


def test_a_bfloat16_head_gives_the_same_gradients():
    states, kernel, targets, weights = case("bfloat16")
    weights = jnp.ones_like(weights)
    of = lambda make: jax.jit(jax.value_and_grad(make(CrossEntropy(), targets, weights)))(states, kernel)
    (total, gradient), (expected, expected_gradient) = of(chunked), of(ordinary)
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    np.testing.assert_array_equal(gradient, expected_gradient)


def shapes(program):
    """The shapes of all arrays in a program and the programs in it."""
    for equation in program.eqns:
        yield from (x.aval.shape for x in equation.outvars)
        for inner in jax.tree.leaves(list(equation.params.values())):
            if hasattr(inner, "eqns"):
                yield from shapes(inner)


def test_a_frozen_head_has_no_array_of_all_logits_and_computes_nothing_twice():
    states, kernel, targets, weights = case()
    make = lambda arguments: jax.grad(chunked(CrossEntropy(), targets, weights), arguments)
    most = lambda arguments: max(map(np.prod, shapes(jax.make_jaxpr(make(arguments))(states, kernel))))
    assert most((0,)) == 4 * B * V
    assert most((0, 1)) >= T * B * V
    padded = 12 * B * D * V * 2  # the last chunk has one position of padding
    assert count_flops(make((0,)), states, kernel) == 2 * padded
    assert count_flops(make((0, 1)), states, kernel) == 3 * padded


@pytest.mark.parametrize("adapter, tied", [
    (AdaLinkAdapter(rank=4), True),
    (LoRA(4, projections=("decoder/.*",)), False),
    (None, True),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        (AdaLinkAdapter(rank=4), False), (LoRA(4, projections=("decoder/.*",)), True), (None, False),
    )),
])  # fmt: skip
def test_gradients_of_every_method_are_those_of_all_logits(adapter, tied):
    """LoRA here trains a branch of the head too, and None the whole backbone."""
    model = AdaptedModel(tiny_pali(logits_via_embedding=tied), adapter)
    batch = random_batch(model.backbone, B, 6, 5, seed=1)
    trainable, frozen = partition.split(init(model, batch, 0), [".*" if adapter is None else "adapter/.*"])
    trainable = {name: leaf + 0.01 for name, leaf in trainable.items()}

    def expected(trainable):
        logits = model.apply({"params": partition.merge(trainable, frozen)}, batch)
        return jnp.sum(CrossEntropy()(logits, batch["decoder_target_tokens"]) * batch["decoder_loss_weights"])

    actual = lambda trainable: make_loss(model)(trainable, frozen, batch, jax.random.key(0))[0]
    (total, gradients), (expected_total, expected_gradients) = (
        jax.jit(jax.value_and_grad(of))(trainable) for of in (actual, expected)
    )
    np.testing.assert_allclose(total, expected_total, rtol=1e-6)
    largest = max(np.abs(gradient).max() for gradient in expected_gradients.values())
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, expected_gradients[name], rtol=1e-5, atol=1e-6 * largest, err_msg=name)
