"""Jobs of several processes on this machine: exit status, preemption notices, and a training job."""

import json
import os
import signal
import time

import pytest

from adalink_jax.cli.main import main
from adalink_jax.launching import record
from adalink_jax.launching.supervisor import Supervisor


def supervise(tmp_path, *programs: str, grace: float = 20.0) -> tuple[int, float]:
    """The exit status of a job whose processes are these Bash programs, and its duration in seconds."""
    begin = time.monotonic()
    with Supervisor([["bash", "-c", text] for text in programs], [{}] * len(programs), tmp_path, grace) as processes:
        status = processes.wait()
    assert all(process.poll() is not None for process in processes.processes)
    return status, time.monotonic() - begin


@pytest.mark.parametrize("programs, status", [
    (("exit 0", "exit 0"), 0),
    (("exit 0", "exit 3"), 3),
    (("exit 75", "exit 75"), 75),
    (("trap 'exit 75' TERM; /bin/sleep 60 & wait", "/bin/sleep 0.5; exit 1"), 1),  # the others save, but it failed
    (("/bin/sleep 60", "/bin/sleep 0.5; exit 75"), 75),
    (("kill -KILL $$", "/bin/sleep 60"), 137),
])  # fmt: skip
def test_the_exit_status_of_a_local_job(tmp_path, programs, status):
    found, seconds = supervise(tmp_path, *programs)
    assert found == status and seconds < 15
    assert not list(tmp_path.glob("*.pid"))


def test_a_process_that_ignores_sigterm_is_killed_after_the_grace_period(tmp_path):
    status, seconds = supervise(
        tmp_path, "trap '' TERM; while true; do /bin/sleep 1; done", "/bin/sleep 0.5; exit 4", grace=1.0
    )
    assert status == 4 and 1 < seconds < 15


def test_a_notice_is_forwarded(tmp_path):
    text = "trap 'exit 75' TERM; echo ready; while true; do /bin/sleep 0.1; done"
    young = "echo ready; while true; do /bin/sleep 0.1; done"
    with Supervisor([["bash", "-c", young], ["bash", "-c", text]], [{}] * 2, tmp_path, 20) as processes:
        deadline = time.monotonic() + 30
        while not all((tmp_path / f"process_{i}.log").read_text() for i in (0, 1)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)
        assert processes.wait() == 75
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.slow
def test_a_job_of_two_processes_trains(tmp_path, monkeypatch, capfd):
    pytest.importorskip("seqio")
    from test_hosts import TASK, flags

    monkeypatch.chdir(tmp_path)
    (tmp_path / "few_digits.py").write_text(TASK)
    mine = flags("run", TRAIN_STEPS=2, EVAL_PERIOD=0, WARMUP_STEPS=1)
    assert main(["launch", "local", "--processes", "2", "--submit", "--", "quickstart", *mine]) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 2
    held = record.read("run")
    assert held.submitted and set(held.model_extra["files"]) == {"few_digits.py"}
    capfd.readouterr()
    assert main(["launch", "status", "run"]) == 0
    assert capfd.readouterr().out == "No process of this job is running.\n"
    assert main(["launch", "logs", "run"]) == 0
    assert "best step" in capfd.readouterr().out
