"""Frozen weights in eight bits and four: their values, the products that use them, and what a run does with them."""

import dataclasses
import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import init, random_batch, with_devices

from adalink_jax import AdaLinkAdapter, AdaptedModel, LoRA
from adalink_jax.contract.tiny import BACKBONES
from adalink_jax.errors import UserError
from adalink_jax.models import paths
from adalink_jax.models.quantised import CODE_DTYPES, Quantised, Storage, dequantised, quantise
from adalink_jax.planning.saved import saved_arrays
from adalink_jax.training import parameter_tables, partition
from adalink_jax.training.step import make_loss

KINDS = tuple(CODE_DTYPES)
pytestmark = pytest.mark.usefixtures("exact_matmuls")


def case(family, storage, adapter=None, **settings):
    """A model with an adapter that changes something, its leaves as they are stored, and a batch."""
    model = AdaptedModel(BACKBONES[family](**settings), adapter or AdaLinkAdapter(rank=4))
    batch = random_batch(model.backbone, 3, 7, 5, seed=1)
    leaves = paths.flatten(init(model, batch))
    adapted = {name: leaf + 0.05 if name.endswith("/up") else leaf for name, leaf in leaves.items()}
    return (
        model,
        {name: leaf for name, leaf in adapted.items() if name.startswith("adapter/")}
        | storage.of({name: leaf for name, leaf in adapted.items() if name.startswith("backbone/")}),
        batch,
    )


