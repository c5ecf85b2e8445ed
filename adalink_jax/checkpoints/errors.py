"""The one error of this layer."""


class CheckpointError(ValueError):
    """A file of parameters cannot be used; the message is one sentence that names the file and the remedy."""
