"""What a tracker is: the protocol that each library's module implements, and which libraries there are."""

import contextlib
import dataclasses
import importlib
import importlib.util
import io
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from etils import epath

from adalink_jax.data.images import read_image
from adalink_jax.errors import UserError
from adalink_jax.files.places import is_remote, path_of
from adalink_jax.files.whole_file import write_bytes
from adalink_jax.typed_values import one_of

if TYPE_CHECKING:
    from PIL.Image import Image

TENSORBOARD = "tensorboard"
# Names in TRACKERS: each is a library, whose module here is `NAME_tracker`, with a class `Tracker`.
NAMES = (TENSORBOARD, "wandb", "mlflow", "trackio")
PROJECT = "adalink"  # where a library needs a project, and its environment variable sets none
TrackerName = Annotated[str, one_of(*NAMES)]


def import_libraries(names: Sequence[str]) -> None:
    """Imports the trackers' libraries, before anything is loaded.

    Nor does another thread, such as the one that makes batches, parse code yet: Python 3.11 may then fail (a SystemError of `ast`).

    Raises:
      UserError: names a library that is not installed, or cannot be imported, and how to install it.
    """
    for name in names:
        remedy = f"pip install 'adalink-jax[{name}]'"
        library = importlib.util.find_spec(name)
        # Without an origin it is a folder, such as the one that wandb writes to.
        if library is None or library.origin is None:
            raise UserError(f"TRACKERS has {name!r}, which is not installed: {remedy}.")
        try:
            importlib.import_module(f"{__package__}.{name}_tracker")
        except ImportError as e:
            raise UserError(f"TRACKERS has {name!r}, which cannot be imported ({e}): {remedy}.") from e


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """The facts of a run that trackers may show.

    Attributes:
      folder: `MODEL_DIR`.
      config: the text of `config.gin`.
      macros: gin's macros by name; values that are not plain are their text.
    """

    folder: epath.Path
    config: str = ""
    macros: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Row:
    """Everything of one step.

    Attributes:
      step: the step.
      values: metrics by tag, such as `train/loss`.
      pictures: PNG files by tag, such as `validation/samples`.
    """

    step: int
    values: dict[str, float] = dataclasses.field(default_factory=dict)
    pictures: dict[str, epath.Path] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Opened:
    """What a tracker says when it is opened.

    Attributes:
      run: the library's name of the run, by which it is found again when the run is resumed.
      first_step: the first step that it lacks; rows of earlier steps are not given to it again.
      place: where the run can be seen; "" is not announced.
    """

    run: str
    first_step: int
    place: str = ""


class Tracker(Protocol):
    """One run at one tracker. Any call may raise what the library raises: the run continues without the tracker."""

    def open(self, run: RunFacts, known: str | None, resumed_at: int | None) -> Opened:
        """Opens the run, and gives the tracker its configuration.

        Args:
          run: the run's facts.
          known: `Opened.run` of an earlier process of this run; None for a new one.
          resumed_at: the step of the checkpoint that this process resumes from; None where nothing is resumed.
        """
        ...

    def write(self, row: Row) -> None:
        """Writes a step; steps ascend, and each is written once."""
        ...

    def close(self, finished: bool, adapter: epath.Path | None) -> None:
        """Ends the run here.

        Args:
          finished: False for a run that was stopped, and may be resumed.
          adapter: the folder of the adapter that a finished run wrote, to keep as an artefact; None for none.
        """
        ...


def image_of(path: epath.Path) -> "Image":
    """The picture in a PNG file, which may be in a bucket."""
    from PIL import Image

    return Image.open(io.BytesIO(read_image(str(path))))


@contextlib.contextmanager
def local_files(folder: epath.Path) -> Iterator[list[pathlib.Path]]:
    """The files of a folder, which may be in a bucket, as files on this machine."""
    with tempfile.TemporaryDirectory() as copies:
        files = sorted(folder.iterdir(), key=lambda file: file.name)
        for file in files if is_remote(folder) else ():
            write_bytes(path_of(copies) / file.name, file.read_bytes())
        yield [pathlib.Path(copies if is_remote(folder) else folder) / file.name for file in files]
