"""`fit`: writes the rows as tables and the settings as flags, and then does what `adalink train` does with them."""

import contextlib
import dataclasses
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from etils import epath
from jax.experimental.compilation_cache import compilation_cache

from adalink_jax import checkpoints, configuration, parallel
from adalink_jax.configuration.requirements import DATA, MODEL
from adalink_jax.data.user_files import row_checks, task_draft
from adalink_jax.errors import NotFinite, Stopped, UserError
from adalink_jax.files.places import check_run_folder, path_of
from adalink_jax.python_api.adapter_settings import bindings_of_adapter, usual_learning_rate
from adalink_jax.python_api.given_batches import GivenBatches, is_batches
from adalink_jax.python_api.given_rows import IMAGE, INPUTS, TARGETS, checked_rows, write_table
from adalink_jax.python_api.loaded_base import LoadedBase, Settings, bindings_of
from adalink_jax.training import run
from adalink_jax.training.setup import Parameters, Setup
from adalink_jax.typed_values import PositiveFloat, PositiveInt

TASK = "gin/tasks/files.gin"
NAME = "rows"  # the task's
# The score that chooses the best step, where it is not called as the metric.
SELECTS = {"squad": "f1", "captions": "cider"}
# Settings that have arguments of their own.
ARGUMENTS = {
    "TRAIN_STEPS": "steps", "BATCH_SIZE": "batch_size", "LEARNING_RATE": "learning_rate", "METRICS": "metrics",
    "TASK_FEATURE_LENGTHS": "lengths", "MODEL_DIR": "model_dir", "DATA": "train",
}  # fmt: skip
# What messages call them, and what only a command can do.
SHOWN = {name: f"`{argument}`" for name, argument in ARGUMENTS.items()} | {
    "DATA": "`train`, `validation`, `test`",
    "METRIC": "`metrics`",
    "INITIAL_CHECKPOINT_PATH": "`load_base`",
    "rerun the same command": "call `fit` again with the same arguments",
}


@dataclasses.dataclass(frozen=True)
class FitArguments:
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
    arguments: FitArguments,
    model_dir: str | os.PathLike[str] | None,
) -> Fitted:
    """Trains `adapter` on `base`; see `AttachedModel.fit`.

    Args:
      base, adapter: the model.
      seed: of a fresh adapter, and of dropout.
      start: writes the adapter to start from to a folder; None for a fresh one.
      splits: `train`, `validation` and `test` -> rows; the last two may be None.
      arguments: the settings.
      model_dir: folder of the run; None for a temporary one.
    """
    own_batches = is_batches(splits["train"])
    _check_call(splits, arguments, model_dir, own_batches)
    of_rows = {
        name: rows for name, rows in splits.items() if rows is not None and not (own_batches and name == "train")
    }
    rows = {name: checked_rows(of, name) for name, of in of_rows.items()}
    _check_lists(rows, (arguments.settings or {}).get("LISTS"))
    with contextlib.ExitStack() as at_end:
        if model_dir is None:
            folder = at_end.enter_context(tempfile.TemporaryDirectory(prefix="adalink-fit-"))
            at_end.enter_context(_nothing_saved())
        else:
            folder = os.fspath(model_dir)
            check_run_folder(folder, "`model_dir`")
        at_end.enter_context(configuration.isolated())
        at_end.enter_context(_compilation_cache_of_run())
        tables = {name: parallel.once(write_table, of, path_of(folder) / NAME, name) for name, of in rows.items()}
        has_images = IMAGE in next(iter(rows.values()))[0]
        bindings = (
            *bindings_of_adapter(adapter),
            ("Setup.trainable", "('adapter/.*',)"),
            ("LEARNING_RATE", _learning_rate(adapter, arguments)),
            ("RANDOM_SEED", repr(seed)),
            *_start_bindings(start, path_of(folder) / "start"),
            *_data_bindings(base, tables, has_images, own_batches, arguments),
            ("BATCH_SIZE", repr(arguments.batch_size)),
            ("TRAIN_STEPS", repr(arguments.steps)),
            ("MODEL_DIR", repr(folder)),
            *bindings_of(arguments.settings),
        )
        model_file, run_file = base.flags.files
        flags = dataclasses.replace(
            base.flags, files=(model_file, TASK, run_file), bindings=(*base.flags.bindings, *bindings)
        )
        configuration.load(flags)
        configuration.require(MODEL | DATA)
        configuration.check_reachable(flags, "train")
        lengths = _checked_setup(base).data.task_feature_lengths
        options, batches = configuration.train_options(flags), None
        if own_batches:
            local_rows = parallel.local_rows(arguments.batch_size, base.mesh).tolist()
            batches = GivenBatches(splits["train"], arguments.batch_size, arguments.steps, local_rows)
            # A command, which would train on the rows of validation, cannot resume such a run.
            options["settings"] = lambda: {**configuration.used_settings(), "fit.train": "'an iterator of batches'"}
        options |= {"base": base.parameters, "batches": batches, "keep_folder": model_dir is not None}
        summary = run.train(**options)  # gin gives the other arguments
        parameters = base.with_adapter(adapter, seed, f"{folder}/adapter")
    return Fitted(parameters, summary, lengths, base.setup.needs_images and not has_images)


