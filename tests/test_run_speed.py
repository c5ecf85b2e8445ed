"""What a run reports of its speed: phases until the first step, goodput over restarts, values of each step, traces on request."""

import contextlib
import json
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from adalink_jax import timings
from adalink_jax.cli.main import main
from adalink_jax.files import locks
from adalink_jax.files.places import path_of
from adalink_jax.parallel.accelerators import ACCELERATORS
from adalink_jax.training import speed, trace_requests
from adalink_jax.training.step import grad_norms
from adalink_jax.training.trace_requests import TraceRequests


def test_the_time_to_the_first_step_is_divided_into_phases(tmp_path, monkeypatch):
    monkeypatch.setattr(speed.RunStart, "_process_begins", False)
    start = speed.RunStart()
    with timings.phase("parameters"):
        time.sleep(0.05)
        with timings.phase(timings.COMPILING[-1]):
            time.sleep(0.1)
    with timings.phase("batch"):
        time.sleep(0.02)
    time.sleep(0.03)
    text = start.record(tmp_path, 7)
    row = json.loads((tmp_path / "starts.jsonl").read_text())
    assert row["step"] == 7 and row["time_to_first_step"] == pytest.approx(sum(row["phases"].values()), abs=0.01)
    for name, seconds in {"base": 0.05, "compile": 0.1, "first batch": 0.02, "start": 0.03, "evaluation": 0}.items():
        assert seconds <= row["phases"][name] + 1e-3 < seconds + 0.04, name
    assert text.startswith("time to first step: 0.2 s (")


def test_goodput_counts_the_time_of_all_starts(tmp_path):
    assert speed.goodput(tmp_path, 10, [1.0]) == {}
    rows = [{"step": 1, "began": time.time() - 100}, {"step": 21, "began": time.time() - 50}]
    (tmp_path / "starts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = speed.goodput(tmp_path, 40, [9.0, 1.0, 1.0])
    assert found["goodput"] == pytest.approx(0.4, abs=0.01) and found["restarts"] == 1


@pytest.mark.parametrize("name", ["v5e", "tpu7x"])  # one device a chip, and two
def test_a_step_says_its_tokens_and_the_share_of_the_peak(monkeypatch, name):
    assert speed.measured(0.5, {"tokens": 100.0}, 10)["timing/target_tokens_per_second"] == 200
    chip = ACCELERATORS[name]
    monkeypatch.setattr(speed, "accelerator_of", lambda kind: chip)
    flops = int(chip.peak_flops) * jax.device_count() // 4
    assert speed.measured(0.5, {"tokens": 1.0}, flops)["timing/mfu"] == pytest.approx(0.5)


def test_the_gradient_has_a_norm_for_each_part():
    grads = {
        "adapter/text/up": jnp.full(4, 3.0),
        "adapter/text/down": jnp.full(4, 4.0),
        "adapter/image/up": jnp.ones(9),
    }
    assert grad_norms(grads) == {"grad_norm/adapter/text": 10, "grad_norm/adapter/image": 3}
    assert grad_norms({"adapter/text/up": jnp.ones(4)}) == {}


@pytest.fixture
def training(tmp_path, monkeypatch):
    """`with training() as model_dir`: a run whose loop ends with the context."""
    monkeypatch.setattr(trace_requests, "LOOK_SECONDS", 0.1)
    (tmp_path / "config.gin").write_text("")
    multiply = jax.jit(lambda x: jnp.sin(x @ x))

    @contextlib.contextmanager
    def started():
        ended = threading.Event()

        def run():
            with locks.hold_folder(path_of(str(tmp_path))), TraceRequests(path_of(str(tmp_path))) as requests:
                state = jnp.ones((64, 64))
                while not ended.wait(0.01):
                    requests.before_step(state)
                    state = multiply(state)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield tmp_path
        finally:
            ended.set()
            thread.join()

    return started


def test_profile_traces_steps_of_a_run_in_progress(training, capsys):
    with training() as model_dir:
        (model_dir / "summary.json").write_text("{}")  # of the steps that it has been continued from
        assert main(["profile", str(model_dir), "--steps=3", "--json", "--wait=60"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {operation["times"] for operation in found["operations"]} & {3, 6}
    assert sum(operation["share"] for operation in found["operations"]) == pytest.approx(1)
    assert found["collectives"] == 0 and found["files"] == 1 and found["missing"] == []
    assert main(["profile", found["folder"]]) == 0  # the same trace again
    assert "collectives: 0.0%" in capsys.readouterr().out


def test_profile_summarises_what_is_there_when_a_run_ends_between_the_answers(training, monkeypatch, capsys):
    """Process 0 traces on; the steps of process 1 end before it begins, and say so."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: int(threading.current_thread().name == "process 1"))

    def end_without_a_trace():
        with TraceRequests(path_of(str(model_dir))):
            while not (model_dir / trace_requests.FOLDER / trace_requests.REQUEST).exists():
                time.sleep(0.01)

    with training() as model_dir:
        other, begun = threading.Thread(target=end_without_a_trace, name="process 1"), time.monotonic()
        other.start()
        assert main(["profile", str(model_dir), "--steps=3", "--json", "--wait=60"]) == 0
        other.join()
    assert time.monotonic() - begun < 30
    found = json.loads(capsys.readouterr().out)
    assert found["files"] == 1 and found["missing"] == [1]
    assert main(["profile", found["folder"]]) == 0
    assert "missing: process 1, without a trace" in capsys.readouterr().out


def test_profile_ends_with_a_run_that_was_killed(training, monkeypatch, capsys):
    """Process 0 has written its trace, and the job is killed before the other does: nobody leaves a note."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with training() as model_dir:
        statuses, begun = [], time.monotonic()
        profile = ["profile", str(model_dir), "--steps=2", "--wait=60"]
        asked = threading.Thread(target=lambda: statuses.append(main(profile)))
        asked.start()
        while not list(model_dir.glob("profile/*/done_0.txt")):
            time.sleep(0.05)
        assert asked.is_alive()  # the other process may still answer
    asked.join()
    assert statuses == [0] and time.monotonic() - begun < 30
    assert "missing: process 1" in capsys.readouterr().out


def test_profile_waits_for_a_run_whose_lock_is_not_seen(training, monkeypatch, capsys):
    """As on NFS whose locks each machine keeps to itself, or in a bucket whose clock is ahead."""
    monkeypatch.setattr(locks, "is_held", lambda path: False)
    with training() as model_dir:
        assert main(["profile", str(model_dir), "--steps=2", "--json", "--wait=60"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["files"] == 1 and f"Nobody seems to train in {model_dir}; waiting 60 s" in shown.err


def test_profile_of_a_run_that_has_ended_waits_for_nothing(training, capsys):
    with training() as model_dir:
        pass
    (model_dir / "summary.json").write_text("{}")
    begun = time.monotonic()
    assert main(["profile", str(model_dir), "--wait=60"]) == 2
    assert "has ended its steps without a trace" in capsys.readouterr().err and time.monotonic() - begun < 10


def test_profile_names_a_folder_without_a_run(tmp_path, capsys):
    assert main(["profile", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
