"""Complete runs from the command line: their files, and that killing, stopping or misusing them loses nothing."""

import contextlib
import gc
import io
import json
import math
import re
import shutil
import signal
import subprocess
import time

import pytest
from helpers import adalink_here

pytest.importorskip("seqio")

from adalink_jax.cli.main import main  # noqa: E402
from adalink_jax.data import digits  # noqa: E402
from adalink_jax.training import console  # noqa: E402

STEPS, PERIOD = 24, 6


# Orbax's threads report reads that were abandoned in the test of a damaged checkpoint, perhaps in a later test.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("few_scenes"),
]


def flags(model_dir, **macros):
    macros = {
        "TRAIN_STEPS": STEPS,
        "EVAL_PERIOD": 12,
        "CHECKPOINT_PERIOD": PERIOD,
        "BATCH_SIZE": 40,
        "RANK": 4,
        "WARMUP_STEPS": 5,
    } | macros
    return [f"--gin.MODEL_DIR='{model_dir}'", *(f"--gin.{name}={value!r}" for name, value in macros.items())]


def quickstart(model_dir, **macros):
    return main(["quickstart", *flags(model_dir, **macros)])


def start(model_dir, arguments=None, **macros):
    command = adalink_here(*(arguments or ["quickstart", *flags(model_dir, **macros)]))
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, process, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def rows(model_dir):
    return [json.loads(row) for row in (model_dir / "metrics.jsonl").read_text().splitlines()]


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def finished(few_scenes, tmp_path_factory):
    model_dir = tmp_path_factory.mktemp("runs") / "finished"
    console._SHOWN.clear()
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert quickstart(model_dir) == 0
    (model_dir.parent / "printed").write_text(out.getvalue())
    return model_dir


def test_a_run_ends_with_commands_that_use_it(finished, tmp_path):
    lines = (finished.parent / "printed").read_text().split("To try next:")[1].strip().splitlines()
    infer, in_python = (line.split("  #")[0].split() for line in lines[:2])
    assert main([infer[1], infer[2], str(tmp_path / "predictions.jsonl"), *infer[4:]]) == 0
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 40
    assert in_python == [f"adalink_jax.Predictor({str(finished)!r})"]


def test_the_table_of_parameters_fits_80_columns_and_names_the_sources(finished):
    printed = (finished.parent / "printed").read_text()
    table = printed[: printed.index("base: ")].splitlines()
    assert all(len(line) <= 80 for line in table) and any("backbone/token_embedder " in line for line in table)
    assert table[-1].startswith("backbone: bundled:pali_nano_instruct") and table[-2].startswith("adapter: fresh")


