"""Preemption notices (SIGTERM, SIGUSR1, SIGUSR2), and exit status 75, "restart the job".

Exit status 75 is decided by when a notice arrives:

- Before a run's first step, and after it has saved everything, there is nothing to save: `_listen` below ends the process at once
  with status 75, even during a compilation or a long read (`exiting_on_notice`, which `cli.main` enters).
- During a run, `training.interrupt.StopRequest` finishes the step and saves, and the run raises `errors.Preempted`, whose `status`
  is 75; `cli.main` exits with it. Ctrl-C raises `errors.Stopped` instead: status 130.
- `launching.supervisor` and `experiments.sweeps.runner` exit with 75 if one of their processes did.

SIGTERM comes from Kubernetes, Slurm, or a machine that shuts down; SIGUSR1 or SIGUSR2 from Slurm's `--signal`. Nothing here
imports JAX: a command handles notices before its slow imports.
"""

import contextlib
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator

from adalink_jax.errors import Preempted

NOTICES = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))
MEETING_SECONDS = 20  # to join the job's other processes before exiting; they would wait minutes for a missing one

_entered, _listening, _met = threading.Event(), threading.Event(), threading.Event()


@contextlib.contextmanager
def signals_handled(handler: Callable[[int, types.FrameType | None], object], *numbers: int) -> Iterator[None]:
    """While entered, by the main thread, `handler` handles these signals; restores their handlers at the end."""
    old = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old_handler in old.items():
            signal.signal(number, old_handler)


@contextlib.contextmanager
def exiting_on_notice(several: bool = False) -> Iterator[None]:
    """While entered, by the main thread, a notice ends this process, except from `something_to_save` to `all_saved`.

    Args:
      several: the job has several processes; they detect that this one ended only after `met`.
    """
    # Python calls signal handlers between bytecodes of the main thread, which may be in a compiler for minutes. The wakeup
    # pipe receives a signal's number immediately.
    inlet, outlet = os.pipe()
    os.set_blocking(outlet, False)
    (_met.clear if several else _met.set)()
    old_outlet = signal.set_wakeup_fd(outlet, warn_on_full_buffer=False)
    old = {number: signal.signal(number, _ignore) for number in NOTICES}
    _entered.set()
    all_saved()
    thread = threading.Thread(target=_listen, args=(inlet,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        _entered.clear()
        something_to_save()
        signal.set_wakeup_fd(old_outlet)
        for number, handler in old.items():
            signal.signal(number, handler)
        os.close(outlet)  # ends the thread
        thread.join()
        os.close(inlet)


def something_to_save() -> None:
    """From here on a notice goes to the handler of its signal."""
    _listening.clear()


def all_saved() -> None:
    """From here on a notice ends the process, inside `exiting_on_notice`."""
    if _entered.is_set():
        _listening.set()


def met() -> None:
    """The job's processes are connected, or there is only one: if one ends now, the others detect it (`parallel.initialize`)."""
    _met.set()


def _ignore(number: int, frame: types.FrameType | None) -> None:
    """Python's handler of a notice; `_listen` acts on it."""


def _listen(inlet: int) -> None:
    while number := os.read(inlet, 1):
        if number[0] in NOTICES and _listening.is_set():
            _met.wait(MEETING_SECONDS)
            name = signal.Signals(number[0]).name
            print(f"Stopped by {name} with nothing to save; rerun the same command.", file=sys.stderr, flush=True)
            os._exit(Preempted.status)
