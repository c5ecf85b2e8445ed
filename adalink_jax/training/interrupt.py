"""Ctrl-C and SIGTERM: the run finishes its step, saves, and says how to go on. A second signal stops at once."""

import signal


class Interrupted(Exception):
    """Raised where work is given up because a stop was asked for."""


class StopRequest:
    """While entered, turns SIGINT and SIGTERM into a flag."""

    def __init__(self):
        self.signal: int | None = None

    def __enter__(self):
        self._old = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number, _):
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number

    def requested(self) -> bool:
        """Whether a stop was asked for."""
        return self.signal is not None

    def check(self) -> None:
        """Raises `Interrupted` if a stop was asked for."""
        if self.requested():
            raise Interrupted