def _check_call(
    splits: Mapping[str, Any], arguments: FitArguments, model_dir: str | os.PathLike[str] | None, own_batches: bool
) -> None:
    """Refuses arguments that contradict each other."""
    configuration.check_argument("model_dir", model_dir, str | os.PathLike | None)
    if threading.current_thread() is not threading.main_thread():
        raise UserError("`fit` was called in another thread, where Ctrl-C cannot stop it; call it in the main thread.")
    if model_dir is None and jax.process_count() > 1:
        raise UserError("`model_dir` is not set, and the job has several processes; give a folder that all can write.")
    if splits["validation"] is None and splits["test"] is not None:
        raise UserError("`test` is given, and `validation`, which chooses the best step, is not; give both.")
    if splits["validation"] is None and own_batches:
        raise UserError(
            "`train` is an iterator, of which no rows can be held out; give `validation`, which chooses the best step."
        )
    if name := next((name for name in arguments.settings or {} if name in ARGUMENTS), None):
        raise UserError(f"`settings` has {name!r}; give it as `{ARGUMENTS[name]}`.")


def _check_lists(rows: Mapping[str, Sequence[Mapping[str, Any]]], lists: Any) -> None:
    """Refuses targets that are lists if the caller has not stated what these are, as `adalink init` does."""
    targets = ((f"{name}[{i}]", row[TARGETS]) for name, of in rows.items() for i, row in enumerate(of))
    several = next(((place, x) for place, x in targets if isinstance(x, list) and len(x) > 1), None)
    if lists is None and several is not None:
        raise UserError(
            f"{several[0]} has a list as {TARGETS!r}, {several[1][:4]}; state what lists are: settings={{'LISTS': 'alternatives'}} if any "
            "one of the values is a right answer, or {'LISTS': 'labels'} if all of them apply."
        )


def _checked_setup(base: LoadedBase) -> Setup:
    """The setup of the configuration, whose base must be the one that is loaded."""
    setup = Setup()  # pyright: ignore[reportCallIssue]  # by gin
    fields = ("initial_checkpoint_path", "checkpoint_renames", "storage", "allow_other_base", "allow_other_precision")
    facts = lambda setup, *place: (setup.model.backbone, *(getattr(setup, field) for field in fields), *place)
    if facts(setup, parallel.make_mesh(), parallel.logical_axis_rules()) != facts(base.setup, base.mesh, base.rules):
        raise UserError("`settings` change the base, which is loaded already; give them to `load_base`.")
    return setup


def _data_bindings(
    base: LoadedBase, tables: Mapping[str, str], has_images: bool, own_batches: bool, arguments: FitArguments
) -> list[tuple[str, str]]:
    """The macros of gin/tasks/files.gin, as `adalink init` would choose them."""
    if own_batches:  # a task has rows of train: those of validation, which nothing reads
        tables = {"train": tables["validation"], **tables}
    settings: dict[str, Any] = {
        "data": dict(tables) if len(tables) > 1 else tables["train"],
        "inputs": f"{{{INPUTS}}}",
        "targets": f"{{{TARGETS}}}",
        "vocabulary": base.opened.vocabulary,
    }
    if lists := (arguments.settings or {}).get("LISTS"):
        settings["lists"] = lists
    if has_images:
        settings["image"] = f"{{{IMAGE}}}"
    elif base.setup.needs_images:
        settings["blank_image"] = True
    configuration.load(base.flags, require_all=False)  # no settings of the caller's own configuration
    choice = task_draft.choose(settings, NAME)
    settings = choice.settings | ({"drop_shared": False, "limits": {row_checks.SHARED: 1.0}} if own_batches else {})
    metric = choice.metric
    if arguments.metrics:
        settings["metrics"] = tuple(arguments.metrics)
        metric = SELECTS.get(arguments.metrics[0], arguments.metrics[0])
    lengths = dict(arguments.lengths or choice.lengths)
    macros = {name.upper(): value for name, value in settings.items()}
    macros |= {"MIXTURE_OR_TASK_NAME": NAME, "METRIC": metric, "TASK_FEATURE_LENGTHS": lengths}
    return [(name, repr(value)) for name, value in macros.items()]


def _learning_rate(adapter: nn.Module, arguments: FitArguments) -> str:
    if arguments.learning_rate is not None:
        return repr(arguments.learning_rate)
    usual = usual_learning_rate(adapter)
    if usual is None:
        raise UserError(f"{type(adapter).__name__} has no usual learning rate (gin/adapters); give `learning_rate`.")
    return usual


def _start_bindings(start: Callable[[str], None] | None, folder: epath.Path) -> list[tuple[str, str]]:
    """Writes the adapter that a run starts from, if it is not a fresh one; refuses a folder that holds another."""
    if start is None:
        return []
    with tempfile.TemporaryDirectory(prefix="adalink-start-") as new:
        start(new)
        digests_of = lambda path: checkpoints.open_adapter(path)[1].extra["digests"]
        if folder.exists() and digests_of(folder) != digests_of(new):
            raise UserError(f"{folder} holds the start of a run from another adapter; give another `model_dir`.")
    start(str(folder))
    return [("INITIAL_ADAPTER_PATH", repr(str(folder)))]


@contextlib.contextmanager
def _nothing_saved() -> Iterator[None]:
    """A run that is stopped reports that it can be resumed, which one in a temporary folder cannot."""
    try:
        yield
    except NotFinite:
        raise
    except Stopped as e:
        raise type(e)("Stopped. Nothing is kept, since `model_dir` is not set.") from None


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
