"""Quantised bases as files: their bytes, their values, the fingerprints that they state, and what damage they are refused for."""

import json
import os
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from etils import epath
from helpers import init, random_batch, tiny_pali, tiny_t5
from safetensors import safe_open

from adalink_jax import T5, AdaptedModel, checkpoints, parallel
from adalink_jax.adapters import abstract_params
from adalink_jax.checkpoints import native, open_source
from adalink_jax.checkpoints.native import CONFIG, WEIGHTS
from adalink_jax.checkpoints.quantised_files import SCALE
from adalink_jax.checkpoints.source import Source
from adalink_jax.cli.main import main
from adalink_jax.errors import CheckpointError
from adalink_jax.files import safetensors_file, sealed_json
from adalink_jax.files.base_formats import QUANTISED
from adalink_jax.files.leaves import from_array
from adalink_jax.models import paths
from adalink_jax.models.quantised import CODE_DTYPES, Quantised, Storage, bits_of, dequantised, quantise

BITS = {"int8": 8, "fp8": 8, "int4": 4, "nf4": 4}


def params_of(backbone):
    return init(AdaptedModel(backbone), random_batch(backbone, 2, 6, 4, seed=0))["backbone"]


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """The folder of an exact PaLI."""
    folder = tmp_path_factory.mktemp("bases") / "exact"
    checkpoints.save_base(folder, params_of(tiny_pali()), "tiny", {})
    return folder


@pytest.fixture(scope="module")
def folders(exact):
    """The same in each quantised form, in blocks of 16 where the bits are four."""
    for kind in QUANTISED:
        checkpoints.convert(open_source(exact), exact.parent / kind, "native", storage=storage_of(kind))
    return {kind: exact.parent / kind for kind in QUANTISED}


def storage_of(kind):
    return Storage(kind, 16 if BITS[kind] == 4 else None)


