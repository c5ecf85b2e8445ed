"""Base models and adapters as files: equal weights have equal fingerprints, and damaged files are refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import init, random_batch, tiny_pali
from jax.sharding import NamedSharding, PartitionSpec

from adalink_jax import AdaLinkAdapter, AdaptedModel, parallel
from adalink_jax.checkpoints import (
    BaseReference,
    digests,
    fingerprint,
    load_adapter,
    load_base,
    save_adapter,
    save_base,
)
from adalink_jax.errors import CheckpointError
from adalink_jax.models import paths


def make(scan_layers=False, seed=0):
    backbone = tiny_pali(scan_layers=scan_layers)
    model = AdaptedModel(backbone, AdaLinkAdapter(rank=4))
    params = init(model, random_batch(backbone, 2, 6, 4, seed=0), seed)
    params["adapter"] = jax.tree.map(lambda x: x + 0.5, params["adapter"])
    return params


def abstract(tree):
    sharding = parallel.replicated(parallel.make_mesh())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def restack(unrolled, scanned):
    """The leaves of an unrolled tree, stacked as in a scanned one."""
    leaves = paths.flatten(unrolled)
    out = {}
    for name, leaf in paths.flatten(scanned).items():
        parts = [leaves[each] for each in paths.unscanned_names(name, leaf.shape)]
        out[name] = parts[0] if name in leaves else jnp.stack(parts)
    return paths.unflatten(out)


@pytest.fixture(scope="module")
def params():
    return make()


@pytest.fixture
def base(params, tmp_path):
    save_base(tmp_path / "base", params["backbone"], "tiny", {"task": "none"})
    return tmp_path / "base"


@pytest.fixture
def adapter(params, tmp_path):
    about = {"method": "AdaLinkAdapter", "settings": {"rank": 4}, "base": {"name": "tiny", "fingerprint": "f" * 64}}
    save_adapter(tmp_path / "adapter", params["adapter"], about)
    return tmp_path / "adapter"


def assert_equal(a, b):
    a, b = paths.flatten(a), paths.flatten(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(np.asarray(a[name]), np.asarray(b[name]), err_msg=name)


def test_a_base_is_loaded_bit_for_bit(params, base):
    loaded = load_base(base, abstract(params["backbone"]))
    assert_equal(loaded.leaves, params["backbone"])
    config = json.loads((base / "base_config.json").read_text())
    assert config["parameters"] == sum(x.size for x in jax.tree.leaves(params["backbone"]))


def test_a_base_loads_into_a_scanned_model(params, base):
    scanned = make(scan_layers=True)["backbone"]
    loaded = load_base(base, abstract(scanned))
    assert_equal(loaded.leaves, restack(params["backbone"], scanned))
    assert loaded.fingerprint == fingerprint(params["backbone"])


def test_the_fingerprint_depends_only_on_the_weights(params):
    backbone = params["backbone"]
    expected = fingerprint(backbone)
    assert fingerprint(jax.tree.map(lambda x: x.astype(jnp.bfloat16), backbone)) == expected
    assert fingerprint(restack(backbone, make(scan_layers=True)["backbone"])) == expected
    mesh = parallel.make_mesh()
    assert fingerprint(jax.device_put(backbone, NamedSharding(mesh, PartitionSpec()))) == expected
    assert fingerprint(make(seed=1)["backbone"]) != expected


def test_the_fingerprint_changes_with_swapped_values_and_renamed_leaves(params):
    expected = fingerprint(params["backbone"])
    swapped = paths.flatten(params["backbone"])
    leaf = swapped["projection/kernel"]
    swapped["projection/kernel"] = leaf.at[0].set(leaf[1]).at[1].set(leaf[0])
    assert fingerprint(paths.unflatten(swapped)) != expected
    renamed = paths.flatten(params["backbone"])
    renamed["projection/other"] = renamed.pop("projection/kernel")
    assert fingerprint(paths.unflatten(renamed)) != expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8"])
def test_a_digest_changes_with_every_single_bit(dtype):
    bits = {"float32": np.uint32, "bfloat16": np.uint16, "int32": np.uint32, "uint8": np.uint8}[dtype]
    raw = np.random.default_rng(0).integers(0, 100, (3, 5)).astype(bits)
    expected = digests({"x": jnp.asarray(raw).view(dtype)})
    for position in range(15):
        for bit in range(raw.itemsize * 8):
            flipped = raw.copy()
            flipped.flat[position] ^= bits(1 << bit)
            assert digests({"x": jnp.asarray(flipped).view(dtype)}) != expected, (position, bit)


def test_frozen_leaves_can_be_stored_in_bfloat16(params, base):
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, "bfloat16", sharding=x.sharding), abstract(params["backbone"])
    )
    loaded = load_base(base, wanted)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.leaves)} == {jnp.dtype("bfloat16")}
    assert loaded.fingerprint == fingerprint(params["backbone"])


def test_leaves_that_are_missing_left_over_or_misshapen_are_named(params, base):
    wanted = paths.flatten(abstract(params["backbone"]))
    missing = dict(wanted) | {"encoder/extra/scale": wanted["encoder/encoder_norm/scale"]}
    with pytest.raises(CheckpointError, match="lacks 1: encoder/extra/scale"):
        load_base(base, paths.unflatten(missing))
    left_over = {name: leaf for name, leaf in wanted.items() if name != "projection/bias"}
    with pytest.raises(CheckpointError, match="the model does not, 1: projection/bias"):
        load_base(base, paths.unflatten(left_over))
    kernel = wanted["projection/kernel"]
    misshapen = dict(wanted) | {
        "projection/kernel": jax.ShapeDtypeStruct((3, 3), kernel.dtype, sharding=kernel.sharding)
    }
    with pytest.raises(CheckpointError, match=r"another shape 1: projection/kernel .*\(3, 3\)"):
        load_base(base, paths.unflatten(misshapen))


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "truncated":
        data = data[: len(data) // 2]
    else:
        data[-3] ^= 0x40  # a bit of a value that bfloat16 keeps, or of its neighbour
        data[-1] ^= 0x40
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_a_damaged_base_is_refused(params, base, how):
    damage(base / "model.safetensors", how)
    with pytest.raises(CheckpointError, match="copy or write it again"):
        load_base(base, abstract(params["backbone"]))


def test_a_path_without_a_base_is_refused_with_the_known_ones(params):
    with pytest.raises(CheckpointError, match="no folder nowhere; give a native base model"):
        load_base("nowhere", abstract(params["backbone"]))
    with pytest.raises(CheckpointError, match="pali_nano_instruct"):
        load_base("bundled:pali_micro", abstract(params["backbone"]))


def test_an_adapter_is_loaded_bit_for_bit(params, adapter):
    loaded, about = load_adapter(adapter, abstract(params["adapter"]), BaseReference("base", "f" * 64))
    assert_equal(loaded, params["adapter"])
    assert about["settings"] == {"rank": 4}
    assert json.loads((adapter / "adapter_config.json").read_text())["adalink"]["format_version"] == 2


def test_an_adapter_for_another_base_is_refused_unless_allowed(params, adapter):
    with pytest.raises(CheckpointError, match="trained on another base: tiny ffffffffffff, this one is eeeeeeeeeeee"):
        load_adapter(adapter, abstract(params["adapter"]), BaseReference("base", "e" * 64))
    loaded, _ = load_adapter(
        adapter, abstract(params["adapter"]), BaseReference("base", "e" * 64), allow_other_base=True
    )
    assert_equal(loaded, params["adapter"])


def test_a_damaged_adapter_is_refused(params, adapter):
    damage(adapter / "adapter_model.safetensors", "truncated")
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        load_adapter(adapter, abstract(params["adapter"]), BaseReference("base", "f" * 64))
    (adapter / "adapter_config.json").write_text('{"adalink": {}}')
    with pytest.raises(CheckpointError, match="lacks `adalink.format_version`"):
        load_adapter(adapter, abstract(params["adapter"]), BaseReference("base", "f" * 64))


def test_an_adapter_of_another_rank_or_with_nan_is_refused(params, tmp_path, adapter):
    other = init(AdaptedModel(tiny_pali(), AdaLinkAdapter(rank=2)), random_batch(tiny_pali(), 2, 6, 4, seed=0), 0)[
        "adapter"
    ]
    with pytest.raises(CheckpointError, match="use its method and settings"):
        load_adapter(adapter, abstract(other), BaseReference("base", "f" * 64))
    about = {"method": "AdaLinkAdapter", "settings": {}, "base": {"name": "tiny", "fingerprint": "f" * 64}}
    broken = jax.tree.map(lambda x: x.at[0, 0].set(jnp.nan), params["adapter"])
    save_adapter(tmp_path / "nan", broken, about)
    with pytest.raises(CheckpointError, match="not finite"):
        load_adapter(tmp_path / "nan", abstract(broken), BaseReference("base", "f" * 64))
