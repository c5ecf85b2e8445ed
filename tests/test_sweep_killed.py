"""Sweeps whose processes are killed or stopped at any point: no run is lost, made twice or mixed up."""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from sweep_cases import FEW, arguments, starts
from sweep_program import RUNS

from adalink_jax.experiments.sweeps.run_folder import RunFolder

pytest.importorskip("seqio")

PROGRAM = pathlib.Path(__file__).parent / "sweep_program.py"
HERE = os.environ | {"PYTHONPATH": str(PROGRAM.parent.parent)}


def wait_for(condition, process, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def begin(command, **options):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | options
    return subprocess.Popen(command, text=True, **{"env": HERE} | options)


def interrupted(command, folder, runs, kills, seconds, with_children=False):
    """Restarts `command` after each SIGKILL until it ends; checks that finished runs stay unchanged."""

    finished = lambda: {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/summary.json")}
    at_work = lambda: [path for name in ("before.json", "steps.txt") for path in folder.glob(f"*/{name}")]
    under_way = lambda: {path.parent.name for path in at_work()} - finished().keys()
    process, before = begin(command), {}
    for i in range(kills):
        enough = runs * (i + 1) // (kills + 1)
        wait_for(lambda n=enough: len(finished()) >= n and under_way(), process, seconds)
        process.kill()
        process.communicate()
        if with_children and i % 2:
            for path in folder.glob("*/attempts.jsonl"):
                last = json.loads(path.read_text().splitlines()[-1])
                if last["what"] == "start" and not (path.parent / "summary.json").exists():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(last["pid"], signal.SIGKILL)
        now, count = finished(), starts(folder)
        assert len(now) < runs, "killed too late to mean anything"
        before |= {name: (when, count[name]) for name, when in now.items() if name not in before}
        process = begin(command)
    out, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, out
    after, count = finished(), starts(folder)
    assert len(after) == runs and len(count) == runs
    assert before and {name: (after[name], count[name]) for name in before} == before  # not touched again
    return count


@pytest.mark.slow
def test_24_runs_killed_three_times_are_each_made_once(tmp_path):
    folder = tmp_path / "sweep"
    count = interrupted(
        [sys.executable, str(PROGRAM), str(folder)], folder, RUNS, kills=3, seconds=240, with_children=True
    )
    assert sum(count.values()) <= RUNS + 3 * 4  # what was killed was started again
    assert {(folder / name / "steps.txt").read_text() for name in count} == {"012"}


def test_two_sweeps_at_once_make_each_run_once(tmp_path):
    folder = tmp_path / "sweep"
    command = [sys.executable, str(PROGRAM), str(folder)]
    both = [begin(command) for _ in range(2)]
    for process in both:
        out, _ = process.communicate(timeout=240)
        assert process.returncode == 0, out
    assert list(starts(folder).values()) == [1] * RUNS
    assert {path.read_text() for path in folder.glob("*/steps.txt")} == {"012"}


def test_the_runs_of_a_killed_sweep_end(tmp_path, monkeypatch):
    folder = tmp_path / "sweep"
    monkeypatch.setitem(HERE, "STEP_SECONDS", "600")
    process = begin([sys.executable, str(PROGRAM), str(folder)])
    wait_for(lambda: len(starts(folder)) == 4, process, 120)
    runs = [RunFolder(str(path.parent), {}, {}, 3) for path in folder.glob("*/lock")]
    assert all(run.taken() for run in runs)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    while any(run.taken() for run in runs):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_stopped_sweep_stops_its_runs_and_resumes(tmp_path):
    folder = tmp_path / "sweep"
    command = [sys.executable, str(PROGRAM), str(folder)]
    process = begin(command, stderr=subprocess.PIPE)
    made = lambda: len(list(folder.glob("*/summary.json")))
    wait_for(lambda: made() >= 4 and len(starts(folder)) >= made() + 2, process, 120)  # and some are in their midst
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "Preempted" in err  # `adalink` makes one sentence of it, and status 75
    counted = [int(count) for count in re.findall(r"(\d+) of 24 done", out)]
    assert counted and all(count <= made() for count in counted)  # one that was stopped is not done
    for path in folder.glob("*/lock"):
        assert not RunFolder(str(path.parent), {}, {}, 3).taken()
    assert len(list(folder.glob("*/summary.json"))) < RUNS
    process = begin(command)
    assert process.communicate(timeout=240) and process.returncode == 0
    assert {path.read_text() for path in folder.glob("*/steps.txt")} == {"012"}


def test_a_sweep_that_has_used_its_chip_hours_saves_ends_and_resumes(tmp_path):
    folder = tmp_path / "sweep"
    command = [sys.executable, str(PROGRAM), str(folder)]
    made = lambda: len(list(folder.glob("*/summary.json")))
    for _ in range(2):  # the second finds them used
        process = begin(command, env=HERE | {"CHIP_HOURS": "1.5"})
        out, _ = process.communicate(timeout=240)
        assert process.returncode == 1 and "of Sweep.max_chip_hours = 1.5; its runs have saved. Raise it" in out
        assert made() < RUNS and not any(RunFolder(str(x.parent), {}, {}, 3).taken() for x in folder.glob("*/lock"))
    process = begin(command, env=HERE | {"CHIP_HOURS": "10000"})
    process.communicate(timeout=240)
    assert process.returncode == 0 and made() == RUNS
    assert {path.read_text() for path in folder.glob("*/steps.txt")} == {"012"}
    ended = subprocess.run(command, env=HERE | {"CHIP_HOURS": "1.5"}, capture_output=True)
    assert ended.returncode == 0  # nothing is left to make


def of_digits(folder, **macros):
    return [sys.executable, "-m", "adalink_jax", *arguments(folder, "--run", **macros)]


@pytest.mark.slow
def test_a_small_sweep_killed_once(tmp_path):
    folder = tmp_path / "sweep"
    few = FEW | {"TRIED_SEEDS": (0, 1, 2)}
    count = interrupted(of_digits(folder, **few), folder, 3, kills=1, seconds=1200)
    assert sum(count.values()) <= 3 + 1
    assert {json.loads(path.read_text())["steps"] for path in folder.glob("*/summary.json")} == {4}


@pytest.mark.slow
def test_the_whole_sweep_killed_three_times(tmp_path):
    folder = tmp_path / "sweep"
    command = [*of_digits(folder, TRAIN_STEPS=4, CHECKPOINT_PERIOD=2, EVAL_PERIOD=0, BATCH_SIZE=125), "--parallel", "2"]
    count = interrupted(command, folder, 48, kills=3, seconds=7200, with_children=True)
    assert sum(count.values()) <= 48 + 3 * 2
    assert {json.loads(path.read_text())["steps"] for path in folder.glob("*/summary.json")} == {4}
