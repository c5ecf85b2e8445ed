"""A run's folder, or a base model, as what makes predictions: which model, which vocabulary, which adapters. gin's own state stays as it is."""

import ast
import dataclasses
from collections.abc import Mapping

from etils import epath

from adalink_jax import checkpoints, configuration
from adalink_jax.data.vocabularies import BYTES
from adalink_jax.errors import UserError
from adalink_jax.serving import shipped
from adalink_jax.training.setup import Setup

CONFIG, ADAPTER, MODEL = "config.gin", "adapter", "model"
ROWS = ("inputs", "image", "images", "columns", "delimiter")
LENGTHS = {"inputs": 512, "targets": 64}  # of a base model; a run has its own


@dataclasses.dataclass(frozen=True)
class Opened:
    """What makes predictions.

    Attributes:
      setup: model, sources of its parameters, decoding.
      vocabulary: as for `load_vocabulary`.
      task_feature_lengths: `{"inputs": L, "targets": T}` at most, in tokens.
      adapters: name -> folder; the run's own is called `adapter`.
      without_images: whether an input may come without an image, though the model takes them.
      rows: of a run over one's own files, how its rows were written and read: those of `inputs`, `image`, `images`, `columns`,
        `delimiter` (see `FileTask`) that are set; {} otherwise.
    """

    setup: Setup
    vocabulary: str
    task_feature_lengths: Mapping[str, int]
    adapters: Mapping[str, str]
    without_images: bool = False
    rows: Mapping[str, object] = dataclasses.field(default_factory=dict)


def open_model(path: str, vocabulary: str | None = None) -> Opened:
    """A folder of `adalink train` (or of a member of a pack), or a base model in any form that INITIAL_CHECKPOINT_PATH takes.

    Args:
      path: the folder; `hf://OWNER/NAME`, `bundled:NAME`.
      vocabulary: of a base model that holds none.

    Raises:
      UserError: if it is neither; for a run that has not ended, and a base that no file of gin/models fits.
    """
    _register()
    with configuration.isolated():
        if "://" not in path.removeprefix("gs://") and (epath.Path(path) / CONFIG).exists():
            return _run(epath.Path(path), vocabulary)
        return _base(path, vocabulary)


def _run(folder: epath.Path, vocabulary: str | None) -> Opened:
    flags, _ = configuration.parse_flags([f"--gin_file={folder / CONFIG}"])
    configuration.load(flags, require_all=False)
    bound = configuration.bindings()
    stated = lambda name, otherwise=None: ast.literal_eval(bound[name]) if name in bound else otherwise
    setup = dataclasses.replace(Setup(), dataset=None, vision_cache=None, initial_adapter_path=None, adapter_start=None)
    adapters = {}
    if (folder / ADAPTER).exists():
        adapters[ADAPTER] = str(folder / ADAPTER)
    if (folder / MODEL).exists():
        setup = dataclasses.replace(setup, initial_checkpoint_path=str(folder / MODEL))
    if not adapters and not (folder / MODEL).exists():
        raise UserError(
            f"{folder} holds neither {ADAPTER}/ nor {MODEL}/; the run has not ended: give its command again."
        )
    own = "DatasetConfig.own_files" in bound
    if vocabulary is None:
        vocabulary = stated("FileTask.vocabulary" if own else "PublishedData.vocabulary")
    if vocabulary is None and stated("DatasetConfig.mixture_or_task_module") is not None:
        raise UserError(f"The task of {folder} has a vocabulary of its own; name it: vocabulary='bytes', or a path.")
    rows = {name: stated(f"FileTask.{name}") for name in ROWS} if own else {}
    return Opened(
        setup,
        vocabulary or BYTES,
        stated("DatasetConfig.task_feature_lengths"),
        adapters,
        stated("FileTask.blank_image", False),
        {name: value for name, value in rows.items() if value is not None},
    )


def _base(path: str, vocabulary: str | None) -> Opened:
    flags, _ = configuration.parse_flags([f"--gin_file={model_file(path, 'give Predictor a Setup of its model')}"])
    configuration.load(flags, require_all=False)
    setup = dataclasses.replace(Setup(), initial_checkpoint_path=path)
    return Opened(setup, vocabulary or vocabulary_of(path), LENGTHS, {})


def model_file(base: str, otherwise: str) -> str:
    """The one file of gin/models that fits a base model.

    Args:
      base: as INITIAL_CHECKPOINT_PATH.
      otherwise: what to do where there is none.

    Raises:
      UserError: if none fits, or several.
    """
    files = list(shipped.fitting_models(checkpoints.open_source(base)))
    if len(files) != 1:
        found = f"{len(files)} ({', '.join(files)})" if files else "none"
        raise UserError(f"Of the models in gin/models {found} fit {base}; {otherwise}.")
    return files[0]


def vocabulary_of(base: str) -> str:
    """Where a base model's vocabulary is."""
    return BYTES if base.startswith("bundled:") else base


def _register() -> None:
    """Imports what a run's configuration may name."""
    from adalink_jax import adapters, data, models, parallel  # noqa: F401
    from adalink_jax.training.packs import run_pack  # noqa: F401
