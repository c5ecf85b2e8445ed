"""The errors that users are meant to read."""


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
