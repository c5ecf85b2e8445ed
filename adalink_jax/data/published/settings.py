"""Where the published data sets lie, and how their text is cut into ids: the settings of all their tasks."""

import dataclasses

import gin
from etils import epath

from adalink_jax.errors import UserError

FILES, TFDS = "files", "tfds"


@gin.configurable
@dataclasses.dataclass(frozen=True)
class PublishedData:
    """The settings of every task over published data.

    Attributes:
      data_dir: a folder with a folder for each data set, in the layout that the task's module documents; or one of TFDS.
      vocabulary: "bytes", a SentencePiece model, or a checkpoint's folder that holds one, as for `adalink infer`.
      source: "files", as their authors published them, or "tfds", data sets that TFDS prepared.
    """

    data_dir: str | None = None
    vocabulary: str | None = None
    source: str = FILES

    def __post_init__(self):
        for name, macro in (("data_dir", "DATA_DIR"), ("vocabulary", "VOCABULARY")):
            if getattr(self, name) is None:
                raise UserError(f"{macro} is not set (PublishedData.{name}); the tasks over published data need it.")
        if self.source not in (FILES, TFDS):
            raise UserError(f"SOURCE is {self.source!r}; it must be {FILES!r} or {TFDS!r}.")

    def folder(self, *names: str) -> epath.Path:
        """The folder of a data set in `data_dir`, by the first of its names that is there.

        Raises:
          UserError: if there is none.
        """
        for name in names:
            if (folder := epath.Path(self.data_dir) / name).is_dir():
                return folder
        raise UserError(
            f"There is no folder {epath.Path(self.data_dir) / names[0]}; set DATA_DIR to the folder above it."
        )


@gin.configurable
@dataclasses.dataclass(frozen=True)
class SpanCorruption:
    """T5's pre-training objective (Raffel et al., 2020, section 3.1.4): runs of tokens are dropped, and asked for.

    Attributes:
      noise_density: share of the tokens that are dropped, in (0, 1).
      mean_span_length: mean length of a run, in tokens; ByT5 has 20 (Xue et al., 2022).
    """

    noise_density: float = 0.15
    mean_span_length: float = 3.0

    def __post_init__(self):
        if not 0 < self.noise_density < 1 or self.mean_span_length < 1:
            raise UserError(
                f"SpanCorruption has noise_density {self.noise_density}, which must lie between 0 and 1, and "
                f"mean_span_length {self.mean_span_length}, which must be at least 1."
            )
