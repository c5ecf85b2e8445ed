"""Attention's kernels: the reference's numbers and gradients, programs for TPUs that are not here, and what a kernel refuses.

The TPU kernels run in Pallas' interpreter, with small blocks. In cuDNN's place is the XLA implementation of the same JAX function.
"""

import functools
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_kinds import interpret_kernels
from helpers import init, random_batch, tiny_t5, with_devices
from jax.experimental.compilation_cache import compilation_cache
from jax.extend.core import Primitive
from test_attention import PATTERNS, arrays, assert_equal, results

from adalink_jax import T5, AdaptedModel
from adalink_jax.errors import UserError
from adalink_jax.models import paths
from adalink_jax.models.attention import Bias, Scores, attend, for_stack, kinds
from adalink_jax.parallel.accelerators import parse_topology
from adalink_jax.planning.hlo import Program
from adalink_jax.planning.plan import devices_of
from adalink_jax.planning.traffic import bytes_moved
from adalink_jax.training.flops import count_flops

pytestmark = pytest.mark.usefixtures("exact_matmuls")
bfloat16 = jnp.bfloat16


@pytest.fixture
def nothing_cached():
    """Programs for chips that are not here can be written to the cache, but not read."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)


@pytest.fixture
def on_tpu(monkeypatch):
    """The kernels are interpreted on the CPU."""
    interpret_kernels(monkeypatch)


@pytest.fixture
def on_gpu(monkeypatch):
    monkeypatch.setattr(kinds, "_platform", lambda: "gpu")
    function, calls = jax.nn.dot_product_attention, []

    def instead(query, key, value, bias, scale, implementation):
        calls.append((query.shape, key.shape, None if bias is None else bias.shape))
        assert implementation == "cudnn" and {x.dtype for x in (query, key, value)} == {jnp.dtype(bfloat16)}
        return function(query, key, value, bias, scale=scale, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", instead)
    return calls


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_tpu_kernel_has_the_numbers_and_gradients_of_the_reference(pattern, on_tpu):
    """Two blocks of queries and of keys, neither full; the last row may see no key. The relative bias is trained."""
    parts, how = arrays(2, 140, 150, 1, 8), PATTERNS[pattern]
    assert_equal(results("pallas", parts, **how), results("reference", parts, **how), 3e-5)


def test_the_tpu_kernel_has_them_for_several_heads(on_tpu):
    parts, how = arrays(2, 9, 260, 3, 24), {"uses": ("relative",), "first": 40, "window": (49, 10), "softcap": 2.0}
    assert_equal(results("pallas", parts, **how), results("reference", parts, **how), 3e-5)


@pytest.mark.parametrize("shared_bias", [True, False])
@pytest.mark.parametrize("pattern", ["relative", "cached", "causal segments"])
def test_the_tpu_kernel_under_vmap_has_the_numbers_and_gradients_of_each_member(pattern, shared_bias, on_tpu):
    """As members of a pack have them; the relative bias is one for all members, or each has its own."""
    how, parts = PATTERNS[pattern], arrays(6, 20, 140, 1, 8)
    query, key, value, mask = (x.reshape(3, 2, *x.shape[1:]) for x in (*parts[:3], parts[4]))
    relative = parts[3] if shared_bias else jnp.stack([parts[3], -parts[3], 2 * parts[3]])
    members = jax.vmap(lambda *parts: results("pallas", parts, **how), (0, 0, 0, None if shared_bias else 0, 0))
    actual = members(query, key, value, relative, mask)
    for i in range(3):
        member = (query[i], key[i], value[i], relative if shared_bias else relative[i], mask[i])
        assert_equal([x[i] for x in actual], results("reference", member, **how), 3e-5)


SHARDED = """
import sys
sys.path.insert(0, sys.argv[1])
import jax
import pytest
from attention_kinds import interpret_kernels
from test_attention import PATTERNS, arrays, assert_equal, results

from adalink_jax import parallel

assert jax.device_count() == 8
jax.config.update("jax_default_matmul_precision", "highest")
interpret_kernels(pytest.MonkeyPatch())
parts, how = arrays(4, 9, 140, 4, 8), PATTERNS["relative"]
expected = results("reference", parts, **how)
mesh = parallel.make_mesh(2, 4)
with parallel.use_mesh(mesh, parallel.logical_axis_rules()):
    actual = parallel.settle(results("pallas", parts, **how))
