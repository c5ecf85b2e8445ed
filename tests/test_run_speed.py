"""What a run reports of its speed: phases until the first step, goodput over restarts, values of each step, traces on request."""

import json
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from adalink_jax import timings
from adalink_jax.cli.main import main
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


def test_profile_traces_steps_of_a_run_in_progress(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trace_requests, "LOOK_SECONDS", 0.1)
    (tmp_path / "config.gin").write_text("")
    ended, multiply = threading.Event(), jax.jit(lambda x: jnp.sin(x @ x))

    def run():
        with TraceRequests(tmp_path) as requests:
            state = jnp.ones((64, 64))
            while not ended.wait(0.01):
                requests.before_step(state)
                state = multiply(state)

    run = threading.Thread(target=run)
    run.start()
    try:
        assert main(["profile", str(tmp_path), "--steps=3", "--json", "--wait=60"]) == 0
    finally:
        ended.set()
        run.join()
    found = json.loads(capsys.readouterr().out)
    assert {operation["times"] for operation in found["operations"]} & {3, 6}
    assert sum(operation["share"] for operation in found["operations"]) == pytest.approx(1)
    assert found["collectives"] == 0 and found["files"] == 1
    assert main(["profile", found["folder"]]) == 0  # the same trace again
    assert "collectives: 0.0%" in capsys.readouterr().out


def test_profile_names_a_folder_without_a_run(tmp_path, capsys):
    assert main(["profile", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
