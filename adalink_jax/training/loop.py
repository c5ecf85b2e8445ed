"""The training loop. It takes an iterator of batches and callables, and depends on no task, file format or data library.

Invariant: a step uploads its batch and downloads its metrics, both explicitly; any other transfer inside a step is an error
(`jax.transfer_guard`).
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from adalink_jax import parallel, timings
from adalink_jax.data import BatchIterator
from adalink_jax.errors import NotFinite
from adalink_jax.training.partition import Leaves
from adalink_jax.training.step import TrainState
from adalink_jax.training.watchdog import Watchdog

Step = Callable[[TrainState, Leaves, Leaves], tuple[TrainState, dict[str, jax.Array]]]


class StepNotFinite(NotFinite):
    """The loss or the gradient of a step was not finite.

    Attributes:
      step: its number.
      state: the state after the steps that were dispatched until this was known (`not_finite.holding` keeps that before the step).
      batch: of the step, on the devices.
      of_members: the same sentence for each member of a pack.
    """

    def __init__(self, what: str, step: int, state: TrainState, batch: Leaves, of_members: Sequence[str] = ()):
        super().__init__(f"The {what}.")
        self.step, self.state, self.batch, self.of_members = step, state, batch, of_members


def failures(step: int, metrics: Mapping[str, Any]) -> list[str | None]:
    """What of a step was not finite, in words, for each member of a pack or the one of a run; None where loss and gradient were finite."""
    losses = np.atleast_1d(metrics["loss"])
    norms = np.broadcast_to(metrics.get("grad_norm", 0.0), losses.shape)
    of_gradient = lambda norm: None if np.isfinite(norm) else f"gradient of step {step} has the norm {norm}"
    return [
        of_gradient(norm) if np.isfinite(loss) else f"loss of step {step} is {loss}"
        for loss, norm in zip(losses, norms)
    ]


@dataclasses.dataclass(frozen=True)
class Period:
    """An action after every `every`-th step and after the last one (0: after the last one only)."""

    every: int
    action: Callable[[TrainState], None]

    def due(self, step: int, total: int) -> bool:
        """Whether the action follows step `step` of `total`."""
        return step == total or (self.every > 0 and step % self.every == 0)


@dataclasses.dataclass(frozen=True)
class OnRequest:
    """An action after a step when it is asked for; in all processes of a job after the same step."""

    asked: Callable[[], bool]
    action: Callable[[TrainState], None]

    def due(self, step: int, total: int) -> bool:
        """Whether the action was asked for since the last call."""
        return self.asked()


Action = Period | OnRequest


def run_loop(
    train_step: Step,
    state: TrainState,
    frozen: Leaves,
    batches: BatchIterator,
    *,
    mesh: Mesh,
    total_steps: int,
    on_metrics: Callable[[int, dict[str, Any], float], Any],
    after_steps: Sequence[Action],
    stop: Callable[[], bool] = lambda: False,
    profile: tuple[int, int] | None = None,
    profile_dir: str = "",
    watchdog: Watchdog | None = None,
    before_step: Callable[[TrainState], None] = lambda state: None,
) -> TrainState:
    """Trains from `state.step` to `total_steps`.

    The device works one step ahead: a step's metrics are read after the next step was dispatched. They are always read before
    any action of `after_steps`, so nothing is saved after a loss that is not finite.

    To each step's metrics the loop adds `input_wait`, the share of its time in which the loop waited for a batch: an upper bound of
    what the step lost by it, as the device may be busy with the step before meanwhile.

    Args:
      train_step: compiled `(state, frozen, batch) -> (state, metrics)`; the state is donated.
      state: the state to start from, on the mesh.
      frozen: the frozen leaves by name, passed to each step unchanged.
      batches: at the position that belongs to `state`; it yields this process's rows (`parallel.local_rows`).
      mesh: where batches go.
      total_steps: the last step.
      on_metrics: called for each step with `(step, metrics, examples per second)`; a pack's metrics are arrays [A].
      after_steps: actions after steps, in this order.
      stop: asked before each step; True ends the loop early, with the state of the last complete step.
      profile: `(first, last)` steps of a profiler trace.
      profile_dir: folder of the trace.
      watchdog: reports a step that hangs; None makes one.
      before_step: called before each step with the state so far (`trace_requests`).

    Returns:
      The state of the last step.

    Raises:
      StepNotFinite: names the first step whose loss or gradient (for a pack: every member's) is not finite.
      JaxRuntimeError: for a step that transfers data implicitly.
    """
    step = int(state.step)
    pending, mark, waited = None, time.perf_counter(), 0.0

    def read_pending() -> None:
        nonlocal pending, mark, waited
        if pending is None:
            return
        pending_step, batch, metrics = pending
        pending = None
        metrics = {name: value if value.ndim else float(value) for name, value in jax.device_get(metrics).items()}
        failed = [what for what in failures(pending_step, metrics) if what is not None]
        if len(failed) == np.size(metrics["loss"]):  # a pack continues while a member's are finite
            raise StepNotFinite(failed[0], pending_step, state, batch, failed)
        now = time.perf_counter()
        seconds, examples = now - mark, float(np.max(metrics.get("examples", len(next(iter(batch.values()))))))
        on_metrics(pending_step, metrics | {"input_wait": waited / seconds}, examples / seconds)
        mark, waited = now, 0.0

    first_traced, last_traced = profile or (0, 0)
    with watchdog or Watchdog() as watchdog, contextlib.ExitStack() as trace:  # at the latest it ends with the loop
        while step < total_steps and not stop():
            before_step(state)
            watchdog.begins(step + 1)
            if step + 1 == first_traced:
                trace.enter_context(jax.profiler.trace(profile_dir))
            asked = time.perf_counter()
            with timings.phase("batch"):
                batch = next(batches)
            waited += time.perf_counter() - asked
            batch = parallel.put_batch(batch, mesh)
            with jax.transfer_guard("disallow"), timings.phase("step"):  # of this thread; others have their own guard
                state, metrics = parallel.settle(train_step(state, frozen, batch))
                step += 1
                read_pending()
            pending = (step, batch, metrics)
            if step == last_traced:
                jax.block_until_ready(state)
                trace.close()
            due = [action for action in after_steps if action.due(step, total_steps)]
            if due:
                read_pending()
                watchdog.rests()
                for action in due:
                    action.action(state)
                mark = time.perf_counter()
    read_pending()
    return state
