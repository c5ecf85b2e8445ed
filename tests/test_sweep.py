"""Sweeps: what a description means, how its runs are made, planned and packed."""

import json
import os
import shutil
import subprocess

import pytest
from helpers import hold_in_another_process
from sweep_cases import FEW, arguments, starts

pytest.importorskip("seqio")

from adalink_jax.cli.main import main  # noqa: E402
from adalink_jax.errors import UserError  # noqa: E402
from adalink_jax.experiments.sweeps import spending
from adalink_jax.experiments.sweeps.sweep import Sweep, expand  # noqa: E402


def names(runs, drop=None):
    return [run.name for run in expand(Sweep(runs, drop))]


# --- descriptions ---


def test_a_dict_is_a_product():
    runs = expand(Sweep({"RANK": (1, 2), "LEARNING_RATE": (0.1, 1e-05)}))
    assert [run.name for run in runs] == ["rank_1_lr_0.1", "rank_1_lr_1e-05", "rank_2_lr_0.1", "rank_2_lr_1e-05"]
    assert [run.number for run in runs] == [0, 1, 2, 3]
    assert runs[1].point.bindings == (("RANK", "1"), ("LEARNING_RATE", "1e-05"))


def test_products_zips_chains_and_lists_nest():
    zipped = {"zip": ({"RANK": (1, 2)}, {"TRAIN_STEPS": (10, 20)})}
    assert names(zipped) == ["rank_1_steps_10", "rank_2_steps_20"]
    assert names({"chain": (zipped, {"RANK": (8,)})}) == ["rank_1_steps_10", "rank_2_steps_20", "rank_8"]
    assert names({"product": (zipped, zipped | {"zip": ({"A": (1,)}, {"B": (2,)})})}) == [
        "rank_1_steps_10_a_1_b_2", "rank_2_steps_20_a_1_b_2"
    ]  # fmt: skip
    methods = {"LoRA, small": ("gin/adapters/lora.gin", "RANK = 4"), "norms": "gin/adapters/norm_tuning.gin"}
    runs = expand(Sweep({"list": methods, "RANDOM_SEED": (0, 1)}))
    assert [run.name for run in runs] == ["lora_small_seed_0", "lora_small_seed_1", "norms_seed_0", "norms_seed_1"]
    assert runs[0].point.files == ("gin/adapters/lora.gin",)
    assert names({"list": (("a/lora.gin", "adamw.b2 = 0.99"), "b.gin")}) == ["lora_b2_0.99", "b"]


def test_the_files_and_bindings_of_a_run_come_last():
    from adalink_jax import configuration

    common, _ = configuration.parse_flags(["--gin_file=common.gin", "--gin.BATCH_SIZE=8"])
    (run,) = expand(Sweep({"list": (("own.gin", "RANK = 4"),)}))
    flags = run.flags(common, "runs/x")
    assert flags.files == ("common.gin", "own.gin")
    assert flags.bindings == (("BATCH_SIZE", "8"), ("RANK", "4"), ("MODEL_DIR", "'runs/x'"))
    assert configuration.parse_flags(flags.arguments()) == (flags, [])


def test_combinations_are_dropped():
    grid = {"RANK": (1, 2, 4), "LEARNING_RATE": (0.1, 0.01)}
    assert names(grid, {"RANK": (2, 4), "LEARNING_RATE": (0.1,)}) == [
        "rank_1_lr_0.1",
        "rank_1_lr_0.01",
        "rank_2_lr_0.01",
        "rank_4_lr_0.01",
    ]
    assert names({"list": ("RANK = 4", "RANK = 1e-1")}, {"RANK": (0.1,)}) == ["rank_4"]