def matrix(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


# What follows is written from the papers and formats, not from the code: one matrix of 8 bits, one of 4.


def test_int8_is_absmax_by_127_for_each_output():
    values = np.asarray(matrix(96, 5))
    scale = np.asarray((np.abs(values).max(0) / np.float32(127)).astype(jnp.bfloat16), np.float32)
    leaf = quantise(values, "int8")
    np.testing.assert_array_equal(np.asarray(leaf.scales, np.float32), scale[None])
    np.testing.assert_array_equal(leaf.codes, np.clip(np.rint(values / scale), -127, 127).astype(np.int8))


def test_int4_gives_the_largest_magnitude_of_64_the_code_minus_8():
    values = np.asarray(matrix(128, 3))
    leaf = quantise(values, "int4")
    assert leaf.scales.shape == (2, 3)
    for block in range(2):
        for column in range(3):
            part = values[64 * block : 64 * block + 64, column]
            codes = np.asarray(leaf.codes[64 * block : 64 * block + 64, column], np.int32)
            extreme = part[np.argmax(np.abs(part))]
            scale = np.float32(jnp.bfloat16(extreme / np.float32(-8)))
            assert float(leaf.scales[block, column]) == scale
            assert codes[np.argmax(np.abs(part))] == -8
            np.testing.assert_array_equal(codes, np.clip(np.rint(part / scale), -8, 7))


def test_nf4_has_quantiles_of_a_normal_distribution():
    """The 16 values of QLoRA's appendix E: quantiles, spaced evenly, of each half, divided by the largest."""
    from statistics import NormalDist

    offset, quantile = 0.9677083, NormalDist().inv_cdf
    positive = [quantile(p) for p in np.linspace(offset, 0.5, 9)[:-1]]
    negative = [-quantile(p) for p in np.linspace(offset, 0.5, 8)[:-1]]
    expected = np.sort([*positive, 0.0, *negative]) / max(positive)
    leaf = Quantised(jnp.arange(16, dtype=jnp.uint4)[:, None], jnp.ones((1, 1), jnp.bfloat16))
    np.testing.assert_allclose(dequantised(leaf)[:, 0], expected, atol=1e-5)
    values = matrix(64, 2)
    scale = np.asarray(jnp.max(jnp.abs(values), 0).astype(jnp.bfloat16), np.float32)
    nearest = np.abs(np.asarray(values / scale)[..., None] - expected).argmin(-1)
    np.testing.assert_array_equal(np.asarray(quantise(values, "nf4").codes, np.int32), nearest)


@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_those_of_the_format_and_quantising_again_changes_nothing(kind):
    values = matrix(2, 256, 128)
    leaf = jax.jit(lambda x: quantise(x, kind))(values)
    error = float(jnp.std(dequantised(leaf) - values) / jnp.std(values))
    expected = {"int8": 0.0070, "fp8": 0.026, "int4": 0.095, "nf4": 0.092}  # measured on Gaussian values
    assert error == pytest.approx(expected[kind], rel=0.06)
    again = jax.jit(lambda x: quantise(dequantised(x), kind))(leaf)
    for one, other in zip(jax.tree.leaves(leaf), jax.tree.leaves(again)):
        np.testing.assert_array_equal(np.asarray(one, np.float32), np.asarray(other, np.float32))
    assert not np.any(np.asarray(dequantised(quantise(jnp.zeros((64, 2)), kind))))


@pytest.mark.parametrize(
    "family, kind, exact, scan_layers",
    [
        ("T5", "int8", ("token_embedder",), True),
        pytest.param(*("T5", "int4", (), False), marks=pytest.mark.slow),
        pytest.param(*("PaLI", "fp8", ("token_embedder",), False), marks=pytest.mark.slow),
        pytest.param(*("T5Gemma", "nf4", (), True), marks=pytest.mark.slow),
        pytest.param(*("PaliGemma", "int8", (), False), marks=pytest.mark.slow),
        ("T5Gemma2", "int4", ("token_embedder",), True),
        pytest.param(*("Pix2Struct", "nf4", ("token_embedder",), False), marks=pytest.mark.slow),
    ],
)
def test_outputs_and_gradients_are_those_of_the_dequantised_model(family, kind, exact, scan_layers):
    model, leaves, batch = case(family, Storage(kind, block=16, exact=exact), scan_layers=scan_layers)
    assert sum(isinstance(leaf, Quantised) for leaf in leaves.values()) > 10
    plain = {name: dequantised(leaf) for name, leaf in leaves.items()}
    adapter = [name for name in leaves if name.startswith("adapter/")]

    def loss(trained, frozen):
        logits = model.apply({"params": paths.unflatten(frozen | trained)}, batch)
        return jnp.mean(jnp.square(logits)), logits

    compare = functools.partial(np.testing.assert_allclose, rtol=0)
    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    ((_, logits), gradient), ((_, expected), expected_gradient) = (
        run({name: tree[name] for name in adapter}, tree) for tree in (leaves, plain)
    )
    compare(logits, expected, atol=1e-5 * float(jnp.std(expected)))
    for name in adapter:
        compare(gradient[name], expected_gradient[name], atol=1e-5 * float(jnp.std(expected_gradient[name])))
    exact_logits = model.apply({"params": paths.unflatten(case(family, Storage(), scan_layers=scan_layers)[1])}, batch)
    assert float(jnp.std(exact_logits - expected)) > 1e-4 * float(jnp.std(expected))  # something was quantised


def test_products_in_int8_are_near_and_their_gradients_are_straight():
    values, x = matrix(64, 32), matrix(5, 64, seed=1)
    from adalink_jax.models.quantised import product

    leaf = dataclasses.replace(quantise(values, "int8"), matmul="int8")
    y, back = jax.vjp(lambda x: product(x, leaf, "float32", ("embed", "mlp")), x)
    expected = x @ dequantised(leaf)
    step = jnp.max(jnp.abs(x), axis=1, keepdims=True) / 127
    largest_error = 0.51 * step * jnp.sum(jnp.abs(dequantised(leaf)), axis=0)
    assert jnp.all(jnp.abs(y - expected) <= largest_error) and jnp.any(y != expected)
    seed = matrix(5, 32, seed=2)
    np.testing.assert_allclose(back(seed)[0], seed @ dequantised(leaf).T, rtol=1e-5, atol=1e-5)
    jaxpr = str(jax.make_jaxpr(lambda x: product(x, leaf, "float32", ("embed", "mlp")))(x))
    assert "preferred_element_type=int32" in jaxpr


PRODUCTS_ON_A_MESH = """
import dataclasses, jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from adalink_jax import parallel
from adalink_jax.models.quantised import product, quantise

random = np.random.default_rng(0)
values, x, seed = (random.normal(size=shape).astype(np.float32) for shape in ((64, 32), (16, 64), (16, 32)))
leaf = dataclasses.replace(quantise(jax.numpy.asarray(values), "int8"), matmul="int8")

def outputs(leaf, x, axes):
    y, back = jax.vjp(lambda x: product(x, leaf, "float32", axes), x)
    return y, back(seed)[0]

expected = jax.jit(lambda leaf, x: outputs(leaf, x, ("mlp", "embed")))(leaf, x)
for fsdp in (False, True):
    mesh, rules = parallel.make_mesh(2, 4), parallel.logical_axis_rules(fsdp=fsdp)
    data = "data" if fsdp else None
    # Sums over the axis that is split; then over one that is whole.
    for axes, kernel, scales, rows in (
        (("mlp", "embed"), P("model", data), P(None, data), P("data", "model")),
        (("embed", "mlp"), P(data, "model"), P(None, "model"), P("data", None)),
    ):
        with parallel.use_mesh(mesh, rules):
            place = lambda value, spec: jax.device_put(value, NamedSharding(mesh, spec))
            here = dataclasses.replace(leaf, codes=place(leaf.codes, kernel), scales=place(leaf.scales, scales))
            y, gradient = jax.jit(lambda leaf, x: outputs(leaf, x, axes))(here, place(x, rows))
        np.testing.assert_array_equal(y, expected[0], err_msg=str((fsdp, axes)))
        np.testing.assert_allclose(gradient, expected[1], rtol=1e-5, atol=1e-5, err_msg=str((fsdp, axes)))
        print("as on one device")
"""


def test_products_in_int8_are_the_same_bits_on_every_mesh():
    """Rows' largest values and int32 sums do not depend on the order in which devices are joined."""
    done = subprocess.run(
        [sys.executable, "-c", PRODUCTS_ON_A_MESH], capture_output=True, text=True, env=with_devices(8)
    )
    assert done.stdout.count("as on one device") == 4, done.stderr[-3000:]


@pytest.mark.parametrize("scan_layers, remat", [(True, "none"), (False, "none"), (True, "frozen"), (True, "full")])
def test_no_dequantised_kernel_is_saved_for_the_backward_pass(scan_layers, remat):
    """By the shapes: no float array of a kernel's size is among what the forward pass saves."""
    settings = {"scan_layers": scan_layers, "remat": remat, "mlp_dim": 96}
    model, leaves, batch = case("T5", Storage("int8"), **settings)
    trainable, frozen = partition.split(leaves, ["adapter/.*"])
    saved = saved_arrays(make_loss(model), trainable, frozen, batch)
    assert saved and not [x for x in saved if x.shape[-2:] in ((32, 96), (96, 32))]


def test_lora_on_quantised_kernels_trains_and_merges():
    model, leaves, batch = case("T5", Storage("int8"), adapter=LoRA(rank=4))
    params = paths.unflatten(leaves)
    before = model.apply({"params": params}, batch)
    merged = model.adapter.apply({"params": params["adapter"]}, params["backbone"], method="merge")
    plain = AdaptedModel(model.backbone)
    after = plain.apply({"params": {"backbone": merged}}, batch)
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * float(jnp.std(before)))
    without = plain.apply({"params": {"backbone": params["backbone"]}}, batch)
    assert float(jnp.std(without - before)) > 1e-3 * float(jnp.std(before))
    changed = [name for name, leaf in paths.flatten(merged).items() if isinstance(leaf, Quantised)]
    assert changed and not [name for name in changed if name.endswith(("query/kernel", "value/kernel"))]


