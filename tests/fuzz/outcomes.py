"""What can come of an input, and the judgement of a command's output."""

import contextlib
import dataclasses
import io
import os
import re
import sys
import traceback
import unicodedata
from collections.abc import Callable, Sequence

EQUAL = "accepted, equal"
UNPROTECTED = "accepted, differs"  # where neither a digest nor a declared fact protects what was changed
REFUSED = "refused in one sentence"
CHANGED = "accepted though changed"
UNCLEAR = "refused unclearly"
EXCEPTION = "uncaught exception"
SLOW = "over its time"
LARGE = "over its memory"
CRASHED = "process died"
FAILURES = (CHANGED, UNCLEAR, EXCEPTION, SLOW, LARGE, CRASHED)
ALL = (EQUAL, UNPROTECTED, REFUSED, *FAILURES)

_LONGEST = 1500  # characters of a sentence
_REMEDY = re.compile(
    r"[;:,.(] (?:\w+ )?(?:add|allow|ask|change|check|choose|close|compute|convert|copy|cut|delete|download|expected|free|fill|give|"
    r"install|keep|it (?:has|must)|launch|leave|lower|make|mark|mend|move|must|name|pass|quote|raise|read|remove|rename|repair|replace|rerun|"
    r"run|save|scale|see|set|shorten|start|state|there (?:are|is)|train|update|use|write)\b|did you mean|must be|such as|"
    # What to do is plain, or what there is instead is named.
    r"^There is no|is empty|is missing|, line \d+: |nothing refers to|needs quotes|do not use|has the columns|it takes |lacks `|"
    r"as a Python literal|only .* (?:is|are) supported"
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of one input.

    Attributes:
      kind: one of `ALL`.
      detail: of a failure: what it was and where; equal for failures of one cause.
      text: the whole of what was printed on standard error, or the traceback.
      seconds: how long it took.
      megabytes: how far the process's memory grew.
    """

    kind: str
    detail: str = ""
    text: str = ""
    seconds: float = 0.0
    megabytes: float = 0.0

    @property
    def is_failure(self) -> bool:
        return self.kind in FAILURES


@dataclasses.dataclass(frozen=True)
class Run:
    """A command that ended."""

    status: int | str | None
    out: str
    err: str


def run(*argv: str) -> Run:
    """Runs `adalink ARGV` in this process."""
    import gin

    from adalink_jax.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    gin.clear_config()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(list(argv))
        except SystemExit as e:  # argparse
            status = e.code
    return Run(status, out.getvalue(), err.getvalue())


def judge(
    done: Run, accepted: Callable[[Run], Outcome], names: Sequence[str] = (), statuses: Sequence[int] = (0,)
) -> Outcome:
    """The outcome of a command.

    Args:
      done: the command.
      accepted: judges a command that accepted its input.
      names: a refusal must hold one of these.
      statuses: the exit statuses of a command that accepts.
    """
    if done.status in statuses:
        return accepted(done)
    if done.status != 2:
        return Outcome(UNCLEAR, f"exit status {done.status}", done.err)
    problem = unclear(done.err, names)
    return Outcome(UNCLEAR, f"{problem}: {_form(done.err)}", done.err) if problem else Outcome(REFUSED, text=done.err)


def unclear(err: str, names: Sequence[str]) -> str | None:
    """What is wrong with a refusal as it was printed; None if it is one sentence that names the thing and a remedy."""
    if err.startswith("usage: "):
        return None  # argparse's
    _, mark, sentence = err.partition("error: ")
    sentence = sentence.removesuffix("\n")
    if not mark:
        return "no error is printed"
    if "\n" in sentence or "\r" in sentence:
        return "several lines"
    if any(unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Zl", "Zp") for sign in sentence):
        return "control characters"
    if len(sentence) > _LONGEST:
        return f"more than {_LONGEST} characters"
    if names and not any(name in sentence for name in names):
        return "the thing is not named"
    return None if _REMEDY.search(sentence) else "no remedy"


def of_exception(error: BaseException) -> Outcome:
    """The outcome of an exception that a command lets through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if f"{os.sep}adalink_jax{os.sep}" in frame.filename] or frames
    place = f"{own[-1].filename.rpartition('adalink_jax' + os.sep)[2]}:{own[-1].lineno}"
    text = "".join(traceback.format_exception(error))
    message = " ".join(str(error).split())[:160]
    return Outcome(EXCEPTION, f"{type(error).__name__} at {place}", f"{message}\n{text[-6000:]}")


def _form(err: str) -> str:
    """A sentence without what differs between inputs."""
    sentence = err.partition("error: ")[2] or err
    return re.sub(r"'[^']*'|\"[^\"]*\"|[\w./-]*[/.\d_][\w./-]*|[^\x20-\x7e]+", "~", sentence.replace("\n", " "))[:100]


def quiet_path() -> None:
    """Takes the folders of earlier inputs from the module path."""
    sys.path[:] = [folder for folder in sys.path if not folder or os.path.exists(folder)]
