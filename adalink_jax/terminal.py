"""What every command prints with rich. Invariant: text is printed as it is; markup and emoji codes in it are not interpreted.

Cells, file names and settings come from outside: "[/INST]" is a label like others. Styles are given as styles, never in the text.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich import console as rich_console
from rich.progress import TextColumn
from rich.status import Status
from rich.text import Text

LINE_EVERY_SECONDS = 10.0  # where there is no terminal


class _Console(rich_console.Console):
    def on_broken_pipe(self) -> None:
        raise  # the BrokenPipeError being handled, which `cli.main` turns into its exit status


def console(stderr: bool = False, **look: Any) -> rich_console.Console:
    """A console; tables and rules that it prints are plain text too.

    Args:
      stderr: print to the standard error.
      **look: `width`, `quiet`, see `rich.console.Console`.
    """
    return _Console(stderr=stderr, markup=False, emoji=False, highlight=False, **look)


def status(out: rich_console.Console, text: str = "") -> Status:
    """A spinner with a text; rich would read markup in a plain string. Change the text with `update(Text(...))`."""
    return out.status(Text(text))


@contextlib.contextmanager
def progress() -> Iterator[Callable[..., None]]:
    """Shows what a long command does, on stderr: a spinner on a terminal, elsewhere a line now and then.

    Yields:
      A function to call with a text, and with the share of the work that is done, from 0 to 1, where that is known.
    """
    out = console(stderr=True)
    started, ended = time.monotonic(), threading.Event()
    line = [""]

    def print_lines() -> None:
        while not ended.wait(LINE_EVERY_SECONDS):
            out.print(f"{line[0]}  ({time.monotonic() - started:.0f} s)", soft_wrap=True)

    with contextlib.ExitStack() as stack:
        if out.is_terminal:
            spinner = stack.enter_context(status(out))
        else:
            spinner, printer = None, threading.Thread(target=print_lines, daemon=True)
            printer.start()
            stack.callback(printer.join)
            stack.callback(ended.set)

        def show(text: str, share: float = 0.0) -> None:
            left = (time.monotonic() - started) * (1 / share - 1) if share else 0.0
            line[0] = f"{text}: {share:.0%}, {left:.0f} s left" if share else text
            if spinner is not None:
                spinner.update(Text(line[0]))

        yield show


def text_column(template: str) -> TextColumn:
    """A column of a progress bar: a format string, in which `task` is the bar's task."""
    return TextColumn(template, markup=False)


def title_column(title: str) -> TextColumn:
    """A column of a progress bar that shows a title from outside."""
    return text_column(title.replace("{", "{{").replace("}", "}}"))