assert [x.addressable_shards[0].data.shape for x in actual[:2]] == [(2, 1, 9, 8)] * 2
assert_equal(actual, expected, 3e-5)
print("as one device")
"""


def test_the_tpu_kernel_sharded_over_rows_and_heads_has_the_numbers_and_gradients_of_one_device():
    """On a mesh of 2 x 4 virtual devices. The trained bias' gradient is summed over the rows' devices."""
    env = with_devices(8)
    command = [sys.executable, "-c", SHARDED, os.path.dirname(__file__)]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.stdout == "as one device\n", done.stderr[-3000:]


def encoder_step(attention, remat, scanned=False):
    """A function of parameters, the loss and gradients of a T5 encoder of one layer, and parameters."""
    sizes = {"num_encoder_layers": 1, "num_decoder_layers": 1, "scan_layers": scanned}
    model, other = (T5(tiny_t5(attention=kind, remat=remat, **sizes)) for kind in (attention, "reference"))
    batch = random_batch(model, 2, 9, 5, seed=0)
    params = jax.tree.map(lambda x: x + 0.1, init(AdaptedModel(other), batch)["backbone"])

    def loss(params):
        apply = functools.partial(model.apply, {"params": params})
        states = apply(apply(batch, method="embed"), method="encode").states
        return jnp.sum(states * jax.random.normal(jax.random.key(1), states.shape))

    return jax.value_and_grad(loss), params


@pytest.mark.parametrize("remat, scanned", [("frozen", True), ("full", False)])
def test_the_tpu_kernel_with_remat_has_the_gradients_of_the_reference(remat, scanned, on_tpu):
    function, params = encoder_step("pallas", remat, scanned)
    value, gradient = jax.jit(function)(params)
    expected, expected_gradient = jax.jit(encoder_step("reference", remat, scanned)[0])(params)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    gradient, expected_gradient = (paths.flatten(x) for x in (gradient, expected_gradient))
    spread = np.std(np.concatenate([np.ravel(x) for x in expected_gradient.values()]))
    for name, leaf in expected_gradient.items():
        np.testing.assert_allclose(gradient[name], leaf, rtol=1e-4, atol=3e-5 * spread, err_msg=name)


@pytest.mark.parametrize("remat, calls", [("frozen", 2), ("full", 3)])
def test_remat_frozen_does_not_run_the_forward_kernel_again(remat, calls, nothing_cached, monkeypatch):
    """Kernels in the program for a TPU."""
    function, params = encoder_step("pallas", remat)
    monkeypatch.setattr(kinds, "_platform", lambda: "tpu")
    place = jax.sharding.SingleDeviceSharding(devices_of(parse_topology("v5e:1x1"))[0])
    leaves = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), params)
    assert jax.jit(function).lower(leaves).compile().as_text().count("tpu_custom_call") == calls


def distance(x, y):
    return np.sqrt(np.mean(np.square(np.asarray(x, np.float32) - np.asarray(y, np.float32))))


def assert_near(kind, how, shape, factor):
    """bfloat16 is at most `factor` times as far from float32 as the reference's bfloat16 is."""
    exact, parts = results("reference", arrays(*shape), **how), arrays(*shape, bfloat16)
    for one, other, value in zip(results(kind, parts, **how), results("reference", parts, **how), exact, strict=True):
        assert one.dtype == other.dtype
        assert distance(one, value) <= factor * distance(other, value)


def test_the_tpu_kernel_in_bfloat16_is_as_near_to_float32_as_the_reference_is(on_tpu):
    assert_near("pallas", {"uses": ("relative", "mask")}, (2, 140, 150, 1, 16), 1.2)


CUDNN = {name: how for name, how in PATTERNS.items() if not {"segments"} & set(how["uses"]) and "softcap" not in how}


@pytest.mark.parametrize("pattern", CUDNN)
def test_cudnn_is_given_the_same_attention(pattern, on_gpu):
    """An odd number of keys, heads that are no multiple of 8; the array that is added is rounded to bfloat16."""
    how = CUDNN[pattern]
    parts = arrays(2, 24, 33, 3, 12, bfloat16)
    relative = parts[3].astype(bfloat16).astype(jnp.float32)
    parts = (*parts[:3], relative, parts[4])
    actual, expected = results("cudnn", parts, **how), results("reference", parts, **how)
    for one, other in zip(actual, expected, strict=True):
        one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
        assert np.linalg.norm(one - other) <= 0.01 * np.linalg.norm(other)
    added = [shape for *_, shape in on_gpu]
    assert all(shape is None or shape[0] == 1 for shape in added)  # no array of rows, queries and keys


