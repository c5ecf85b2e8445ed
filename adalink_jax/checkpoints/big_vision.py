"""Checkpoints of big_vision: one `.npz` file of arrays whose names are `/`-joined paths. Nothing is unpickled."""

import math
import zipfile
from typing import IO

import jax.numpy as jnp
import numpy as np
import psutil
from etils import epath

from adalink_jax.checkpoints.families.family import FAMILIES, translating
from adalink_jax.checkpoints.positions import BILINEAR
from adalink_jax.checkpoints.source import Source
from adalink_jax.errors import CheckpointError
from adalink_jax.files.leaves import check_shape, from_array
from adalink_jax.files.places import file_size

SUFFIX = ".npz"
_DEFLATE = 1032  # bytes per byte of a deflated file, at most


def open_file(file: epath.Path, path: str) -> Source:
    """Opens a `.npz` of big_vision.

    Args:
      file: the file.
      path: the file as the user gave it, for errors.

    Raises:
      CheckpointError: for a file that is damaged, holds pickled objects, or is of a model that no family knows.
    """
    size = file_size(file, error=CheckpointError)
    try:
        with file.open("rb") as opened:
            _check(opened, size)
            opened.seek(0)
            with np.load(opened, allow_pickle=False) as archive:
                tensors = {name: from_array(_numbers(archive[name]), name) for name in archive.files}
    except Exception as e:  # zipfile, zlib and NumPy raise errors of many types here
        reason = str(e).split("\n")[0][:120] or type(e).__name__
        raise CheckpointError(f"{path} is damaged, or not a plain .npz of arrays ({reason}); copy it again.") from e
    for family in FAMILIES:
        with translating(path):
            translation = family.from_big_vision(tensors, path)
        if translation:
            return Source(
                "big_vision file", path, file.name.removesuffix(SUFFIX), dict(sorted(translation.leaves.items())),
                file.parent, settings=translation.settings, position_rule=BILINEAR,
            )  # fmt: skip
    raise CheckpointError(
        f"{path} is not a vision tower of big_vision: it has no pos_embedding; give the .npz of a ViT, a SigLIP or a PaliGemma."
    )


def _numbers(array: np.ndarray) -> np.ndarray:
    """The array; NumPy reads bfloat16, which it does not know, as two raw bytes."""
    return array.view(jnp.bfloat16.dtype) if array.dtype == np.dtype("V2") else array


def _check(opened: IO[bytes], size: int) -> None:
    """Compares the sizes that an archive declares with what the file and this machine's memory can hold.

    Raises:
      ValueError: says what is too much.
    """
    with zipfile.ZipFile(opened) as archive:
        entries = archive.infolist()
        if sum(entry.compress_size for entry in entries) > size:  # entries that share their bytes
            raise ValueError("its entries have more bytes than the file")
        for entry in entries:
            if entry.file_size > _DEFLATE * max(1, entry.compress_size):
                raise ValueError(f"{entry.filename[:60]} unpacks to {entry.file_size:,} bytes")
            with archive.open(entry) as array:
                major, _ = np.lib.format.read_magic(array)
                read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(array)
                check_shape(shape, dtype)
                if entry.file_size - array.tell() != dtype.itemsize * math.prod(shape):
                    raise ValueError(f"{entry.filename[:60]} has other bytes than shape {shape} and {dtype} have")
        if (total := sum(entry.file_size for entry in entries)) > (memory := psutil.virtual_memory().total):
            raise ValueError(f"it unpacks to {total:,} bytes, and this machine has a memory of {memory:,}")
