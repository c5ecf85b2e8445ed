"""The watchdog: a stalled data source is reported with stacks, and ends the job if asked; slow saves are not."""

import re
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest

from adalink_jax import parallel
from adalink_jax.errors import Preempted
from adalink_jax.training.loop import Period, run_loop
from adalink_jax.training.step import TrainState
from adalink_jax.training.watchdog import Watchdog

STALL, STEPS = 1.5, 12


class Stalling:
    """Yields one batch again and again, once with a delay."""

    def __init__(self, late):
        self.count, self.late = 0, late

    def __next__(self):
        self.count += 1
        time.sleep(STALL if self.count == self.late else 0.01)
        return {"x": jnp.ones((8, 2))}


def train(late, action=lambda state: None):
    @jax.jit
    def step(state, frozen, batch):
        return TrainState(state.step + 1, state.trainable, ()), {"loss": batch["x"].sum()}

    mesh = parallel.make_mesh()
    with parallel.use_mesh(mesh, parallel.logical_axis_rules()):
        state = parallel.on_mesh(TrainState(jnp.int32(0), {"w": jnp.ones(2)}, ()), mesh)
        run_loop(
            step, state, {}, Stalling(late), mesh=mesh, total_steps=STEPS, on_metrics=lambda *_: None,
            after_steps=[Period(9, action)],
        )  # fmt: skip


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("adalink_jax.training.loop.Watchdog", lambda: Watchdog(least_seconds=0.5))


def test_a_stalled_source_is_reported_with_the_stacks_of_all_threads(quick, capfd):
    train(late=10)
    err = capfd.readouterr().err
    assert re.search(r"The watchdog reports step 10, which has taken \S+ s so far; the median is \S+ s", err)
    assert err.count("The watchdog reports") == 1
    assert "in __next__" in err and "watchdog.py" in err and err.count("hread 0x") >= 2


def test_neither_the_first_step_nor_a_save_is_late(quick, capfd):
    train(late=1, action=lambda state: time.sleep(STALL))
    assert "watchdog" not in capfd.readouterr().err


def test_it_ends_the_job_with_a_restartable_status_if_asked():
    text = """
import sys
sys.path[:0] = ["tests"]
import test_watchdog as t
import adalink_jax.training.loop as loop
loop.Watchdog = lambda: t.Watchdog(least_seconds=0.5, stop=True)
t.train(late=10)
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=120)
    assert done.returncode == Preempted.status, done.stderr
    assert "Stopped by the watchdog at step 10" in done.stderr