def test_names_are_short_safe_and_stable():
    long = {
        "PROJECTIONS": (
            ("encoder/.*/attention/(query|value)", "decoder/.*"),
            ("encoder/.*/attention/(query|value)", "x"),
        )
    }
    found = names(long)
    assert len(set(found)) == 2 and all(len(name) < 60 for name in found)
    for name in [*found, *names({"A": ("../../etc", "x y/z", None, ())})]:
        assert not set(name) & set("/\\: *?\"<>|'()") and ".." not in name.split("/")
    assert set(names({"RANK": (2,)})) <= set(names({"RANK": (1, 2, 4)}))
    (name,) = names({f"NUMBER_{i}": (i,) for i in range(100)})
    assert len(name) <= 120


@pytest.mark.parametrize("runs, drop, words", [
    ({"RANK": 4}, None, "'RANK' takes a tuple of one or more"),
    ({"RANK": ()}, None, "'RANK' takes a tuple of one or more"),
    ({}, None, "takes a dict"),
    (("RANK", 4), None, "takes a dict"),
    ({"RANK": (1, 1)}, None, "Two runs are called rank_1"),
    ({"list": {"a b": "RANK = 1", "A-b": "RANK = 2", "a/b": "RANK = 3"}}, None, "Two runs are called a_b"),
    ({"RANK": (1,), "list": ("RANK = 2",)}, None, "RANK is set twice in one run"),
    ({"zip": ({"RANK": (1, 2)}, {"A": (1, 2, 3)})}, None, "2, 3 runs; they must have equally many"),
    ({"list": ("gin/adapters/lora",)}, None, "not 'gin/adapters/lora'"),
    ({"list": (4,)}, None, "not 4"),
    ({"list": {"7": "RANK = 1"}}, None, "'7' needs a letter"),
    ({4: (1,)}, None, "takes a dict"),
    ({"RANK": (print,)}, None, "is not a literal"),
    ({"MODEL_DIR": ("x",)}, None, "each run has its own"),
    ({"BATCH_SIZE": (8,)}, None, "the command line sets it too"),
    ({"RANK": (1, 2)}, {"RANK": (3,)}, "no run (that is left) has RANK = 3"),
    ({"RANK": (1, 2)}, {"RANK": (1, 2)}, "leaves no run"),
])  # fmt: skip
def test_an_invalid_description_is_refused_in_one_sentence(runs, drop, words):
    with pytest.raises(UserError) as message:
        expand(Sweep(runs, drop), typed=("BATCH_SIZE",))
    assert words in str(message.value) and "\n" not in str(message.value)