def load(folder, storage, **settings):
    """The leaves in memory, as a run has them."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = lambda x: jax.ShapeDtypeStruct(x.shape, np.float32, sharding=place)
    model = AdaptedModel(tiny_pali(**settings))
    leaves = paths.flatten(jax.tree.map(abstract, parallel.unbox(abstract_params(model))["backbone"]))
    wanted = storage.stored({f"backbone/{name}": leaf for name, leaf in leaves.items()}, ())
    return checkpoints.load_base(folder, {name.removeprefix("backbone/"): leaf for name, leaf in wanted.items()})


def same_bits(one, other):
    assert one.dtype == other.dtype and one.shape == other.shape
    np.testing.assert_array_equal(np.asarray(one).view(np.uint8), np.asarray(other).view(np.uint8))


def test_the_command_line_knows_every_form():
    assert tuple(CODE_DTYPES) == QUANTISED


@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.parametrize("scan_layers", [False, True])
def test_a_file_gives_the_codes_and_scales_of_its_exact_base(kind, scan_layers, exact, folders):
    there = load(folders[kind], storage_of(kind), scan_layers=scan_layers)
    expected = load(exact, storage_of(kind), scan_layers=scan_layers)
    assert (there.fingerprint, there.parent, there.precision) == (
        expected.fingerprint,
        expected.parent,
        expected.precision,
    )
    assert there.parent == open_source(exact).fingerprint and there.fingerprint != there.parent
    assert sum(isinstance(leaf, Quantised) for leaf in there.leaves.values()) > 10
    for name, leaf in expected.leaves.items():
        jax.tree.map(same_bits, there.leaves[name], leaf)
    if scan_layers:
        plain = load(folders[kind], Storage(), scan_layers=True)
        assert (plain.fingerprint, plain.parent, plain.precision) == (there.fingerprint, there.parent, there.precision)
        for name, leaf in expected.leaves.items():
            same_bits(plain.leaves[name], dequantised(leaf))


@pytest.mark.parametrize("kind", QUANTISED)
def test_bytes_on_disk_are_those_of_the_codes_and_scales_and_exact_leaves(kind, exact, folders):
    leaves = load(exact, storage_of(kind)).leaves
    expected = sum(
        bits_of(x.dtype) * x.size for leaf in leaves.values() for x in jax.tree.leaves(leaf)
    ) / 8  # fmt: skip
    source = open_source(folders[kind])
    assert source.nbytes == expected
    header = 8 + int.from_bytes((folders[kind] / WEIGHTS).read_bytes()[:8], "little")
    assert (folders[kind] / WEIGHTS).stat().st_size - header == expected
    quantised = [leaf for leaf in leaves.values() if isinstance(leaf, Quantised)]
    weights = sum(leaf.size for leaf in quantised)
    stored = sum(leaf.nbytes for leaf in source.leaves.values() if leaf.precision)
    scales = sum(leaf.scales.size for leaf in quantised)
    assert 8 * stored == pytest.approx(BITS[kind] * weights + 16 * scales, rel=0.02)


def test_the_safetensors_package_reads_what_is_documented(folders):
    with safe_open(folders["int8"] / WEIGHTS, "np") as file:
        name = "encoder/layers_0/mlp/wi_0/kernel"
        codes, scales = file.get_slice(name), file.get_slice(name + SCALE)
        assert (codes.get_dtype(), codes.get_shape()) == ("I8", [32, 64])
        assert (scales.get_dtype(), scales.get_shape()) == ("BF16", [1, 64])
    with safe_open(folders["fp8"] / WEIGHTS, "np") as file:
        assert file.get_slice(name).get_dtype() == "F8_E4M3"


def odd_source(values):
    leaves = {"a/kernel": from_array(values, "a/kernel"), "a/scale": from_array(np.ones(7, "f"), "a/scale")}
    return Source("test", "odd", "odd", leaves, epath.Path("odd"))


@pytest.mark.parametrize("kind", QUANTISED)
def test_parts_of_a_leaf_with_an_odd_last_axis_are_those_of_the_whole(kind, tmp_path):
    values = np.random.default_rng(0).normal(size=(24, 7)).astype("f")
    values[:8, 2] = 0  # a block without a scale
    checkpoints.convert(odd_source(values), tmp_path / "odd", "native", storage=Storage(kind, 8, ()))
    leaf = open_source(tmp_path / "odd").leaves["a/kernel"]
    expected = np.asarray(dequantised(quantise(values, kind, 8)))
    same_bits(leaf.whole(), expected)
    for rows in (slice(0, 24), slice(3, 5), slice(7, 17), slice(23, 24)):
        for columns in (slice(0, 7), slice(0, 1), slice(3, 6), slice(6, 7)):
            same_bits(np.ascontiguousarray(leaf.read((rows, columns))), np.ascontiguousarray(expected[rows, columns]))
    again = jax.jit(lambda x: quantise(x, kind, 8))(expected)
    jax.tree.map(same_bits, again, quantise(values, kind, 8))
    stored = safetensors_file.read_leaves(epath.Path(tmp_path) / "odd" / WEIGHTS)["a/kernel"].whole()
    if BITS[kind] == 4:
        codes = np.asarray(again.codes).astype(int) & 15
        np.testing.assert_array_equal(stored[:, 1], codes[:, 2] | codes[:, 3] << 4)  # the first in the low bits
        np.testing.assert_array_equal(stored[:, 3], codes[:, 6])


@pytest.mark.parametrize("kind", QUANTISED)
def test_every_flipped_bit_that_changes_a_value_is_found(kind, folders, tmp_path):
    whole = (folders[kind] / WEIGHTS).read_bytes()
    tensors = safetensors_file.read_leaves(epath.Path(folders[kind]) / WEIGHTS)
    header = 8 + int.from_bytes(whole[:8], "little")
    (tmp_path / CONFIG).write_bytes((folders[kind] / CONFIG).read_bytes())
    rng, place = np.random.default_rng(0), header
    name = "encoder/layers_0/mlp/wi_0/kernel"
    for tensor, leaf in tensors.items():  # in the order of the file
        for bit in (7, 0, 3) if tensor in (name, name + SCALE) else ():
            changed = bytearray(whole)
            changed[place + 2 * rng.integers(leaf.nbytes // 2) + 1] ^= 1 << bit  # 7: the sign of a scale
            (tmp_path / WEIGHTS).write_bytes(changed)
            with pytest.raises(CheckpointError, match=f"{tensor} in .* does not have the digest"):
                load(tmp_path, storage_of(kind))
                pytest.fail(f"a bit of {tensor}")
        place += leaf.nbytes
    assert place == len(whole)


def reseal(folder, change):
    """Writes the configuration again as this package would, after `change`."""
    config = json.loads((folder / CONFIG).read_text())
    config.pop("digest")
    change(config)
    (folder / CONFIG).write_text(sealed_json.seal(config))


def write_again(folder, change):
    """Writes the tensors again after `change`, in agreement with all digests of scales."""
    tensors = safetensors_file.read_leaves(epath.Path(folder) / WEIGHTS)
    tensors = {name: from_array(leaf.whole().copy(), name) for name, leaf in tensors.items()}
    change(tensors)
    safetensors_file.write_leaves(
        epath.Path(folder) / WEIGHTS, tensors, {name: leaf.dtype for name, leaf in tensors.items()}
    )
    scales = {
        name.removesuffix(SCALE): safetensors_file.digest(name, leaf)
        for name, leaf in tensors.items()
        if name.endswith(SCALE)
    }
    reseal(folder, lambda config: config["quantised"].update(scales=scales))


KERNEL = "encoder/layers_0/mlp/wi_0/kernel"


def replaced(name, make):
    return lambda tensors: tensors.update({name: from_array(make(tensors[name].whole()), name)})


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda tensors: tensors.pop(KERNEL + SCALE), f"lacks {KERNEL + SCALE}, which its configuration states"),
        (lambda tensors: tensors.pop(KERNEL), f"lacks {KERNEL}, which its configuration states"),
        (replaced(KERNEL, lambda x: x.astype("f")), f"{KERNEL} as float32 32 x 64, and its configuration states int8 32 x 64"),
        (replaced(KERNEL, lambda x: x[:16]), f"{KERNEL} as int8 16 x 64, and its configuration states int8 32 x 64"),
        (replaced(KERNEL + SCALE, lambda x: x.astype("f")), f"{KERNEL + SCALE} as float32 1 x 64, and its configuration"),
        (replaced(KERNEL + SCALE, lambda x: x[:, 1:]), f"{KERNEL + SCALE} as bfloat16 1 x 63, and its configuration"),
        (replaced(KERNEL + SCALE, lambda x: np.repeat(x, 3, 0)), f"{KERNEL + SCALE} as bfloat16 3 x 64, and"),
        (replaced(KERNEL + SCALE, lambda x: x * x.dtype.type(np.nan)), f"{KERNEL + SCALE} in .* holds scales that are not"),
    ],
)  # fmt: skip
def test_tensors_of_another_form_are_one_sentence(change, sentence, folders, tmp_path):
    shutil.copytree(folders["int8"], tmp_path / "copy")
    write_again(tmp_path / "copy", change)
    with pytest.raises(CheckpointError, match=sentence) as error:
        open_source(tmp_path / "copy").leaves[KERNEL].whole()
    assert str(error.value).endswith("copy or write it again.")


def test_files_that_are_cut_short_or_of_a_later_form_are_one_sentence(folders, tmp_path, monkeypatch):
    shutil.copytree(folders["int4"], tmp_path / "copy")
    whole = (tmp_path / "copy" / WEIGHTS).read_bytes()
    (tmp_path / "copy" / WEIGHTS).write_bytes(whole[:-7])
    with pytest.raises(CheckpointError, match="is damaged or cut short"):
        open_source(tmp_path / "copy")
    (tmp_path / "copy" / WEIGHTS).write_bytes(whole)
    reseal(tmp_path / "copy", lambda config: config["quantised"].update(dtype="int2"))
    with pytest.raises(CheckpointError, match="quantised.dtype.*int2.*copy or write it again"):
        open_source(tmp_path / "copy")
    (tmp_path / "copy" / CONFIG).write_bytes((folders["int4"] / CONFIG).read_bytes())
    monkeypatch.setattr(native, "QUANTISED_VERSION", 2)  # as earlier versions of this package
    with pytest.raises(CheckpointError, match="was written by a newer version of adalink-jax"):
        open_source(tmp_path / "copy")


def test_a_conversion_that_is_killed_leaves_nothing_that_opens(exact, tmp_path):
    program = (
        "import os, signal\nfrom adalink_jax import checkpoints\nfrom adalink_jax.checkpoints import native\n"
        "from adalink_jax.models.quantised import Storage\nfrom adalink_jax.files import sealed_json\n"
        "sealed_json.seal = lambda config: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"source = checkpoints.open_source({str(exact)!r})\n"
        f"checkpoints.convert(source, {str(tmp_path / 'new')!r}, 'native', storage=Storage('int8'))\n"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == -9
    with pytest.raises(CheckpointError, match="There is no folder"):
        open_source(tmp_path / "new")
    checkpoints.convert(open_source(exact), tmp_path / "new", "native", storage=Storage("int8"))
    assert os.listdir(tmp_path) == ["new"] and open_source(tmp_path / "new").precision == "int8"


def test_values_that_cannot_be_quantised_are_refused(tmp_path):
    values = np.ones((8, 4), "f")
    values[3, 1] = np.inf
    convert = lambda source, **how: checkpoints.convert(
        source, tmp_path / "new", "native", storage=Storage("int8", **how)
    )
    with pytest.raises(CheckpointError, match="a/kernel in odd holds values that are not finite"):
        convert(odd_source(values), exact=())
    norms = Source("test", "odd", "odd", {"a/scale": from_array(np.ones(7, "f"), "a/scale")}, epath.Path("odd"))
    with pytest.raises(CheckpointError, match="has no kernel to quantise"):
        convert(norms, exact=())
    clash = odd_source(np.ones((8, 4), "f"))
    clash.leaves["a/kernel_scale"] = from_array(np.ones(7, "f"), "a/kernel_scale")
    with pytest.raises(CheckpointError, match="has a leaf a/kernel_scale, where scales are stored"):
        convert(clash, exact=())
    assert not (tmp_path / "new").exists()


def facts(output):
    """What a command printed, by label; lines that were folded are joined."""
    lines, label = {}, ""
    columns = re.match(r"\S+(?: \S+)* {2,}", output)
    assert columns is not None
    for line in output.splitlines():
        label = line[: columns.end()].strip() or label
        lines[label] = f"{lines.get(label, '')} {line[columns.end() :].strip()}".strip()
    return lines


def test_the_commands_show_and_dequantise(exact, tmp_path, capsys):
    """From the bundled base: quantised with a rule, shown, and written in every other format."""
    quantised = str(tmp_path / "int8")
    rule = ["--exact", "token_embedder", "decoder/logits_dense"]
    command = ["convert", "bundled:pali_nano_instruct", quantised, "--to", "native", "--dtype", "int8", *rule]
    assert main(command) == 0
    converted = facts(capsys.readouterr().out)
    assert converted["stored as"] == "int8 (exact, in float32: norms, biases, embedding tables, 1 kernels)"
    assert main(["inspect", quantised]) == 0
    shown = facts("kind" + capsys.readouterr().out.partition("\nkind")[2])
    source = open_source(quantised)
    assert shown["made from"] == open_source("bundled:pali_nano_instruct").fingerprint == source.parent
    assert shown["fingerprint"] == converted["fingerprint"] == source.fingerprint
    assert source.leaves["decoder/logits_dense/kernel"].precision is None
    base = json.loads((epath.Path(native.__file__).parent.parent / "assets/pali_nano_instruct" / CONFIG).read_text())
    config = json.loads((tmp_path / "int8" / CONFIG).read_text())
    same = ("name", "parameters", "part_settings", "position_rule")
    assert {key: config.get(key) for key in same} == {key: base.get(key) for key in same}
    for name, how in {"float32": ["--dtype", "float32"], "as it is": [], "bfloat16": ["--dtype", "bfloat16"]}.items():
        assert main(["convert", quantised, str(tmp_path / name), "--to", "native", *how]) == 0
        assert "those of the base in int8, dequantised" in facts(capsys.readouterr().out)["values"]
        plain = open_source(tmp_path / name)
        assert plain.fingerprint == source.fingerprint and plain.precision is None and plain.parent is None
        written = json.loads((tmp_path / name / CONFIG).read_text())
        assert written["format_version"] == 2 and not {"quantised", "parent"} & written.keys()
    same_bits(open_source(tmp_path / "as it is").leaves[KERNEL].whole(), source.leaves[KERNEL].whole())


@pytest.mark.parametrize("to", ["hf", "t5x"])
def test_other_formats_get_the_values(to, tmp_path, capsys):
    settings = {"mlp_activations": ["gelu", "linear"], "relpos_max_distance": 128}
    checkpoints.save_base(tmp_path / "t5", params_of(T5(tiny_t5())), "tiny", {"settings": settings})
    checkpoints.convert(open_source(tmp_path / "t5"), tmp_path / "q", "native", storage=Storage("int4", 16))
    folder = tmp_path / "checkpoint_3"
    assert main(["convert", str(tmp_path / "q"), str(folder), "--to", to]) == 0
    assert "those of the base in int4/16, dequantised" in facts(capsys.readouterr().out)["values"]
    quantised, written = open_source(tmp_path / "q"), open_source(folder)
    assert checkpoints.fingerprint_of_source(written) == quantised.fingerprint
    for name, leaf in quantised.leaves.items():
        np.testing.assert_array_equal(written.leaves[name].whole(), leaf.whole(), err_msg=name)


@pytest.mark.parametrize(
    "flags, sentence",
    [
        ("--to native --dtype int4", "is stored in int8, and quantised again it would lose twice; give the base that"),
        ("--to native --dtype int8", "is stored in int8, and quantised again it would lose twice"),
        (
            "--to hf --dtype int8",
            "Only --to native holds a base in int8; with --to hf give --dtype float32 or bfloat16.",
        ),
        ("--to t5x --dtype nf4", "Only --to native holds a base in nf4"),
        ("--to native --block 64", "--block needs --dtype int8, fp8, int4, nf4; nothing is quantised without it."),
        ("--to native --dtype bfloat16 --exact encoder", "--exact needs --dtype int8, fp8, int4, nf4"),
        ("--to native --dtype int4 --block 0", "--block is 0; give a positive number."),
    ],
)
def test_what_convert_refuses(flags, sentence, folders, tmp_path, capsys):
    assert main(["convert", str(folders["int8"]), str(tmp_path / "new"), *flags.split()]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_of_a_model_made_of_parts_no_file_states_the_exact_one(exact, folders):
    parts = {"vision": str(folders["int8"]), "language": str(exact)}
    for storage in (Storage(), storage_of("int8")):
        base = load(parts, storage)
        assert (base.parent, base.precision) == (None, "int8")
