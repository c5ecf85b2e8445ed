"""Stack traces of a process that may hang, for a container or a person beside it."""

import faulthandler
import os

VARIABLE = "ADALINK_STACK_TRACES"
SECONDS = 300


def start(seconds: float = SECONDS) -> None:
    """Writes the stacks of all threads to the file that ADALINK_STACK_TRACES names, every `seconds`; nothing without it.

    Raises:
      OSError: if the file cannot be written.
    """
    if path := os.environ.get(VARIABLE):
        # Not closed: the thread that writes has its descriptor until the process ends.
        faulthandler.dump_traceback_later(seconds, repeat=True, file=open(path, "a", encoding="utf-8"))
