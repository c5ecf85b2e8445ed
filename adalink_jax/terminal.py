"""What every command prints with rich. Invariant: text is printed as it is; markup and emoji codes in it are not interpreted.

Cells, file names and settings come from outside: "[/INST]" is a label like others. Styles are given as styles, never in the text.
"""

from typing import Any

from rich import console as rich_console
from rich.progress import TextColumn
from rich.status import Status
from rich.text import Text


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


def text_column(template: str) -> TextColumn:
    """A column of a progress bar: a format string, in which `task` is the bar's task."""
    return TextColumn(template, markup=False)


def title_column(title: str) -> TextColumn:
    """A column of a progress bar that shows a title from outside."""
    return text_column(title.replace("{", "{{").replace("}", "}}"))
