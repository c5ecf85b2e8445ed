"""A base model from one format to another.

Invariant: what was written is read again and has the source's fingerprint. `base_config.json`, `config.json` and t5x's
`checkpoint` are written after the values, and files that are cut short are refused when they are read.
"""

import os
from collections.abc import Callable

from etils import epath

from adalink_jax.checkpoints import hugging_face, native, t5x
from adalink_jax.checkpoints.fingerprint import fingerprint_of_source
from adalink_jax.checkpoints.load_base import BUNDLED, open_source
from adalink_jax.checkpoints.source import Source, counted
from adalink_jax.errors import CheckpointError

FORMATS = {
    "native": "model.safetensors and base_config.json",
    "hf": "a Hugging Face folder, as transformers loads it",
    "t5x": "a checkpoint_N of msgpack and zarr, as t5x restores it",
}
PASSES = 3  # over the values: the source's fingerprint, the writing, the fingerprint of what was written


def check_destination(folder: str) -> epath.Path:
    """Refuses a place that is no folder, holds something, or cannot be made."""
    folder = os.fspath(folder)
    if folder.startswith((hugging_face.HUB, BUNDLED)):
        raise CheckpointError(f"Nothing can be written to {folder}; give a folder.")
    path = epath.Path(folder).expanduser()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise CheckpointError(f"{folder} exists and is not empty; give another folder, or delete it.")
    above = next((parent for parent in path.parents if parent.exists()), None)
    if "://" not in folder and above is not None and not (above.is_dir() and os.access(above, os.W_OK)):
        raise CheckpointError(f"{folder} cannot be made: {above} is no folder that you may write to.")
    return path


def convert(
    source: Source, folder: str, to: str, dtype: str | None = None, on_bytes: Callable[[int], None] = lambda n: None
) -> str:
    """Writes `source` in another format.

    Args:
      source: a base model; for `hf` its settings must hold `mlp_activations`.
      folder: a new or an empty one.
      to: one of `FORMATS`.
      dtype: "float32" or "bfloat16"; None keeps the source's.
      on_bytes: told the bytes of values that were read, in all `PASSES` times those of the source if `dtype` is None.

    Returns:
      The fingerprint.

    Raises:
      CheckpointError: if the folder is not empty, the format has no place for a leaf, or a file is damaged.
    """
    path, watched = check_destination(folder), counted(source, on_bytes)
    if to == "hf":
        stored = dtype or source.leaves["token_embedder/embedding"].dtype.name
        config = hugging_face.config_of(source, source.settings["mlp_activations"], stored)
    mark = fingerprint_of_source(watched)
    if to == "native":
        path.mkdir(parents=True, exist_ok=True)
        hugging_face.copy_vocabulary(source, path)
        native.write(path, watched, dtype, mark)
    elif to == "t5x":
        t5x.write(path, watched, dtype)
    else:
        hugging_face.write(path, watched, config, dtype)
    written = fingerprint_of_source(counted(open_source(folder), on_bytes))
    if written != mark:
        raise CheckpointError(f"{folder} was written, but does not read back as {source.path}; delete it.")
    return mark
