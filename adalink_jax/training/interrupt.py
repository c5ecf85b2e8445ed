"""Ctrl-C and notices (SIGTERM, SIGUSR1, SIGUSR2): the run finishes its step, saves, and says how to go on.

A second Ctrl-C stops at once; a second notice changes nothing, since clusters repeat theirs while a run is saving. Before the first
step there is nothing to save, and a notice ends a command at once (see `notices`).

With several processes a signal to any one of them stops all after the same step.
"""

import signal

from adalink_jax import parallel, preemption
from adalink_jax.errors import Preempted, Stopped


class Interrupted(Exception):
    """Raised where work is given up because a stop was asked for."""


class StopRequest:
    """While entered, turns SIGINT and notices into a flag, which all processes see alike (see `parallel.Agreement`)."""

    def __init__(self):
        self._signal = self._known = self._asked = 0
        self._agreement = parallel.Agreement()

    def __enter__(self):
        self._old = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, *preemption.NOTICES)}
        return self

    def __exit__(self, *_):
        for number, handler in self._old.items():
            signal.signal(number, handler)
        if not self._signal:
            preemption.all_saved()

    def _handle(self, number, _):
        if self._signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = self._signal or number

    def requested(self) -> bool:
        """Whether a stop was asked for; all processes must ask equally often."""
        self._known = self._agreement.largest(int(self._signal))
        return self._known != 0

    def before_step(self) -> bool:
        """`requested`, asked before each step; the second time there is a step to save."""
        if self._asked:
            preemption.something_to_save()
        self._asked += 1
        return self.requested()

    def check(self) -> None:
        """Raises `Interrupted` if a stop was asked for."""
        if self.requested():
            raise Interrupted

    def stopped(self, message: str) -> Stopped:
        """What a run that stopped for the signal raises."""
        return (Preempted if self._known in preemption.NOTICES else Stopped)(message)
