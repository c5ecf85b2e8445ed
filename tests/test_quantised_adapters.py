"""Adapters of quantised bases: what their files state, on which bases they load, and what measures the difference."""

import dataclasses
import json

import numpy as np
import pytest
from helpers import tiny_t5
from safetensors.numpy import load_file
from test_quantised_files import KERNEL, facts, params_of, same_bits

from adalink_jax import T5, AdaLinkAdapter, AdaptedModel, checkpoints, configuration, parallel
from adalink_jax.adapters import describe_adapter
from adalink_jax.checkpoints import open_source
from adalink_jax.cli.arguments import register
from adalink_jax.cli.main import main
from adalink_jax.errors import CheckpointError
from adalink_jax.interop import model_card
from adalink_jax.models.quantised import Storage, dequantised, quantise
from adalink_jax.serving import shipped
from adalink_jax.serving.opening import open_model
from adalink_jax.training.setup import Setup, load_parameters

FILES = ("gin/models/pali_nano.gin", "gin/adapters/adalink.gin", "gin/tasks/digits.gin", "gin/runs/finetune.gin")
BASE, MODEL = "bundled:pali_nano_instruct", f"--gin_file={FILES[0]}"


def train(folder, **macros):
    """One step on a few small scenes; returns the exit status."""
    macros = {
        "MIXTURE_OR_TASK_NAME": "few_scenes", "DatasetConfig.mixture_or_task_module": "small_scenes", "MODEL_DIR": str(folder),
        "INITIAL_CHECKPOINT_PATH": BASE, "BATCH_SIZE": 20, "TRAIN_STEPS": 1, "EVAL_PERIOD": 1, "WARMUP_STEPS": 0, "RANK": 2,
        "LEARNING_RATE": 0.03, "train.metric": None,
    } | macros  # fmt: skip
    files = [f"--gin_file={file}" for file in FILES]
    return main(["train", *files, *(f"--gin.{key}={value!r}" for key, value in macros.items())])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with an adapter `int8/adapter` of the bundled base in eight bits, and the bases `base8` and `base4` as files."""
    pytest.importorskip("seqio")
    folder = tmp_path_factory.mktemp("trained")
    for name, kind in (("base8", "int8"), ("base4", "int4")):
        checkpoints.convert(open_source(BASE), folder / name, "native", storage=Storage(kind))
    assert train(folder / "int8", FROZEN_DTYPE="int8") == 0
    return folder


@pytest.fixture(scope="module")
def exact_adapter(trained):
    """The same adapter, as if it had been trained on the exact base."""
    leaves, facts = checkpoints.read_adapter(trained / "int8" / "adapter")
    base = checkpoints.BaseReference(facts.base.name, facts.base.parent, facts.base.family)
    checkpoints.save_adapter(trained / "exact", leaves, dataclasses.replace(facts, base=base))
    return trained / "exact"


def load_on(adapter, base, **settings):
    register()
    backbone = shipped.configured_backbone(configuration.parse_flags([MODEL])[0])
    module = AdaLinkAdapter(rank=2)
    setup = Setup(
        AdaptedModel(backbone, module), initial_checkpoint_path=str(base), initial_adapter_path=str(adapter), **settings
    )
    return load_parameters(setup, parallel.make_mesh(), parallel.logical_axis_rules())


def test_an_adapter_states_its_base_s_precision_and_loads_on_an_equal_base(trained):
    stated = json.loads((trained / "int8" / "adapter" / "adapter_config.json").read_text())["adalink"]["base"]
    file = open_source(trained / "base8")
    assert (stated["precision"], stated["parent"]) == ("int8", open_source(BASE).fingerprint)
    assert stated["fingerprint"] == file.fingerprint != stated["parent"]
    for base, dtype in ((BASE, "int8"), (trained / "base8", "int8"), (trained / "base8", "float32")):
        base = load_on(trained / "int8" / "adapter", base, frozen_dtype=dtype).base
        assert base is not None
        assert (base.fingerprint, base.parent, base.precision) == (stated["fingerprint"], stated["parent"], "int8")


def test_an_adapter_on_another_precision_is_refused_unless_allowed(trained, exact_adapter):
    own, precise = trained / "int8" / "adapter", exact_adapter
    cases = [
        (own, BASE, {}, "in int8, and the base is loaded here as it is, not quantised; load it in that precision"),
        (own, BASE, {"frozen_dtype": "int4"}, "in int8, and the base is loaded here in int4/64;"),
        (own, trained / "base4", {}, "in int8, and the base is loaded here in int4/64;"),
        (own, BASE, {"frozen_dtype": "int8", "quantised_exact": ()},
         r"in int8, and the base is loaded here in int8 with other leaves exact \(QUANTISED_EXACT\)"),
        (precise, trained / "base8", {}, "as it is, not quantised, and the base is loaded here in int8;"),
        (precise, BASE, {"frozen_dtype": "int8"}, r"loaded here in int8; .*\(FROZEN_DTYPE\), or set ALLOW_OTHER_PRECISION = True"),
    ]  # fmt: skip
    for adapter, base, settings, sentence in cases:
        with pytest.raises(CheckpointError, match=f"^The adapter .* was trained on this base .*{sentence}"):
            load_on(adapter, base, **settings)
    for adapter, base, settings, _ in (cases[0], cases[4]):
        assert load_on(adapter, base, **settings, allow_other_precision=True).adapter_facts is not None
    with pytest.raises(CheckpointError, match="trained on another base"):
        load_on(own, "bundled:pali_nano_raw", frozen_dtype="int8", allow_other_precision=True)


def test_a_run_on_another_precision_is_refused_or_marked(trained, tmp_path, capsys):
    adapter = str(trained / "int8" / "adapter")
    assert train(tmp_path / "run", INITIAL_ADAPTER_PATH=adapter) == 2
    assert "ALLOW_OTHER_PRECISION = True (`adalink adapters verify` measures" in capsys.readouterr().err
    assert train(tmp_path / "run", INITIAL_ADAPTER_PATH=adapter, ALLOW_OTHER_PRECISION=True) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["settings"]["Setup.allow_other_precision"] == "True"


def test_verify_measures_other_precisions(trained, exact_adapter, tmp_path, capsys):
    own = str(trained / "int8" / "adapter")
    assert main(["adapters", "verify", own, "--base", BASE, "--precision", "nf4/16"]) == 0
    shown = facts(capsys.readouterr().out)
    assert shown["base"].endswith("the adapter was trained on it in int8") and shown["outputs"].endswith(
        "precision, int8"
    )
    share = lambda text: float(text.split(" by ")[1].split()[0])
    assert 0 < share(shown["on exact"]) < share(shown["on nf4/16"])
    refused = {
        (str(exact_adapter), str(trained / "base8")): "is stored in int8, from which no other precision can be made",
        (own, BASE, "--exact"): "since other leaves were kept exact; give its run's QUANTISED_EXACT with --exact",
        (
            own,
            BASE,
            "--precision",
            "int5",
        ): "'int5' is not a valid precision; give exact, int8, fp8, int4, nf4, or one of these",
    }
    for (adapter, base, *more), sentence in refused.items():
        assert main(["adapters", "verify", adapter, "--base", base, *more]) == 2
        assert sentence in capsys.readouterr().err


def test_an_adapter_folds_into_the_values_of_a_quantised_base(trained, tmp_path, capsys):
    own = str(trained / "int8" / "adapter")
    command = ["adapters", "fold", own, str(tmp_path / "folded"), MODEL, "--base"]
    assert main([*command, BASE]) == 2
    remedy = "give the base in that form with --base, which `adalink convert BASE NEW --to native --dtype int8` writes"
    assert remedy in capsys.readouterr().err
    assert main([*command, str(trained / "base8")]) == 0
    assert "those of the base in int8, dequantised" in facts(capsys.readouterr().out)["values"]
    folded, base = open_source(tmp_path / "folded"), open_source(trained / "base8")
    assert folded.precision is None and folded.fingerprint != base.fingerprint
    same_bits(folded.leaves[KERNEL].whole(), base.leaves[KERNEL].whole())
    table = "token_embedder/embedding"
    same_bits(folded.leaves[table].whole(), base.leaves[table].whole())
    assert np.any(folded.leaves[f"encoder/{table}"].whole() != base.leaves[table].whole())


def test_a_kernel_that_is_trained_on_a_quantised_base_stays_exact(tmp_path):
    pytest.importorskip("seqio")
    kernel = "decoder/logits_dense/kernel"
    assert train(tmp_path / "run", FROZEN_DTYPE="int8", TRAINABLE=("adapter/.*", f"backbone/{kernel}")) == 0
    saved = open_source(tmp_path / "run" / "model")
    assert saved.precision is None
    same_bits(
        saved.leaves[KERNEL].whole(),
        np.asarray(dequantised(quantise(open_source(BASE).leaves[KERNEL].whole(), "int8"))),
    )
    trained = saved.leaves[kernel].whole()
    assert np.any(trained != np.asarray(dequantised(quantise(trained, "int8"))))
    setup = open_model(str(tmp_path / "run"), "bytes", trust_modules=True).setup
    assert setup.frozen_dtype == "int8"
    opened = load_parameters(setup, parallel.make_mesh(), parallel.logical_axis_rules())
    same_bits(opened.frozen[f"backbone/{kernel}"], trained)
    assert opened.base is not None and opened.base.fingerprint == saved.fingerprint


@pytest.mark.slow
def test_a_vision_cache_belongs_to_one_quantised_tower(trained, tmp_path, capsys):
    cache = str(tmp_path / "cache")
    assert train(tmp_path / "first", VISION_CACHE=cache, FROZEN_DTYPE="int4", QUANTISED_BLOCK=16) == 0
    capsys.readouterr()
    others = {"QUANTISED_BLOCK": 32}, {"QUANTISED_EXACT": ("token_embedder", "decoder")}
    for other in others:
        settings = {"FROZEN_DTYPE": "int4", "QUANTISED_BLOCK": 16} | other
        assert train(tmp_path / "second", VISION_CACHE=cache, **settings) == 2
        assert "settings weights" in capsys.readouterr().err


def test_the_card_s_snippet_loads_the_base_in_the_adapter_s_precision(trained):
    adapter = str(trained / "int8" / "adapter")
    text = model_card.snippet(model_card.describe(adapter), adapter)
    assert "settings={'FROZEN_DTYPE': 'int8'})" in text
    found = {}
    exec(text.partition("model.lengths")[0], found)
    assert found["base"].parameters.base.precision == "int8"


def test_export_folds_an_adapter_into_the_values_of_a_quantised_t5(tmp_path, capsys):
    settings = {"mlp_activations": ["gelu", "linear"], "relpos_max_distance": 128}
    checkpoints.save_base(tmp_path / "t5", params_of(T5(tiny_t5())), "tiny", {"settings": settings})
    checkpoints.convert(open_source(tmp_path / "t5"), tmp_path / "nf4", "native", storage=Storage("nf4"))
    leaves = {"text/down": np.ones((32, 2), "f"), "text/up": np.ones((2, 32), "f")}
    base = checkpoints.reference_of_source(open_source(tmp_path / "nf4"))
    about = describe_adapter(AdaLinkAdapter(rank=2, kinds=("text",))) | {"base": base.to_json()}
    checkpoints.save_adapter(tmp_path / "adapter", leaves, about)
    command = ["export", str(tmp_path / "adapter"), str(tmp_path / "hf"), "--to", "hf", "--base"]
    assert main([*command, str(tmp_path / "t5")]) == 2
    assert "`adalink convert BASE NEW --to native --dtype nf4` writes" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "nf4")]) == 0
    assert "those of the base in nf4, dequantised" in facts(capsys.readouterr().out)["values"]
    exported, quantised = load_file(tmp_path / "hf" / "model.safetensors"), open_source(tmp_path / "nf4")
    kernel = exported["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"].T
    same_bits(np.ascontiguousarray(kernel), quantised.leaves[KERNEL].whole())
    assert np.any(exported["encoder.embed_tokens.weight"] != exported["shared.weight"])
