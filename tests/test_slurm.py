"""Batch scripts on a real one-node Slurm, which `start_slurm.sh` starts. Needs Debian's slurm-wlm and munge, and root."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import pytest
from launch_cases import SWEEP, topology

from adalink_jax.cli.main import main
from adalink_jax.launching import control, record

ROOT = pathlib.Path(__file__).parent.parent
START = ROOT / "tests" / "start_slurm.sh"
_PATH = f"{os.environ['PATH']}{os.pathsep}/usr/sbin"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(shutil.which(name, path=_PATH) for name in ("slurmctld", "slurmd", "munged")) or os.geteuid() != 0,
        reason="slurm-wlm and munge are not installed, or this is not root",
    ),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The configuration of a running Slurm."""
    folder = tmp_path_factory.mktemp("slurm")
    try:
        subprocess.run(["bash", START, folder], check=True)
        yield folder / "slurm.conf"
    finally:
        subprocess.run(["bash", START, folder, "stop"], check=True)


@pytest.fixture
def place(slurm, tmp_path, monkeypatch):
    """The current folder, from which jobs are submitted."""
    monkeypatch.setenv("SLURM_CONF", str(slurm))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def adalink(place, body: str) -> str:
    """A flag for SETUP that makes the command `adalink` run this Bash program."""
    (place / "bin").mkdir()
    (place / "bin" / "adalink").write_text(f"#!/bin/bash\n{body}\n")
    (place / "bin" / "adalink").chmod(0o755)
    return f"--gin.SETUP=('export PATH={place}/bin:$PATH',)"


def wait_for(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def states() -> dict[str, str]:
    """Job, or element of an array -> its state, by `squeue`."""
    done = subprocess.run(
        ["squeue", "--all", "--noheader", "--array", "--states=all", "--format=%i %T"],
        stdout=subprocess.PIPE,
        text=True,
    )
    return dict(line.split() for line in done.stdout.splitlines())


def start_now(job: str) -> bool:
    """Starts a requeued job, which Slurm would hold for two minutes; whether there was one."""
    if states().get(job) != "PENDING":
        return False
    time.sleep(3)  # the two minutes are for the end of the script that requeued it
    return (
        subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], stderr=subprocess.DEVNULL).returncode
        == 0
    )


def test_two_tasks_train(place):
    pytest.importorskip("seqio")
    from test_hosts import TASK, flags

    (place / "few_digits.py").write_text(TASK)
    setup = adalink(place, f'exec {sys.executable} -m adalink_jax "$@"')
    os.environ["PYTHONPATH"] = str(ROOT)  # Slurm passes on the environment of the submission
    mine = flags("run", TRAIN_STEPS=2, EVAL_PERIOD=0, WARMUP_STEPS=1)
    try:
        assert main(["launch", "slurm", topology("cpu:2"), setup, "--submit", "--", "quickstart", *mine]) == 0
    finally:
        del os.environ["PYTHONPATH"]
    job = record.read("run").submitted.id
    wait_for(lambda: states()[job] not in ("PENDING", "RUNNING", "COMPLETING"), 500)
    log = (place / "runs" / "launch" / "run" / f"{job}.log").read_text()
    assert states()[job] == "COMPLETED", log[-3000:]
    assert json.loads((place / "run" / "summary.json").read_text())["steps"] == 2
    assert main(["launch", "logs", "run"]) == main(["launch", "status", "run"]) == 0


def test_only_the_element_that_was_stopped_is_requeued(place):
    setup = adalink(
        place,
        """
        echo "$ADALINK_ARRAY_INDEX" >>started
        if [ "$ADALINK_ARRAY_INDEX" = 1 ] && [ ! -e stopped ]; then
          trap 'touch stopped; exit 75' USR1
          touch waiting
          while true; do sleep 0.2; done
        fi
        [ "$ADALINK_ARRAY_INDEX" != 2 ] || exit 3""",
    )
    options = ["slurm", topology("cpu:1"), "--array", "3", "--name", "sweep", setup, "--submit"]
    assert main(["launch", *options, "--", *SWEEP]) == 0
    job = record.read("sweep").submitted.id
    wait_for((place / "waiting").exists, 60)
    subprocess.run(["scancel", "--signal=USR1", f"{job}_1"], check=True)
    wait_for((place / "stopped").exists, 60)
    wait_for(lambda: start_now(f"{job}_1"), 60)
    wait_for(lambda: {states().get(f"{job}_{i}") for i in range(3)} <= {"COMPLETED", "FAILED"}, 60)
    assert sorted((place / "started").read_text().split()) == ["0", "1", "1", "2"]
    assert [states()[f"{job}_{i}"] for i in range(3)] == ["COMPLETED", "COMPLETED", "FAILED"]


