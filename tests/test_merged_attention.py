"""Attention in one softmax to keys known beforehand and to the layer's own: the formula's numbers, and what is not copied."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_attention import assert_equal

from adalink_jax.models import layers
from adalink_jax.models.attention import Bias, blockwise
from adalink_jax.models.gemma import RMSNorm
from adalink_jax.models.layers import KeyValues

pytestmark = pytest.mark.usefixtures("exact_matmuls")
HEADS, GROUPS, WIDTH, FEATURES = 4, 2, 8, 12
WINDOW = (3, 0)


def attention(kind="reference", **how):
    norm = functools.partial(RMSNorm, "float32")
    more = {"num_kv_heads": GROUPS, "softcap": 3.0, "head_norm": norm, "scale": 0.5, **how}
    return layers.Attention(HEADS, WIDTH, 0.0, "float32", True, FEATURES, kind, **more)


def arrays(inputs, decodes, known, own, queries):
    """Queries' inputs, keys known beforehand and which of them exist, own keys; a module's weights."""
    parts = jax.random.split(jax.random.key(known), 6)
    normal = lambda part, *shape: jax.random.normal(part, shape)
    rows = inputs * decodes
    x = normal(parts[0], rows, queries, FEATURES)
    before = KeyValues(*(normal(part, inputs, GROUPS, known, WIDTH) for part in parts[1:3]))
    kv = KeyValues(*(normal(part, rows, GROUPS, own, WIDTH) for part in parts[3:5]))
    exists = jnp.arange(known) < known - 2 * jnp.arange(inputs)[:, None]
    params = nn.meta.unbox(attention().init(parts[5], x, kv, before=before))
    return x, before, kv, exists, jax.tree.map(lambda leaf: leaf + 0.2, params)


def described(exists, known, own, index=0, exempt=True):
    """The bias of queries that start at own key `index`; all own keys exist."""
    keys = jnp.pad(exists, ((0, 0), (0, own)), constant_values=True)
    return Bias(
        keys=keys, first=jnp.int32(known + index), window=jnp.array(WINDOW), exempt=jnp.int32(known) if exempt else None
    )


def formula(params, x, before, kv, exists, index, exempt):
    """Query by query and head by head, in float64."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)["params"]
    x, exists = np.asarray(x, np.float64), np.asarray(exists)
    rows, queries, _ = x.shape
    out = np.zeros((rows, queries, HEADS, WIDTH))
    for row, query, head in np.ndindex(rows, queries, HEADS):
        row_before, group = row // (rows // len(exists)), head // (HEADS // GROUPS)
        q = (x[row, query] @ params["query"]["kernel"])[head * WIDTH : (head + 1) * WIDTH]
        q = q / np.sqrt(np.mean(q**2) + 1e-6) * (1 + params["query_norm"]["scale"]) * 0.5
        scores, values = [], []
        for j, (key, value) in enumerate(zip(before.key[row_before, group], before.value[row_before, group])):
            distance = index + query + before.key.shape[2] - j
            if exists[row_before, j] and (exempt or distance <= WINDOW[0]):
                scores, values = [*scores, q @ key], [*values, value]
        for j, (key, value) in enumerate(zip(kv.key[row, group], kv.value[row, group])):
            if 0 <= index + query - j <= WINDOW[0]:
                scores, values = [*scores, q @ key], [*values, value]
        weights = np.exp(3 * np.tanh(np.array(scores) / 3))
        out[row, query, head] = weights / weights.sum() @ np.array(values)
    return out.reshape(rows, queries, -1) @ params["out"]["kernel"]


@pytest.mark.parametrize("exempt", [True, False])
@pytest.mark.parametrize("kind", ["reference", "blockwise"])
def test_many_queries(kind, exempt, monkeypatch):
    monkeypatch.setattr(blockwise, "_TILE", 2**6)
    x, before, kv, exists, params = arrays(2, 1, known=7, own=19, queries=19)
    actual = attention(kind).apply(params, x, kv, described(exists, 7, 19, exempt=exempt), before=before)
    assert_equal([actual], [formula(params, x, before, kv, exists, 0, exempt)], 1e-5)


@pytest.mark.parametrize("exempt", [True, False])
def test_single_queries_of_three_decodes_side_by_side(exempt):
    """Three of eleven places for own keys are still empty."""
    x, before, kv, exists, params = arrays(2, 3, known=5, own=11, queries=1)
    kv = jax.tree.map(lambda leaf: leaf.at[:, :, 8:].set(1e3), kv)
    actual = attention().apply(params, x, kv, described(exists, 5, 11, 7, exempt), before=before)
    assert_equal([actual], [formula(params, x, before, kv, exists, 7, exempt)], 1e-5)


def test_gradients_of_single_queries_are_those_of_many():
    """The last of two queries alone, against both with the first one's result left out."""
    x, before, kv, exists, params = arrays(2, 1, known=5, own=2, queries=2)

    def total(index, x, before, kv):
        out = attention().apply(params, x[:, index:], kv, described(exists, 5, 2, index), before=before)
        return jnp.sum(jnp.sin(out[:, -1]))

    one, both = (jax.grad(total, (1, 2, 3))(index, x, before, kv) for index in (1, 0))
    assert_equal(jax.tree.leaves(one), jax.tree.leaves(both), 1e-5)


def dimensions(function, *arguments):
    """Shapes in the compiled program."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    return [[int(n) for n in dims.split(",")] for dims in re.findall(r"\[([\d,]+)\]", text)]


def test_no_array_of_the_program_has_queries_and_all_keys():
    x, before, kv, exists, params = arrays(2, 1, known=503, own=1201, queries=1201)

    def gradient(kind):
        total = lambda x, before, kv: jnp.sum(
            attention(kind).apply(params, x, kv, described(exists, 503, 1201), before=before)
        )
        return dimensions(jax.grad(total, (0, 1, 2)), x, before, kv)

    scores = lambda kind: [dims for dims in gradient(kind) if {1201, 1704} <= set(dims)]
    assert scores("reference") and not scores("blockwise")


def test_a_decoding_step_copies_no_keys_and_values():
    """What is known of an input is neither repeated for its decodes nor put beside their own keys."""
    x, before, kv, exists, params = arrays(2, 3, known=503, own=101, queries=1)
    step = lambda x, before, kv: attention().apply(params, x, kv, described(exists, 503, 101, 40), before=before)
    shapes = dimensions(step, x, before, kv)
    assert not [dims for dims in shapes if 604 in dims and WIDTH in dims]
    assert max(np.prod(dims) for dims in shapes if 503 in dims and WIDTH in dims) == before.key.size