def gradient_of(kind, trained, how=None):
    how = how or {}
    total = lambda query, key, value, relative: jnp.sum(
        attend(query, key, value, Bias(relative), kind, **how).astype(jnp.float32)
    )
    return jax.grad(total, (0, 1, 2, 3) if trained else (0, 1, 2))


def shapes(rows, heads, queries, keys, width, dtype, **place):
    shape = lambda dtype, *sizes: jax.ShapeDtypeStruct(sizes, dtype, **place)
    arrays = [shape(dtype, rows, heads, length, width) for length in (queries, keys, keys)]
    return [*arrays, shape(jnp.float32, heads, queries + keys - 1)]


@functools.cache
def compiled(chip, *sizes, trained=False, softcap=None):
    device = devices_of(parse_topology(f"{chip}:1x1" if chip in ("v5e", "v6e") else f"{chip}:2x2x1"))[0]
    place = jax.sharding.SingleDeviceSharding(device)
    gradient = gradient_of("pallas", trained, {"softcap": softcap})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kinds, "_platform", lambda: "tpu")
        return jax.jit(gradient).lower(*shapes(*sizes, sharding=place)).compile().as_text()


@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e"])
def test_it_compiles_for_tpus_without_an_array_of_queries_and_keys(chip, nothing_cached):
    text = compiled(chip, 2, 2, 1201, 1103, 64, bfloat16)
    assert text.count("tpu_custom_call") == 2
    sizes = {int(n) for dims in re.findall(r"\[([\d,]+)\]", text) for n in dims.split(",")}
    arrays = [set(map(int, x.split(","))) for x in re.findall(r"\[([\d,]+)\]", text)]
    queries, keys = ({n for n in sizes if length <= n < length + 512} for length in (1201, 1103))
    assert not [x for x in arrays if len(x) > 1 and x & queries and x & keys and len(x & (queries | keys)) > 1]


def test_a_frozen_bias_has_no_gradient_in_the_program(nothing_cached):
    outputs = lambda trained: [
        len(i.arrays)
        for i, *_ in Program(compiled("v5e", 2, 2, 1201, 1103, 64, bfloat16, trained=trained)).runs
        if "tpu_custom_call" in i.text
    ]
    assert outputs(False) == [3, 3]
    assert outputs(True) == [3, 4]


@pytest.mark.parametrize("width", [72, 112, 256])
def test_other_head_widths_and_float32_compile(width, nothing_cached):
    assert compiled("v5e", 1, 2, 300, 577, width, jnp.float32, softcap=3.0).count("tpu_custom_call") == 2


def test_traffic_is_that_of_the_operands_and_results(nothing_cached):
    """In bfloat16: queries and keys thrice or less for padding and statistics; scores would be 64 times as much."""
    rows, heads, length, width = 2, 4, 2048, 64
    moved = bytes_moved(Program(compiled("v5e", rows, heads, length, length, width, bfloat16)))
    array = rows * heads * length * width * 2
    assert 11 * array <= moved <= 20 * array


@pytest.mark.parametrize("trained", [False, True])
def test_flops_are_the_references(trained, on_tpu):
    """Lengths are whole blocks; the backward pass computes the scores again, which does not count."""
    query, key, value, relative = shapes(2, 3, 256, 384, 8, jnp.float32)
    total = lambda kind: lambda *x: jnp.sum(attend(*x[:3], Bias(x[3]), kind))
    flops = lambda kind: count_flops(gradient_of(kind, False) if trained else total(kind), query, key, value, relative)
    assert flops("pallas") == flops("reference") == 2 * (3 if trained else 1) * 2 * query.size * 384


