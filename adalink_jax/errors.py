"""The errors that users are meant to read."""

import errno

_ELSEWHERE = "make it writable, or give another folder"
_ROOM = "make room there, and give the same command again"
_REMEDIES = {
    errno.EACCES: _ELSEWHERE, errno.EPERM: _ELSEWHERE, errno.EROFS: _ELSEWHERE, errno.ENOTDIR: _ELSEWHERE,
    errno.ENOSPC: _ROOM, errno.EDQUOT: _ROOM, errno.EFBIG: _ROOM,
    None: "see that the bucket is there, and that this machine may use it",  # a bucket's errors have no number
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
    """The machine was asked for (SIGTERM): whoever started the run may start it again (EX_TEMPFAIL)."""

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
    if error.errno not in _REMEDIES:
        return None
    where = error.filename or folder or "A file"
    why = error.strerror or str(error).split("\n")[0][:300]
    return UserError(f"{where} could not be written ({why}); {_REMEDIES[error.errno]}.")
