"""Image files of any size and format as the arrays that models take, for all commands and tasks."""

import contextlib
import dataclasses
import hashlib
import io
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from adalink_jax.errors import UserError
from adalink_jax.files.places import regular_file

ImageShape = tuple[int, ...]  # height, width, channels (1 or 3); or what else `Preparing.array` makes
KEY_BYTES = 8
MOST_PIXELS = 2**27  # 400 MB of pixels; the largest photographs of telephones have 108 million, and Pillow refuses 179
MOST_BYTES = 2**28  # of a file
_FAULTS = (
    UnidentifiedImageError,
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    ArithmeticError,
)  # Pillow raises all of these
_counts: list[set[bytes]] = []


class Preparing(Protocol):
    """How a picture becomes the array that a model reads: `Preparation`, or `patches.Patches`.

    Attributes:
      background: the colour under transparent pixels; None shows the colours stored in them.
    """

    @property
    def background(self) -> str | None: ...

    def for_text(self, text: str) -> "Preparing":
        """These settings for the picture of an example with this text."""
        ...

    def array(self, image: Image.Image, shape: ImageShape) -> np.ndarray:
        """An opaque picture of any size as float32 `shape`."""
        ...

    def shown(self, array: np.ndarray) -> np.ndarray:
        """What people are shown of an array: float32 [height, width, 1 or 3] in [-1, 1]."""
        ...


@dataclasses.dataclass(frozen=True)
class Preparation:
    """How an image becomes an array of the model's size; the fields are those of `ViTConfig`.

    Attributes:
      resample: Pillow's filter: "nearest", "box", "bilinear", "hamming", "bicubic" or "lanczos".
      keep_aspect: scale the shorter edge to the model's, and crop the centre; False stretches both edges.
      crop_pct: the share of the scaled edges that the central crop keeps.
      background: the colour under transparent pixels, "white" or "black"; None shows the colours stored in them.
    """

    resample: str = "bicubic"
    keep_aspect: bool = False
    crop_pct: float = 1.0
    background: str | None = "white"

    def for_text(self, text: str) -> "Preparation":
        """The same for all texts."""
        return self

    def array(self, image: Image.Image, shape: ImageShape) -> np.ndarray:
        """An opaque picture as float32 [height, width, channels] in [-1, 1]."""
        height, width, channels = shape
        image = self.resized(image.convert("L" if channels == 1 else "RGB"), height, width)
        return np.asarray(image, np.float32).reshape(shape) / 127.5 - 1

    def shown(self, array: np.ndarray) -> np.ndarray:
        """The array itself."""
        return array

    def resized(self, image: Image.Image, height: int, width: int) -> Image.Image:
        """Scales and crops as `transformers` does with Pillow; a crop beyond the image adds black."""
        short, long = sorted(image.size)
        if self.keep_aspect:
            edge = round(min(height, width) / self.crop_pct)
            edges = [edge if side == short else int(edge * long / short) for side in image.size]
        else:
            edges = [round(side / self.crop_pct) for side in (width, height)]
        check_pixels(edges[0], edges[1], " when its shorter edge fits")
        image = image.resize((edges[0], edges[1]), Image.Resampling[self.resample.upper()])
        left, top = (edges[0] - width) // 2, (edges[1] - height) // 2
        return image.crop((left, top, left + width, top + height))


PREPARATION = Preparation()


def check_pixels(width: int, height: int, when: str = "") -> None:
    """Raises:
    DecompressionBombError: for a picture of more than `MOST_PIXELS`.
    """
    if width * height > MOST_PIXELS:
        raise Image.DecompressionBombError(f"{width:,} x {height:,} pixels{when}, and {MOST_PIXELS:,} are the limit")


def check_bytes(name: str, size: int) -> None:
    """Raises:
    UserError: for a file of more than `MOST_BYTES`.
    """
    if size > MOST_BYTES:
        raise UserError(
            f"{name} is too large for a picture ({size:,} bytes, and {MOST_BYTES:,} are the limit); scale it down."
        )


