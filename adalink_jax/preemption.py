"""Preemption notices (SIGTERM, SIGUSR1, SIGUSR2), and exit status 75, "restart the job".

Exit status 75 is decided by when a notice arrives:

- While a command has nothing to save (before a run's first step, after it has saved everything, and always for a command whose files
  are kept as they are written), `_listen` below ends the process at once with status 75, even during a compilation or a long read
  (`exiting_on_notice`, which `cli.main` enters for every command). Files are replaced whole (`files.whole_file`), so none is left half
  written.
- During a run, `training.interrupt.StopRequest` finishes the step and saves, and the run raises `errors.Preempted`, whose `status`
  is 75; `cli.main` exits with it. Ctrl-C raises `errors.Stopped` instead: status 130.
- `launching.supervisor` and `experiments.sweeps.runner` handle notices themselves (`signals_handled`), and exit with 75 if one of
  their processes did.

Ctrl-C is Python's KeyboardInterrupt elsewhere: status 130. A library that swallows it, or compiles on, has `PATIENCE` seconds.
`stopped` is the sentence of all of these, with what was kept (`keeps`).

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

from adalink_jax.errors import Preempted, Stopped

NOTICES = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))
MEETING_SECONDS = 20  # to join the job's other processes before exiting; they would wait minutes for a missing one
PATIENCE = 10  # seconds from Ctrl-C until a process that continues is ended

_remains = ""
_entered, _listening, _met = threading.Event(), threading.Event(), threading.Event()


@contextlib.contextmanager
def signals_handled(handler: Callable[[int, types.FrameType | None], object], *numbers: int) -> Iterator[None]:
    """While entered, by the main thread, `handler` alone handles these signals; restores their handlers at the end."""
    listening, received = _listening.is_set(), []

    def handle(number: int, frame: types.FrameType | None) -> None:
        received.append(number)
        handler(number, frame)

    something_to_save()
    old = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        if listening and not received:  # else the caller ends the command
            all_saved()
        for number, old_handler in old.items():
            signal.signal(number, old_handler)


@contextlib.contextmanager
def exiting_on_notice(several: bool = False) -> Iterator[None]:
    """While entered, by the main thread, a notice ends this process, except from `something_to_save` to `all_saved`.

    Other threads get no signals: there it does nothing.

    Args:
      several: the job has several processes; they detect that this one ended only after `met`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Python calls signal handlers between bytecodes of the main thread, which may be in a compiler for minutes. The wakeup
    # pipe receives a signal's number immediately.
    inlet, outlet = os.pipe()
    os.set_blocking(outlet, False)
    (_met.clear if several else _met.set)()
    old_outlet = signal.set_wakeup_fd(outlet, warn_on_full_buffer=False)
    old = {number: signal.signal(number, _ignore) for number in NOTICES}
    _entered.set()
    keeps("")
    all_saved()
    ended = threading.Event()
    thread = threading.Thread(target=_listen, args=(inlet, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        _entered.clear()
        ended.set()
        something_to_save()
        signal.set_wakeup_fd(old_outlet)
        for number, handler in old.items():
            signal.signal(number, handler)
        os.close(outlet)  # ends the thread
        thread.join()
        os.close(inlet)


def keeps(what: str) -> None:
    """States what is kept if the command is stopped from here on, such as "the checkpoints in runs/x are kept"; "" for nothing."""
    global _remains
    _remains = what


def stopped(number: int) -> str:
    """The sentence for a command that a signal stopped: what it kept, and how to resume."""
    return stopped_by(signal.Signals(number).name)


def stopped_by(cause: str) -> str:
    """The same sentence for another cause, such as "the loss of another process"."""
    if _remains:
        return f"Stopped by {cause}; {_remains}; rerun the same command to resume."
    return f"Stopped by {cause} with nothing to save; rerun the same command."


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


def _listen(inlet: int, ended: threading.Event) -> None:
    while number := os.read(inlet, 1):
        if number[0] == signal.SIGINT:
            threading.Thread(target=_end_after_patience, args=(ended,), daemon=True).start()
        if number[0] in NOTICES and _listening.is_set():
            _met.wait(MEETING_SECONDS)
            _end(number[0], Preempted.status)


def _end_after_patience(ended: threading.Event) -> None:
    # A StopRequest that handles Ctrl-C finishes its step, however long that takes.
    if (
        not ended.wait(PATIENCE)
        and _listening.is_set()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):
        _end(signal.SIGINT, Stopped.status)


def _end(number: int, status: int) -> None:
    print(stopped(number), file=sys.stderr, flush=True)
    os._exit(status)


def _leave_signals_to_the_parent() -> None:
    """In a forked process, whose signals would reach the parent's `_listen` by the pipe that both have."""
    if _entered.is_set():
        signal.set_wakeup_fd(-1)
        for number in NOTICES:
            signal.signal(number, signal.SIG_DFL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_signals_to_the_parent)
