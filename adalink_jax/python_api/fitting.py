"""`fit`: writes the rows as tables and the settings as flags, and then does what `adalink train` does with them."""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from etils import epath
from jax.experimental.compilation_cache import compilation_cache

from adalink_jax import checkpoints, configuration, parallel
from adalink_jax.configuration.requirements import DATA, MODEL
from adalink_jax.data.user_files import task_draft
from adalink_jax.errors import UserError
from adalink_jax.files.places import check_run_folder, path_of
from adalink_jax.python_api.adapter_settings import bindings_of_adapter, usual_learning_rate
from adalink_jax.python_api.given_rows import IMAGE, INPUTS, TARGETS, checked_rows, write_table
from adalink_jax.python_api.loaded_base import LoadedBase, Settings, bindings_of
from adalink_jax.training import run
from adalink_jax.training.setup import Parameters
from adalink_jax.typed_values import PositiveFloat, PositiveInt

TASK = "gin/tasks/files.gin"
NAME = "rows"  # the task's
SELECTS = {
    "squad": "f1",
    "captions": "cider",
}  # the score that chooses the best step, where it is not called as the metric


@dataclasses.dataclass(frozen=True)
class Wishes:
    """The arguments of `AttachedModel.fit` that are settings; None for what is chosen by the rows or by the method."""

    steps: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat | None
    metrics: Sequence[str] | None
    lengths: Mapping[str, PositiveInt] | None
    settings: Settings | None

    def __post_init__(self):
        for name, annotation in type(self).__annotations__.items():
            configuration.check_argument(name, getattr(self, name), annotation)


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What `fit` gives the model.

    Attributes:
      parameters: those of the best step.
      summary: the contents of `summary.json`.
      lengths: `{"inputs": L, "targets": T}`.
      without_images: whether the rows had no images, and the model takes them.
    """

    parameters: Parameters
    summary: dict[str, Any]
    lengths: Mapping[str, int]
    without_images: bool


def fit(
    base: LoadedBase,
    adapter: nn.Module,
    seed: int,
    start: Callable[[str], None] | None,
    splits: Mapping[str, Any],
    wishes: Wishes,
    model_dir: str | os.PathLike[str] | None,
) -> Fitted:
    """Trains `adapter` on `base`; see `AttachedModel.fit`.

    Args:
      base, adapter: the model.
      seed: of a fresh adapter, and of dropout.
      start: writes the adapter to start from to a folder; None for a fresh one.
      splits: `train`, `validation` and `test` -> rows; the last two may be None.
      wishes: the settings.
      model_dir: folder of the run; None for a temporary one.
    """
    configuration.check_argument("model_dir", model_dir, str | os.PathLike | None)
    if model_dir is None and jax.process_count() > 1:
        raise UserError("`model_dir` is not set, and the job has several processes; give a folder that all can write.")
    if splits["validation"] is None and splits["test"] is not None:
        raise UserError("`test` is given, and `validation`, which chooses the best step, is not; give both.")
    rows = {name: checked_rows(rows, name) for name, rows in splits.items() if rows is not None}
    with contextlib.ExitStack() as at_end:
        if model_dir is None:
            folder = at_end.enter_context(tempfile.TemporaryDirectory(prefix="adalink-fit-"))
        else:
            folder = os.fspath(model_dir)
            check_run_folder(folder)
        at_end.enter_context(configuration.isolated())
        at_end.enter_context(_compilation_cache_of_run())
        tables = {name: parallel.once(write_table, of, path_of(folder) / NAME, name) for name, of in rows.items()}
        begun = (
            [] if start is None else [("INITIAL_ADAPTER_PATH", repr(_written_start(start, path_of(folder) / "start")))]
        )
        data, without_images = _data_bindings(base, tables, IMAGE in rows["train"][0], wishes)
        bindings = (
            *bindings_of_adapter(adapter),
            ("Setup.trainable", "('adapter/.*',)"),
            ("LEARNING_RATE", _learning_rate(adapter, wishes)),
            ("RANDOM_SEED", repr(seed)),
            *begun,
            *data,
            ("BATCH_SIZE", repr(wishes.batch_size)),
            ("TRAIN_STEPS", repr(wishes.steps)),
            ("MODEL_DIR", repr(folder)),
            *bindings_of(wishes.settings),
        )
        model_file, run_file = base.flags.files
        flags = dataclasses.replace(
            base.flags, files=(model_file, TASK, run_file), bindings=(*base.flags.bindings, *bindings)
        )
        configuration.load(flags)
        configuration.require(MODEL | DATA)
        configuration.check_reachable(flags, "train")
        keep = model_dir is not None
        summary = run.train(**configuration.train_options(flags), base=base.parameters, keep_folder=keep)  # pyright: ignore[reportCallIssue]  # gin gives the other arguments
        parameters = base.with_adapter(adapter, seed, f"{folder}/adapter")
        lengths = run.Setup().data.task_feature_lengths  # pyright: ignore[reportCallIssue]  # by gin
    return Fitted(parameters, summary, lengths, without_images)


def _data_bindings(
    base: LoadedBase, tables: Mapping[str, str], has_images: bool, wishes: Wishes
) -> tuple[list[tuple[str, str]], bool]:
    """The macros of gin/tasks/files.gin, as `adalink init` would choose them; and whether blank images stand for missing ones."""
    settings: dict[str, Any] = {
        "data": dict(tables) if len(tables) > 1 else tables["train"],
        "inputs": f"{{{INPUTS}}}",
        "targets": f"{{{TARGETS}}}",
        "vocabulary": base.opened.vocabulary,
    }
    without_images = base.setup.needs_images and not has_images
    settings |= {"image": f"{{{IMAGE}}}"} if has_images else {"blank_image": True} if without_images else {}
    configuration.load(base.flags, require_all=False)  # no settings of the caller's own configuration
    choice = task_draft.choose(settings, NAME)
    metrics = {"metrics": tuple(wishes.metrics)} if wishes.metrics else {}
    metric = SELECTS.get(wishes.metrics[0], wishes.metrics[0]) if wishes.metrics else choice.metric
    macros = {name.upper(): value for name, value in {**choice.settings, **metrics}.items()}
    macros |= {
        "MIXTURE_OR_TASK_NAME": NAME,
        "METRIC": metric,
        "TASK_FEATURE_LENGTHS": dict(wishes.lengths or choice.lengths),
    }
    return [(name, repr(value)) for name, value in macros.items()], without_images


def _learning_rate(adapter: nn.Module, wishes: Wishes) -> str:
    if wishes.learning_rate is not None:
        return repr(wishes.learning_rate)
    usual = usual_learning_rate(adapter)
    if usual is None:
        raise UserError(f"{type(adapter).__name__} has no usual learning rate (gin/adapters); give `learning_rate`.")
    return usual


def _written_start(start: Callable[[str], None], folder: epath.Path) -> str:
    """Writes the adapter that a run starts from; refuses a folder that holds another one."""
    with tempfile.TemporaryDirectory(prefix="adalink-start-") as new:
        start(new)
        if folder.exists():
            values = [checkpoints.open_adapter(path)[1].extra["digests"] for path in (new, folder)]
            if values[0] != values[1]:
                raise UserError(f"{folder} holds the start of a run from another adapter; give another `model_dir`.")
            return str(folder)
    start(str(folder))
    return str(folder)


@contextlib.contextmanager
def _compilation_cache_of_run() -> Iterator[None]:
    """A run keeps its compiled programs in its folder; afterwards JAX keeps them where it did before."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    try:
        yield
    finally:
        if any(jax.config.values[name] != value for name, value in before.items()):
            for name, value in before.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()
