"""Quantised weights beside gguf (llama.cpp) and qwix (Google): equal where the conventions are, and both errors where they are not."""

import jax.numpy as jnp
import numpy as np
import pytest

from adalink_jax.models.quantised import CODE_DTYPES, dequantised, quantise

OUTPUTS = 40
gguf = pytest.importorskip("gguf", reason="gguf is part of the extra `parity`")
qwix = pytest.importorskip("qwix", reason="qwix is part of the extra `parity`")
QWIX_TYPES = {"int8": jnp.int8, "fp8": jnp.float8_e4m3fn, "int4": jnp.int4, "nf4": "nf4"}


def weights(block, extreme):
    """[4 * block, OUTPUTS] of Gaussian values; the extreme of each block is such that its scale, a power of two, is exact in every format."""
    values = np.random.default_rng(0).normal(size=(4, block, OUTPUTS)).astype(np.float32)
    values *= 0.9 * abs(extreme) / np.abs(values).max(1, keepdims=True)
    values[:, 0] = np.sign(values[:, 0]) * abs(extreme)
    return (values / 64).reshape(-1, OUTPUTS)


def error(values, exact):
    return float(np.std(np.asarray(values, np.float32) - exact) / np.std(exact))


def by_qwix(exact, kind, block):
    return qwix.quantize(jnp.asarray(exact), QWIX_TYPES[kind], channelwise_axes=(1,), tiled_axes={0: block})


@pytest.mark.parametrize("kind, type_name", [("int8", "Q8_0"), ("int4", "Q4_0")])
def test_values_are_those_of_llama_cpp(kind, type_name):
    """Its blocks are of 32 values, along rows of outputs."""
    exact = weights(32, CODE_DTYPES[kind][1])
    of = gguf.GGMLQuantizationType[type_name]
    theirs = gguf.quants.dequantize(gguf.quants.quantize(np.ascontiguousarray(exact.T), of), of).T
    np.testing.assert_array_equal(dequantised(quantise(exact, kind, block=32)), theirs)


@pytest.mark.parametrize("kind", ["fp8", "nf4"])
def test_values_are_those_of_qwix(kind):
    exact = weights(64, CODE_DTYPES[kind][1])
    theirs = qwix.dequantize(by_qwix(exact, kind, 64))
    np.testing.assert_allclose(dequantised(quantise(exact, kind, block=64)), theirs, rtol=1e-6)


@pytest.mark.parametrize("kind", CODE_DTYPES)
def test_qwix_dequantises_our_codes_to_our_values(kind):
    leaf = quantise(weights(64, 100.0), kind, block=64)
    theirs = qwix.dequantize(qwix.QArray(leaf.codes, leaf.scales.astype(jnp.float32), qtype=QWIX_TYPES[kind]))
    np.testing.assert_allclose(dequantised(leaf), theirs, rtol=1e-6)


@pytest.mark.parametrize("kind, ours, theirs", [("int8", 0.00598, 0.00607), ("int4", 0.0951, 0.1030)])
def test_qwix_divides_whole_numbers_by_another_extreme(kind, ours, theirs):
    """Its scale is absmax / (largest code + 0.5), and the extreme is rounded towards zero; ours gives the extreme itself back."""
    exact = np.random.default_rng(0).normal(size=(512, 256)).astype(np.float32)
    leaf, other = quantise(exact, kind, block=64), by_qwix(exact, kind, 64)
    most = 127.5 if kind == "int8" else 7.5
    np.testing.assert_allclose(other.scale, np.abs(exact.reshape(8, 64, 256)).max(1) / most, rtol=1e-6)
    assert error(dequantised(leaf), exact) == pytest.approx(ours, rel=0.02)
    assert error(qwix.dequantize(other), exact) == pytest.approx(theirs, rel=0.02)
