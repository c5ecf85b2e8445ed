"""Opens a run's folder or a base model for predictions: its model, vocabulary and adapters. gin's state is unchanged afterwards."""

import ast
import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
from etils import epath
from jax.sharding import Mesh

from adalink_jax import checkpoints, configuration, parallel
from adalink_jax.checkpoints.formats import BUNDLED, bundled_names
from adalink_jax.configuration.gin_sources import RUN_CONFIG
from adalink_jax.data import check_rows, load_vocabulary
from adalink_jax.data.label_sets import SEPARATORS, LabelSets
from adalink_jax.data.user_files.file_settings import LABELS
from adalink_jax.data.vocabularies import BYTES
from adalink_jax.errors import UserError
from adalink_jax.files.places import is_remote, path_of
from adalink_jax.models import paths
from adalink_jax.near_names import near_paths
from adalink_jax.parallel import compiler_settings
from adalink_jax.serving import shipped
from adalink_jax.training.setup import Parameters, Setup, load_parameters, split_abstract

CONFIG, ADAPTER, MODEL = RUN_CONFIG, "adapter", "model"
ROWS = ("inputs", "image", "images", "columns", "delimiter", "quoted", "lists", "label_separator")
NAMED_RUNS = 5  # of a folder, in an error
RUN = "gin/runs/finetune.gin"  # has the settings of a base model
LENGTHS = {"inputs": 512, "targets": 64}  # for a base model; a run's are in its config.gin


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A base model in memory.

    Attributes:
      parameters: all of them are frozen.
      mesh, rules: where they are placed.
    """

    parameters: Parameters
    mesh: Mesh
    rules: parallel.LogicalRules


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model that is ready to load for predictions, or whose base is loaded.

    Attributes:
      setup: model, sources of its parameters, decoding.
      vocabulary: see `load_vocabulary`.
      task_feature_lengths: the maximum lengths `{"inputs": L, "targets": T}`, in tokens.
      adapters: name -> folder, or module and parameters; the run's own adapter is called `adapter`.
      without_images: whether inputs without an image are allowed although the model takes images.
      rows: for a run on the user's own files, how its rows were read and formatted: those of `ROWS` (see `FileTask`) that are set; {} for other runs.
      loaded: the base model, if it is in memory.
    """

    setup: Setup
    vocabulary: str
    task_feature_lengths: Mapping[str, int]
    adapters: Mapping[str, str | tuple[nn.Module, Mapping[str, Any]]]
    without_images: bool = False
    rows: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    loaded: Loaded | None = None

    @property
    def labels(self) -> LabelSets | None:
        """How the run's targets write sets of labels; None if they are no such sets."""
        separator = self.rows.get("label_separator", SEPARATORS[0])
        return LabelSets(separator) if self.rows.get("lists") == LABELS else None


def open_model(path: str, vocabulary: str | None = None, trust_modules: bool = False) -> Opened:
    """Opens a folder of `adalink train` or of a pack's member, or a base model in any form that INITIAL_CHECKPOINT_PATH takes.

    Args:
      path: a run's folder, or a base model, such as `hf://OWNER/NAME` or `bundled:NAME`.
      vocabulary: the vocabulary of a base model that has none.
      trust_modules: whether a run's folder may have modules imported that are not this package's.

    Raises:
      UserError: for a run that imports such modules without consent, if it is neither, for a run that has not ended, and for a base model that no file of gin/models fits.
    """
    register()
    with configuration.isolated():
        if "://" not in path.removeprefix("gs://") and (path_of(path) / CONFIG).exists():
            return _run(path_of(path), vocabulary, trust_modules)
        _refuse_if_meant_another(path)
        return _base(path, vocabulary)


def load_run(folder: str | epath.Path, trust_modules: bool) -> None:
    """Loads the configuration of the run in `folder`; see `open_model`."""
    _refuse_if_meant_another(folder)
    flags = configuration.GinFlags((str(path_of(folder) / CONFIG),), trust_modules=trust_modules)
    configuration.load(flags, require_all=False)


def _refuse_if_meant_another(folder: str | epath.Path) -> None:
    """Raises:
    UserError: if this is not a run, but holds runs, or is missing beside some; the message names them.
    """
    text, path = os.fspath(folder), path_of(folder)
    if is_remote(text) or text.startswith(BUNDLED) or text in bundled_names() or (path / CONFIG).exists():
        return
    beside = path if path.exists() else path.parent
    near = map(path_of, near_paths(text))
    others = sorted(beside.iterdir(), key=str) if beside.is_dir() else ()
    runs = list(dict.fromkeys(str(other) for other in (*near, *others) if (other / CONFIG).exists()))
    if runs:
        more = f", and {len(runs) - NAMED_RUNS:,} more" if len(runs) > NAMED_RUNS else ""
        raise UserError(f"{text} is not a run; runs near it: {', '.join(runs[:NAMED_RUNS])}{more}.")


