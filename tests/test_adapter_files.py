"""Adapter files are not trusted: every defect is refused in one sentence that names it."""

import json
import pathlib
import pickle
import struct

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adalink_jax import AdaLinkAdapter, LoRA
from adalink_jax.adapters import describe_adapter
from adalink_jax.checkpoints import BaseReference, load_adapter, read_adapter, save_adapter
from adalink_jax.checkpoints.adapter_files import CONFIG, WEIGHTS
from adalink_jax.errors import CheckpointError
from adalink_jax.models import paths

MARK = "f" * 64
MODULE = AdaLinkAdapter(rank=2, phi="gelu")
RELEASED = pathlib.Path(__file__).parent / "data"


def tree(width=6, rank=2):
    rng = np.random.default_rng(0)
    return {
        "text": {"down": rng.normal(size=(width, rank)).astype("f"), "up": rng.normal(size=(rank, width)).astype("f")}
    }


def load(folder, module=MODULE, **shape):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree(**shape))
    return load_adapter(str(folder), abstract, BaseReference("base", MARK), module=module)


def write(folder):
    save_adapter(str(folder), tree(), describe_adapter(MODULE) | {"base": {"name": "base", "fingerprint": MARK}})


def unseal(folder):
    """Makes a file as version 0.1.0 wrote it."""
    config = json.loads((folder / CONFIG).read_text())
    for name in ("digests", "digest"):
        config["adalink"].pop(name)
    config["adalink"]["format_version"] = 1
    (folder / CONFIG).write_text(json.dumps(config))
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, {"format": "pt"})


def with_tensors(change):
    def do(folder):
        save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)

    return do


def with_config(change):
    def do(folder):
        config = json.loads((folder / CONFIG).read_text())
        change(config)
        (folder / CONFIG).write_text(json.dumps(config))

    return do


def with_bytes(name, change):
    def do(folder):
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return do


def with_pickle(folder):
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({"text/down": 1}))


def value(number):
    return with_tensors(lambda found: found | {"text/up": np.full_like(found["text/up"], number)})


def key(name):
    return with_tensors(lambda found: found | {name: np.ones((2, 2), "f")})