@pytest.mark.parametrize("platform, scores, expected", [
    ("tpu", Scores(512, 512, 64, "bfloat16"), "pallas"),
    ("tpu", Scores(512, 512, 64, "float32", softcap=50.0), "pallas"),
    ("tpu", Scores(64, 512, 64, "bfloat16"), "reference"),
    ("tpu", Scores(512, 20_000, 64, "bfloat16"), "reference"),
    ("gpu", Scores(512, 512, 64, "bfloat16"), "cudnn"),
    ("gpu", Scores(512, 512, 64, "bfloat16", softcap=50.0), "reference"),
    ("gpu", Scores(512, 512, 64, "float32"), "reference"),
    ("cpu", Scores(512, 512, 64, "float32"), "blockwise"),
    ("cpu", Scores(64, 512, 64, "float32"), "reference"),
])  # fmt: skip
def test_auto_takes_the_kernel_of_the_platform_where_it_can(platform, scores, expected, monkeypatch):
    monkeypatch.setattr(kinds, "_platform", lambda: platform)
    chosen = []
    monkeypatch.setattr(kinds, "reference", lambda query, *_: chosen.append("reference") or query)
    monkeypatch.setattr(kinds, "_without_scores", lambda kind, *_: lambda query, *_: chosen.append(kind) or query)
    bias = Bias(jnp.zeros((1, scores.queries + scores.keys - 1)))
    array = lambda length: jnp.zeros((1, 1, length, scores.width), scores.dtype)
    attend(array(scores.queries), array(scores.keys), array(scores.keys), bias, softcap=scores.softcap)
    assert chosen == [expected]
    assert (for_stack(bias, "auto", scores).stored is not None) == (expected == "reference")


@pytest.mark.parametrize("platform, kind, dtype, width, how, words", [
    ("cpu", "pallas", "float32", 8, {}, "ATTENTION = 'pallas' does not run on a CPU; set ATTENTION = 'auto'"),
    ("tpu", "cudnn", "bfloat16", 8, {}, "ATTENTION = 'cudnn' does not run on a TPU"),
    ("gpu", "cudnn", "float32", 8, {}, "needs activations of bfloat16, not float32"),
    ("gpu", "cudnn", "bfloat16", 264, {}, "takes heads of at most 256 numbers here, not 272"),
    ("tpu", "pallas", "bfloat16", 264, {}, "takes heads of at most 256 numbers here, not 264"),
    ("gpu", "cudnn", "bfloat16", 8, {"softcap": 3.0}, "has no softcap"),
    ("tpu", "pallas", "float16", 8, {}, "needs activations of bfloat16 or float32, not float16"),
])  # fmt: skip
def test_what_a_kernel_cannot_compute_is_one_sentence(platform, kind, dtype, width, how, words, monkeypatch):
    monkeypatch.setattr(kinds, "_gpu_capability", lambda: 9.0)
    monkeypatch.setattr(kinds, "_platform", lambda: platform)
    query = jnp.zeros((1, 1, 3, width), dtype)
    with pytest.raises(UserError, match=words):
        attend(query, query, query, Bias(), kind, **how)


def test_a_tpu_v4_is_refused_and_gets_the_reference(monkeypatch):
    """Its cores cannot roll with a stride."""
    monkeypatch.setattr(kinds, "_platform", lambda: "tpu")
    monkeypatch.setattr(kinds, "_device_kind", lambda: "TPU v4")
    scores, bias = Scores(512, 512, 64, "bfloat16"), Bias(jnp.zeros((1, 1023)))
    assert for_stack(bias, "auto", scores).stored is not None
    with pytest.raises(UserError, match="ATTENTION = 'pallas' needs a TPU v5 or newer, not a TPU v4"):
        for_stack(bias, "pallas", scores)


def test_packed_examples_and_long_ones_are_refused_likewise(monkeypatch):
    monkeypatch.setattr(kinds, "_platform", lambda: "gpu")
    query, segments = jnp.zeros((1, 1, 4, 8), bfloat16), jnp.zeros((1, 4), jnp.int32)
    with pytest.raises(UserError, match="has no segments for packed examples"):
        attend(query, query, query, Bias(query_segments=segments, key_segments=segments), "cudnn")
    monkeypatch.setattr(kinds, "_platform", lambda: "tpu")
    long = jnp.zeros((1, 1, 8_193, 8), bfloat16)
    with pytest.raises(UserError, match="takes at most 8,192 positions, not 8,193"):
        attend(query, long, long, Bias(), "pallas")


def test_flops_of_cudnns_primitives_are_those_of_its_products():
    """JAX makes these primitives only where cuDNN is installed, so primitives of the same names and operands stand in."""
    query, key = jnp.zeros((2, 5, 3, 8)), jnp.zeros((2, 7, 3, 8))

    def flops(name):
        primitive = Primitive(name)
        primitive.def_abstract_eval(lambda query, *_: query)
        return count_flops(primitive.bind, query, key, key)

    assert flops("dot_product_attention_fwd_wrapper") == 2 * 2 * query.size * 7
    assert flops("dot_product_attention_bwd_wrapper") == 2 * 4 * query.size * 7
