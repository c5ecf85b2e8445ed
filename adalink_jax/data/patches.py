"""Pictures as patches in their own aspect ratio, for models that read no image of one size (Pix2Struct, arXiv:2210.03347, section 2).

    picture -> a text above it, if any -> (pixels - mean) / std, over the picture -> scaled to whole patches, at most N -> patches

The arithmetic is that of `transformers`' `Pix2StructImageProcessorPil`, which is the original's (TensorFlow's
`per_image_standardization`, whose std divides by the number of pixels); its torchvision processor divides by one less.
"""

import dataclasses
import functools
import textwrap
from typing import cast

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

from adalink_jax.data.images import check_pixels
from adalink_jax.errors import UserError

PLACE = 2  # numbers before a patch's pixels: its row and column, from 1; equals the constant of `models.pix2struct`
PILLOW = "pillow"  # the name of Pillow's own font
LETTERS, SIZE, PADDING = 80, 36, 5  # of the text: letters of a line, size of a letter and empty pixels around it


@dataclasses.dataclass(frozen=True)
class Patches:
    """How a picture becomes patches; see `images.Preparation`. The fields but the last are those of `Pix2StructConfig`.

    Attributes:
      patch_size: side of a square patch in pixels.
      background: the colour under transparent pixels, "white" or "black"; None shows the colours stored in them.
      header_font: the TrueType file to draw texts with, or "pillow"; None refuses texts.
      header: the text above the picture; "" for none.
    """

    patch_size: int = 16
    background: str | None = "white"
    header_font: str | None = None
    header: str = ""

    def for_text(self, text: str) -> "Patches":
        """These settings for a picture with a text above it.

        Raises:
          UserError: for a text if there is no font, or a file that is not one.
        """
        if not text:
            return self
        if self.header_font is None:
            raise UserError(
                f"The model reads no text but what is drawn above the picture, and there is {text[:60]!r}; set HEADER_FONT to a "
                f"TrueType file (Arial, for the published models) or 'pillow', or leave the text empty."
            )
        _font(self.header_font)
        return dataclasses.replace(self, header=text)

    def array(self, image: Image.Image, shape: tuple[int, ...]) -> Float[np.ndarray, "N numbers"]:
        """An opaque picture as float32 [N, 2 + pixels]: row, column and standardised pixels of its patches, then rows of 0."""
        most, size = shape[0], self.patch_size
        grey = shape[1] - PLACE == size * size
        image = image.convert("L" if grey else "RGB")
        pixels = np.asarray(self._with_header(image) if self.header else image, np.float32)
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        pixels = (pixels - pixels.mean(dtype=np.float64)) / max(pixels.std(dtype=np.float64), pixels.size**-0.5)
        height, width = pixels.shape[:2]
        scale = (most * (size / height) * (size / width)) ** 0.5
        rows, columns = (max(min(int(scale * edge / size), most), 1) for edge in (height, width))
        edges = columns * size, rows * size
        channels = [
            Image.fromarray(channel.astype(np.float32)).resize(edges, Image.Resampling.BILINEAR)
            for channel in np.moveaxis(pixels, -1, 0)
        ]
        patches = np.stack([np.asarray(channel) for channel in channels], -1)
        patches = patches.reshape(rows, size, columns, size, -1).swapaxes(1, 2).reshape(rows * columns, -1)
        places = np.indices((rows, columns)).reshape(PLACE, -1).T + 1
        out = np.zeros(shape, np.float32)
        out[: len(patches)] = np.hstack([places, patches])
        return out

    def shown(self, array: Float[np.ndarray, "N numbers"]) -> Float[np.ndarray, "height width channels"]:
        """A picture in [-1, 1] for people, of patches."""
        patches, size = array[array[:, 0] > 0], self.patch_size
        if not len(patches):
            return np.zeros((size, size, 1), np.float32)
        rows, columns = patches[:, :PLACE].max(0).astype(int)
        pixels = patches[:, PLACE:].reshape(rows, columns, size, size, -1).swapaxes(1, 2)
        pixels = pixels.reshape(rows * size, columns * size, -1)
        low, high = pixels.min(), pixels.max()
        return 2 * (pixels - low) / max(high - low, 1e-6) - 1

    def _with_header(self, image: Image.Image) -> Image.Image:
        """The picture with the text above it, on white; the narrower of the two is widened."""
        header = _drawn(self.header, cast(str, self.header_font))
        width = max(header.width, image.width)
        heights = [int(part.height * (width / part.width)) for part in (header, image)]
        check_pixels(width, sum(heights), " with the text above it")
        joined = Image.new("RGB", (width, sum(heights)), "white")
        joined.paste(header.resize((width, heights[0])), (0, 0))
        joined.paste(image.resize((width, heights[1])), (0, heights[0]))
        return joined.convert(image.mode)


@functools.lru_cache
def _font(path: str) -> ImageFont.FreeTypeFont:
    """A font of `SIZE`.

    Raises:
      UserError: for a file that is missing, or not a font.
    """
    try:
        return (
            cast(ImageFont.FreeTypeFont, ImageFont.load_default(SIZE))
            if path == PILLOW
            else ImageFont.truetype(path, SIZE)
        )
    except (OSError, ImportError) as e:
        raise UserError(
            f"HEADER_FONT = {path!r} is not a TrueType font that can be read ({e}); give another file."
        ) from e


def _drawn(text: str, font_path: str) -> Image.Image:
    """Black text on white, in lines of `LETTERS`."""
    font, lines = _font(font_path), "\n".join(textwrap.wrap(text, LETTERS))
    _, _, right, bottom = ImageDraw.Draw(Image.new("RGB", (1, 1))).textbbox((0, 0), lines, font=font)
    image = Image.new("RGB", (int(right) + 2 * PADDING, int(bottom) + 2 * PADDING), "white")
    ImageDraw.Draw(image).text((PADDING, PADDING), lines, fill="black", font=font)
    return image
