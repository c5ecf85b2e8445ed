"""Attention by blocks of queries: the reference's numbers and gradients, without its arrays, and no gradient of a frozen bias."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import init, random_batch, tiny_pali, tiny_t5

from adalink_jax import T5, AdaLinkAdapter, AdaptedModel
from adalink_jax.errors import UserError
from adalink_jax.models import paths
from adalink_jax.models.attention import Bias, attend, blockwise, kinds
from adalink_jax.training import partition
from adalink_jax.training.flops import count_flops

pytestmark = pytest.mark.usefixtures("exact_matmuls")


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(blockwise, "_TILE", 2**9)


def arrays(rows, queries, keys, heads, width, dtype=jnp.float32):
    """Queries, keys, values, relative biases, and a mask that lets the last row see no key."""
    parts = jax.random.split(jax.random.key(queries + keys), 4)
    normal = lambda part, length: jax.random.normal(part, (rows, length, heads, width)).swapaxes(1, 2)
    query, key, value = normal(parts[0], queries), normal(parts[1], keys) * width**-0.5, normal(parts[2], keys)
    lengths = jnp.maximum(keys - 3 * jnp.arange(rows), 0).at[-1].set(0)
    mask = jnp.arange(keys)[None, :] < lengths[:, None]
    relative = jax.random.normal(parts[3], (heads, queries + keys - 1))
    return query.astype(dtype), key.astype(dtype), value.astype(dtype), relative, mask


def thirds(*of):
    """Segments 0, 1 and 2 of each array's positions, which begin elsewhere in every row."""
    starts = lambda x: jnp.arange(x.shape[2]) * 3 + jnp.arange(x.shape[0])[:, None]
    return [jnp.minimum(starts(x) // x.shape[2], 2) for x in of]


def results(kind, parts, uses, first=None, window=None, exempt=None, **how):
    """The mixed values and the gradients of their weighted sum; `uses` has some of "relative", "mask", "segments"."""
    query, key, value, relative, mask = parts
    weights = jax.random.normal(jax.random.key(9), query.shape)

    def mixed(query, key, value, relative):
        bias = Bias(
            relative if "relative" in uses else None,
            mask if "mask" in uses else None,
            None if first is None else jnp.int32(first),
            None if window is None else jnp.array(window),
            None if exempt is None else jnp.int32(exempt),
            *(thirds(query, key) if "segments" in uses else ()),
        )
        return attend(query, key, value, bias, kind, **how).astype(jnp.float32)

    @jax.jit
    def run(query, key, value, relative):
        result, gradients = jax.vjp(mixed, query, key, value, relative)
        return result, *gradients(weights)[: 4 if "relative" in uses else 3]

    return run(query, key, value, relative)


def assert_equal(actual, expected, tolerance):
    for one, other in zip(actual, expected, strict=True):
        one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
        spread = max(other.std(), 1e-3)
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * spread)


PATTERNS = {
    "padding": {"uses": ("mask",)},
    "relative": {"uses": ("relative", "mask")},
    "causal": {"uses": ("relative",), "first": 0},
    "window": {"uses": ("mask",), "window": (3, 5)},
    "causal window": {"uses": (), "first": 0, "window": (4, 0)},
    "exempt from the window": {"uses": ("mask",), "first": 6, "window": (4, 0), "exempt": 5},
    "softcap": {"uses": ("mask",), "softcap": 3.0},
    "cached": {"uses": ("relative",), "first": 7},
    "segments": {"uses": ("relative", "segments")},
    "causal segments": {"uses": ("mask", "segments"), "first": 0},
}


@pytest.mark.parametrize("shape", [(3, 17, 23, 2, 8), (2, 130, 9, 1, 4)])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_blocks_have_the_numbers_and_gradients_of_the_reference(pattern, shape, small_blocks):
    parts, how = arrays(*shape), PATTERNS[pattern]
    assert_equal(results("blockwise", parts, **how), results("reference", parts, **how), 1e-5)


def test_all_rows_and_heads_together_have_the_same(small_blocks, monkeypatch):
    monkeypatch.setattr(blockwise, "_TILES", 2**9)
    monkeypatch.setattr(kinds, "_platform", lambda: "tpu")
    parts, how = arrays(2, 37, 23, 3, 8), PATTERNS["relative"]
    assert_equal(results("blockwise", parts, **how), results("reference", parts, **how), 1e-5)


def test_bfloat16_is_as_near_to_float32_as_the_reference_is(small_blocks):
    how = {"uses": ("relative", "mask")}
    exact = results("reference", arrays(2, 40, 48, 2, 16), **how)
    parts = arrays(2, 40, 48, 2, 16, jnp.bfloat16)
    distance = lambda x, y: np.sqrt(np.mean(np.square(np.asarray(x, np.float32) - np.asarray(y, np.float32))))
    for block, reference, value in zip(
        results("blockwise", parts, **how), results("reference", parts, **how), exact, strict=True
    ):
        assert block.dtype == reference.dtype
        assert distance(block, value) <= 1.2 * distance(reference, value)


def test_8192_tokens():
    """Norms are compared: of sums over 8,192 numbers, float32 has the smallest results to 1e-5 of the spread only."""
    parts, how = arrays(2, 40, 8192, 1, 4), {"uses": ("relative", "mask")}
    for one, other in zip(results("blockwise", parts, **how), results("reference", parts, **how), strict=True):
        assert np.linalg.norm(one - other) <= 2e-6 * np.linalg.norm(other)


def compiled(kind, queries, keys, trained):
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    total = lambda query, key, value, relative: jnp.sum(attend(query, key, value, Bias(relative), kind))
    gradient = jax.jit(jax.grad(total, (0, 1, 2, 3) if trained else (0, 1, 2)))
    qkv = [shape(2, 3, length, 8) for length in (queries, keys, keys)]
    return gradient.lower(*qkv, shape(3, queries + keys - 1)).compile().as_text()


def test_no_array_of_the_program_has_queries_and_keys():
    scores = lambda text: [x for x in re.findall(r"\[([\d,]+)\]", text) if {"1201", "1103"} <= set(x.split(","))]
    assert scores(compiled("reference", 1201, 1103, trained=True))
    assert not scores(compiled("blockwise", 1201, 1103, trained=True))


def test_a_frozen_bias_has_no_gradient_in_the_program():
    query, key, value, relative, _ = arrays(2, 40, 48, 2, 8)

    def gradient(*of):
        total = lambda query, relative: jnp.sum(attend(query, key, value, Bias(relative), "blockwise"))
        return str(jax.make_jaxpr(jax.grad(total, of))(query, relative))

    assert "scatter" in gradient(0, 1)
    assert "scatter" not in gradient(0)


@pytest.mark.parametrize("scanned", [False, True])
def test_an_adapters_step_has_no_gradient_of_the_frozen_tables(scanned, monkeypatch):
    transposed = []
    transpose = jax.linear_transpose
    monkeypatch.setattr(jax, "linear_transpose", lambda *x: transposed.append(1) or transpose(*x))
    model = AdaptedModel(T5(tiny_t5(attention="blockwise", scan_layers=scanned)), AdaLinkAdapter(rank=2))
    batch = random_batch(model.backbone, 2, 7, 5, seed=0)
    leaves = paths.flatten(init(model, batch))
    for trainable, expected in ((("adapter/.*",), False), (("backbone/.*",), True)):
        trained, frozen = partition.split(paths.unflatten(leaves), trainable)
        loss = lambda trained, frozen=frozen: jnp.sum(
            model.apply({"params": paths.unflatten({**trained, **frozen})}, batch)
        )
        jax.make_jaxpr(jax.grad(loss))(trained)
        assert bool(transposed) == expected
        transposed.clear()


@pytest.mark.parametrize("trained", [False, True])
def test_flops_are_the_references(trained):
    query, key, value, relative, _ = arrays(2, 40, 48, 2, 8)

    def flops(kind):
        total = lambda query, key, value: jnp.sum(attend(query, key, value, Bias(relative), kind))
        return count_flops(jax.grad(total, (0, 1, 2)) if trained else total, query, key, value)

    assert flops("blockwise") == flops("reference") == 2 * (3 if trained else 1) * 2 * query.size * 48


def test_a_whole_model_has_the_same_logits_and_gradients():
    def run(kind):
        model = AdaptedModel(tiny_pali(attention=kind), AdaLinkAdapter(rank=2))
        batch = random_batch(model.backbone, 3, 9, 5, seed=1)
        params = jax.tree.map(lambda x: x + 0.1, init(model, batch))
        loss = lambda params: jnp.mean(jnp.square(model.apply({"params": params}, batch)))
        value, gradient = jax.jit(jax.value_and_grad(loss))(params)
        return value, *paths.flatten(gradient).values()

    blocks, reference = run("blockwise"), run("reference")
    spread = np.std(np.concatenate([np.ravel(x) for x in reference[1:]]))
    np.testing.assert_allclose(blocks[0], reference[0], rtol=1e-5)
    for one, other in zip(blocks[1:], reference[1:]):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * spread)


def test_another_kind_is_one_sentence():
    query, key, value, *_ = arrays(2, 3, 3, 1, 4)
    with pytest.raises(UserError, match="ATTENTION is 'flash'; it must be one of auto, reference, blockwise"):
        attend(query, key, value, Bias(), "flash")
