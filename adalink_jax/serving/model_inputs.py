"""What a model reads of a caller's inputs: images of any form as pixels, and the lengths of a batch."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from adalink_jax.data.images import ImageShape, Preparing, decode_image, load_image, picture_array
from adalink_jax.errors import UserError

SHORTEST = {"inputs": 16, "targets": 4}  # the smallest buckets of lengths, in tokens


def pixels(image: Any, shape: ImageShape, name: str, preparation: Preparing) -> np.ndarray | bytes:
    """An image as float32 `shape`, by default in [-1, 1]; b"", which stands for a missing one, as it is.

    Args:
      image: a path, a file's bytes, a PIL image, a uint8 array of any size, or a float array of the model's shape.
      shape: (height, width, channels) of the model's images, or what else `preparation` makes.
      name: what errors call it.
      preparation: how files become the model's images.

    Raises:
      UserError: for an image that is damaged, or of another form.
    """
    if isinstance(image, bytes):  # b"" stands for a missing image, which the converter masks
        return decode_image(image, shape, name, preparation) if image else image
    if isinstance(image, (str, os.PathLike)):
        return load_image(os.fspath(image), shape, preparation)
    if isinstance(image, Image.Image):
        return picture_array(image, shape, name, preparation)
    array = np.asarray(image)
    if array.dtype == np.uint8 and array.ndim in (2, 3):
        return picture_array(array, shape, name, preparation)
    if array.shape != shape or array.dtype.kind != "f":
        raise UserError(
            f"{name} is {array.dtype} {array.shape}; the model takes float32 {shape}, or uint8 of any size."
        )
    return array.astype(np.float32)


def bucket_lengths(rows: Sequence[Mapping[str, Any]], most: Mapping[str, int]) -> dict[str, int]:
    """The lengths `{"inputs": L, "targets": T}` of a batch of tokenised rows: powers of two, so that there are few, but at most `most`."""
    longest = {side: max(SHORTEST[side], *(len(row[side]) for row in rows)) for side in most}
    return {side: min(most[side], power_of_two(longest[side])) for side in most}


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return 1 << (number - 1).bit_length()
