"""`adalink quantise-check`: what a quantised base changes, on given inputs."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from adalink_jax.cli.main import main
from adalink_jax.data import digits
from adalink_jax.models.quantised import Storage
from adalink_jax.python_api import load_base
from adalink_jax.serving import quantise_check as checks
from adalink_jax.serving import rows

BASE, ROWS = "bundled:pali_nano_instruct", 11


class Damaged(Storage):
    """Turns the decoder's MLPs round."""

    def of(self, leaves):
        """The damaged leaves."""
        return {
            name: -leaf if "decoder" in name and name.endswith("wo/kernel") else leaf for name, leaf in leaves.items()
        }


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    scenes = digits.compose("digits_read", "test")
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["inputs", "image"])
        for i in range(ROWS):
            pixels = (np.asarray(scenes["image"][i])[..., 0] + 1) * 127.5
            Image.fromarray(pixels.round().astype("u1")).save(folder / f"{i}.png")
            writer.writerow([scenes["inputs"][i], f"{i}.png"])
    return folder / "rows.csv"


def test_errors_of_layers_logits_and_outputs(table, capsys):
    assert main(["quantise-check", BASE, str(table), "--dtypes", "int8", "int4", "--json"]) == 0
    eight, four = json.loads(capsys.readouterr().out)
    assert (eight["precision"], four["precision"]) == ("int8", "int4/64")
    layers = {f"{stack}/layers_{i}" for stack in ("encoder", "decoder", "vision") for i in (0, 1)}
    assert eight["errors"].keys() == layers | {"logits"}
    for name, error in eight["errors"].items():
        assert 0.001 < error < 0.02 and 5 * error < four["errors"][name] < 0.3
    assert eight["tokens"] > 0.99 and eight["outputs"] > 0.9 and four["tokens"] > 0.9
    assert 2.5 < 1_350_144 / eight["nbytes"] < four["nbytes"] * 4 and four["nbytes"] < eight["nbytes"]


def test_a_base_does_not_differ_from_itself_and_a_damaged_one_does(table):
    base = load_base(BASE, settings={"SCAN_LAYERS": False}).opened
    asks = list(rows.of_file(str(table), dict.fromkeys(("inputs", "image", "images")), {}, wants_images=True).asks())
    (same,) = checks.quantise_check(base, asks, [Storage()], 4, lambda *_: None)
    assert set(same.errors.values()) == {0.0} and same.tokens == same.outputs == 1
    (damaged,) = checks.quantise_check(base, asks, [Damaged()], 4, lambda *_: None)
    assert damaged.errors["encoder/layers_1"] == 0 < damaged.errors["decoder/layers_0"] < damaged.errors["logits"]
    assert damaged.tokens < 0.6 and damaged.outputs < 0.2


def test_wrong_arguments_are_one_sentence(table, capsys, tmp_path):
    for arguments, sentence in (
        ([BASE, str(table), "--rows", "0"], "--rows is 0; give 1 or more."),
        ([BASE, str(table), "--exact", "nothing"], "QUANTISED_EXACT: 'nothing' matches no frozen parameter"),
        ([BASE, str(tmp_path / "none.txt")], "none.txt"),
    ):
        assert main(["quantise-check", *arguments]) == 2
        assert sentence in capsys.readouterr().err
