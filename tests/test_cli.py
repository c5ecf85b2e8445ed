"""The commands: help, parameter counts of any configuration, and answers to invalid arguments."""

import errno
import json
import os
import re
import subprocess
import sys

import pytest

from adalink_jax.cli.main import COMMANDS, USER_ERROR, main
from adalink_jax.errors import Stopped, disk_error

PUBLISHED = {
    "t5_1_0_small": 60_506_624, "t5_1_0_base": 222_903_552, "t5_1_0_large": 737_668_096,
    "t5_1_0_3b": 2_851_598_336, "t5_1_0_11b": 11_307_321_344,
    "t5_1_1_small": 76_961_152, "t5_1_1_base": 247_577_856, "t5_1_1_large": 783_150_080,
    "t5_1_1_xl": 2_849_757_184, "t5_1_1_xxl": 11_135_332_352,
    "flan_t5_xl": 2_849_757_184, "mt5_small": 300_176_768, "mt5_xxl": 12_921_057_280,
    "byt5_small": 299_637_760, "byt5_xxl": 12_906_899_328, "ul2_20b": 19_591_209_984,
    "umt5_small": 306_601_984, "umt5_base": 592_043_520, "umt5_xl": 3_768_356_864, "umt5_xxl": 12_972_531_712,
    "t5gemma2_270m": 786_029_296, "t5gemma2_1b": 2_115_977_456, "t5gemma2_4b": 7_508_928_880,
    "madlad400_3b": 2_940_374_016, "madlad400_7b": 8_296_829_952, "madlad400_10b": 10_712_585_216,
    "aya_101": 12_921_057_280, "flan_ul2": 19_591_209_984,
    "codet5_small": 60_492_288, "codet5_base": 222_882_048, "codet5_large": 737_639_424,
    "t5gemma_s": 312_517_632, "t5gemma_b": 591_490_560, "t5gemma_l": 1_241_761_792, "t5gemma_ml": 2_200_345_344,
    "t5gemma_xl": 3_766_980_608, "t5gemma_2b": 5_596_853_760, "t5gemma_9b_2b": 12_292_375_296, "t5gemma_9b": 20_333_401_088,
    "paligemma_3b_224": 2_923_335_408, "paligemma_3b_448": 2_924_220_144, "paligemma_3b_896": 2_927_759_088,
    "paligemma2_3b_224": 3_032_094_960, "paligemma2_3b_448": 3_032_979_696, "paligemma2_3b_896": 3_036_518_640,
    "paligemma2_10b_224": 9_662_409_456, "paligemma2_10b_448": 9_663_294_192, "paligemma2_10b_896": 9_666_833_136,
    "pix2struct_base": 282_285_696, "pix2struct_large": 1_336_107_264, "matcha_base": 282_285_696, "deplot": 282_285_696,
    "paligemma2_28b_224": 27_650_192_112, "paligemma2_28b_448": 27_651_076_848, "paligemma2_28b_896": 27_654_615_792,
}  # fmt: skip


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch):
    """Restores what a command changes in its process."""
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])
    monkeypatch.setattr(sys, "path", [*sys.path])


def test_help_names_the_exit_status_of_every_way_to_stop(capsys):
    assert main(["--help"]) == 0
    listed = re.search(r"exit statuses: (.*?);", capsys.readouterr().out, re.DOTALL)[1]
    assert set(map(int, re.findall(r"(?:^|, )(\d+)\s", listed))) == {
        0, 1, USER_ERROR, Stopped.status, *(kind.status for kind in Stopped.__subclasses__())
    }  # fmt: skip