def test_sweeps_that_share_a_folder_share_its_chip_hours(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(spending.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(spending.time, "time_ns", iter(range(9)).__next__)
    one, other = (spending.Spending(str(tmp_path / "hours"), chips=8, most=1.0) for _ in range(2))
    for seconds, over in ((60, False), (200, False), (240, True)):  # on 16 chips together, 225 are the most
        now[0] = seconds
        assert [one.over(), other.over()][1] == over
    later = spending.Spending(str(tmp_path / "hours"), chips=8, most=1.0)
    assert later.over() and later.chip_hours == pytest.approx(2 * 8 * 240 / 3600)


# --- the command ---


def test_the_table_is_shown_and_nothing_is_started(tmp_path, capsys):
    assert main(arguments(tmp_path / "sweep")) == 0
    out = capsys.readouterr().out
    assert "48 runs" in out and "rank_8_lr_0.01_seed_3" in out and "48 new" in out
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("more, words", [
    (["--gin.Sweep.runs={'RNAK': (1, 2)}"], ["Run rnak_1", "RNAK", "nearest: RANK"]),
    (["--gin.Sweep.runs={'list': ('gin/adapters/lroa.gin',)}"], ["Run lroa", "gin/adapters/lora.gin"]),
    (["--gin.RANK=4"], ["Sweep.runs sets RANK, but the command line sets it too"]),
    (["--gin.MODEL_DIR=''"], ["MODEL_DIR is not set"]),
    (["--element", "48"], ["There is no run '48'", "from 0 to 47"]),
    (["--element"], ["--element has no number", "ADALINK_ARRAY_INDEX"]),
    (["--plan", "--topology", "v5e:4x9"], ["There is no slice v5e:4x9"]),
    (["--run", "--gin.MODEL_DIR='gs://bucket/x'"], ["is a bucket"]),
    (["--run", "--gin.Sweep.max_chip_hours=2"], ["Sweep.max_chip_hours needs --topology"]),
    (["--run", "--gin.Sweep.max_chip_hours=-2"], ["Sweep.max_chip_hours is -2, a whole number; it must be more than 0"]),
])  # fmt: skip
def test_a_sweep_that_cannot_be_made_is_refused_before_anything_starts(tmp_path, capsys, monkeypatch, more, words):
    monkeypatch.delenv("ADALINK_ARRAY_INDEX", raising=False)
    assert main(arguments(tmp_path / "sweep", *more)) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err
    assert not (tmp_path / "sweep").exists()


def test_flags_that_exclude_each_other_are_refused(tmp_path, capsys):
    for more in (["--run", "--element", "0"], ["--plan"], ["--run", "--parallel", "0"]):
        with pytest.raises(SystemExit):
            main(arguments(tmp_path, *more))


@pytest.fixture(scope="module")
def one_run(tmp_path_factory):
    """A sweep of two runs, of which the array index selected the second."""
    folder = tmp_path_factory.mktemp("sweeps") / "element"
    os.environ["ADALINK_ARRAY_INDEX"] = "1"
    try:
        assert main(arguments(folder, "--element", **FEW)) == 0
    finally:
        del os.environ["ADALINK_ARRAY_INDEX"]
    return folder


SECOND = "rank_1_lr_0.01_seed_1"


def test_an_element_is_one_run_and_is_made_once(one_run, capsys):
    assert starts(one_run) == {SECOND: 1}
    summary = json.loads((one_run / SECOND / "summary.json").read_text())
    assert summary["settings"]["Setup.random_seed"] == "1" and summary["settings"]["DatasetConfig.seed"] == "1"
    assert summary["settings"]["AdaLinkAdapter.rank"] == "1" and summary["versions"]["jax"]
    assert summary["step_seconds"] > 0 and 0 <= summary["validation"] <= 1
    assert main(arguments(one_run, "--element", SECOND, **FEW)) == 0
    assert starts(one_run) == {SECOND: 1}
    capsys.readouterr()
    assert main(arguments(one_run, **FEW)) == 0
    assert "1 new, 1 done" in capsys.readouterr().out


def test_runs_of_different_environments_are_reported(one_run, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(one_run, folder)
    other = folder / SECOND.replace("seed_1", "seed_0")
    other.mkdir()
    summary = json.loads((folder / SECOND / "summary.json").read_text())
    (other / "summary.json").write_text(json.dumps({"steps": 4, "versions": summary["versions"] | {"jax": "0.1"}}))
    assert main(arguments(folder, **FEW)) == 0
    out = capsys.readouterr().out
    assert "2 done" in out and "These runs were made in different environments (jax 0.1, " in out


@pytest.mark.parametrize("changed, message", [
    ({"BATCH_SIZE": 64}, "DatasetConfig.batch_size = 125, and the sweep now says 64"),
    ({"WARMUP_STEPS": 3}, "warmup_cosine.warmup_steps = 2, and the sweep now says 3"),
    ({"EVAL_PERIOD": 1}, "train.eval_period = 0, and the sweep now says 1"),
])  # fmt: skip
@pytest.mark.parametrize("how", [(), ("--run",), ("--element", "1")])
def test_a_name_keeps_its_settings(one_run, capsys, changed, message, how):
    assert main(arguments(one_run, *how, **FEW | changed)) == 2
    err = capsys.readouterr().err
    assert message in err and SECOND in err and err.count("\n") == 1
    assert starts(one_run) == {SECOND: 1}


def test_records_of_version_0_1_0_lack_the_period_of_evaluations(one_run, tmp_path, capsys):
    shutil.copytree(one_run, tmp_path / "copy")
    file = tmp_path / "copy" / SECOND / "sweep.json"
    record = json.loads(file.read_text())
    assert record["settings"].pop("train.eval_period") == "0"
    record["settings"].pop("T5Config.eos_token_id")  # and settings that came later, which have their defaults
    file.write_text(json.dumps(record))
    assert main(arguments(tmp_path / "copy", **FEW | {"EVAL_PERIOD": 1})) == 0
    assert "1 done" in capsys.readouterr().out


def test_a_run_that_another_process_trains_is_left_alone(tmp_path, capsys):
    (tmp_path / SECOND).mkdir()
    with hold_in_another_process(tmp_path / SECOND) as process:
        assert main(arguments(tmp_path, "--element", "1", **FEW)) == 4
        assert "Another process is writing" in capsys.readouterr().err
        assert main(arguments(tmp_path, **FEW)) == 0
        assert "1 new, 1 running" in capsys.readouterr().out
        process.kill()
    assert starts(tmp_path) == {}


@pytest.mark.slow
def test_a_failed_run_stops_no_other_and_is_reported_with_its_log(tmp_path, capsys):
    bad = {"chain": ({"TRAINABLE": (("nothing/.*",),)}, {"RANK": (1,)})}
    few = {name: value for name, value in FEW.items() if name not in ("TRIED_RANKS", "TRIED_RATES", "TRIED_SEEDS")}
    argv = arguments(tmp_path, f"--gin.Sweep.runs={bad!r}", "--gin.RANDOM_SEED=0", "--run", **few)
    assert main(argv) == 1
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    log = tmp_path / "trainable_nothing" / "log.txt"
    assert line.startswith("1 of 2 runs failed: trainable_nothing (") and "matches" in line and str(log) in line
    assert "error: " in log.read_text()
    assert (tmp_path / "rank_1" / "summary.json").exists()
    assert "1 failed" in shown(argv[:-1], capsys)


def shown(argv, capsys):
    assert main(argv) == 0
    return capsys.readouterr().out


def test_a_plan_compiles_each_program_once(tmp_path, capsys, monkeypatch):
    # Neither seeds nor how many examples are trained on change a program.
    runs = {"RANK": (1,), "RANDOM_SEED": (0, 1), "TRAIN_EXAMPLES": (125, 250)}
    few = {name: value for name, value in FEW.items() if not name.startswith("TRIED_")}
    argv = arguments(tmp_path, "--plan", "--topology", "cpu:1", **few, **{"Sweep.runs": runs})
    assert main(argv) == 0
    assert "4 runs, 1 programs" in capsys.readouterr().out
    monkeypatch.setattr(subprocess, "run", None)
    assert main([*argv, "--gin.Sweep.max_chip_hours=2", "--gin.Sweep.price=3"]) == 0
    out = capsys.readouterr().out
    assert "All runs fit" in out and "Cost: at most 2.0 chip-hours (6.00 at 3 each)." in out


# --- packs ---


def test_runs_that_share_a_program_become_one_pack():
    runs = {"RANK": (1, 2), "LEARNING_RATE": (0.1, 0.2), "RANDOM_SEED": (0, 1, 2)}
    packed = expand(Sweep(runs, pack=("RANDOM_SEED", "LEARNING_RATE")))
    assert [run.name for run in packed] == ["rank_1", "rank_2"]
    members = {"LEARNING_RATES": "(0.1, 0.2,)", "SEEDS": "(0, 1, 2,)", "RANKS": "None"}
    assert packed[1].point.bindings == (("RANK", "2"), *members.items())
    seeds = expand(Sweep(runs, pack=("RANDOM_SEED",)))
    assert (
        dict(seeds[0].point.bindings)["LEARNING_RATES"] == "(%LEARNING_RATE,)"
    )  # of the run, and no macro of that name elsewhere
    assert [run.name for run in seeds] == ["rank_1_lr_0.1", "rank_1_lr_0.2", "rank_2_lr_0.1", "rank_2_lr_0.2"]
    assert [run.name for run in expand(Sweep({"RANDOM_SEED": (0, 1)}, pack=("RANDOM_SEED",)))] == ["pack"]
    methods = {"list": {"one": ("a.gin", "RANK = 1"), "two": ("b.gin",)}, "RANDOM_SEED": (3,)}
    assert [run.name for run in expand(Sweep(methods, pack=("RANDOM_SEED",)))] == ["one", "two"]


@pytest.mark.parametrize(
    "pack, drop, message",
    [
        (("BATCH_SIZE",), None, "takes a tuple of some of LEARNING_RATE, RANDOM_SEED, RANK"),
        ("RANK", None, "takes a tuple"),
        (("RANK",), None, "names RANK, which no run sets"),
        (
            ("LEARNING_RATE", "RANDOM_SEED"),
            {"LEARNING_RATE": (0.1,), "RANDOM_SEED": (1,)},
            "the runs of the sweep are not every combination of LEARNING_RATE, RANDOM_SEED",
        ),
    ],
)
def test_runs_that_cannot_be_packed_are_refused(pack, drop, message):
    with pytest.raises(UserError, match=message):
        expand(Sweep({"LEARNING_RATE": (0.1, 0.2), "RANDOM_SEED": (0, 1)}, drop, pack))


def test_a_pack_does_not_hide_settings_from_elsewhere():
    with pytest.raises(UserError, match="Sweep.runs sets RANDOM_SEED, but the command line sets it too"):
        expand(Sweep({"RANDOM_SEED": (0, 1)}, pack=("RANDOM_SEED",)), typed=["RANDOM_SEED"])
    with pytest.raises(UserError, match="let the runs set no DATA_SEED"):
        expand(Sweep({"RANDOM_SEED": (0, 1), "DATA_SEED": (0, 1)}, pack=("RANDOM_SEED",)))


@pytest.mark.slow
def test_a_packed_sweep_is_made_by_packs_and_its_members_are_results(tmp_path, capsys):
    from adalink_jax.reports import results

    small = {
        "TRIED_RANKS": (1,),
        "TRIED_RATES": (0.001, 0.01),
        "TRIED_SEEDS": (5,),
        "TRAIN_STEPS": 2,
        "WARMUP_STEPS": 1,
        "EVAL_PERIOD": 2,
    }
    packed = arguments(tmp_path, **small, **{"Sweep.pack": ("LEARNING_RATE",)})
    assert main([*packed, "--element", "0"]) == 0
    rows = results.collect(str(tmp_path)).table.to_pylist()
    assert [(row["state"], row["LEARNING_RATE"], row["RANDOM_SEED"]) for row in rows] == [
        ("done", 0.001, 5),
        ("done", 0.01, 5),
    ]
    capsys.readouterr()
    assert main(packed) == 0
    assert "1 done" in capsys.readouterr().out
    assert main([*packed, "--plan", "--topology", "cpu:1"]) == 0
    assert "1 runs, 1 programs" in capsys.readouterr().out
    [plan] = (tmp_path / ".plans").glob("*.json")
    assert json.loads(plan.read_text())["members"] == 2


def test_a_pack_does_not_multiply_a_learning_rate_twice():
    """A file that includes finetune.gin sets the schedule's peak, which a pack multiplies by each member's learning rate."""
    from adalink_jax import configuration
    from adalink_jax.cli.arguments import register
    from adalink_jax.experiments.run_configuration import load_pack

    register()
    flags = configuration.GinFlags(("gin/sweeps/digits_small.gin",), (("MODEL_DIR", "'x'"),))
    load_pack(flags, "pack")
    assert configuration.bindings()["warmup_cosine.peak"] == "1.0"
    with pytest.raises(UserError, match="the members of a pack have LEARNING_RATES"):
        load_pack(flags.binding("warmup_cosine.peak", "0.1"), "pack")
