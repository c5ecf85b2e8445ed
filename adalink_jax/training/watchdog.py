"""Reports a training step that takes much longer than the others: the stacks of all threads, in every process of the job.

A step that hangs in one process hangs in all of them, at the next collective, so each process reports its own.
"""

import collections
import dataclasses
import faulthandler
import os
import statistics
import sys
import threading
import time

import gin
import jax

from adalink_jax import preemption
from adalink_jax.errors import Preempted
from adalink_jax.typed_values import PositiveFloat

_KNOWN = 5  # steps, after the first one, which compiles, that are measured before any is judged
_KEPT = 101  # of the newest steps, for their median


@gin.configurable
@dataclasses.dataclass
class Watchdog:
    """A context around a training loop, which calls `begins` and `rests`. It watches steps only, not evaluations or saves.

    Attributes:
      factor: a step is late after this many times the median of the steps before.
      least_seconds: but no earlier than this.
      stop: end the process with status 75, "restart the job", when a step is late; by default it only reports.
    """

    factor: PositiveFloat = 10.0
    least_seconds: PositiveFloat = 60.0
    stop: bool = False

    def __enter__(self) -> "Watchdog":
        self._durations = collections.deque[float](maxlen=_KEPT)
        self._step, self._since, self._reported, self._first = 0, None, -1, True
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._since = None
        self._ended.set()

    def begins(self, step: int) -> None:
        """Says that the loop begins this step."""
        self.rests()
        self._step, self._since = step, time.monotonic()

    def rests(self) -> None:
        """Says that a step's work has ended; what follows until `begins` is not watched."""
        since, self._since = self._since, None
        if since is None:
            return
        if not self._first:
            self._durations.append(time.monotonic() - since)
        self._first = False

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self.least_seconds / 4)):
            step, since = self._step, self._since
            if since is None or len(self._durations) < _KNOWN or self._reported == step:
                continue
            seconds, median = time.monotonic() - since, statistics.median(tuple(self._durations))
            if seconds > max(self.least_seconds, self.factor * median):
                self._reported = step
                self._report(step, seconds, median)

    def _report(self, step: int, seconds: float, median: float) -> None:
        out = sys.__stderr__ or sys.stderr
        which = f" (process {jax.process_index()})" if jax.process_count() > 1 else ""
        late = f"step {step}, which has taken {seconds:.3g} s so far; the median is {median:.3g} s"
        print(f"The watchdog{which} reports {late}. The stacks of all threads:", file=out, flush=True)
        faulthandler.dump_traceback(out, all_threads=True)
        if self.stop and self._since is not None:
            print(preemption.stopped_by(f"the watchdog at {late}"), file=out, flush=True)
            os._exit(Preempted.status)