def _run(folder: epath.Path, vocabulary: str | None, trust_modules: bool) -> Opened:
    load_run(folder, trust_modules)
    bound = configuration.bindings()
    value_of: Callable[..., Any] = lambda name, default=None: (
        ast.literal_eval(bound[name]) if name in bound else default
    )
    setup = Setup()  # pyright: ignore[reportCallIssue]  # the model is bound by gin
    setup = dataclasses.replace(setup, dataset=None, vision_cache=None, initial_adapter_path=None, adapter_start=None)
    adapters = {ADAPTER: str(folder / ADAPTER)} if (folder / ADAPTER).exists() else {}
    if (folder / MODEL).exists():
        exact = (*setup.quantised_exact, *_trained_kernels(setup))  # they were trained as they are
        model = str(folder / MODEL)
        setup = dataclasses.replace(setup, initial_checkpoint_path=model, quantised_exact=exact, trainable=())
    if not adapters and not (folder / MODEL).exists():
        raise UserError(
            f"{folder} has neither {ADAPTER}/ nor {MODEL}/, since the run has not ended; rerun its command to finish it."
        )
    on_files = "DatasetConfig.own_files" in bound
    if vocabulary is None:
        vocabulary = value_of("FileTask.vocabulary" if on_files else "PublishedData.vocabulary")
    if vocabulary is None and value_of("DatasetConfig.mixture_or_task_module") is not None:
        raise UserError(f"The task of {folder} has a custom vocabulary; give it as vocabulary='bytes' or a path.")
    rows = {name: value_of(f"FileTask.{name}") for name in ROWS if on_files}
    return Opened(
        setup,
        vocabulary or BYTES,
        value_of("DatasetConfig.task_feature_lengths"),
        adapters,
        value_of("FileTask.blank_image", False),
        {name: value for name, value in rows.items() if value is not None},
    )


def _trained_kernels(setup: Setup) -> list[str]:
    """The kernels that a run trained on a quantised base, as rules of QUANTISED_EXACT."""
    if not setup.storage.quantises:
        return []
    trained = [
        name.split("/")[1:] for name in split_abstract(setup.model, setup.trainable)[0] if name.startswith("backbone/")
    ]
    part = lambda text: r"layers_\d+" if text == paths.SCANNED else re.escape(text)
    return ["/".join(map(part, name)) for name in trained]


def _base(path: str, vocabulary: str | None) -> Opened:
    flags, _ = configuration.parse_flags([f"--gin_file={model_file(path, 'give Predictor a Setup of its model')}"])
    configuration.load(flags, require_all=False)
    setup = Setup(initial_checkpoint_path=path)  # pyright: ignore[reportCallIssue]  # the model is bound by gin
    return Opened(setup, vocabulary or vocabulary_of(path), LENGTHS, {})


def open_base(
    path: str, model: str | None, vocabulary: str | None, bindings: Sequence[tuple[str, str]], how: str
) -> tuple[configuration.GinFlags, Opened]:
    """Loads a base model without an adapter.

    Args:
      path: see INITIAL_CHECKPOINT_PATH.
      model: the base's file of gin/models; None for the one that fits its checkpoint.
      vocabulary: None for the base's own.
      bindings: further settings, `(name, text)`.
      how: how the user names the model's file, for errors.

    Returns:
      The flags of a command that would load the same, and the model in memory.
    """
    register()
    with configuration.isolated():
        file = model or model_file(path, f"name its gin file: {how}")
        flags = configuration.GinFlags((file, RUN), (("INITIAL_CHECKPOINT_PATH", repr(path)), *bindings))
        configuration.load(flags, require_all=False)
        configuration.require({"Setup.model": f"a model's file: {how}"})
        configuration.check_reachable(flags)
        compiler_settings.set_environment()
        setup = Setup()  # pyright: ignore[reportCallIssue]  # gin supplies the model
        name = vocabulary or vocabulary_of(path)
        check_rows(f"The vocabulary {name}", load_vocabulary(name).vocab_size, setup.model.backbone.config.vocab_size)
        mesh, rules = parallel.make_mesh(), parallel.logical_axis_rules()
        with parallel.use_mesh(mesh, rules):
            parameters = load_parameters(setup, mesh, rules)
    return flags, Opened(setup, name, LENGTHS, {}, loaded=Loaded(parameters, mesh, rules))


def model_file(base: str, otherwise: str) -> str:
    """The file of gin/models that fits a base model; the first of several that describe the same model under different names.

    Args:
      base: see INITIAL_CHECKPOINT_PATH.
      otherwise: what the user can do if there is no such file, for the error message.

    Raises:
      UserError: if no file fits, or files of different models do.
    """
    fitting = shipped.fitting_models(checkpoints.open_source(base, download=False))
    files, settings = list(fitting), list(fitting.values())
    if not files:
        raise UserError(f"No file of gin/models fits {base}; {otherwise}.")
    if any(other != settings[0] for other in settings):
        raise UserError(f"{len(files)} files of gin/models fit {base} ({', '.join(files)}); {otherwise}.")
    return files[0]


def vocabulary_of(base: str) -> str:
    """A base model's vocabulary, for `load_vocabulary`."""
    return BYTES if base.startswith("bundled:") else base


def register() -> None:
    """Imports the modules whose configurables a run's config.gin may name."""
    from adalink_jax import adapters, data, models, parallel  # noqa: F401
    from adalink_jax.parallel import compiler_settings  # noqa: F401
    from adalink_jax.training import run  # noqa: F401
    from adalink_jax.training.packs import run_pack  # noqa: F401
