"""A family of models is added from outside: one class that is registered, and every format and command knows it."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adalink_jax.checkpoints import check_fit, config_fields, convert, load_base, open_adapter, open_source, settings_of
from adalink_jax.checkpoints.families import Family, Translation, register
from adalink_jax.checkpoints.families.family import FAMILIES
from adalink_jax.errors import CheckpointError
from adalink_jax.files.leaves import transposed

V, D = 6, 4
TENSORS = {"embed.weight": "token_embedder/embedding", "tower.proj.weight": "tower/kernel"}
NAMES = {name: tensor for tensor, name in TENSORS.items()}


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    """The configuration of a toy."""

    width: int
    activation: str = "relu"


class ToyFamily(Family):
    """A table and one projection."""

    name, part, config = "Toy", "language", ToyConfig
    deciding, model_types = ("activation",), ("toy", "toy-2")

    def sizes(self, shapes):
        return {"width": shapes["tower/kernel"][0]} if "tower/kernel" in shapes else {}

    def name_from_hugging_face(self, tensor):
        return TENSORS.get(tensor)

    def name_in_hugging_face(self, name):
        return NAMES.get(name)

    def from_hugging_face(self, tensors, config, folder, path):
        leaves = {TENSORS.get(tensor, tensor): leaf for tensor, leaf in tensors.items()}
        leaves["tower/kernel"] = transposed(leaves["tower/kernel"])
        return Translation(leaves, {"language": {"activation": config["act"]}})

    def to_hugging_face(self, leaves):
        return {NAMES[name]: transposed(leaf) if name == "tower/kernel" else leaf for name, leaf in leaves.items()}

    def hugging_face_config(self, source):
        return {"model_type": "toy", "act": source.settings["language"]["activation"]}


@pytest.fixture(autouse=True)
def registered():
    family = ToyFamily()
    register(family)
    yield
    FAMILIES.remove(family)


@pytest.fixture
def folder(tmp_path):
    """A Hugging Face folder of a toy."""
    table, matrix = np.arange(V * D, dtype="f").reshape(V, D), np.arange(D * D, dtype="f").reshape(D, D)
    (tmp_path / "toy").mkdir()
    save_file({"embed.weight": table, "tower.proj.weight": matrix}, tmp_path / "toy" / "model.safetensors")
    (tmp_path / "toy" / "config.json").write_text(json.dumps({"model_type": "toy", "act": "silu"}))
    return tmp_path / "toy"


def abstract(width=D):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = {"token_embedder/embedding": (V, width), "tower/kernel": (width, D)}
    return {name: jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding) for name, shape in shapes.items()}


def test_its_hugging_face_folder_loads(folder):
    base = load_base(folder, abstract(), configs={"language": ToyConfig(D, "silu")})
    np.testing.assert_array_equal(base.leaves["tower/kernel"], np.arange(D * D, dtype="f").reshape(D, D).T)
    assert config_fields(open_source(folder)) == {"width": D, "activation": "silu"}
    assert settings_of(ToyConfig(D)) == {"activation": "relu"}


def test_its_sizes_and_settings_are_compared(folder):
    with pytest.raises(
        CheckpointError, match="activation = 'silu', but the model has 'relu'; set ToyConfig.activation"
    ):
        load_base(folder, abstract(), configs={"language": ToyConfig(D)})
    with pytest.raises(CheckpointError, match=r"it has width 4 \(model: 8\)"):
        check_fit(open_source(folder).shapes, {name: leaf.shape for name, leaf in abstract(8).items()}, "toy")


def test_it_is_converted_to_every_format_and_back(folder, tmp_path):
    mark = convert(open_source(folder), tmp_path / "native", "native")
    assert convert(open_source(tmp_path / "native"), tmp_path / "hf", "hf") == mark
    assert json.loads((tmp_path / "hf" / "config.json").read_text()) == {
        "model_type": "toy", "act": "silu", "dtype": "float32",
    }  # fmt: skip
    original, again = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "hf"))
    jax.tree.map(np.testing.assert_array_equal, again, original)
    assert convert(open_source(folder), tmp_path / "checkpoint_1", "t5x") == mark


def test_an_adapter_that_peft_trained_on_it_is_read(tmp_path):
    rank = {"lora_A": np.ones((2, D), "f"), "lora_B": np.ones((D, 2), "f")}
    tensors = {f"base_model.model.tower.proj.{name}.weight": value for name, value in rank.items()}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    leaves, facts = open_adapter(tmp_path)
    assert leaves.keys() == {"tower/down", "tower/up"} and facts.settings["projections"] == ["tower"]
