"""Requests to stop: Ctrl-C, and preemption notices (SIGTERM, SIGUSR1, SIGUSR2). The run finishes its step, saves, and ends.

A second Ctrl-C stops immediately; a second notice changes nothing, since clusters repeat theirs while a run is saving. Before the
first step there is nothing to save, and a notice ends a command immediately, with exit status 75 (see `preemption`); so does Ctrl-C
in a job of one process before anything is evaluated.

With several processes, a signal to any one of them stops all after the same step.
"""

import signal

import jax

from adalink_jax import parallel, preemption
from adalink_jax.errors import Preempted, Stopped


class Interrupted(Exception):
    """Raised to abandon work because a stop was requested."""


class StopRequest:
    """A context that turns SIGINT and notices into a flag, on which all processes agree (see `parallel.Agreement`)."""

    def __init__(self) -> None:
        self._signal = self._known = self._asked = 0
        self._begun = False
        self._agreement = parallel.Agreement()

    def __enter__(self) -> "StopRequest":
        self._previous = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, *preemption.NOTICES)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if not self._signal:
            preemption.all_saved()

    def _handle(self, number: int, _) -> None:
        reading = not self._begun and jax.process_count() == 1
        if number == signal.SIGINT and (self._signal or reading):
            raise KeyboardInterrupt
        self._signal = self._signal or number

    def requested(self) -> bool:
        """Whether a stop was requested; all processes must call this equally often."""
        self._begun = True
        self._known = self._agreement.largest(int(self._signal))
        return self._known != 0

    def before_step(self) -> bool:
        """`requested`, called before each step; from the second call on there is a step to save."""
        if self._asked:
            preemption.something_to_save()
            preemption.keeps("the newest checkpoint is kept")
        self._asked += 1
        return self.requested()

    def check(self) -> None:
        """Raises `Interrupted` if a stop was requested."""
        if self.requested():
            raise Interrupted

    def stopped(self, message: str | None = None) -> Stopped:
        """The exception to raise once a run has stopped; its exit status depends on the signal. By default with `preemption.stopped`."""
        message = message or preemption.stopped(self._known)
        return (Preempted if self._known in preemption.NOTICES else Stopped)(message)
