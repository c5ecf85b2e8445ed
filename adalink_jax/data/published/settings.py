"""The settings that all tasks over published data share: their folder, their vocabulary, span corruption."""

import dataclasses

import gin
from etils import epath

from adalink_jax.errors import UserError
from adalink_jax.files.places import path_of
from adalink_jax.typed_values import Fraction, PositiveFloat

FILES, TFDS = "files", "tfds"


@gin.configurable
@dataclasses.dataclass(frozen=True)
class PublishedData:
    """The settings of every task over published data.

    Attributes:
      data_dir: a folder with one folder per data set, in the layout that the task's module documents; or a folder of TFDS.
      vocabulary: "bytes", a SentencePiece model, or the folder of a checkpoint that holds one.
      source: "files" as their authors published them, or "tfds" for data sets that TFDS prepared.
      image_text: what stands for the image, before the inputs of tasks that have images, where the model reads it in the text's
        place: "<start_of_image>" for a T5Gemma 2.
    """

    data_dir: str = ""
    vocabulary: str = ""
    source: str = FILES
    image_text: str = ""

    def __post_init__(self):
        for name, macro in (("data_dir", "DATA_DIR"), ("vocabulary", "VOCABULARY")):
            if not getattr(self, name):
                raise UserError(f"{macro} is not set (PublishedData.{name}); the tasks over published data need it.")
        if self.source not in (FILES, TFDS):
            raise UserError(f"SOURCE is {self.source!r}; it must be {FILES!r} or {TFDS!r}.")

    def folder(self, *names: str) -> epath.Path:
        """Returns the folder of a data set in `data_dir`: the first of its names that exists.

        Raises:
          UserError: if none exists.
        """
        folders = [path_of(self.data_dir) / name for name in names]
        for folder in folders:
            if folder.is_dir():
                return folder
        raise UserError(f"There is no folder {folders[0]}; set DATA_DIR to the folder above it.")


@gin.configurable
@dataclasses.dataclass(frozen=True)
class SpanCorruption:
    """T5's pre-training objective (Raffel et al., 2020, section 3.1.4): spans of tokens are dropped, and are to be predicted.

    Attributes:
      noise_density: share of the tokens to drop, in (0, 1).
      mean_span_length: mean length of a span, in tokens; ByT5 has 20 (Xue et al., 2022).
    """

    noise_density: Fraction = 0.15
    mean_span_length: PositiveFloat = 3.0

    def __post_init__(self):
        if not 0 < self.noise_density < 1 or self.mean_span_length < 1:
            raise UserError(
                f"SpanCorruption has noise_density {self.noise_density}, which must be between 0 and 1, and "
                f"mean_span_length {self.mean_span_length}, which must be at least 1."
            )
