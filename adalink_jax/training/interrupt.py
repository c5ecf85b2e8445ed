"""Requests to stop: Ctrl-C, and preemption notices (SIGTERM, SIGUSR1, SIGUSR2). The run finishes its step, saves, and ends.

A second Ctrl-C stops immediately; a second notice changes nothing, since clusters repeat theirs while a run is saving. Before the
first step there is nothing to save, and a notice ends a command immediately, with exit status 75 (see `preemption`); so does Ctrl-C
in a job of one process before anything is evaluated.

With several processes, a signal to any one of them stops all after the same step. In the same way process 0 asks all for a save
(`save_clock`).
"""

import signal

import jax

from adalink_jax import parallel, preemption
from adalink_jax.errors import Preempted, Stopped

_SAVE = 1  # among the numbers on which the processes agree: smaller than those of the signals, which come first


class Interrupted(Exception):
    """Raised to abandon work because a stop was requested."""


class StopRequest:
    """A context that turns SIGINT and notices into a flag, on which all processes agree (see `parallel.Agreement`)."""

    def __init__(self) -> None:
        self._signal = self._known = self._asked = 0
        self._begun = self._save_known = False
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

    def requested(self, save: bool = False) -> bool:
        """Whether a stop was requested; all processes must call this equally often. `save` asks for a save."""
        self._begun = True
        number = self._agreement.largest(int(self._signal) or (_SAVE if save else 0))
        if number == _SAVE:
            self._save_known = True
        else:
            self._known = max(self._known, number)
        return self._known != 0

    def save_requested(self) -> bool:
        """Whether process 0 has asked for a save since the last call; equal in all processes."""
        asked, self._save_known = self._save_known, False
        return asked

    def before_step(self, save: bool = False) -> bool:
        """`requested`, called before each step; from the second call on there is a step to save."""
        if self._asked:
            preemption.something_to_save()
            preemption.keeps("the newest checkpoint is kept")
        self._asked += 1
        return self.requested(save)

    def check(self) -> None:
        """Raises `Interrupted` if a stop was requested."""
        if self.requested():
            raise Interrupted

    def stopped(self, message: str | None = None) -> Stopped:
        """The exception to raise once a run has stopped; its exit status depends on the signal. By default with `preemption.stopped`."""
        message = message or preemption.stopped(self._known)
        return (Preempted if self._known in preemption.NOTICES else Stopped)(message)
