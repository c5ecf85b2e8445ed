"""Seconds by phase of a command, for `--timings`: `with timings.phase("parameters"): ...` anywhere in the package.

Invariant: a phase's seconds contain those of the phases inside it, and recording changes nothing but this module's table. Only the
main thread records, since phases of other threads pass beside its own. This module imports neither JAX nor NumPy.
"""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

Path = tuple[str, ...]
Listener = Callable[..., None]

_BEGIN = time.perf_counter()  # of the process, but for the interpreter's own start

# What `jax.monitoring` reports, as parts of the phase in which it happens.
_JAX_EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration": "tracing",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowering",
    "/jax/core/compile/backend_compile_duration": "compiling (or the compilation cache)",
}
COMPILING = tuple(_JAX_EVENTS.values())


@dataclasses.dataclass
class Entry:
    """The time of one phase.

    Attributes:
      times: how often it was entered.
      first: seconds of the first time, which mostly contains the compilation.
      seconds: of all times together.
    """

    times: int = 0
    first: float = 0.0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Counts one more time."""
        self.first = self.first if self.times else seconds
        self.times, self.seconds = self.times + 1, self.seconds + seconds


_entries: dict[Path, Entry] = {}
_open: list[str] = []


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """Counts the time until the context ends, also by an error, under `name` inside the phases that are open. Also a decorator."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _open.append(name)
    entry, begin = _entries.setdefault(tuple(_open), Entry()), time.perf_counter()
    try:
        yield
    finally:
        entry.add(time.perf_counter() - begin)
        _open.pop()


def compilation_listener() -> Listener:
    """A listener for `jax.monitoring.register_event_duration_secs_listener`, which adds JAX's own times.

    JAX reports a duration when it ends, and durations contain others: a function that is traced while another is. Each second is
    counted once, where it was spent innermost.
    """
    ended: list[tuple[float, float]] = []  # (begin, seconds) of durations that a later one may contain

    def listen(event: str, seconds: float, **_: Any) -> None:
        if event not in _JAX_EVENTS or threading.current_thread() is not threading.main_thread():
            return
        begin, inner = time.perf_counter() - seconds, 0.0
        while ended and ended[-1][0] >= begin:
            inner += ended.pop()[1]
        ended.append((begin, seconds))
        _entries.setdefault((*_open, _JAX_EVENTS[event]), Entry()).add(max(0.0, seconds - inner))

    return listen


def entries() -> dict[Path, Entry]:
    """The phases so far by path, each below the phase that it is part of, otherwise in the order in which they began."""
    order = {path: number for number, path in enumerate(_entries)}
    begins = lambda path: [order[path[: end + 1]] for end in range(len(path))]
    return {path: _entries[path] for path in sorted(_entries, key=begins)}


def exclusive() -> dict[Path, float]:
    """Seconds of each phase so far without those of the phases inside it. Phases that are still open are missing."""
    seconds = {path: entry.seconds for path, entry in _entries.items()}
    for path, entry in _entries.items():
        if path[:-1] in seconds:
            seconds[path[:-1]] -= entry.seconds
    return {path: max(0.0, spent) for path, spent in seconds.items()}


def process_begin() -> float:
    """When the process began, by `time.perf_counter`."""
    return _BEGIN


def report() -> list[dict[str, Any]]:
    """JSON-able rows `{"phase", "times", "first", "seconds"}`, the phase as a path; the last row is the process so far."""
    whole = Entry()
    whole.add(time.perf_counter() - _BEGIN)
    numbers = lambda entry: {name: round(x, 4) for name, x in dataclasses.asdict(entry).items()}
    return [{"phase": "/".join(path), **numbers(entry)} for path, entry in {**entries(), ("process",): whole}.items()]
