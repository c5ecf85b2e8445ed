"""Tasks over one's own files: tables (CSV, TSV, JSONL, Parquet) and folders of images, without TensorFlow.

`table_files` reads rows, `text_templates` writes them as text, `reading` puts them in splits, `row_checks` counts what is wrong, `file_task` is what
training sees, `workers` reads ahead in processes.
"""

from adalink_jax.data.user_files.file_task import FileTask

__all__ = ["FileTask"]
