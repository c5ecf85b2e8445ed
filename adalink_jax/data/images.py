"""Image files of any size and format as the arrays that models take, for all commands and tasks."""

import io

import numpy as np
from etils import epath
from PIL import Image, ImageOps, UnidentifiedImageError

from adalink_jax.errors import UserError

ImageShape = tuple[int, int, int]  # height, width, channels (1 or 3)


def decode_image(encoded: bytes, shape: ImageShape, name: str) -> np.ndarray:
    """Decodes an image file (PNG, JPEG, ...) to float32 `shape` in [-1, 1]; other sizes are scaled (bicubic).

    A photo is rotated as its EXIF data says; an animation gives its first frame; 16 bits are scaled, not cut.

    Args:
      encoded: the bytes of the file.
      shape: height, width, and 1 (grey) or 3 (RGB) channels.
      name: the image, for error messages.

    Raises:
      UserError: if the bytes are not a complete image.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return picture_array(image, shape)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as e:  # Pillow's decoders raise all of these
        raise UserError(f"{name} is damaged, or not a picture.") from e
    except Image.DecompressionBombError as e:
        raise UserError(f"{name} is too large ({e}); scale it down.") from e


def picture_array(image: Image.Image, shape: ImageShape) -> np.ndarray:
    """Converts an opened image as `decode_image` does.

    Raises:
      ValueError: for an image of floating-point numbers, whose range is unknown.
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
    """Decodes an image file, see `decode_image`.

    Raises:
      UserError: if the file is missing or not an image.
    """
    return decode_image(read_image(path), shape, str(path))


def read_image(path: str) -> bytes:
    """Reads the bytes of an image file.

    Raises:
      UserError: if the file is missing or cannot be read.
    """
    try:
        return epath.Path(path).read_bytes()
    except FileNotFoundError as e:
        raise UserError(f"There is no picture {path}.") from e
    except OSError as e:
        raise UserError(f"{path} is damaged, or not a picture.") from e
