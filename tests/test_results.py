"""`adalink results`: every run is a row, settings and scores are columns, groups have correct intervals."""

import csv
import json
import re

import pytest

from adalink_jax.cli.main import main
from adalink_jax.errors import UserError
from adalink_jax.experiments.sweeps.run_folder import RunFolder
from adalink_jax.reports import results

VERSIONS = {"adalink-jax": "0.1.0", "jax": "0.10.2"}


def write_run(folder, *, rank, seed, accuracy, sweep=True, **more):
    """Writes the files of a finished run that are read."""
    settings = {"AdaLinkAdapter.rank": repr(rank), "Setup.random_seed": repr(seed), "DatasetConfig.seed": repr(seed),
                "DatasetConfig.mixture_or_task_name": "'digits_reverse'", "train.optimizer": "@adamw()"}  # fmt: skip
    folder.mkdir(parents=True)
    if sweep:
        record = {"bindings": {"RANK": repr(rank), "RANDOM_SEED": repr(seed)}, "settings": settings}
        (folder / "sweep.json").write_text(json.dumps(record))
    summary = {"frozen_accuracy": 0.0, "adapted_accuracy": accuracy, "scores": {"accuracy": accuracy}, "validation": 0.5,
               "metric": "accuracy", "trainable": 128 * rank, "step": 8, "steps": 10, "seconds": 2.5, "step_seconds": 0.1,
               "step_flops": 2 * 10**9, "settings": settings, "versions": VERSIONS}  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary | more))


@pytest.fixture
def runs(tmp_path):
    """Two ranks, three seeds; one run that was stopped, one that failed, one whose summary is damaged."""
    folder = tmp_path / "runs"
    for rank in (1, 4):
        for seed in range(3):
            write_run(
                folder / f"rank_{rank}_seed_{seed}", rank=rank, seed=seed, accuracy=round(rank / 10 + seed / 100, 2)
            )
    for name, status in (("stopped", None), ("failed", 3)):
        run = RunFolder(str(folder / name), {"RANK": "8", "RANDOM_SEED": "0"}, {}, 10)
        with run.held():
            run.begin()
            if status:
                run.end(status)
    (folder / "stopped" / "metrics.jsonl").write_text('{"step": 4, "train/loss": 1.0}\n{"step": 6, "tr')
    write_run(folder / "torn", rank=8, seed=1, accuracy=0.0)
    (folder / "torn" / "summary.json").write_text('{"steps": 1')
    return folder


def rows(found):
    return {row["run"]: row for row in found.table.to_pylist()}


def test_every_run_is_a_row_finished_or_not(runs):
    found = rows(results.collect(str(runs)))
    assert {name: row["state"] for name, row in found.items() if row["state"] != "done"} == {
        "stopped": "stopped", "failed": "failed", "torn": "damaged"
    }  # fmt: skip
    assert len(found) == 9 and found["stopped"]["steps"] == 4 and found["stopped"]["RANK"] == 8
    row = found["rank_4_seed_1"]
    assert row["AdaLinkAdapter.rank"] == 4 and row["test/accuracy"] == 0.41 and row["frozen/accuracy"] == 0.0
    assert row["trained"] == 512 and row["validation/accuracy"] == 0.5 and row["version/jax"] == "0.10.2"
    assert row["train.optimizer"] == "@adamw()" and row["DatasetConfig.mixture_or_task_name"] == "digits_reverse"
    assert row["step_seconds"] == 0.1 and row["step_flops"] == 2 * 10**9 and found["torn"]["test/accuracy"] is None


def test_a_run_in_training_is_reported_as_running(runs):
    with RunFolder(str(runs / "stopped"), {"RANK": "8"}, {}, 10).held():
        assert rows(results.collect(str(runs)))["stopped"]["state"] == "running"


def test_settings_that_differ_are_shown_once(runs):
    found = results.collect(str(runs)).where(["state=done"])
    assert found.differing() == ["RANK", "RANDOM_SEED"]
    alone = results.collect(str(runs)).where(["state=done", "seed=2"])
    assert alone.differing() == ["RANK"]


