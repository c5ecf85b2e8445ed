"""When a run saves: every so many steps, and every so many seconds by the clock of process 0.

Invariant: all processes save after the same step. Process 0 says that a save is due with the number that the processes exchange before
each step anyway (`interrupt.StopRequest`), so the clock costs no message of its own.
"""

import math
import time
from collections.abc import Callable

from adalink_jax import parallel
from adalink_jax.training.interrupt import StopRequest
from adalink_jax.training.loop import Action, OnRequest, Period
from adalink_jax.training.run_checkpoints import CheckpointConfig
from adalink_jax.training.step import TrainState

SHARE = 0.01  # of the time, at most, that saves by the clock hold the steps up


class SaveClock:
    """The actions of a training loop that save, and what it asks before each step.

    Where a save holds the steps up for long, as that of a large trainable state does, the clock waits longer than
    `CheckpointConfig.every_seconds` for the next one, so that they take `SHARE` of the time. The first save of a process, which compiles,
    is not counted.

    Args:
      checkpoints: when to save.
      stop: on which the processes agree before each step.
    """

    def __init__(self, checkpoints: CheckpointConfig, stop: StopRequest):
        self._period, self._every, self._stop = checkpoints.period, checkpoints.every_seconds, stop
        self._due_at, self._saved_step = math.inf, -1

    def before_step(self) -> bool:
        """Whether a stop was requested; called before each step. Asks for a save if one is due."""
        now = time.monotonic()
        if self._every is not None and math.isinf(self._due_at):
            self._due_at = now + self._every  # the first step
        due = parallel.is_first() and now >= self._due_at
        if due:
            self._wait_from(now)
        return self._stop.before_step(save=due)

    def actions(self, save: Callable[[TrainState], None]) -> list[Action]:
        """`save` after every `CheckpointConfig.period` steps and after the last one, and when process 0's clock says so."""

        def timed(state: TrainState) -> None:
            step, first = int(state.step), self._saved_step < 0
            if step == self._saved_step:  # due by the steps and by the clock
                return
            begin = time.monotonic()
            save(state)
            end = time.monotonic()
            self._saved_step = step
            self._wait_from(end, 0.0 if first else end - begin)

        return [Period(self._period, timed), OnRequest(self._stop.save_requested, timed)]

    def _wait_from(self, now: float, held_up: float = 0.0) -> None:
        if self._every is not None:
            self._due_at = now + max(self._every, held_up / SHARE)