HEADER = b'{"text/down":{"dtype":"F32","shape":[-3,-4],"data_offsets":[0,48]}}'  # as many bytes as 3 x 4
DAMAGE = {
    "truncated": (with_bytes(WEIGHTS, lambda b: b[:-5]), "damaged or cut short"),
    "header truncated": (with_bytes(WEIGHTS, lambda b: b[:20]), "damaged or cut short"),
    "empty": (with_bytes(WEIGHTS, lambda b: b""), "damaged or cut short"),
    "trailing bytes": (with_bytes(WEIGHTS, lambda b: b + b"x"), "damaged or cut short"),
    "header of 10 GB": (with_bytes(WEIGHTS, lambda b: struct.pack("<Q", 10**10) + b[8:]), "it has no header"),
    "header of 2^64": (with_bytes(WEIGHTS, lambda b: b"\xff" * 8 + b[8:]), "it has no header"),
    "header no JSON": (with_bytes(WEIGHTS, lambda b: b[:8] + b"\x00" * (len(b) - 8)), "its header cannot be read"),
    "a shape below zero": (
        with_bytes(WEIGHTS, lambda b: struct.pack("<Q", len(HEADER)) + HEADER + b"x" * 48), r"has `tensors.text/down.shape\[0\]`, which is -3",
    ),
    "NaN": (value(np.nan), "not finite, in text/up"),
    "infinity": (value(np.inf), "not finite, in text/up"),
    "integers": (with_tensors(lambda found: {k: v.astype(np.int32) for k, v in found.items()}), "as int32"),
    "wrong rank": (with_tensors(lambda _: {f"text/{k}": v for k, v in tree(rank=3)["text"].items()}), r"\(6, 3\), but this model has \(6, 2\)"),
    "wrong width": (with_tensors(lambda _: {f"text/{k}": v for k, v in tree(width=5)["text"].items()}), r"\(5, 2\), but"),
    "missing leaf": (with_tensors(lambda found: {"text/up": found["text/up"]}), "lacks text/down"),
    "a leaf too many": (key("image/up"), "has image/up .* does not have"),
    "a path upwards": (key("../../x"), r"named '../../x', which is not a valid name"),
    "an absolute path": (key("/etc/x"), r"named '/etc/x', which is not a valid name"),
    "an empty part": (key("text//up"), "which is not a valid name"),
    "another method": (
        lambda folder: save_adapter(str(folder), {"prompt": np.ones((3, 6), "f")},
                                    {"method": "PromptTuning", "settings": {"length": 3},
                                     "base": {"name": "base", "fingerprint": MARK}}),
        "has prompt .* does not have",
    ),
    "another phi": (with_config(lambda c: c["adalink"]["settings"].update(phi="relu")), "has phi = 'relu'"),
    "another base": (with_config(lambda c: c["adalink"]["base"].update(fingerprint="e" * 64)), "on another base"),
    "newer": (with_config(lambda c: c["adalink"].update(format_version=99)), "written by a newer version"),
    "no version": (with_config(lambda c: c["adalink"].pop("format_version")), "lacks `adalink.format_version`"),
    "no base": (with_config(lambda c: c["adalink"].pop("base")), "lacks `adalink.base`"),
    "method no string": (with_config(lambda c: c["adalink"].update(method=3)), "has `adalink.method`, which is 3, a whole number; it must be a text"),
    "adalink no object": (with_config(lambda c: c.update(adalink=[1])), r"has `adalink`, which is \[1\], a list; it must be a mapping"),
    "neither": (with_config(lambda c: (c.clear(), c.update(x=1))), "neither adalink nor peft_type"),
    "config no object": (with_bytes(CONFIG, lambda b: b"[1, 2]"), "not an object"),
    "config no JSON": (with_bytes(CONFIG, lambda b: b[: len(b) // 2]), "damaged or cut short"),
    "config no text": (with_bytes(CONFIG, lambda b: b"\xff\xfe\x00"), "damaged or cut short"),
    "config without end": (with_bytes(CONFIG, lambda b: b"[" * 100_000), "damaged or cut short"),
    "config of 64 MB": (with_bytes(CONFIG, lambda b: b + b" " * 2**26), "bytes, more than"),
    "no config": (lambda folder: (folder / CONFIG).unlink(), "it has no adapter_config.json"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "it has no adapter_model.safetensors"),
    "a pickle": (with_pickle, "a pickle, which is never opened"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_adapter_is_refused_in_one_sentence(what, tmp_path):
    write(tmp_path)
    unseal(tmp_path)
    load(tmp_path)
    damage, words = DAMAGE[what]
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=words) as refused:
        load(tmp_path)
    text = str(refused.value)
    assert str(tmp_path) in text and text.endswith(".") and "\n" not in text and len(text) < 600


@pytest.mark.parametrize("what", DAMAGE)
def test_digests_find_all_damage_too(what, tmp_path):
    write(tmp_path)
    DAMAGE[what][0](tmp_path)
    with pytest.raises(CheckpointError):
        load(tmp_path)


def swapped(folder):
    """Exchanges the places of two tensors in the header."""
    raw = (folder / WEIGHTS).read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    down, up = header["text/down"], header["text/up"]
    down["data_offsets"], up["data_offsets"] = up["data_offsets"], down["data_offsets"]
    text = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    (folder / WEIGHTS).write_bytes(raw[:8] + text + raw[8 + length :])


def one_place(folder):
    raw = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(raw.replace(b"[48,96]", b"[0,48] "))


def written_again(change):
    """Values are changed as a tool would that knows the file's header but not its digests."""

    def do(folder):
        found = load_file(folder / WEIGHTS)
        save_file({k: change(v) for k, v in found.items()}, folder / WEIGHTS, {"format": "pt", "adalink": "sealed"})

    return do


TAMPERED = {
    "swapped": (swapped, "digest of text/down differs"),
    "two names on one place": (one_place, "its header cannot be read"),
    "reversed": (written_again(lambda x: np.ascontiguousarray(x[::-1])), "digest of text/down differs"),
    "zeroed": (written_again(np.zeros_like), "digest of text/down differs"),
    "a setting": (with_bytes(CONFIG, lambda b: b.replace(b'"scale": 1.0', b'"scale": 2.0')), "its text is not the one"),
    "without digests": (unseal, None),
    "weights alone": (with_config(lambda c: (c.clear(), c.update(peft_type="LORA"))), "lacks the digests"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_what_differs_from_the_digests_is_refused(what, tmp_path):
    write(tmp_path)
    assert read_adapter(tmp_path)[1].verified
    change, words = TAMPERED[what]
    change(tmp_path)
    if words is None:
        assert not read_adapter(tmp_path)[1].verified
        return
    with pytest.raises(CheckpointError, match=words):
        load(tmp_path)


@pytest.mark.parametrize("key, fact, words", [
    ("step", -1, "has `adalink.step`, which is -1, a whole number; it must be 0 or more"),
    ("step", True, "has `adalink.step`, which is True"),
    ("metrics", {"accuracy": "high"}, "has `adalink.metrics.accuracy`, which is 'high', a text; it must be .*a number"),
    ("versions", {"jax": 1}, "has `adalink.versions.jax`, which is 1"),
    ("task", 5, "has `adalink.task`, which is 5"),
])  # fmt: skip
def test_invalid_facts_are_refused_when_they_are_read_and_when_they_are_written(key, fact, words, tmp_path):
    facts = describe_adapter(MODULE) | {"base": {"name": "base", "fingerprint": MARK}}
    with pytest.raises(CheckpointError, match=f"The adapter for .*new {words}"):
        save_adapter(str(tmp_path / "new"), tree(), facts | {key: fact})
    write(tmp_path)
    unseal(tmp_path)
    with_config(lambda config: config["adalink"].update({key: fact}))(tmp_path)
    with pytest.raises(CheckpointError, match=words):
        read_adapter(tmp_path)


@pytest.mark.parametrize("module", [MODULE, LoRA(rank=2)], ids=lambda module: type(module).__name__)
def test_every_flipped_bit_is_found(module, tmp_path):
    """PEFT's layout has its own names, so LoRA's files are another case than this package's."""
    layer = "backbone/encoder/layers_0/attention/query"
    leaves = tree()["text"] if module is not MODULE else tree()
    adapter = leaves if module is MODULE else {layer.removeprefix("backbone/"): leaves}
    save_adapter(str(tmp_path), adapter, describe_adapter(module) | {"base": {"name": "base", "fingerprint": MARK}})
    assert read_adapter(tmp_path)[1].verified
    whole = {name: (tmp_path / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    rng = np.random.default_rng(0)
    for _ in range(200):
        name = (CONFIG, WEIGHTS)[rng.integers(2)]
        changed = bytearray(whole[name])
        at = rng.integers(len(changed))
        changed[at] ^= 1 << rng.integers(8)
        (tmp_path / name).write_bytes(changed)
        with pytest.raises(CheckpointError):
            read_adapter(tmp_path)
            pytest.fail(f"byte {at} of {name}")
        (tmp_path / name).write_bytes(whole[name])
    read_adapter(tmp_path)


@pytest.mark.parametrize("name, setting, words", [
    ("rank", None, "rank is None; it takes an int"),
    ("rank", 0, "rank is 0; it must be at least 1"),
    ("scale", float("nan"), "scale is nan; it takes a finite float"),
    ("phi", "x", "phi is 'x'; it must be one of"),
    ("kinds", [3], "kinds is"),
    ("share", "yes", "share is 'yes'; it takes a bool"),
    ("layers", 3, "has no setting 'layers'"),
])  # fmt: skip
def test_invalid_settings_are_refused(name, setting, words, tmp_path):
    write(tmp_path)
    unseal(tmp_path)
    with_config(lambda config: config["adalink"]["settings"].update({name: setting}))(tmp_path)
    with pytest.raises(CheckpointError, match=words):
        read_adapter(tmp_path)


def test_a_chain_with_a_method_that_was_not_imported_is_opened(tmp_path):
    write(tmp_path)
    unseal(tmp_path)
    foreign = {"method": "my_methods.Mine", "settings": {"size": "any"}}
    chain = {"method": "Chain", "settings": {"adapters": [foreign, describe_adapter(MODULE)]}}
    with_config(lambda config: config["adalink"].update(chain))(tmp_path)
    assert read_adapter(tmp_path)[1].method == "Chain"


def test_a_file_of_the_first_format_loads(caplog):
    leaves, about = read_adapter(RELEASED / "adapter_format_1")
    assert not about.verified
    assert "is unverified: it states no digests" in caplog.text
    assert about["method"] == "AdaLinkAdapter" and about["settings"]["rank"] == 2
    np.testing.assert_array_equal(leaves["text/down"], np.arange(8, dtype="f").reshape(4, 2))
    np.testing.assert_array_equal(leaves["text/up"], -np.arange(8, dtype="f").reshape(2, 4))


def test_a_setting_that_shapes_do_not_show_is_compared(tmp_path):
    write(tmp_path)
    with pytest.raises(CheckpointError, match="is AdaLinkAdapter, but the model has LoRA"):
        load(tmp_path, LoRA())
    adapter, about = load(tmp_path)
    assert about["settings"]["phi"] == "gelu"
    jax.tree.map(np.testing.assert_array_equal, adapter, paths.flatten(tree()))
