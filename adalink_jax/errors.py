"""The errors that users are meant to read."""

import errno

_CLOSED = "cannot be used ({}); make it readable and writable, or give another folder"
_FULL = "could not be written ({}); make room there, and give the same command again"
_BUCKET = "cannot be used ({}); see that the bucket is there, and that this machine may use it"
_TOLD = {
    errno.EACCES: _CLOSED, errno.EPERM: _CLOSED, errno.EROFS: _CLOSED, errno.ENOTDIR: _CLOSED,
    errno.ENOSPC: _FULL, errno.EDQUOT: _FULL, errno.EFBIG: _FULL,
}  # fmt: skip


class UserError(ValueError):
    """Bad input: one sentence that names the thing and the remedy. The commands print it without a traceback."""


class CheckpointError(UserError):
    """A file of parameters cannot be used."""


class Stopped(Exception):
    """A run ended early, by intention, and left its folder in order; the message says how to go on.

    Attributes:
      status: exit status of the process.
    """

    status = 130


class Preempted(Stopped):
    """The machine was asked for (see `notices`): whoever started the run may start it again (EX_TEMPFAIL)."""

    status = 75


class NotFinite(Stopped):
    """A loss was NaN or infinite."""

    status = 3


def disk_error(error: OSError, folder: str | None = None) -> UserError | None:
    """What to tell of an error of a disk or a bucket; None for what is neither full, nor closed to writing, nor remote.

    Args:
      error: as it was raised.
      folder: where it happened, for errors that name no file.
    """
    where = error.filename or folder or "A file"
    why = error.strerror or str(error).split("\n")[0][:300]
    told = _TOLD.get(error.errno)
    if error.errno is None and "://" in f"{where} {why}":  # a bucket's errors have no number
        told = _BUCKET
    return told and UserError(f"{where} {told.format(why)}.")
