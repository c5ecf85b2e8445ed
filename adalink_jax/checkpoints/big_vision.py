"""Checkpoints of big_vision: one `.npz` file of arrays whose names are `/`-joined paths. Nothing is unpickled."""

import zipfile

import numpy as np
from etils import epath

from adalink_jax.checkpoints.families.family import FAMILIES
from adalink_jax.checkpoints.positions import BILINEAR
from adalink_jax.checkpoints.source import Source
from adalink_jax.errors import CheckpointError
from adalink_jax.files.leaves import from_array

SUFFIX = ".npz"


def open_file(file: epath.Path, path: str) -> Source:
    """Opens a `.npz` of big_vision.

    Args:
      file: the file.
      path: the file as the user gave it, for errors.

    Raises:
      CheckpointError: for a file that is damaged, holds pickled objects, or is of a model that no family knows.
    """
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
            tensors = {name: from_array(archive[name], name) for name in archive.files}
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as e:
        raise CheckpointError(
            f"{path} is damaged, or not a plain .npz of arrays ({str(e).splitlines()[0][:120]})."
        ) from e
    for family in FAMILIES:
        if translation := family.from_big_vision(tensors, path):
            return Source(
                "big_vision file", path, file.name.removesuffix(SUFFIX), dict(sorted(translation.leaves.items())),
                file.parent, settings=translation.settings, position_rule=BILINEAR,
            )  # fmt: skip
    raise CheckpointError(
        f"{path} is not a vision tower of big_vision: it has no pos_embedding; give the .npz of a ViT or of SigLIP."
    )
