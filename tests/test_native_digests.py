"""A native base model states exact digests, so that every flipped bit of its values is found when it is loaded."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from etils import epath

from adalink_jax import checkpoints
from adalink_jax.checkpoints import load_base, save_base
from adalink_jax.checkpoints.native import CONFIG, WEIGHTS
from adalink_jax.errors import CheckpointError
from adalink_jax.files import safetensors_file

SHAPES = {
    "encoder/layers_0/mlp/wi/kernel": (6, 4),
    "encoder/layers_1/mlp/wi/kernel": (6, 4),
    "token_embedder/embedding": (9, 6),
}


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype("f") for name, shape in SHAPES.items()}


def load(folder, dtype="float32", scanned=False):
    shapes = dict(SHAPES)
    if scanned:
        shapes = {"encoder/layers/mlp/wi/kernel": (2, 6, 4), "token_embedder/embedding": (9, 6)}
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {name: jax.ShapeDtypeStruct(shape, dtype, sharding=place) for name, shape in shapes.items()}
    return load_base(str(folder), wanted)


def test_every_flipped_bit_is_found(params, tmp_path):
    save_base(tmp_path / "base", params, "tiny", {})
    load(tmp_path / "base")
    files = {name: tmp_path / "base" / name for name in (WEIGHTS, CONFIG)}
    whole = {name: file.read_bytes() for name, file in files.items()}
    rng = np.random.default_rng(0)
    for number in range(200):
        name = (CONFIG, WEIGHTS, WEIGHTS)[number % 3]
        start = 8 + int.from_bytes(whole[WEIGHTS][:8], "little") if name == WEIGHTS and number % 2 else 0
        changed = bytearray(whole[name])
        at = rng.integers(start, len(changed))
        changed[at] ^= 1 << rng.integers(8)
        files[name].write_bytes(changed)
        with pytest.raises(CheckpointError):
            load(tmp_path / "base")
            pytest.fail(f"byte {at} of {name}")
        files[name].write_bytes(whole[name])
    load(tmp_path / "base")


def test_the_lowest_bit_is_found_and_the_leaf_is_named(params, tmp_path):
    save_base(tmp_path / "base", params, "tiny", {})
    assert load(tmp_path / "base").fingerprint == checkpoints.fingerprint(params)
    [leaf] = [
        leaf
        for name, leaf in safetensors_file.read_leaves(epath.Path(tmp_path) / "base" / WEIGHTS).items()
        if "wi" in name
    ][:1]
    raw = bytearray((tmp_path / "base" / WEIGHTS).read_bytes())
    place = raw.find(leaf.whole().tobytes())
    raw[place] ^= 1
    (tmp_path / "base" / WEIGHTS).write_bytes(raw)
    for dtype in ("float32", "bfloat16"):  # rounded to bfloat16 the values are the same
        with pytest.raises(CheckpointError, match="encoder/layers_0/mlp/wi/kernel in .* does not have the digest"):
            load(tmp_path / "base", dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_digests_are_of_the_file_s_values_however_they_are_loaded(dtype, params, tmp_path):
    save_base(tmp_path / "base", params, "tiny", {})
    source = checkpoints.open_source(str(tmp_path / "base"))
    checkpoints.convert(source, tmp_path / "other", "native", dtype)
    stated = json.loads((tmp_path / "other" / CONFIG).read_text())["digests"]
    stored = {name: x.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else "f") for name, x in params.items()}
    assert stated == checkpoints.digests(stored)
    for scanned in (False, True):
        load(tmp_path / "other", "float32", scanned)
        load(tmp_path / "other", dtype, scanned)


def test_converting_and_inspecting_find_damage(params, tmp_path, capsys):
    from adalink_jax.cli.main import main

    save_base(tmp_path / "base", params, "tiny", {})
    raw = bytearray((tmp_path / "base" / WEIGHTS).read_bytes())
    raw[-4] ^= 1
    (tmp_path / "base" / WEIGHTS).write_bytes(raw)
    source = checkpoints.open_source(str(tmp_path / "base"))
    with pytest.raises(CheckpointError, match="does not have the digest that its file states"):
        checkpoints.convert(source, tmp_path / "other", "native")
    assert not (tmp_path / "other").exists()
    assert main(["inspect", str(tmp_path / "base")]) == 2
    assert "does not have the digest" in capsys.readouterr().err


def test_a_newer_file_is_called_newer(params, tmp_path):
    save_base(tmp_path / "base", params, "tiny", {})
    config = json.loads((tmp_path / "base" / CONFIG).read_text())
    (tmp_path / "base" / CONFIG).write_text(
        json.dumps({"format_version": 4, "name": "tiny", "fingerprint": config["fingerprint"]})
    )
    with pytest.raises(CheckpointError, match="written by a newer version"):
        load(tmp_path / "base")


def test_a_base_of_version_0_1_0_loads_and_is_called_unverified(params, tmp_path, caplog):
    save_base(tmp_path / "base", params, "tiny", {})
    config = json.loads((tmp_path / "base" / CONFIG).read_text())
    old = {name: x for name, x in config.items() if name not in ("digests", "digest")} | {"format_version": 1}
    (tmp_path / "base" / CONFIG).write_text(json.dumps(old))
    assert "without digests, of version 0.1.0" in load(tmp_path / "base").sources["encoder"]
    assert f"The base {tmp_path / 'base'} is unverified" in caplog.text