def test_a_run_without_a_metric_scores_nothing_and_keeps_its_last_step(finished, tmp_path, capsys):
    assert quickstart(tmp_path / "unscored", TRAIN_STEPS=6, **{"train.metric": None}) == 0
    summary = json.loads((tmp_path / "unscored" / "summary.json").read_text())
    assert summary["step"] == summary["steps"] == 6 and summary["scores"] == {}
    assert not any("accuracy" in name for name in summary)
    out = capsys.readouterr().out
    assert "step 6, the last" in out
    # the second run of this process on this base
    assert "1,024 of 338,560 parameters are trained: 0.3025%" in out and "backbone/token_embedder" not in out
    assert not any(name.startswith(("validation", "test")) for row in rows(tmp_path / "unscored") for name in row)
    files = [(tmp_path / "unscored" / name / "adapter_model.safetensors") for name in ("adapter", "adapter_last")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_run_writes_its_promised_files(finished):
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    summary = json.loads((finished / "summary.json").read_text())
    assert summary["trainable"] == 2 * 2 * 64 * 4
    assert summary["frozen"] == 337_536
    assert 0 <= summary["frozen_accuracy"] < 0.1
    assert summary["seconds"] > 0
    # 4 per frozen weight and token: 32 text and visual tokens, 4 target tokens; the rest is attention and the table
    assert 1 < summary["step_flops"] / (4 * 40 * (32 * 82_496 + 4 * 132_288)) < 2
    assert (finished / "adapter" / "adapter_model.safetensors").stat().st_size < 10_000
    about = json.loads((finished / "adapter" / "adapter_config.json").read_text())["adalink"]
    assert about["method"] == "AdaLinkAdapter" and about["settings"]["rank"] == 4
    assert about["base"]["name"] == "pali_nano_instruct"
    last = json.loads((finished / "adapter_last" / "adapter_config.json").read_text())["adalink"]
    assert last["step"] == 24 and last["settings"] == about["settings"] and "metrics" not in last

    found = rows(finished)
    assert [row["step"] for row in found if "validation/accuracy" in row] == [0, 12, 24]
    assert all(math.isfinite(row["train/loss"]) for row in found if "train/loss" in row)
    events = EventAccumulator(str(finished / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("validation/accuracy")] == [0, 12, 24]

    info = (finished / "model-info.txt").read_text()
    line = next(line for line in info.splitlines() if "adapter/image/down" in line)
    assert "(64, 4)" in line and "float32" in line and "trainable" in line
    assert "frozen    337,536" in info
    with Image.open(finished / "samples.png") as picture:
        assert picture.format == "PNG" and picture.size[0] > 500
    sheets = [f"step_{step:06d}_validation.png" for step in (0, 12, 24)]
    assert sorted(path.name for path in (finished / "samples").iterdir()) == sheets
    images = events.Images("validation/samples")
    assert [image.step for image in images] == [0, 12, 24]
    assert images[-1].encoded_image_string == (finished / "samples" / sheets[-1]).read_bytes()


def test_no_frozen_leaf_is_in_a_checkpoint(finished):
    size = sum(len(data) for data in contents(finished / "checkpoints").values())
    assert size < 337_536 * 4 / 2


def test_eval_of_the_written_adapter_gives_the_run_s_score(finished, capsys):
    summary = json.loads((finished / "summary.json").read_text())
    config = f"--gin_file={finished}/config.gin"
    assert main(["eval", config, "--json", f"--gin.INITIAL_ADAPTER_PATH='{finished}/adapter'"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == summary["adapted_accuracy"]
    assert main(["eval", config, "--json"]) == 0  # a fresh AdaLink: the frozen model
    assert json.loads(capsys.readouterr().out)["accuracy"] == summary["frozen_accuracy"]


def test_eval_writes_scores_and_a_picture_to_output_dir(finished, tmp_path, capsys):
    from PIL import Image

    there = tmp_path / "scored"
    config = f"--gin_file={finished}/config.gin"
    assert main(["eval", config, "--json", "--split=validation", f"--output_dir={there}"]) == 0
    score = json.loads(capsys.readouterr().out)["accuracy"]
    assert rows(there) == [{"step": 0, "validation/accuracy": score}]
    assert Image.open(there / "samples" / "step_000000_validation.png").size[0] > 300
    assert list((there / "tensorboard").iterdir())


def test_eval_scores_each_checkpoint_that_a_run_keeps_and_none_twice(finished, tmp_path, capsys):
    there = tmp_path / "scored"
    command = ["eval", f"--gin_file={finished}/config.gin", f"--checkpoints={finished}", "--json", "--split=validation",
               f"--output_dir={there}"]  # fmt: skip
    assert main(command) == 0
    scores = {int(step): value["accuracy"] for step, value in json.loads(capsys.readouterr().out).items()}
    known = {row["step"]: row["validation/accuracy"] for row in rows(finished) if "validation/accuracy" in row}
    assert {18, 24} <= scores.keys() and scores.items() >= {
        step: known[step] for step in scores if step in known
    }.items()
    (there / "metrics.jsonl").write_text((there / "metrics.jsonl").read_text().replace(str(scores[24]), "0.125"))
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["24"] == {"accuracy": 0.125}  # read, not computed
    assert main([*command[:2], f"--checkpoints={tmp_path}"]) == 2
    assert "holds no checkpoints of a run" in capsys.readouterr().err
    assert main([*command[:3], "--gin.AdaLinkAdapter.phi='relu'"]) == 2
    assert "AdaLinkAdapter.phi 'identity' there, 'relu' here" in capsys.readouterr().err
    shutil.copytree(finished, tmp_path / "other", ignore=shutil.ignore_patterns("compilation_cache"))
    assert main([*command[:2], f"--checkpoints={tmp_path / 'other'}", f"--output_dir={there}"]) == 2
    assert f"holds the scores of {finished}; give another --output_dir" in capsys.readouterr().err
    kept = (there / "metrics.jsonl").read_text()
    for file in (tmp_path / "other" / "checkpoints" / "24" / "state").rglob("d/*"):
        file.write_bytes(b"x" * file.stat().st_size)
    shutil.rmtree(tmp_path / "other" / "best")
    assert main([*command[:2], f"--checkpoints={tmp_path / 'other'}", "--split=validation"]) == 2
    assert "The checkpoint of step 24 in" in (said := capsys.readouterr().err) and "delete the folder 24" in said
    assert (there / "metrics.jsonl").read_text() == kept


def test_the_last_uneven_batch_counts_every_example_once(capsys):
    task = ["--gin_file=gin/runs/quickstart.gin", "--gin.MIXTURE_OR_TASK_NAME='digits_read'", "--json"]
    scores = []
    for batch_size in (40, 16):  # 40 scenes: one batch, or two and a part
        assert main(["eval", *task, f"--gin.BATCH_SIZE={batch_size}"]) == 0
        scores.append(json.loads(capsys.readouterr().out)["accuracy"])
    assert scores[0] == scores[1] > 0.9
    assert round(scores[0] * 40) == pytest.approx(scores[0] * 40)  # 40 examples were counted, no padding


def test_a_trained_model_and_its_adapter_are_both_written_and_belong_together(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(digits.SCENES, "validation", 500)  # of which the two steps get some right
    model_dir = tmp_path / "both"
    trainable = ("adapter/image/up", "backbone/projection/.*")
    assert quickstart(model_dir, TRAIN_STEPS=2, WARMUP_STEPS=1, TRAINABLE=trainable) == 0
    summary = json.loads((model_dir / "summary.json").read_text())
    assert summary["step"] > 0, "the base as it was would be written"
    assert summary["trainable"] == 4 * 64 + 64 * 64 + 64
    argv = ["eval", f"--gin_file={model_dir}/config.gin", "--json", f"--gin.INITIAL_ADAPTER_PATH='{model_dir}/adapter'"]
    capsys.readouterr()
    assert main([*argv, f"--gin.INITIAL_CHECKPOINT_PATH='{model_dir}/model'"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == summary["adapted_accuracy"]
    assert main(argv) == 2  # the adapter is not for the base that the run began with
    assert "trained on another base: both" in capsys.readouterr().err


def test_a_finished_run_is_left_alone(finished, capsys):
    before = contents(finished)
    assert quickstart(finished) == 0
    assert "finished, at step 24" in capsys.readouterr().out
    assert contents(finished) == before


@pytest.mark.parametrize("saves, after", [
    ({}, 2 * PERIOD),
    ({"CHECKPOINT_PERIOD": 1000, "CheckpointConfig.every_seconds": 0.01}, 2),  # at whatever step the clock says
])  # fmt: skip
def test_a_killed_and_resumed_run_ends_with_the_same_bits(finished, tmp_path, capsys, saves, after):
    killed = tmp_path / "killed"
    process = start(killed, **saves)
    saved = lambda: [int(path.name) for path in (killed / "checkpoints").glob("*") if path.name.isdigit()]
    wait_for(lambda: after <= max(saved(), default=0), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (killed / "summary.json").exists()

    assert quickstart(killed) == 0
    assert "Resuming from step" in capsys.readouterr().out
    name = "adapter_model.safetensors"
    assert (killed / "adapter" / name).read_bytes() == (finished / "adapter" / name).read_bytes()
    first, second = json.loads((killed / "summary.json").read_text())["segments"]
    assert first["first_step"] == 1 and first["last_step"] + 1 == second["first_step"] and second["last_step"] == STEPS
    steps = [row["step"] for row in rows(killed) if "validation/accuracy" in row]
    assert steps == [0, 12, 24]  # no row twice, none lost


@pytest.mark.parametrize("lost", ["before.json", "summary.json"])
def test_a_run_killed_while_it_wrote_its_end_scores_nothing_twice(finished, tmp_path, lost, capsys):
    """As a SIGKILL or a full disk left the folders of version 0.1.0: without a summary, and with an empty `before.json`."""
    folder = tmp_path / "killed"
    shutil.copytree(finished, folder)
    (folder / "summary.json").unlink()
    (folder / lost).write_text("")
    assert quickstart(folder) == 0
    assert rows(folder) == rows(finished)
    for name in ("before.json", "samples.json", "adapter/adapter_model.safetensors"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes(), name
    before, after = (json.loads((at / "summary.json").read_text()) for at in (finished, folder))
    assert after["adapted_accuracy"] == before["adapted_accuracy"]


def test_lost_metrics_are_reported_when_the_run_is_resumed(finished, tmp_path, capsys):
    folder = tmp_path / "lost"
    shutil.copytree(finished, folder)
    (folder / "summary.json").unlink()
    assert quickstart(folder) == 0
    assert "lacks earlier rows" not in capsys.readouterr().out
    (folder / "summary.json").unlink()
    (folder / "metrics.jsonl").write_text("")
    assert quickstart(folder) == 0
    assert f"{folder}/metrics.jsonl lacks earlier rows" in capsys.readouterr().out


def test_a_second_process_leaves_the_folder_alone_and_ctrl_c_saves_and_prints_how_to_resume(tmp_path, capsys):
    folder = tmp_path / "run"
    endless = {"TRAIN_STEPS": 100_000, "EVAL_PERIOD": 0, "CHECKPOINT_PERIOD": 100_000, "train.log_period": 1}
    first = start(folder, **endless)
    try:
        wait_for(
            lambda: (folder / "metrics.jsonl").exists() and any("train/loss" in row for row in rows(folder)), first
        )
        assert quickstart(folder, **endless) == 4
        assert f"Another process is writing {folder}; this one leaves it alone" in capsys.readouterr().err
        assert first.poll() is None
        first.send_signal(signal.SIGINT)
        _, err = first.communicate(timeout=120)
    finally:
        first.kill()
        first.communicate()
    assert first.returncode == 130, err
    assert "Stopped after step" in err and "rerun the same command to resume" in err
    assert "Traceback" not in err
    saved = [int(path.name) for path in (folder / "checkpoints").iterdir()]
    assert len(saved) == 1 and f"step {saved[0]} " in err
    written = [(row["step"], tag) for row in rows(folder) for tag in row if tag != "step"]
    assert len(set(written)) == len(written)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path, capsys):
    assert quickstart(tmp_path / "nan", LEARNING_RATE=3e38, WARMUP_STEPS=0) == 3
    err = capsys.readouterr().err
    assert "The loss of step 2 is nan" in err and "no checkpoint had been written" in err
    assert not (tmp_path / "nan" / "adapter").exists()


def test_a_folder_with_another_configuration_is_refused_and_kept(finished, capsys):
    before = contents(finished)
    assert quickstart(finished, BATCH_SIZE=80) == 2
    err = capsys.readouterr().err
    assert "another configuration" in err and "DatasetConfig.batch_size 40 there, 80 here" in err
    assert quickstart(finished, EVAL_PERIOD=7) == 2, "which steps are scored decides which is the best"
    assert "train.eval_period 12 there, 7 here" in capsys.readouterr().err
    assert contents(finished) == before


def damage(model_dir, step, how):
    """Cuts every data file of a checkpoint in half, or flips one bit of it."""
    found = (model_dir / "checkpoints" / str(step) / "state").rglob("*")
    for path in (p for p in found if p.is_file() and "/d/" in str(p)):
        data = bytearray(path.read_bytes())
        if how == "truncated":
            data = data[: len(data) // 2]
        else:
            data[len(data) // 2] ^= 1
        path.write_bytes(data)


@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_a_damaged_checkpoint_is_skipped_for_the_last_good_one(finished, tmp_path, capsys, how):
    import shutil

    model_dir = tmp_path / how
    shutil.copytree(finished, model_dir)
    (model_dir / "summary.json").unlink()
    damage(model_dir, STEPS, how)
    assert quickstart(model_dir) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert f"checkpoints/{STEPS} cannot be used" in output and "Resuming from step 18" in output
    name = "adapter_model.safetensors"
    assert (model_dir / "adapter" / name).read_bytes() == (finished / "adapter" / name).read_bytes()
    (model_dir / "summary.json").unlink()
    assert quickstart(model_dir) == 0  # the damaged one was replaced
    assert f"Resuming from step {STEPS}" in capsys.readouterr().out
    gc.collect()  # Orbax's abandoned reads are reported here, not in a later test


def test_resuming_with_other_versions_warns_or_is_refused(finished, tmp_path, capsys, monkeypatch):
    from adalink_jax.training import segments

    model_dir = tmp_path / "moved"
    shutil.copytree(finished, model_dir)
    (model_dir / "summary.json").unlink()
    shutil.rmtree(model_dir / "checkpoints" / str(STEPS))
    (segment,) = json.loads((finished / "summary.json").read_text())["segments"]
    assert (segment["first_step"], segment["last_step"], segment["device_kind"]) == (1, STEPS, "cpu")
    monkeypatch.setattr(segments, "__version__", "99.0")
    before = contents(model_dir)
    assert main(["quickstart", *flags(model_dir), "--same_bits"]) == 2
    err = capsys.readouterr().err
    assert f"another environment (adalink-jax {segment['versions']['adalink-jax']}, 99.0); resume it in the same" in err
    assert contents(model_dir) == before
    assert quickstart(model_dir) == 0
    assert "its results may differ from those of an uninterrupted run" in capsys.readouterr().out
    first, second = json.loads((model_dir / "summary.json").read_text())["segments"]
    assert first == segment | {"last_step": 18}
    assert second == segment | {"versions": segment["versions"] | {"adalink-jax": "99.0"}, "first_step": 19}


def test_a_run_without_a_good_checkpoint_is_refused_and_kept(finished, tmp_path, capsys):
    import shutil

    model_dir = tmp_path / "all"
    shutil.copytree(finished, model_dir)
    (model_dir / "summary.json").unlink()
    for step in (18, STEPS):
        damage(model_dir, step, "flipped")
    before = contents(model_dir)
    assert quickstart(model_dir) == 2
    err = capsys.readouterr().err
    assert "No checkpoint in" in err and "step 24" in err and "step 18" in err and "delete that folder" in err
    assert contents(model_dir) == before
    gc.collect()


def test_an_adapter_of_another_base_is_refused(finished, tmp_path, capsys):
    adapter = str(finished / "adapter")
    raw = {"INITIAL_CHECKPOINT_PATH": "bundled:pali_nano_raw", "INITIAL_ADAPTER_PATH": adapter}
    assert quickstart(tmp_path / "other", **raw) == 2
    err = capsys.readouterr().err
    assert "trained on another base: pali_nano_instruct" in err and "ALLOW_OTHER_BASE" in err


def test_a_warm_start_begins_where_the_adapter_ended_and_the_profiler_sees_its_window(finished, tmp_path):
    summary = json.loads((finished / "summary.json").read_text())
    more = {"INITIAL_ADAPTER_PATH": str(finished / "adapter"), "TRAIN_STEPS": 3, "WARMUP_STEPS": 0}
    assert quickstart(tmp_path / "warm", **more, **{"train.profile_steps": (2, 3)}) == 0
    warm = json.loads((tmp_path / "warm" / "summary.json").read_text())
    assert warm["frozen_accuracy"] == summary["adapted_accuracy"]
    assert list((tmp_path / "warm" / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("macros, words", [
    ({"TRAINABLE": ("adapter/imagee/.*",)}, ["'adapter/imagee/.*' matches no parameter", "whole path"]),
    ({"TRAINABLE": ()}, ["Nothing is trainable"]),
    ({"BATCH_SIZE": 50, "MICROBATCHES": 4}, ["BATCH_SIZE = 50 does not divide", "48"]),
    ({"INITIAL_CHECKPOINT_PATH": "nowhere"}, ["There is no folder nowhere"]),
    ({"INITIAL_CHECKPOINT_PATH": None}, ["frozen", "set INITIAL_CHECKPOINT_PATH"]),
    ({"MIXTURE_OR_TASK_NAME": "digits_revers"}, ["no task or mixture 'digits_revers'", "digits_reverse"]),
    ({"KINDS": ("audio",)}, ["AdaLinkAdapter.kinds", "audio"]),
    ({"RANK": 0}, ["RANK is 0"]),
    ({"T5Config.vocab_size": 128}, ["vocabulary of digits_reverse has 259 ids", "only 128 rows"]),
    ({"WARMUP_STEPS": 24}, ["WARMUP_STEPS", "24", "must be shorter"]),
    ({"FROZEN_DTYPE": "float3"}, ["FROZEN_DTYPE", "float3"]),
])  # fmt: skip
def test_bad_settings_get_one_sentence_and_nothing_is_written(tmp_path, capsys, macros, words):
    model_dir = tmp_path / "bad"
    assert quickstart(model_dir, **macros) == 2
    err = capsys.readouterr().err
    for word in words:
        assert word in err
    assert err.count("\n") == 1
    assert not any(path.is_file() for path in model_dir.rglob("*"))


def test_a_batch_beyond_the_data_is_refused_before_anything_is_allocated(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    flags = ["--gin_file=gin/runs/quickstart.gin", "--gin.MODEL_DIR='runs/x'", "--gin.BATCH_SIZE=100000"]
    assert main(["train", *flags]) == 2
    assert re.search(
        r"BATCH_SIZE is 100000, and digits_\w+ has \d+ examples to train on; lower it", capfd.readouterr().err
    )
    assert not (tmp_path / "runs").exists()