def test_a_job_follows_its_canary_only_if_that_succeeds(place, monkeypatch, capfd):
    monkeypatch.setattr(control, "WAIT_SECONDS", 0.5)
    setup = adalink(place, 'echo "$*" >>ran; case "$*" in *canary_*) [ ! -e fails ] || exit 3 ;; esac')
    train = ["train", "--gin_file=gin/runs/quickstart.gin", "--gin.MODEL_DIR='runs/small'"]
    options = ["slurm", topology("cpu:1"), "--canary", setup, "--submit", "--"]
    (place / "fails").touch()
    assert main(["launch", *options, *train]) == 1
    assert re.search(
        r"The canary small-canary-[\d-]+ ended as FAILED, so small was not submitted", capfd.readouterr().err
    )
    assert not record.read("small").submitted
    (place / "fails").unlink()
    time.sleep(1)  # the next canary has another name
    assert main(["launch", *options, *train]) == 0
    job = record.read("small").submitted.id
    wait_for(lambda: states()[job] == "COMPLETED", 60)
    assert ["canary_" in line for line in (place / "ran").read_text().splitlines()] == [True, True, False]


def test_a_sweep_as_an_array_resumes_a_run_that_was_killed_and_requeued(place, monkeypatch):
    pytest.importorskip("seqio")
    from adalink_jax.reports import results

    setup = adalink(place, f'exec {sys.executable} -m adalink_jax "$@"')
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    few = {"MODEL_DIR": "runs/small", "TRIED_RANKS": (1,), "TRIED_RATES": (0.01,), "TRIED_SEEDS": (0, 1), "TRAIN_STEPS": 300,
           "CHECKPOINT_PERIOD": 5, "EVAL_PERIOD": 0}  # fmt: skip
    sweep = [
        "sweep",
        "--gin_file=gin/sweeps/digits_small.gin",
        *(f"--gin.{name}={value!r}" for name, value in few.items()),
    ]
    options = ["slurm", topology("cpu:1"), "--array", "2", "--name", "small", setup, "--submit"]
    assert main(["launch", *options, "--", *sweep, "--element"]) == 0
    job = record.read("small").submitted.id
    killed = place / "runs" / "small" / "rank_1_lr_0.01_seed_1"
    saved = lambda: any(path.name.isdigit() for path in (killed / "checkpoints").glob("*"))
    wait_for(saved, 300)
    subprocess.run(["scontrol", "requeue", f"{job}_1"], check=True)
    wait_for(lambda: start_now(f"{job}_1"), 60)
    wait_for(lambda: {states().get(f"{job}_{i}") for i in range(2)} <= {"COMPLETED", "FAILED"}, 600)
    assert [states()[f"{job}_{i}"] for i in range(2)] == ["COMPLETED", "COMPLETED"]
    rows = results.collect("runs/small").table.to_pylist()
    assert [(row["state"], row["steps"], row["RANDOM_SEED"]) for row in rows] == [("done", 300, 0), ("done", 300, 1)]
    starts = [json.loads(line)["what"] for line in (killed / "attempts.jsonl").read_text().splitlines()].count("start")
    assert starts == 2
    log = (place / "runs" / "launch" / "small" / f"{job}_1.log").read_text()
    assert "Resuming from step" in log


def test_a_job_is_requeued_when_its_first_task_to_end_has_status_75(place):
    setup = adalink(
        place, 'echo x >>"started_$SLURM_PROCID"; [ -e again ] || { sleep "$SLURM_PROCID"; touch again; exit 75; }'
    )
    assert main(["launch", "slurm", topology("cpu:2"), "--name", "two", setup, "--submit", "--", "eval"]) == 0
    job = record.read("two").submitted.id
    wait_for((place / "again").exists, 60)
    wait_for(lambda: start_now(job), 60)
    wait_for(lambda: states()[job] in ("COMPLETED", "FAILED"), 60)
    assert states()[job] == "COMPLETED"
    assert [(place / f"started_{i}").read_text().count("x") for i in (0, 1)] == [2, 2]


def test_a_cancelled_job_saves_and_is_not_requeued(place):
    setup = adalink(place, "trap 'touch saved; exit 75' TERM; touch waiting; while true; do sleep 0.2; done")
    assert main(["launch", "slurm", topology("cpu:1"), "--name", "one", setup, "--submit", "--", "eval"]) == 0
    job = record.read("one").submitted.id
    wait_for((place / "waiting").exists, 60)
    assert main(["launch", "cancel", "one"]) == 0
    wait_for(lambda: states().get(job) not in ("RUNNING", "COMPLETING"), 60)
    assert states().get(job) == "CANCELLED" and (place / "saved").exists()


def test_a_job_saves_before_its_time_limit(place):
    setup = adalink(place, "trap 'touch saved; exit 3' USR1; while true; do sleep 0.2; done")
    limits = ["--gin.TIME='2'", "--gin.SIGNAL_SECONDS=110"]
    assert main(["launch", "slurm", topology("cpu:1"), "--name", "time", setup, *limits, "--submit", "--", "eval"]) == 0
    job = record.read("time").submitted.id
    wait_for(lambda: states()[job] not in ("PENDING", "RUNNING", "COMPLETING"), 140)
    assert states()[job] == "FAILED" and (place / "saved").exists()  # not TIMEOUT