def counts(capsys, *flags):
    assert main(["params", "--json", *flags]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("model, total", PUBLISHED.items())
def test_parameters_are_the_published_ones(capsys, model, total):
    found = counts(capsys, f"--gin_file=gin/models/{model}.gin")
    assert (found["total"], found["trainable"], found["frozen"]) == (total, 0, total)
    assert sum(leaf["size"] for leaf in found["leaves"]) == total


def test_the_families_that_are_compared_in_miniature_are_of_one_size(capsys):
    t5gemma2, t5 = (counts(capsys, f"--gin_file=gin/models/{name}.gin") for name in ("t5gemma2_mini", "pali_mini_0_3m"))
    assert (t5gemma2["total"], t5["total"]) == (376_256, 377_472)


def test_an_adapter_s_parameters_are_counted_beside_the_frozen_ones(capsys):
    found = counts(capsys, "--gin_file=gin/models/t5_1_1_xxl.gin", "--gin_file=gin/adapters/adalink.gin")
    assert found["trainable"] == 2 * 4096 * 64
    assert found["frozen"] == PUBLISHED["t5_1_1_xxl"]
    assert [leaf["name"] for leaf in found["leaves"] if leaf["trainable"]] == ["adapter/text/down", "adapter/text/up"]


def test_the_order_of_model_and_adapter_files_does_not_matter(capsys):
    files = ["--gin_file=gin/models/pali_nano.gin", "--gin_file=gin/adapters/adalink.gin"]
    assert counts(capsys, *files) == counts(capsys, *files[::-1])


def test_a_run_file_counts_too(capsys):
    assert counts(capsys, "--gin_file=gin/runs/quickstart.gin")["trainable"] == 2 * 2 * 64 * 16


@pytest.mark.parametrize("task", ["coco", "docvqa", "okvqa", "textcaps", "textvqa", "vqav2"])
def test_a_published_transfer_counts_with_an_adapter(capsys, task):
    files = "models/paligemma_3b_224", "adapters/adalink", f"runs/paligemma_{task}"
    assert counts(capsys, *(f"--gin_file=gin/{file}.gin" for file in files))["trainable"] == 2 * 2 * 2048 * 64


def test_pali_nano_divides_over_eight_devices(capsys):
    found = counts(capsys, "--gin_file=gin/models/pali_nano.gin")
    widths = {
        size
        for leaf in found["leaves"]
        if "kernel" in leaf["name"] or "embedding" in leaf["name"]
        for size in leaf["shape"]
    }
    assert all(size % 8 == 0 for size in widths)


def test_help_has_a_line_for_each_command_and_imports_nothing_heavy():
    code = (
        "import sys; from adalink_jax.cli.main import main; main(['--help']); "
        "print([m for m in ('jax', 'flax', 'gin', 'numpy', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.help)}$", done.stdout, re.MULTILINE)
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert "example:" in capsys.readouterr().out


@pytest.mark.parametrize("argv, words", [
    (["trian"], ["no command 'trian'", "`adalink train`"]),
    (["params", "--gin_file=gin/models/t5_1_1_xxxl.gin"], ["t5_1_1_xxxl.gin", "t5_1_1_xxl"]),
    (["params", "--gin_file=gin/models/pali_nano.gin", "--gin.T5Config.emb_dimm=3"], ["emb_dimm", "emb_dim"]),
    (["params", "--gin_file=gin/models/pali_nano.gin", "--gin.T5Confg.emb_dim=3"], ["T5Confg", "T5Config"]),
    (["quickstart", "--gin.MODEL_DIR=runs/x"], ["""--gin.MODEL_DIR="'runs/x'\""""]),
    (["quickstart", "--gin.TRIAN_STEPS=99"], ["TRIAN_STEPS", "TRAIN_STEPS"]),
    (["train", "--gin_file=gin/runs/finetune.gin", "--gin_file=gin/models/pali_nano.gin"], ["%LEARNING_RATE (used by"]),
    (["train", "--gin_file=gin/runs/finetune.gin", "--gin_file=gin/models/pali_nano.gin",
      "--gin_file=gin/adapters/adalink.gin"],
     ["MODEL_DIR", "TRAIN_STEPS", "INITIAL_CHECKPOINT_PATH"]),
    (["check-method", "Lora"], ["no method 'Lora'", "nearest: LoRA", "MODULE.CLASS"]),
    (["check-method", "no_such_module.Method"], ["no module no_such_module"]),
    (["check-method", "broken_methods.Shft"], ["broken_methods.py", "no Flax module Shft; nearest: Shift"]),
    (["check-method", "json.dumps"], ["no Flax module dumps"]),
    (["check-method", "Chain"], ["no default for adapters", "--gin.Chain.adapters=VALUE"]),
    (["check-method", "broken_methods.HasOtherKinds"],
     ["HasOtherKinds.kinds is 3", "('image', 'text', 'target')", "rename the field"]),
    (["check-method", "LoRA", "--gin.LoRA.rnk=3"], ["LoRA takes no rnk", "rank"]),
    (["check-method", "LoRA", "--gin.PromptTuning.length=3"], ["nothing in this run uses PromptTuning"]),
    (["quickstart", "--gin.make_mesh.model=3"], ["model=3", "1 devices"]),
])  # fmt: skip
def test_invalid_arguments_are_answered_in_one_sentence(capsys, argv, words):
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err


def test_a_setting_of_something_that_the_run_does_not_use_is_an_error(capsys, tmp_path):
    pytest.importorskip("seqio")
    argv = ["quickstart", f"--gin.MODEL_DIR='{tmp_path}/run'", "--gin.adafactor.decay_rate=0.5"]
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert "adafactor.decay_rate" in err and "nothing in this run uses" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("argv", [
    ["quickstart", "--gin.adafactor.decay_rate=0.5"],
    ["quickstart", "--gin.optimizers.warmup_rsqrt.peak=0.5"],
    ["train", "--gin_file=gin/runs/quickstart.gin", "--gin.LoRA.rank=2"],
    ["pack", "--gin_file=gin/runs/quickstart.gin", "--gin.LoRA.rank=2"],
    ["eval", "--gin_file=gin/runs/quickstart.gin", "--gin.adamw.b2=0.5"],
    ["cache-vision", "--gin_file=gin/runs/quickstart.gin", "--gin.BeamSearch.num_decodes=2"],
    ["infer", "rows.csv", "out.csv", "--gin_file=gin/models/pali_nano.gin", "--gin.VOCABULARY='bytes'", "--gin.INITIAL_CHECKPOINT_PATH='x'", "--gin.LoRA.rank=2"],
], ids=lambda argv: argv[0])  # fmt: skip
def test_a_setting_that_no_reference_leads_to_is_refused_before_anything_is_read(capsys, tmp_path, monkeypatch, argv):
    from adalink_jax import data

    monkeypatch.setattr(data, "get_tasks", None)
    model_dir = [] if argv[0] in ("eval", "cache-vision", "infer") else [f"--gin.MODEL_DIR='{tmp_path}/run'"]
    assert main([*argv, *model_dir]) == 2
    assert re.match("error: --gin.* is set, but nothing in this run uses .*\\.\n$", err := capsys.readouterr().err), err
    assert not list(tmp_path.iterdir())


def test_a_method_that_fails_is_status_1(capsys, monkeypatch):
    from adalink_jax.contract import behaviours, tiny

    monkeypatch.setattr(behaviours, "BEHAVIOURS", behaviours.BEHAVIOURS[:2])
    monkeypatch.setattr(tiny, "BACKBONES", {name: tiny.BACKBONES[name] for name in ("T5", "PaLI")})
    assert main(["check-method", "broken_methods.HasNoEffect"]) == 1
    out = capsys.readouterr().out
    assert re.search(r"changes the outputs +T5 +fail +its parameters have no effect on the logits", out)
    assert re.search(r"starts as the base +PaLI +pass", out)


def test_a_closed_pipe_is_not_an_error():
    command = (
        f"set -o pipefail; {sys.executable} -m adalink_jax params --gin_file=gin/models/pali_nano.gin --json | true"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 141 and "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr, done.stderr


def test_python_m_is_the_same_command():
    done = subprocess.run([sys.executable, "-m", "adalink_jax.train"], capture_output=True, text=True)
    assert done.returncode == 2 and "--gin_file" in done.stderr


def test_an_error_is_one_line_without_control_characters_whatever_is_named(capsys):
    assert main(["inspect", "a\nb\x1b[31m\u202e"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(r"error: There is no folder a\nb\x1b[31m\u202e; give") and error.count("\n") == 1


@pytest.mark.parametrize("number", [errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG])
def test_something_else_in_the_place_of_a_file_is_one_sentence(number):
    error = disk_error(OSError(number, os.strerror(number), "run/lock"))
    assert str(error) == f"run/lock cannot be used ({os.strerror(number)}); move it away, or give another path."


def test_data_beside_its_gin_file_but_not_in_the_working_folder_is_named(tmp_path, monkeypatch, capsys):
    task = tmp_path / "task"
    task.mkdir()
    (task / "rows.csv").write_text("text,label\n" + "".join(f"word {i},{'ab'[i % 2]}\n" for i in range(40)))
    settings = {"DATA": "rows.csv", "INPUTS": "{text}", "TARGETS": "{label}", "VOCABULARY": "bytes", "MIXTURE_OR_TASK_NAME": "rows",
                "TASK_FEATURE_LENGTHS": {"inputs": 8, "targets": 4}, "BLANK_IMAGE": True, "BATCH_SIZE": 64}  # fmt: skip
    lines = [f"{name} = {value!r}\n" for name, value in settings.items()]
    (task / "rows.gin").write_text("include 'gin/tasks/files.gin'\n" + "".join(lines))
    files = [f"--gin_file=gin/{name}.gin" for name in ("models/pali_nano", "adapters/adalink", "runs/finetune")]
    argv = ["train", *files, "--gin.INITIAL_CHECKPOINT_PATH='bundled:pali_nano_instruct'",
            f"--gin.MODEL_DIR='{tmp_path}/run'", "--gin.TRAIN_STEPS=2"]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main([*argv, "--gin_file=task/rows.gin"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(
        f"error: DATA is 'rows.csv', relative to the working folder {tmp_path}, where it is not; it is in {task}: "
    )
    (task / "rows.csv").rename(tmp_path / "moved.csv")
    assert main([*argv, "--gin_file=task/rows.gin"]) == 2
    assert capsys.readouterr().err == f"error: There is no file rows.csv in the working folder, {tmp_path}.\n"
    (tmp_path / "moved.csv").rename(tmp_path / "rows.csv")
    assert main([*argv, "--gin_file=task/rows.gin"]) == 2  # found; the batch is larger than the data
    assert re.search(r"BATCH_SIZE is 64, and rows has \d\d examples", capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_used_is_refused_before_data_is_read(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("adalink_jax.training.session.get_tasks", None)
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        assert main(["quickstart", "--model_dir", str(folder)]) == 2
        assert capsys.readouterr().err.startswith(
            f"error: MODEL_DIR cannot be {folder}: {tmp_path}/file is not a folder"
        )
