"""A process that has lost another one of its job ends with one sentence and exit status 75, "restart the job".

JAX notices the loss in two ways. A collective fails with an error, or JAX's coordination service misses heartbeats and calls C's
`abort` in one of its threads, after printing its own message. Python's own signal handlers run in the main thread alone, so the signal is
handled by a callback that C calls in that thread.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator

import jax

from adalink_jax import preemption
from adalink_jax.errors import Preempted

# How the errors of collectives and of the coordination service begin, or what they contain, when a connection is lost.
_SIGNS = ("Gloo ", "Connection closed by peer", "Connection reset by peer", "coordination service", "CoordinationService", "NCCL",
          "stopped sending heartbeats", "Barrier ")  # fmt: skip
_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)
_installed: list[object] = []  # keeps the handler alive, which C refers to


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error is a collective's or the coordination service's, for a process that does not answer."""
    return isinstance(error, (jax.errors.JaxRuntimeError, RuntimeError, ValueError)) and any(
        sign in str(error) for sign in _SIGNS
    )


def end(cause: str) -> None:
    """Ends this process with the sentence of a stopped command, and status 75; others cannot be waited for."""
    print(preemption.stopped_by(cause), file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(Preempted.status)


@contextlib.contextmanager
def meeting(cause: str) -> Iterator[None]:
    """While entered, an `abort` in any thread ends this process with `cause`: JAX waits for processes that do not come."""
    _on_abort(cause, in_main_thread=True)
    try:
        yield
    finally:
        _on_abort(None)


def watch(cause: str) -> None:
    """From here on an `abort` in a thread that is not Python's ends this process with `cause`; any other `abort` stays one."""
    _on_abort(cause)


def unwatch() -> None:
    """Undoes `watch`."""
    _on_abort(None)


def _on_abort(cause: str | None, in_main_thread: bool = False) -> None:
    def handle(_: int) -> None:
        if in_main_thread or isinstance(threading.current_thread(), threading._DummyThread):  # noqa: SLF001
            end(cause or "")

    handler = _Handler(handle) if cause is not None else None
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p) if handler else None)
    _installed[:] = [handler]
