"""Tasks over the user's own files: tables (CSV, TSV, JSON, JSONL, Parquet, Arrow, Excel) and folders of images, without TensorFlow.

`file_settings` names the files, `table_files` reads rows, `row_form` writes them as examples by
`text_templates` and `target_texts`, `image_files`
finds their images, `file_splits` assigns them to splits, `row_store` keeps them, `row_checks` counts what is wrong, `file_task` is what
training sees, `workers` makes batches ahead in processes. For `adalink init`, `table_search` finds the files of each split,
`column_guess` and `input_target_guess` guess what columns are for, and `task_draft` completes the settings and writes them.
"""

from adalink_jax.data.user_files.file_task import FileTask

__all__ = ["FileTask"]