def test_scales_are_not_counted_as_parameters():
    exact, leaves = (case("T5", storage)[1] for storage in (Storage(), Storage("int4", block=16)))
    assert parameter_tables.count(leaves) == parameter_tables.count(exact) == sum(x.size for x in exact.values())


def names_quantised(exact, **settings):
    leaves = case("T5", Storage("int8", exact=exact), **settings)[1]
    return {name.removeprefix("backbone/") for name, leaf in leaves.items() if isinstance(leaf, Quantised)}


def test_rules_match_whole_parts_of_paths():
    everything = names_quantised(())
    assert {name for name in everything if "norm" in name or "rel_embedding" in name} == set()
    assert "token_embedder/embedding" in everything
    without = names_quantised(("encoder", "token_embedder"))
    assert {name.split("/")[0] for name in without} == {"decoder"}
    assert any("encoder_decoder_attention" in name for name in without)
    first = names_quantised(("decoder/layers_0", "token_embedder"))
    assert everything - first == {
        name for name in everything if name.startswith(("decoder/layers_0/", "token_embedder"))
    }
    one_of_two = names_quantised((r"layers_[0-9]+/(mlp|attention)/w.*", "token_embedder"))
    assert (
        not [name for name in one_of_two if "/mlp/w" in name]
        and "encoder/layers_0/attention/query/kernel" in one_of_two
    )


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: names_quantised(("encode",)), "QUANTISED_EXACT: 'encode' matches no frozen parameter"),
        (
            lambda: names_quantised(("layers_0",), scan_layers=True),
            "set SCAN_LAYERS = False to keep single layers exact",
        ),
        (lambda: names_quantised(("(",)), r"QUANTISED_EXACT: '\(' is not a valid regular expression"),
        (lambda: Storage("float32", block=32), "QUANTISED_BLOCK is 32, but FROZEN_DTYPE 'float32' quantises nothing"),
        (
            lambda: Storage("bfloat16", matmul="int8"),
            "FROZEN_MATMUL is 'int8', but FROZEN_DTYPE 'bfloat16' quantises nothing",
        ),
        (lambda: Storage("bfloat16", exact=()), r"QUANTISED_EXACT is \(\), but"),
        (lambda: Storage("int4", matmul="int8"), "FROZEN_MATMUL = 'int8' needs FROZEN_DTYPE = 'int8'"),
        (lambda: Storage("int8", block=64, matmul="int8"), "with one scale for each output"),
    ],
)
def test_settings_without_effect_are_refused(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()
