"""The training loop. It knows an iterator of batches and callables, and no task, file format or library of data."""

import dataclasses
import time
from collections.abc import Callable

import jax
import numpy as np

from adalink_jax import parallel
from adalink_jax.data import BatchIterator
from adalink_jax.errors import NotFinite
from adalink_jax.training.step import TrainState


@dataclasses.dataclass(frozen=True)
class Period:
    """Something that happens after every `every`-th step and after the last one (0: after the last one only)."""

    every: int
    action: Callable[[TrainState], None]

    def due(self, step: int, total: int) -> bool:
        """Whether it happens after `step` of `total`."""
        return step == total or (self.every > 0 and step % self.every == 0)


def run_loop(
    train_step: Callable,
    state: TrainState,
    frozen: dict,
    batches: BatchIterator,
    *,
    mesh,
    total_steps: int,
    on_metrics: Callable[[int, dict[str, float], float], None],
    after_steps: list[Period],
    stop: Callable[[], bool] = lambda: False,
    profile: tuple[int, int] | None = None,
    profile_dir: str = "",
) -> TrainState:
    """Trains from `state.step` to `total_steps`.

    The device works one step ahead: a step's metrics are read after the next one was dispatched. They are always read
    before anything in `after_steps` happens, so nothing is saved after a loss that is not finite.

    Args:
      train_step: compiled `(state, frozen, batch) -> (state, metrics)`; the state is donated.
      state: where to start.
      frozen: passed to each step, never changed.
      batches: at the position that belongs to `state`; each gives this process's rows (`parallel.local_rows`).
      mesh: where batches go.
      total_steps: the last step.
      on_metrics: called for each step with `(step, metrics, examples per second)`; metrics of a pack are arrays [A].
      after_steps: what else happens, in this order.
      stop: asked before each step; True ends the loop early, with the state of the last whole step.
      profile: `(first, last)` steps of a profiler window.
      profile_dir: where its trace goes.

    Returns:
      The state of the last step made.

    Raises:
      NotFinite: names the first step whose loss (in a pack every member's) is not finite.
    """
    step = int(state.step)
    pending, mark = None, time.perf_counter()

    def read_pending():
        nonlocal pending, mark
        if pending is None:
            return
        at, rows, metrics = pending
        pending = None
        metrics = {name: value if value.ndim else float(value) for name, value in jax.device_get(metrics).items()}
        if not np.isfinite(metrics["loss"]).any():
            raise NotFinite(f"The loss of step {at} is {metrics['loss']}.")
        now = time.perf_counter()
        on_metrics(at, metrics, rows / (now - mark))
        mark = now

    with _Profiler(profile, profile_dir) as profiler:
        while step < total_steps and not stop():
            profiler.before(step + 1)
            batch = parallel.put_batch(next(batches), mesh)
            rows = len(next(iter(batch.values())))
            state, metrics = parallel.settle(train_step(state, frozen, batch))
            step += 1
            read_pending()
            pending = (step, rows, metrics)
            profiler.after(step, state)
            due = [period for period in after_steps if period.due(step, total_steps)]
            if due:
                read_pending()
                for period in due:
                    period.action(state)
                mark = time.perf_counter()
    read_pending()
    return state


class _Profiler:
    """Traces the steps from `window[0]` to `window[1]`, or to the end of the loop."""

    def __init__(self, window: tuple[int, int] | None, folder: str):
        self._window, self._folder, self._tracing = window or (0, 0), folder, False

    def __enter__(self):
        return self

    def before(self, step: int) -> None:
        if step == self._window[0]:
            jax.profiler.start_trace(self._folder)
            self._tracing = True

    def after(self, step: int, state: TrainState) -> None:
        if self._tracing and step == self._window[1]:
            jax.block_until_ready(state)
            self.__exit__()

    def __exit__(self, *_):
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
