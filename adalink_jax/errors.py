"""The errors that users are meant to read, and the exit statuses of runs that stop early."""

import errno
import re

_CLOSED = "cannot be used ({}); make it readable and writable, or give another folder"
_FULL = "could not be written ({}); make room there, and rerun the command"
_ODD = "cannot be used ({}); move it away, or give another path"
_BUCKET = "cannot be used ({}); check that the bucket exists, and that this machine may access it"
_REMEDIES = {
    errno.EACCES: _CLOSED, errno.EPERM: _CLOSED, errno.EROFS: _CLOSED, errno.ENOTDIR: _CLOSED,
    errno.EEXIST: _CLOSED, errno.EISDIR: _ODD, errno.ELOOP: _ODD, errno.ENXIO: _ODD, errno.ENAMETOOLONG: _ODD,
    errno.ENOSPC: _FULL, errno.EDQUOT: _FULL, errno.EFBIG: _FULL,
}  # fmt: skip
_CALL_SITES = re.compile(r"\n\s*In call to configurable .*", re.DOTALL)


class UserError(ValueError):
    """Bad input: one sentence with what is wrong and what to type instead. Commands print it without a traceback."""


class CheckpointError(UserError):
    """A file of parameters cannot be used."""


class GatedError(CheckpointError):
    """A repository of the Hub is for those alone who have accepted its terms."""


class Stopped(Exception):
    """A run ended early, by intention, and left its folder in order; the message says how to resume it.

    Attributes:
      status: exit status of the process.
    """

    status = 130


class Preempted(Stopped):
    """The machine is needed for something else: whoever started the run may start it again (`preemption` says when).

    Attributes:
      status: 75, EX_TEMPFAIL of `sysexits.h`.
    """

    status = 75


class Taken(Stopped):
    """Another process works in the folder.

    Attributes:
      status: 4.
    """

    status = 4


class NotFinite(Stopped):
    """A loss was NaN or infinite."""

    status = 3


def sentence(error: BaseException) -> str:
    """An error's message in one line that a terminal shows as it is: without the call sites that gin appends, and with escapes
    for line ends and control characters, which names and values from outside may hold."""
    text = _CALL_SITES.sub("", str(error))
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def disk_error(error: OSError, folder: str | None = None) -> UserError | None:
    """The message for an error of a disk or a bucket; None if it is not about space, permissions or a bucket.

    Args:
      error: as it was raised.
      folder: where it happened, for errors that name no file.
    """
    where = error.filename or folder or "A file"
    why = error.strerror or str(error).split("\n")[0][:300]
    if error.errno is not None:
        remedy = _REMEDIES.get(error.errno)
    else:  # a bucket's errors have no number
        remedy = _BUCKET if "://" in f"{where} {why}" else None
    return None if remedy is None else UserError(f"{where} {remedy.format(why)}.")
