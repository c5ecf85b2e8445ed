"""Notices that the machine is wanted for something else: what a command does with one while there is nothing to save.

A notice is SIGTERM (Kubernetes, Slurm, a machine that shuts down), or SIGUSR1 or SIGUSR2 (what Slurm's `--signal` is mostly told
to send). Until a run has made its first step it ends the process at once, with status 75 and one sentence, also in the middle of a
compilation or a long read; from then on `training.interrupt` saves first. Nothing here imports JAX: a command listens before
it imports what takes time.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

from adalink_jax.errors import Preempted

NOTICES = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))
MEETING_SECONDS = 20  # that a process with a notice still takes to meet the others, which would wait minutes for it

_entered, _listening, _met = threading.Event(), threading.Event(), threading.Event()


@contextlib.contextmanager
def ending_at_once(several: bool = False) -> Iterator[None]:
    """While entered, by the main thread, a notice ends this process, but for the time from `something_to_save` to `all_saved`.

    Args:
      several: the process is to meet others (see `met`), which miss it only then.
    """
    # Python runs its own handlers between two steps of the main thread, which may be in a compiler for minutes. Into this
    # pipe goes a signal's number as soon as it comes.
    inlet, outlet = os.pipe()
    os.set_blocking(outlet, False)
    (_met.clear if several else _met.set)()
    old_outlet = signal.set_wakeup_fd(outlet, warn_on_full_buffer=False)
    old = {number: signal.signal(number, _heard) for number in NOTICES}
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
    """From here on a notice is left to whoever handles its signal."""
    _listening.clear()


def all_saved() -> None:
    """From here on a notice ends the process, inside `ending_at_once`."""
    if _entered.is_set():
        _listening.set()


def met() -> None:
    """The processes of a job have met, or there is one only: if one ends now, the others notice (`parallel.initialize`)."""
    _met.set()


def _heard(number, frame) -> None:
    """Python's own handler of a notice, where `_listen` does what is to be done."""


def _listen(inlet: int) -> None:
    while number := os.read(inlet, 1):
        if number[0] in NOTICES and _listening.is_set():
            _met.wait(MEETING_SECONDS)
            name = signal.Signals(number[0]).name
            print(f"Stopped by {name} with nothing to save; the same command goes on.", file=sys.stderr, flush=True)
            os._exit(Preempted.status)
