"""Ctrl-C and SIGTERM: the run finishes its step, saves, and says how to go on. A second signal stops at once.

With several processes a signal to any one of them stops all after the same step.
"""

import signal

from adalink_jax import parallel
from adalink_jax.errors import Preempted, Stopped


class Interrupted(Exception):
    """Raised where work is given up because a stop was asked for."""


class StopRequest:
    """While entered, turns SIGINT and SIGTERM into a flag, which all processes see alike (see `parallel.Agreement`)."""

    def __init__(self):
        self._signal = self._known = 0
        self._agreement = parallel.Agreement()

    def __enter__(self):
        self._old = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number, _):
        if self._signal:
            raise KeyboardInterrupt
        self._signal = number

    def requested(self) -> bool:
        """Whether a stop was asked for; all processes must ask equally often."""
        self._known = self._agreement.largest(int(self._signal))
        return self._known != 0

    def check(self) -> None:
        """Raises `Interrupted` if a stop was asked for."""
        if self.requested():
            raise Interrupted

    def stopped(self, message: str) -> Stopped:
        """What a run that stopped for the signal raises."""
        return (Preempted if self._known == signal.SIGTERM else Stopped)(message)
