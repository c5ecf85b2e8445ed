"""Tasks over published data sets: GLUE, SuperGLUE, captions, questions about images, and free sets for small models.

`DatasetConfig.mixture_or_task_module` names a module of this package; its `register` declares its tasks to seqio with the
settings of `PublishedData` whenever tasks are requested. Nothing is ever downloaded: the files are read from a folder.

Invariant: no example is in two of `train`, `validation` and `test`, and all three have labels (see `splits`).
"""

from adalink_jax.data.published.settings import PublishedData, SpanCorruption

__all__ = ["PublishedData", "SpanCorruption"]
