"""Custom methods: in adapter files, in gin files, in banks."""

import sys
import types

import flax.linen as nn
import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from broken_methods import HoldsWhatNoFileCan, Shift
from helpers import init, random_batch, tiny_t5

from adalink_jax import T5, AdaptedModel, Chain, LoRA, PromptTuning, configuration
from adalink_jax.adapters import describe_adapter, make_adapter, stack_adapters
from adalink_jax.checkpoints import BaseReference, load_adapter, save_adapter
from adalink_jax.errors import CheckpointError, UserError
from adalink_jax.training.setup import Setup, load_parameters

MARK = "f" * 64


class Bottleneck(nn.Module):
    """A bottleneck on the text; the names of its axes let adapters of several ranks share a bank."""

    rank: int = 2

    @nn.compact
    def __call__(self, inputs):
        if inputs.text is None:
            return inputs
        param = lambda name, axes, *shape: self.param(
            name, nn.with_logical_partitioning(nn.initializers.normal(0.3), axes), shape, jnp.float32
        )
        width = inputs.text.shape[-1]
        down = param("down", ("adapter_embed", "adapter_rank"), width, self.rank)
        up = param("up", ("adapter_rank", "adapter_embed"), self.rank, width)
        return inputs.replace(text=inputs.text + nn.silu(inputs.text @ down) @ up)


def test_a_file_names_its_module():
    module = Chain((Shift(size=2.0), PromptTuning(length=3)))
    about = describe_adapter(module)
    assert [part["method"] for part in about["settings"]["adapters"]] == ["broken_methods.Shift", "PromptTuning"]
    assert make_adapter(about["method"], about["settings"]) == module


def test_a_custom_method_with_the_name_of_a_built_in_one_stays_distinct():
    theirs = type("LoRA", (Shift,), {"__module__": "elsewhere"})
    assert describe_adapter(theirs())["method"] == "elsewhere.LoRA"
    assert describe_adapter(LoRA())["method"] == "LoRA"


@pytest.mark.parametrize("method, words", [
    ("this.Method", "an adapter file never causes an import; import this first."),
    ("broken_methods.Missing", "The imported module broken_methods has no Flax module Missing"),
    ("broken_methods.COLLECTION", "has no Flax module COLLECTION"),
    ("os.system", "has no Flax module system"),
    ("adalink_jax.T5Config", "has no Flax module T5Config"),
    ("lazy.Method", "has no Flax module Method"),
    (".Method", "There is no method '.Method'"),
    (None, "There is no method None"),
])  # fmt: skip
def test_a_name_in_a_file_causes_no_import(method, words, monkeypatch):
    lazy = types.ModuleType("lazy")
    lazy.__getattr__ = lambda name: pytest.fail("a file made a module compute an attribute")
    monkeypatch.setitem(sys.modules, "lazy", lazy)
    sys.modules.pop("this", None)
    with pytest.raises(UserError) as error:
        make_adapter(method, {})
    assert words in str(error.value) and "\n" not in str(error.value)
    assert "this" not in sys.modules


def test_all_settings_of_a_custom_method_are_compared(tmp_path):
    tree = {"offset": np.ones(4, np.float32)}
    save_adapter(str(tmp_path), tree, describe_adapter(Shift()) | {"base": {"name": "base", "fingerprint": MARK}})
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
    load_adapter(str(tmp_path), abstract, BaseReference("base", MARK), module=Shift())
    with pytest.raises(CheckpointError, match=r"has size = 1.0, but the model has 2.0"):
        load_adapter(str(tmp_path), abstract, BaseReference("base", MARK), module=Shift(size=2.0))


def test_settings_that_no_file_holds_are_refused_before_training():
    with pytest.raises(UserError, match=r"HoldsWhatNoFileCan.phi is .*, which an adapter file cannot hold; use"):
        load_parameters(Setup(AdaptedModel(T5(tiny_t5()), HoldsWhatNoFileCan())), None, ())


@pytest.mark.usefixtures("exact_matmuls")
@pytest.mark.parametrize(
    "modules", [(Bottleneck(1), Bottleneck(3)), (Shift(), Shift())], ids=["ranks", "no axis names"]
)
def test_a_bank_serves_each_row_with_its_adapter(modules):
    backbone = T5(tiny_t5(scan_layers=True))
    batch = random_batch(backbone, 3, 6, 5, seed=0)
    both = [init(AdaptedModel(backbone, module), batch, seed) for seed, module in enumerate(modules)]
    bank, stacked = stack_adapters(backbone, [(module, params["adapter"]) for module, params in zip(modules, both)])
    run = lambda adapter, params, batch: jax.jit(AdaptedModel(backbone, adapter).apply)(
        {"params": {"backbone": both[0]["backbone"], **params}}, batch
    )
    found = run(bank, {"adapter": stacked}, batch | {"adapter_index": np.array([2, 0, 1], np.int32)})
    alone = [run(module, {"adapter": params["adapter"]}, batch) for module, params in zip(modules, both)]
    for row, expected in enumerate((alone[1], run(None, {}, batch), alone[0])):
        np.testing.assert_allclose(found[row], expected[row], rtol=0, atol=1e-5 * float(expected.std()))


def test_flags_set_what_a_gin_file_imports(tmp_path, monkeypatch):
    (tmp_path / "their_method.py").write_text(
        "import gin\nfrom broken_methods import Shift\n\n\n@gin.configurable\nclass TheirShift(Shift):\n    pass\n"
    )
    (tmp_path / "their.gin").write_text("import their_method\nAdaptedModel.adapter = @TheirShift()\n")
    monkeypatch.syspath_prepend(tmp_path)
    load = lambda *argv: configuration.load(
        configuration.parse_flags([f"--gin_file={tmp_path}/their.gin", *argv])[0], require_all=False
    )
    load("--gin.TheirShift.size=3.0")
    assert AdaptedModel(backbone=None).adapter.size == 3.0
    assert "import their_method" in gin.operative_config_str()
    with pytest.raises(UserError, match="TheirShift takes no siz; nearest: size"):
        load("--gin.TheirShift.siz=3.0")
    with pytest.raises(UserError, match="nothing called TheirShft; nearest: TheirShift"):
        load("--gin.TheirShft.size=3.0")
