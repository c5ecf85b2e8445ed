"""Pictures as the models see them, of files of any size: one way for commands, tasks and samples."""

import io

import numpy as np
from etils import epath
from PIL import Image, ImageOps, UnidentifiedImageError

from adalink_jax.errors import UserError

ImageShape = tuple[int, int, int]  # height, width, channels (1 or 3)


def decode_image(encoded: bytes, shape: ImageShape, name: str) -> np.ndarray:
    """An encoded picture (PNG, JPEG, ...) as float32 `shape` in [-1, 1]; another size is scaled (bicubic).

    A photo is turned as its camera says (EXIF); of an animation the first picture is taken; 16 bits are scaled, not cut.

    Args:
      encoded: the bytes of the file.
      shape: height, width, and 1 (grey) or 3 (RGB) channels.
      name: what an error calls it.

    Raises:
      UserError: for bytes that are no whole picture.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return picture_array(image, shape)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as e:  # Pillow's readers raise all of them
        raise UserError(f"{name} is damaged, or no picture.") from e
    except Image.DecompressionBombError as e:
        raise UserError(f"{name} is too large ({e}); scale it down.") from e


def picture_array(image: Image.Image, shape: ImageShape) -> np.ndarray:
    """A picture as `decode_image` gives it.

    Raises:
      ValueError: for one of floating-point numbers, whose range is not known.
    """
    height, width, channels = shape
    if image.mode == "F":
        raise ValueError("a picture of floating-point numbers")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of grey, which `convert` would cut at 255
        image = Image.fromarray((np.asarray(image, np.float32) / 257).round().clip(0, 255).astype(np.uint8))
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image, np.float32).reshape(shape) / 127.5 - 1


def load_image(path: str, shape: ImageShape) -> np.ndarray:
    """The picture in a file, as `decode_image` gives it.

    Raises:
      UserError: for a file that is not there, and one that is no picture.
    """
    return decode_image(read_image(path), shape, str(path))


def read_image(path: str) -> bytes:
    """The bytes of a picture's file.

    Raises:
      UserError: for a file that is not there, or cannot be read.
    """
    try:
        return epath.Path(path).read_bytes()
    except FileNotFoundError as e:
        raise UserError(f"There is no picture {path}.") from e
    except OSError as e:
        raise UserError(f"{path} is damaged, or no picture.") from e
