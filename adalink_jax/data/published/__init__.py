"""Tasks over published data sets: GLUE, SuperGLUE, captions, questions about images, and free sets for small models.

A module of this folder is named in `DatasetConfig.mixture_or_task_module`; its `register` declares its tasks to seqio
with the settings of `PublishedData` whenever tasks are asked for. Nothing is downloaded, ever: the files lie in a folder.

Invariant: no example is in two of `train`, `validation` and `test`, and all three have labels (see `splits`).
"""

from adalink_jax.data.published.settings import PublishedData, SpanCorruption

__all__ = ["PublishedData", "SpanCorruption"]
