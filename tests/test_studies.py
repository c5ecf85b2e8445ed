"""Packs, tuning and comparisons through the command line: members equal single runs, nothing is lost, validation chooses."""

import csv
import json
import re
import shutil
import signal

import numpy as np
import pytest
from test_run import contents, start, wait_for

pytest.importorskip("seqio")

from adalink_jax.cli.main import main  # noqa: E402
from adalink_jax.data import digits  # noqa: E402
from adalink_jax.errors import UserError  # noqa: E402
from adalink_jax.experiments.comparisons.compare import Compared, Comparison, Row  # noqa: E402
from adalink_jax.experiments.comparisons.learning_rate import choose  # noqa: E402
from adalink_jax.reports import comparison_report  # noqa: E402
from adalink_jax.reports.statistics import mean  # noqa: E402
from adalink_jax.training.packs.members import Progress  # noqa: E402

MODEL = ["--gin_file=gin/models/pali_nano.gin", "--gin_file=gin/tasks/digits.gin"]
ADALINK = "--gin_file=gin/adapters/adalink.gin"
pytestmark = pytest.mark.usefixtures("enough_scenes")
SMALL = {"INITIAL_CHECKPOINT_PATH": "bundled:pali_nano_instruct", "MIXTURE_OR_TASK_NAME": "digits_reverse",
         "TRAIN_STEPS": 12, "EVAL_PERIOD": 6, "CHECKPOINT_PERIOD": 6, "BATCH_SIZE": 16, "WARMUP_STEPS": 2}  # fmt: skip
GRID = {"LEARNING_RATES": (0.01, 0.003), "SEEDS": (0, 3), "RANKS": (2, 4), "DROPOUT_RATE": 0.1}
MEMBER = "rank_2_lr_0.01_seed_3"


def macros(model_dir, **values):
    values = {**SMALL, "MODEL_DIR": str(model_dir), **values}
    return [f"--gin.{name}={value!r}" for name, value in values.items()]


def pack(model_dir, *more, **values):
    return main(["pack", *MODEL, ADALINK, *more, *macros(model_dir, **values)])


