"""`adalink adapters`: shows, verifies and folds an adapter of the bundled base."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from adalink_jax import AdaLinkAdapter, AdaptedModel, LoRA, PromptTuning, configuration, parallel
from adalink_jax.adapters import describe_adapter, fresh_params
from adalink_jax.checkpoints import save_adapter
from adalink_jax.cli.arguments import register
from adalink_jax.cli.main import main
from adalink_jax.serving import shipped
from adalink_jax.training.setup import Setup, load_parameters

BASE, MODEL = "bundled:pali_nano_instruct", "--gin_file=gin/models/pali_nano.gin"


@pytest.fixture(scope="module")
def base():
    register()
    backbone = shipped.configured_backbone(configuration.parse_flags([MODEL])[0])
    setup = Setup(AdaptedModel(backbone), initial_checkpoint_path=BASE)
    return backbone, load_parameters(setup, parallel.make_mesh(), parallel.logical_axis_rules()).base


def write(base, folder, module):
    backbone, mark = base
    params = parallel.unbox(fresh_params(AdaptedModel(backbone, module), 0))["adapter"]
    params = jax.tree.map(lambda x: x + 0.1 * np.sin(np.arange(x.size, dtype=np.float32)).reshape(x.shape), params)
    save_adapter(
        str(folder),
        params,
        describe_adapter(module) | {"base": dataclasses.asdict(mark), "task": "digits_reverse", "step": 7},
    )
    return str(folder)


def test_show_prints_what_a_folder_holds(base, tmp_path, capsys):
    path = write(base, tmp_path / "a", AdaLinkAdapter(rank=2))
    assert main(["adapters", "show", path]) == 0
    out = capsys.readouterr().out
    for part in (
        "AdaLinkAdapter",
        "rank 2",
        "pali_nano_instruct",
        "digits_reverse",
        "512 in 4 leaves",
        "text/up",
        "2 x 64",
    ):
        assert part in out
    assert main(["adapters", "show", path, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == 512 and found["leaves"]["image/down"] == [64, 2] and found["step"] == 7


def test_verify_accepts_the_base_and_refuses_another(base, tmp_path, capsys):
    path = write(base, tmp_path / "a", AdaLinkAdapter(rank=2))
    assert main(["adapters", "verify", path, "--base", BASE]) == 0
    assert "512, all finite" in capsys.readouterr().out
    assert main(["adapters", "verify", path, "--base", "bundled:pali_nano_raw"]) == 2
    assert "trained on another base" in capsys.readouterr().err
    file = tmp_path / "a" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    assert main(["adapters", "verify", path]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("module, own_table", [
    (AdaLinkAdapter(rank=2), True), pytest.param(LoRA(rank=2), False, marks=pytest.mark.slow)])  # fmt: skip
def test_a_folded_base_needs_no_adapter(base, tmp_path, capsys, module, own_table):
    path, folded = write(base, tmp_path / "a", module), str(tmp_path / "folded")
    assert main(["adapters", "fold", path, folded, "--base", BASE, MODEL]) == 0
    out = capsys.readouterr().out
    assert ("T5Config.encoder_embedding=True" in out) == own_table
    data = ["--gin_file=gin/tasks/digits.gin", "--gin_file=gin/runs/finetune.gin", "--json", "--split=validation",
            "--gin.MIXTURE_OR_TASK_NAME='digits_read'"]  # fmt: skip
    rank = ["--gin.RANK=2"] + (["--gin.ALPHA=8.0"] if isinstance(module, LoRA) else [])
    method = f"--gin_file=gin/adapters/{'lora' if isinstance(module, LoRA) else 'adalink'}.gin"
    adapted = [method, *rank, f"--gin.INITIAL_CHECKPOINT_PATH='{BASE}'", f"--gin.INITIAL_ADAPTER_PATH='{path}'"]
    assert main(["eval", MODEL, *data, *adapted]) == 0
    expected = json.loads(capsys.readouterr().out)
    plain = [f"--gin.INITIAL_CHECKPOINT_PATH='{folded}'"]
    assert main(["eval", MODEL, *data, *plain, *(["--gin.T5Config.encoder_embedding=True"] if own_table else [])]) == 0
    assert json.loads(capsys.readouterr().out) == expected
    if own_table:
        assert main(["eval", MODEL, *data, *plain]) == 2
        assert "encoder_embedding True (model: False)" in capsys.readouterr().err


def test_adapters_that_cannot_be_folded_are_refused_and_nothing_is_written(base, tmp_path, capsys):
    for name, module, words in (
        ("p", PromptTuning(length=2), "PromptTuning cannot be folded"),
        ("r", AdaLinkAdapter(rank=2, phi="relu"), "is not linear here (phi relu)"),
    ):
        path = write(base, tmp_path / name, module)
        assert main(["adapters", "fold", path, str(tmp_path / "folded"), "--base", BASE, MODEL]) == 2
        assert words in capsys.readouterr().err
        assert not (tmp_path / "folded").exists()