def test_runs_without_a_sweep_and_members_of_packs_are_rows(tmp_path):
    write_run(tmp_path / "x" / "alone", rank=2, seed=0, accuracy=0.3, sweep=False)
    pack = tmp_path / "x" / "pack"
    for seed in (0, 1):
        write_run(pack / "members" / f"seed_{seed}", rank=2, seed=0, accuracy=0.1, sweep=False)
        path = pack / "members" / f"seed_{seed}" / "summary.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"learning_rate": 0.1, "seed": seed, "rank": None}))
    (pack / "config.gin").write_text("")
    (tmp_path / "x" / "started").mkdir()
    (tmp_path / "x" / "started" / "config.gin").write_text("")
    found = rows(results.collect(str(tmp_path)))
    assert list(found) == ["x/alone", "x/pack/members/seed_0", "x/pack/members/seed_1", "x/started"]
    assert [row["RANDOM_SEED"] for row in found.values()] == [None, 0, 1, None]
    assert found["x/started"]["state"] == "unfinished"
    assert list(rows(results.collect(str(tmp_path / "x" / "alone")))) == ["alone"]


def test_numbers_in_names_and_groups_are_sorted_as_numbers(tmp_path, capsys):
    for rate in ("10", "9", "1e-3", "0.1", "0.01"):
        more = {"settings": {"LEARNING_RATE": rate}}
        write_run(tmp_path / f"rate_{rate}_b", rank=4, seed=0, accuracy=0.5, sweep=False, **more)
    rates = [0.001, 0.01, 0.1, 9, 10]
    found = results.collect(str(tmp_path))
    assert found.table["LEARNING_RATE"].to_pylist() == rates
    assert found.grouped(["LEARNING_RATE"])["LEARNING_RATE"].to_pylist() == rates
    assert main(["results", str(tmp_path)]) == 0
    assert re.findall(r"rate_(\S+)_b", capsys.readouterr().out) == ["1e-3", "0.01", "0.1", "9", "10"]


def test_groups_have_count_mean_and_interval(runs):
    grouped = results.collect(str(runs)).grouped(["RANK"]).to_pylist()
    assert [(row["RANK"], row["runs"]) for row in grouped] == [(1, 3), (4, 3)]
    assert grouped[0]["test/accuracy"] == pytest.approx(0.11)
    # Student's t with two degrees of freedom: 4.30265 x 0.01 / sqrt(3)
    assert grouped[0]["test/accuracy low"] == pytest.approx(0.11 - 0.024841, abs=1e-5)
    assert grouped[0]["test/accuracy high"] == pytest.approx(0.11 + 0.024841, abs=1e-5)
    assert grouped[0]["validation/accuracy"] == 0.5 and grouped[0]["validation/accuracy low"] is None  # all agree
    single = results.collect(str(runs)).grouped(["RANK", "RANDOM_SEED"]).to_pylist()
    assert len(single) == 6 and single[0]["test/accuracy low"] is None


def test_files_hold_what_the_table_holds(runs, tmp_path, capsys):
    from pyarrow import parquet

    csv_file, parquet_file = tmp_path / "out" / "table.csv", tmp_path / "out" / "table.parquet"
    argv = ["results", str(runs), "--where", "RANK=4", "state=done", "--out", str(csv_file), str(parquet_file)]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "3 runs" in out and "rank_4_seed_2" in out and "RANDOM_SEED" in out and "rank_1" not in out
    table = parquet.read_table(parquet_file).to_pylist()
    assert [row["test/accuracy"] for row in table] == [0.4, 0.41, 0.42] and table[0]["AdaLinkAdapter.rank"] == 4
    lines = list(csv.DictReader(csv_file.read_text().splitlines()))
    assert [line["run"] for line in lines] == ["rank_4_seed_0", "rank_4_seed_1", "rank_4_seed_2"]
    assert [float(line["test/accuracy"]) for line in lines] == [0.4, 0.41, 0.42]
    assert main(["results", str(runs), "--group", "RANK", "--out", str(csv_file)]) == 0
    assert "6 finished" in capsys.readouterr().out
    assert [line["runs"] for line in csv.DictReader(csv_file.read_text().splitlines())] == ["3", "3"]