@pytest.fixture(scope="module")
def enough_scenes(few_scenes):
    """Few scenes but for validation: of 500, a few steps get some right, so that there is something to choose."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(digits.SCENES, "validation", 500)
        yield


@pytest.fixture(scope="module")
def finished(enough_scenes, tmp_path_factory):
    model_dir = tmp_path_factory.mktemp("packs") / "finished"
    assert pack(model_dir, **GRID) == 0
    return model_dir


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.slow
def test_a_member_has_the_same_result_and_files_as_a_run_alone(finished, tmp_path):
    from safetensors.numpy import load_file

    alone = tmp_path / "alone"
    own = {"RANK": 2, "LEARNING_RATE": 0.01, "RANDOM_SEED": 3, "DATA_SEED": 3, "DROPOUT_RATE": 0.1}
    assert main(["train", *MODEL, ADALINK, "--gin_file=gin/runs/finetune.gin", *macros(alone, **own)]) == 0
    member = finished / "members" / MEMBER
    for name in ("adapter", "adapter_last"):
        expected, found = (load_file(folder / name / "adapter_model.safetensors") for folder in (alone, member))
        assert expected.keys() == found.keys()
        for leaf in expected:
            np.testing.assert_allclose(found[leaf], expected[leaf], rtol=0, atol=1e-5)
            assert np.abs(found[leaf]).max() > 1e-3
    expected, found = summary_of(alone), summary_of(member)
    assert {key: found[key] for key in ("step", "steps", "adapted_accuracy", "trainable", "base", "task")} == {
        key: expected[key] for key in ("step", "steps", "adapted_accuracy", "trainable", "base", "task")
    }
    logged = lambda folder: [
        (row["step"], row["validation/accuracy"])
        for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        if "validation/accuracy" in row
    ]
    assert logged(member) == logged(alone) and [step for step, _ in logged(member)] == [0, 6, 12]


def test_every_combination_is_a_member(finished):
    members = summary_of(finished)["members"]
    assert len({member["name"] for member in members}) == 8
    assert [member["trainable"] for member in members] == [4 * 2 * 64] * 4 + [4 * 4 * 64] * 4
    assert {path.name for path in (finished / "members").iterdir()} == {member["name"] for member in members}


@pytest.mark.slow
def test_a_killed_and_resumed_pack_ends_with_the_same_bits(finished, tmp_path):
    killed = tmp_path / "killed"
    arguments = [*MODEL, ADALINK, *macros(killed, **GRID)]
    process = start(killed, arguments=["pack", *arguments])
    wait_for(lambda: (killed / "checkpoints" / "6").exists(), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (killed / "summary.json").exists()
    assert main(["pack", *arguments]) == 0
    for member in summary_of(finished)["members"]:
        for name in ("adapter", "adapter_last"):
            file = f"members/{member['name']}/{name}/adapter_model.safetensors"
            assert (killed / file).read_bytes() == (finished / file).read_bytes()
    first, second = summary_of(killed)["segments"]
    assert first["first_step"] == 1 and first["last_step"] + 1 == second["first_step"] and second["last_step"] == 12
    without = lambda folder: {**summary_of(folder), "seconds": None, "segments": None}
    assert without(killed) == without(finished)


def test_a_finished_pack_is_left_alone_and_another_grid_refused(finished, capsys):
    before = contents(finished)
    assert pack(finished, **GRID) == 0
    assert "is already finished, at step 12" in capsys.readouterr().out
    assert pack(finished, **{**GRID, "SEEDS": (0, 4)}) == 2
    assert "train_pack.seeds (0, 3) there, (0, 4) here" in capsys.readouterr().err
    assert contents(finished) == before


def test_a_pack_without_a_metric_is_refused(tmp_path, capsys):
    assert pack(tmp_path / "unscored", **GRID, **{"train_pack.metric": None}) == 2
    assert "so it needs a metric: set METRIC" in capsys.readouterr().err
    assert not (tmp_path / "unscored").exists()


def test_a_pack_ends_when_no_member_improves(tmp_path):
    more = {"LEARNING_RATES": (1e-12, 1e-13), "SEEDS": (0,), "TRAIN_STEPS": 100, "EVAL_PERIOD": 3, "PATIENCE": 2}
    assert pack(tmp_path / "p", "--gin_file=gin/runs/plateau.gin", **more) == 0
    summary = summary_of(tmp_path / "p")
    assert summary["steps"] == 6
    assert [(member["step"], member["steps"]) for member in summary["members"]] == [(0, 6), (0, 6)]


@pytest.mark.slow
def test_a_member_that_diverges_leaves_the_others_alone(tmp_path, capsys):
    more = {"LEARNING_RATES": (3e38, 0.003), "SEEDS": (0,), "WARMUP_STEPS": 0}
    assert pack(tmp_path / "p", **more) == 0
    assert "lr_3e+38_seed_0 (diverged)" in capsys.readouterr().out
    lost, sound = summary_of(tmp_path / "p")["members"]
    assert lost["diverged"] and not sound["diverged"] and sound["validation"] > 0
    files = lambda member: {path.name for path in (tmp_path / "p" / "members" / member["name"]).iterdir()}
    assert files(sound) - files(lost) == {"adapter_last"}
    assert pack(tmp_path / "q", **{**more, "LEARNING_RATES": (3e38, 2e38)}) == 3
    err = capsys.readouterr().err
    assert (
        "in lr_3e+38_seed_0, and no other member is trained any more" in err
        and "; lower LEARNING_RATES, or clip" in err
    )


@pytest.fixture
def poisoned_picture(monkeypatch):
    """A picture for training that is not finite."""
    compose = digits.compose

    def poisoned(name, split):
        scenes = compose(name, split)
        images = np.array(scenes["image"])
        if split == "train":
            images[30] = np.nan
        return scenes | {"image": images}

    monkeypatch.setattr(digits, "compose", poisoned)
    monkeypatch.setitem(digits.SCENES, "validation", 16)


def test_the_member_and_the_example_that_are_not_finite_are_named(tmp_path, capsys, poisoned_picture):
    """Each seed reads the poisoned picture in a step of its own; the smaller rank is padded in the pack."""
    assert pack(tmp_path / "p", **{**GRID, "LEARNING_RATES": (0.01,)}) == 3
    said, err = (" ".join(text.split()) for text in capsys.readouterr())
    for rank in (2, 4):
        assert re.search(rf"rank_{rank}_lr_0.01_seed_3: its loss of step \d is nan\. The other members", said + err)
    assert "seed_0: its" not in said + err  # both ranks at once, when nothing is left to train
    last = r"The loss of step \d+ is nan in rank_2_lr_0.01_seed_0, and no other member is trained any more\. Row \d+ of the batch \(input "
    assert re.search(
        last + r"'read from right to left', target '. .'\) alone makes it so: its images are not finite\.", err
    )
    assert "correct it or leave it out." in err


def test_a_member_that_failed_before_a_pack_was_resumed_is_not_taken_for_the_last(tmp_path, capsys, poisoned_picture):
    """The poisoned picture is read in the first step after the newest checkpoint; the first member had failed long before."""
    grid = {"LEARNING_RATES": (3e38, 0.01), "SEEDS": (0,), "WARMUP_STEPS": 0, "EVAL_PERIOD": 0, "CHECKPOINT_PERIOD": 1}
    for before in (r"its loss of step \d is nan", r"its parameters of step \d+ are not finite"):
        assert pack(tmp_path / "p", **grid) == 3
        said, err = (" ".join(text.split()) for text in capsys.readouterr())
        assert re.search(rf"lr_3e\+38_seed_0: {before}\. The other members are trained on\.", said + err)
        step, newest = re.search(
            r"loss of step (\d+) is nan in lr_0.01_seed_0, and .* its images are not finite\. .* is of step (\d+)", err
        ).groups()
        assert int(newest) + 1 == int(step)


def test_a_member_at_its_plateau_is_final():
    progress = Progress.start(2)
    for step, scores in enumerate([(0.1, 0.1), (0.1, 0.2), (0.1, 0.1), (0.9, 0.3)]):
        better = progress.add(step, scores, patience=2)
    assert progress.scores == [0.1, 0.3] and progress.steps == [0, 3] and progress.last == [2, 3]
    assert better.tolist() == [False, True]
    assert [progress.at_plateau(i, 2) for i in (0, 1)] == [True, False] and not progress.at_plateau(0, None)


@pytest.mark.parametrize("flags, values, words", [
    ([], {"LEARNING_RATES": 0.1}, "LEARNING_RATES is 0.1, a number; it must be a list"),
    ([], {"SEEDS": (1, 1)}, "SEEDS is (1, 1); it must be a tuple of one or more integers, each once"),
    ([], {"SEEDS": (0.5,)}, "SEEDS has `[0]`, which is 0.5, a number; it must be a whole number"),
    (["--gin_file=gin/adapters/norm_tuning.gin"], {"RANKS": (1,)}, "RANKS is set, but NormTuning has no rank"),
    (["--gin_file=gin/adapters/full.gin"], {"RANKS": (1,)}, "RANKS is set, but full fine-tuning has no rank"),
    ([], {"INITIAL_CHECKPOINT_PATH": None}, "share a base; set INITIAL_CHECKPOINT_PATH"),
    ([], {"TRAINABLE": ("adapter/image/.*",)}, "TRAINABLE must match every leaf of the adapter"),
])  # fmt: skip
def test_bad_settings_of_a_pack_are_one_sentence(tmp_path, capsys, flags, values, words):
    arguments = [*MODEL, *(flags or [ADALINK]), *macros(tmp_path / "bad", **values)]
    assert main(["pack", *arguments]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_tuning_chooses_on_validation_and_writes_its_choice(tmp_path, capsys):
    folder = tmp_path / "tune"
    more = {"LEARNING_RATE": 0.003, "FACTORS": (0.0001, 1.0), "SEEDS": (0, 1), "RANK": 4}
    assert main(["tune", *MODEL, ADALINK, *macros(folder, **more)]) == 0
    shown = capsys.readouterr().out
    assert "Chosen: 0.003" in shown and "It is the highest rate tried" in shown
    members = summary_of(folder)["members"]
    assert len(members) == 4 and not any("adapted" in key for member in members for key in member)
    assert not any("test/" in path.read_text() for path in folder.rglob("metrics.jsonl"))
    table = list(csv.DictReader((folder / "curve.csv").read_text().splitlines()))
    assert [float(row["learning_rate"]) for row in table] == [3e-7, 0.003]
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    tuned = f"--gin_file={folder}/tuned.gin"
    command = ["eval", *MODEL, ADALINK, "--gin_file=gin/runs/finetune.gin", tuned, *macros(tmp_path / "x")]
    from adalink_jax import configuration

    configuration.load(configuration.parse_flags(command)[0])
    assert configuration.bindings()["warmup_cosine.peak"] == "0.003"


def test_the_highest_mean_is_chosen_and_the_lowest_rate_among_equals():
    tuned = choose([0.1, 0.1, 0.01, 0.01, 1.0, 1.0], [0.5, 0.7, 0.6, 0.6, 0.9, 0.0])
    assert tuned.learning_rate == 0.01 and tuned.edge == "lowest"
    assert [trial.mean for trial in tuned.trials] == pytest.approx([0.6, 0.6, 0.45])


COMPARISON = """
include 'gin/models/pali_nano.gin'
include 'gin/tasks/digits.gin'
FACTORS = (0.3, 1.0)
Comparison.model_dir = %MODEL_DIR
Comparison.seeds = (0, 1)
Comparison.plateau_steps = 12
Comparison.methods = {METHODS}
"""
METHODS = {
    "AdaLink, rank 2": ("gin/adapters/adalink.gin", "RANK = 2"),
    "full fine-tuning": ("gin/adapters/full.gin",),
}


def compare(tmp_path, methods, **more):
    file = tmp_path / "comparison.gin"
    file.write_text(COMPARISON.replace("{METHODS}", repr(methods)))
    return main(["compare", f"--gin_file={file}", *macros(tmp_path / "c", **more)])


@pytest.mark.slow
def test_a_comparison_is_one_table_and_reuses_finished_runs(tmp_path, capsys):
    assert compare(tmp_path, METHODS) == 0
    folder = tmp_path / "c"
    rows = list(csv.DictReader((folder / "comparison.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == list(METHODS)
    assert [(row["trials"], row["trainable"]) for row in rows] == [("2", "512"), ("2", "337536")]
    for row in rows:
        slug = {"AdaLink, rank 2": "adalink_rank_2", "full fine-tuning": "full_fine_tuning"}[row["name"]]
        for part in ("budget", "plateau"):
            for seed, member in enumerate(summary_of(folder / slug / part)["members"]):
                assert float(row[f"{part}_seed_{seed}"]) == member["adapted_accuracy"]
                assert member["learning_rate"] == float(row["learning_rate"]) and member["seed"] == seed
        assert float(row["step_seconds"]) > 0 and int(row["file_bytes"]) > 2 * int(row["trainable"])
        assert int(row["peak_bytes"]) > 4 * (337536 + 3 * int(row["trainable"]))
    assert (folder / "comparison.md").read_text().count("\n|") == 4
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    before = {path: data for path, data in contents(folder).items() if "comparison" not in str(path)}
    shutil.rmtree(folder / "full_fine_tuning" / "plateau")
    capsys.readouterr()
    assert compare(tmp_path, METHODS) == 0
    assert capsys.readouterr().out.count("is already finished") == 5
    after = contents(folder)
    assert all(after[path] == data for path, data in before.items() if "plateau" not in str(path))
    unequal = {**METHODS, "rank 3": ("gin/adapters/adalink.gin", "RANK = 3", "FACTORS = (1.0,)")}
    assert compare(tmp_path, unequal) == 2
    assert "rank 3 has 1 trials and AdaLink, rank 2 2; give every method as many" in capsys.readouterr().err


def test_intervals_are_students_and_differences_paired():
    found = mean([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.low, found.high) == pytest.approx(
        (3 - 1.9632, 3 + 1.9632), abs=1e-3
    )  # t(0.975, 4) = 2.7764, s = 1.5811
    row = lambda name, scores: Row(name, 0.1, 5, None, 7, scores, (), (), 0.01, 10**6, 1000)
    rows = row("a", (0.1, 0.5, 0.9)), row("b", (0.2, 0.6, 1.0))
    table = comparison_report.markdown(Compared(rows, "task", "accuracy", 400, (0, 1, 2)))
    assert "| b | 7 | 5 | 0.1 | 0.600 [-0.394, 1.594] | +0.100 | 10.0 | 1.0 | 1.0 |" in table


@pytest.mark.parametrize("settings, words", [
    ({"methods": {"a": ("x",)}}, "fewer than two methods"),
    ({"methods": {"a, b": ("x",), "a b": ("x",)}}, "'a_b' is not unique"),
    ({"methods": {"a": ("x",), "b": ("x",)}, "seeds": (0,)}, "fewer than two seeds"),
])  # fmt: skip
def test_comparisons_that_compare_nothing_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        Comparison(model_dir="x", **settings)
