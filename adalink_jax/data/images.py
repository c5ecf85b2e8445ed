"""Pictures as the models see them."""

import numpy as np
from etils import epath
from PIL import Image, UnidentifiedImageError

from adalink_jax.errors import UserError


def load_image(path: str, shape: tuple[int, int, int]) -> np.ndarray:
    """A picture as float32 `shape` (height, width, 1 or 3 channels) in [-1, 1]; another size is scaled (bicubic).

    Raises:
      UserError: for a file that is not there, and one that is no picture.
    """
    height, width, channels = shape
    try:
        with epath.Path(path).open("rb") as file, Image.open(file) as image:
            image = image.convert("L" if channels == 1 else "RGB")
            if image.size != (width, height):
                image = image.resize((width, height), Image.Resampling.BICUBIC)
            pixels = np.asarray(image, np.float32)
    except FileNotFoundError as e:
        raise UserError(f"There is no picture {path}.") from e
    except (UnidentifiedImageError, OSError) as e:
        raise UserError(f"{path} is damaged, or no picture.") from e
    return pixels.reshape(shape) / 127.5 - 1