def test_runs_of_different_environments_are_reported(runs, tmp_path, capsys):
    where = ["--where", "RANK=4", "state=done"]
    assert main(["results", str(runs), *where]) == 0
    assert "different environments" not in capsys.readouterr().out
    segment = {"platform": "cpu", "device_kind": "cpu", "first_step": 1, "last_step": 10}
    segments = [{"versions": VERSIONS, **segment}, {"versions": VERSIONS | {"jax": "0.12.0"}, **segment}]
    write_run(runs / "resumed", rank=4, seed=3, accuracy=0.4, segments=segments)
    assert main(["results", str(runs), *where]) == 0
    assert "These runs were made in different environments (jax 0.10.2, 0.12.0)" in capsys.readouterr().out
    assert main(["results", str(runs), "--where", "RANK=1"]) == 0
    assert "different environments" not in capsys.readouterr().out
    assert main(["report", str(runs), "--out", str(tmp_path / "page.html")]) == 0
    assert "These runs were made in different environments" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("argv, words", [
    (["--where", "RNAK=4"], "There is no column called RNAK; did you mean RANK, AdaLinkAdapter.rank"),
    (["--group", "RANDOM_SEEDS"], "There is no column called RANDOM_SEEDS; did you mean RANDOM_SEED"),
    (["--group", "xyz"], "There is no column called xyz; there are, for example, RANK, RANDOM_SEED"),
    (["--where", "RANK"], "--where takes NAME=VALUE"),
    (["--group", "accuracy"], "Several columns are called accuracy"),
    (["--out", "table.xlsx"], "must end in .csv or .parquet"),
    (["--where", "RANK=8", "--group", "RANK"], "No run is finished"),
    (["--where", "RANK=5"], "No run has RANK=5"),
])  # fmt: skip
def test_invalid_arguments_are_refused_in_one_sentence(runs, capsys, argv, words):
    assert main(["results", str(runs), *argv]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


def test_a_folder_without_runs_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="There is no run in"):
            results.collect(str(folder))


CONFIG = """import adalink_jax.training.run

# Macros:
# ==============================================================================
INPUTS = '# Parameters for {{text}}'
KINDS = ('text',)
MODEL_DIR = 'runs/{0}'
OPTIMIZER = @adamw()
RANK = {1}

# Parameters for AdaLinkAdapter:
# ==============================================================================
AdaLinkAdapter.rank = %RANK
"""


def test_macros_are_columns_as_the_user_set_them(tmp_path, capsys):
    for i, rank in enumerate((1, 1, 4)):
        write_run(tmp_path / f"r{i}", rank=rank, seed=i, accuracy=0.1, sweep=False)
        (tmp_path / f"r{i}" / "config.gin").write_text(CONFIG.format(i, rank))
    table = results.collect(str(tmp_path))
    row = rows(table)["r2"]
    assert row["RANK"] == row["AdaLinkAdapter.rank"] == 4 and "MODEL_DIR" not in row
    assert (row["INPUTS"], row["KINDS"], row["OPTIMIZER"]) == ("# Parameters for {text}", "('text',)", "@adamw()")
    assert table.differing() == ["RANK", "DatasetConfig.seed"]
    (tmp_path / "started").mkdir()
    (tmp_path / "started" / "config.gin").write_text(CONFIG.format(3, 8))  # its settings are not known yet
    assert results.collect(str(tmp_path)).differing() == ["RANK", "DatasetConfig.seed"]
    assert main(["results", str(tmp_path), "--group", "RANK"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [re.findall(r"[\d.]+", line)[:2] for line in lines if line.startswith("│")] == [["1", "2"], ["4", "1"]]
    write_run(tmp_path / "r3", rank=4, seed=3, accuracy=0.1, sweep=False, step=0, scores_are_of="the frozen base")
    assert main(["results", str(tmp_path)]) == 0
    assert "so the scores of r3 are those of the frozen base." in capsys.readouterr().out
    (tmp_path / "r2" / "config.gin").write_text("RANK = (")
    assert rows(results.collect(str(tmp_path)))["r2"]["state"] == "damaged"


def test_what_is_equal_or_does_not_fit_is_named_below_the_table(runs, monkeypatch, capsys):
    from adalink_jax import terminal
    from adalink_jax.cli import results_command

    def printed(width, *more):
        monkeypatch.setattr(results_command, "table_console", lambda: terminal.console(width=width))
        assert main(["results", str(runs), *more]) == 0
        out = capsys.readouterr().out
        heading = next(line for line in out.splitlines() if line.startswith("┃"))
        assert max(map(len, [line for line in out.splitlines() if line[0] in "┃│"])) <= width
        return re.findall(r"[^\s┃]+", heading), out

    done = ("--where", "state=done")
    names, out = printed(1000, *done)
    assert names == ["run", "RANK", "RANDOM_SEED", "validation/accuracy", "test/accuracy", "trained"]
    assert "Equal in all rows: state done, frozen/accuracy 0.0000, step 8, steps 10, seconds 2.5" in out
    assert "Too wide" not in out
    names, out = printed(80, *done)
    assert names == ["run", "RANK", "RANDOM_SEED", "validation/accuracy", "test/accuracy"]
    assert "Too wide for this terminal: trained; --out FILE.csv writes all columns." in out
    names, out = printed(20, *done)
    assert names == ["run"] and "RANK, RANDOM_SEED, validation/accuracy, test/accuracy, trained; --out" in out
    assert printed(1000)[0][1] == "state"
    assert "Equal in" not in printed(1000, *done, "RANK=4", "RANDOM_SEED=1")[1]
