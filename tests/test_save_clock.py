"""Saves by the clock: how far apart they are. That a run which they saved resumes with the same bits: test_run.py, test_hosts.py."""

import types

import pytest

from adalink_jax.training import save_clock
from adalink_jax.training.interrupt import StopRequest
from adalink_jax.training.run_checkpoints import CheckpointConfig
from adalink_jax.training.save_clock import SaveClock


@pytest.mark.parametrize("every, costs, saved", [
    (60.0, 0.1, [7, 14, 21, 28]),  # steps of ten seconds; a save is due before a step, and follows it
    (None, 0.1, [10, 20, 30]),
    (60.0, 1.5, [7, 10, 20, 30]),  # the second one cost a hundredth of 150 s
])  # fmt: skip
def test_saves_by_the_clock_take_a_hundredth_of_the_time(monkeypatch, every, costs, saved):
    now, found = [0.0], []
    monkeypatch.setattr(save_clock.time, "monotonic", lambda: now[0])

    def save(state):
        found.append(int(state.step))
        now[0] += costs

    period = 10 if every is None or costs > 1 else 1000
    with StopRequest() as stop:
        clock = SaveClock(CheckpointConfig(period, 2, every), stop)
        actions = clock.actions(save)
        for step in range(1, 31):
            assert not clock.before_step()
            now[0] += 10
            for action in [action for action in actions if action.due(step, 100)]:
                action.action(types.SimpleNamespace(step=step))
    assert found == saved