def decode_image(encoded: bytes, shape: ImageShape, name: str, preparation: Preparing = PREPARATION) -> np.ndarray:
    """Decodes an image file (PNG, JPEG, ...) to float32 `shape`, by default in [-1, 1]; other sizes are scaled.

    A photo is rotated as its EXIF data says; an animation gives its first frame; 16 bits are scaled, not cut.

    Args:
      encoded: the bytes of the file.
      shape: height, width, and 1 (grey) or 3 (RGB) channels; or what else `preparation` makes.
      name: the image, for error messages.
      preparation: the filter, the crop, and the colour under transparency; or patches.

    Raises:
      UserError: if the bytes are not a complete image.
    """
    with _named(name), Image.open(io.BytesIO(encoded)) as image:
        return _array(image, shape, preparation)


def picture_array(
    image: Image.Image | np.ndarray, shape: ImageShape, name: str, preparation: Preparing = PREPARATION
) -> np.ndarray:
    """Converts an opened image, or uint8 pixels [height, width] or [height, width, channels], as `decode_image` does.

    Raises:
      UserError: for an image that is too large, and one of floating-point numbers, whose range is unknown.
    """
    with _named(name):
        if isinstance(image, np.ndarray):
            check_pixels(image.shape[1], image.shape[0])
            image = Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
        return _array(image, shape, preparation)


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Turns the errors of a picture into one sentence."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
        raise UserError(f"{name} is too large ({e}); scale it down.") from e
    except _FAULTS as e:
        raise UserError(f"{name} is damaged, or not a picture; replace it.") from e


def _array(image: Image.Image, shape: ImageShape, preparation: Preparing) -> np.ndarray:
    check_pixels(*image.size)
    if image.mode == "F":
        raise ValueError("a picture of floating-point numbers")
    image = _opaque(_eight_bits(ImageOps.exif_transpose(image)), preparation.background)
    return preparation.array(image, shape)


def _eight_bits(image: Image.Image) -> Image.Image:
    """16 bits of grey, which `convert` would cut at 255, in 8 bits; other images unchanged."""
    if not image.mode.startswith("I"):
        return image
    values, transparent = np.asarray(image), image.info.get("transparency")
    grey = Image.fromarray((values.astype(np.float32) / 257).round().clip(0, 255).astype(np.uint8))
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _opaque(image: Image.Image, background: str | None) -> Image.Image:
    """Composes an image with transparent pixels on `background`, and counts it; other images unchanged."""
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image
    image = image.convert("RGBA")
    if image.getchannel("A").getextrema() == (255, 255):
        return image
    count_transparent({hashlib.blake2b(image.tobytes(), digest_size=KEY_BYTES).digest()})
    if background is None:
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image)


@contextlib.contextmanager
def counting_transparent() -> Iterator[set[bytes]]:
    """Yields a set of keys, one for each distinct image with transparent pixels that is decoded meanwhile."""
    keys: set[bytes] = set()
    _counts.append(keys)
    try:
        yield keys
    finally:
        _counts[:] = [count for count in _counts if count is not keys]


def count_transparent(keys: set[bytes]) -> None:
    """Adds images to those that `counting_transparent` yields, for images that another process decoded."""
    for count in _counts:
        count.update(keys)


def transparency_note(keys: set[bytes], preparation: Preparing) -> str:
    """What a command reports of images with transparent pixels, or ""."""
    if not keys:
        return ""
    pictures = "1 picture has" if len(keys) == 1 else f"{len(keys):,} pictures have"
    color = preparation.background
    shown = "the colours stored in them were used" if color is None else f"they were composed on {color}"
    return f"{pictures} transparent pixels; {shown} (ViTConfig.background)."


def load_image(path: str, shape: ImageShape, preparation: Preparing = PREPARATION) -> np.ndarray:
    """Decodes an image file, see `decode_image`.

    Raises:
      UserError: if the file is missing or not an image.
    """
    return decode_image(read_image(path), shape, str(path), preparation)


def read_image(path: str) -> bytes:
    """Reads the bytes of an image file.

    Raises:
      UserError: if the file is missing, too large, no regular file, or cannot be read.
    """
    file = regular_file(path, "picture")
    try:
        check_bytes(path, file.stat().length)
        return file.read_bytes()
    except OSError as e:
        raise UserError(f"{path} is damaged, or not a picture; replace it.") from e
