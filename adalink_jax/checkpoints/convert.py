"""Base models converted from one format to another.

Invariant: what was written is read back and has the source's fingerprint before the folder gets its name, so that a folder is
there whole or not at all. In a bucket, `base_config.json`, `config.json` and t5x's `checkpoint` are written after the values.
"""

import os
from collections.abc import Callable

from etils import epath

from adalink_jax.checkpoints import hugging_face, native, t5x_format
from adalink_jax.checkpoints.digests import marks_of_source
from adalink_jax.checkpoints.formats import BUNDLED, open_source
from adalink_jax.checkpoints.quantised_files import quantised_model
from adalink_jax.checkpoints.source import Source, counted
from adalink_jax.errors import CheckpointError
from adalink_jax.files.places import path_of
from adalink_jax.files.whole_file import is_partial, writing_folder
from adalink_jax.models.quantised import Storage

LAST = (native.CONFIG, hugging_face.CONFIG, t5x_format.FILE)
PASSES = 3  # over the values: the source's fingerprint, the writing, the fingerprint of what was written


def check_destination(folder: str | os.PathLike[str]) -> epath.Path:
    """Refuses a destination that is not a folder, is not empty, or cannot be created."""
    folder = os.fspath(folder)
    if folder.startswith((hugging_face.HUB, BUNDLED)):
        raise CheckpointError(f"Nothing can be written to {folder}; give a folder.")
    path = path_of(folder)
    if path.exists() and (not path.is_dir() or (any(path.iterdir()) and not _is_unfinished(path))):
        raise CheckpointError(f"{folder} exists and is not empty; give another folder, or delete it.")
    above = next((parent for parent in path.parents if parent.exists()), None)
    if "://" not in folder and above is not None and not (above.is_dir() and os.access(above, os.W_OK)):
        raise CheckpointError(f"{folder} cannot be created: {above} is not a folder that you may write to.")
    return path


def _is_unfinished(path: epath.Path) -> bool:
    """Whether a folder holds what a killed conversion left: the files that are written last are missing."""
    return is_partial(path) and not any((path / name).exists() for name in LAST)


def convert(
    source: Source,
    folder: str | os.PathLike[str],
    to: str,
    dtype: str | None = None,
    on_bytes: Callable[[int], None] = lambda count: None,
    storage: Storage | None = None,
) -> str:
    """Writes `source` in another format.

    Args:
      source: a base model; for `hf` its settings must state every deciding field of its family.
      folder: a new or an empty folder.
      to: one of `base_formats.FORMATS`.
      dtype: "float32" or "bfloat16"; None keeps the source's. The values of a quantised source are float32.
      on_bytes: called with the number of bytes of each read; they add up to `PASSES` times the source's if `dtype` and `storage` are
        None.
      storage: quantises the kernels (`native` alone); all other values keep the source's dtype.

    Returns:
      The fingerprint.

    Raises:
      CheckpointError: if the folder is not empty, the format has no place for a leaf, or a file is damaged; for a source that is
        quantised already, if it is to be quantised.
    """
    path, watched = check_destination(folder), counted(source, on_bytes)
    config = hugging_face.config_of(source, dtype) if to == "hf" else {}  # refuses before anything is written
    quantised = None
    if storage is not None:
        if to != "native" or dtype is not None:
            raise CheckpointError(
                f"Only --to native holds a base in {storage.dtype}; give --dtype float32 or bfloat16."
            )
        quantised = quantised_model(watched, storage, marks_of_source(watched, None)[0])
        watched = quantised.source
    marks = marks_of_source(watched, dtype)
    with writing_folder(path, LAST) as new:
        if to == "native":
            hugging_face.copy_files(source, new)
            native.write(new, watched, dtype, marks, quantised)
        elif to == "t5x":
            t5x_format.write(new, watched, dtype)
        else:
            hugging_face.write(new, watched, config, dtype)
        written = counted(open_source(os.fspath(new)), on_bytes)
        mark, digests = marks_of_source(written, None)
        if mark != marks[0] or (to == "native" and digests != marks[1]):
            raise CheckpointError(
                f"What was written for {folder} does not read back with the values of {source.path}; convert it again."
            )
    return mark
