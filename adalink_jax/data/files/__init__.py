"""Tasks over one's own files: tables (CSV, TSV, JSONL, Parquet) and folders of images, without TensorFlow.

`tables` reads rows, `templates` writes them as text, `reading` puts them in splits, `checks` counts what is wrong, `task` is what
training sees, `workers` reads ahead in processes.
"""

from adalink_jax.data.files.task import FileTask

__all__ = ["FileTask"]
