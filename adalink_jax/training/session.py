"""What a command that uses a model and its data has open: a mesh, the checked tasks, the console, and the request to stop.

`open_session` serves evaluation and the vision cache. `open_run` adds a run's folder with its checkpoints, and serves `train` and
`train_pack`. Both check everything that can be checked before a parameter is read.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import jax
from etils import epath
from jax.sharding import Mesh

from adalink_jax import configuration, parallel, timings
from adalink_jax.adapters import AdaptedModel, check_packable
from adalink_jax.data import FeatureConverter, Task, check_rows, get_tasks
from adalink_jax.data.batch_order import BatchIterator
from adalink_jax.data.images import counting_transparent, transparency_note
from adalink_jax.data.prefetch import Prefetched
from adalink_jax.data.task_protocol import NumberedTask
from adalink_jax.errors import UserError
from adalink_jax.files import locks
from adalink_jax.files.places import check_run_folder, path_of
from adalink_jax.files.run_files import Summary
from adalink_jax.files.typed_json import read_state
from adalink_jax.training import fill_vision_cache, outputs
from adalink_jax.training.console import Console, reading_rows
from adalink_jax.training.evaluation import Evaluator
from adalink_jax.training.interrupt import Interrupted, StopRequest
from adalink_jax.training.run_checkpoints import CheckpointConfig, RunCheckpoints, identity_of
from adalink_jax.training.save_clock import SaveClock
from adalink_jax.training.segments import Segment, check_environment
from adalink_jax.training.setup import Parameters, Setup, split_abstract
from adalink_jax.training.step import TrainState, check_batch
from adalink_jax.training.verdict import baselines_of
from adalink_jax.training.watchdog import Watchdog

T = TypeVar("T")

# Where the number of examples is not known, only those of a larger batch are counted: that reads them.
_LARGE_BATCH = 1024


@dataclasses.dataclass
class Session:
    """See the module's docstring.

    Attributes:
      setup: model, data, sources of the parameters.
      mesh, rules: the mesh in use, and the mesh axes of the logical axes.
      task: the task or mixture to train on.
      eval_tasks: the single tasks to score.
      console: prints, in process 0.
      stop: set by Ctrl-C and notices.
    """

    setup: Setup
    mesh: Mesh
    rules: parallel.LogicalRules
    task: Task
    eval_tasks: Sequence[Task]
    console: Console
    stop: StopRequest

    def converter(self, params: Parameters, splits: Sequence[str] = fill_vision_cache.SPLITS) -> FeatureConverter:
        """The converter from examples to features. Where VISION_CACHE is set, the cache of the `splits` is filled first."""
        cache = fill_vision_cache.prepare(
            self.setup, params, self.eval_tasks, self.mesh, self.console, self.stop, splits
        )
        return self.setup.converter(self.setup.data.task_feature_lengths, cache)

    def other_inputs(self, params: Parameters) -> str | None:
        """How the tasks' inputs begin and end otherwise than those that the initial adapter was trained on; None if they do not."""
        facts, path = params.adapter_facts, self.setup.initial_adapter_path
        if facts is None or path is None:
            return None
        problems = (facts.other_inputs(path, task.encode("")) for task in (self.task, *self.eval_tasks))
        return next(filter(None, problems), None)

    def evaluator(self, converter: FeatureConverter, model: AdaptedModel, at_once: int | None = None) -> Evaluator:
        """Scores `model` on the tasks; `at_once` is a pack's (see `map_members`)."""
        batch_size, decoding = self.setup.data.batch_size, self.setup.decoding
        return Evaluator(model, self.eval_tasks, converter, batch_size, self.mesh, decoding, at_once)

    def unless_stopped(self, split: str, score: Callable[[Callable[[], None]], T]) -> T | None:
        """`score(check)`, where `check` is to be called between batches; None if a stop was requested meanwhile."""
        try:
            with self.console.working(f"evaluating {split}"):
                return score(self.stop.check)
        except Interrupted:
            return None


@dataclasses.dataclass
class Start:
    """Where a run starts or resumes.

    Attributes:
      state: the initial state, or the newest checkpoint's.
      step: its step.
      facts: the checkpoint's facts; {} for a fresh run.
      batches: at the position that belongs to `state`; they are made ahead, and closing them ends their thread.
      converter: makes the features, for evaluation too.
      config: the text of `config.gin`.
    """

    state: TrainState
    step: int
    facts: dict
    batches: Prefetched
    converter: FeatureConverter
    config: str

    def segments(self, step: int) -> list[dict]:
        """The run's segments up to `step`, JSON-able: those of the checkpoint, and this process's if it made a step."""
        earlier = self.facts.get("segments", [])
        return [*earlier, dataclasses.asdict(Segment.here(self.step + 1, step))] if step > self.step else earlier


@dataclasses.dataclass
class RunSession(Session):
    """A session with the folder of a run.

    Attributes:
      folder: `MODEL_DIR`.
      identity: the settings that must not change when the run is resumed.
      newest, best: the newest checkpoints, and the one with the best validation score.
      saves: when the newest checkpoints are written.
      total_steps: the last step.
      own_batches: whether the caller makes the batches.
      at_end: releases the folder's lock, and ends the thread that makes batches.
      facts: of the newest checkpoint; {} if there is no checkpoint.
      summary: of a run that is finished already; None otherwise.
      watchdog: for the training loop; made here, before the settings are checked and recorded.
    """

    folder: epath.Path
    identity: dict[str, str]
    newest: RunCheckpoints
    best: RunCheckpoints
    saves: SaveClock
    total_steps: int
    own_batches: bool
    at_end: contextlib.ExitStack
    facts: dict = dataclasses.field(default_factory=dict)
    summary: dict | None = None
    watchdog: Watchdog = dataclasses.field(default_factory=Watchdog)

    def start(
        self,
        params: Parameters,
        state: TrainState,
        make_batches: Callable[[FeatureConverter], BatchIterator],
        config_text: Callable[[], str],
    ) -> Start:
        """Prints what is trained, restores the newest checkpoint if there is one, writes the run's first files, and has the first
        batches made.

        Args:
          params: the model's parameters.
          state: the initial state.
          make_batches: makes the iterator of training batches.
          config_text: gives the text of `config.gin`.
        """
        state = parallel.on_mesh(state, self.mesh)
        self.console.parameters(params)
        self.console.notes(self.eval_tasks)
        if difference := self.other_inputs(params):
            self.console.note(difference)
        converter = self.converter(params)
        batches, facts = make_batches(converter), {}
        if self.facts:
            state, facts = self.newest.restore(state)
            batches.set_state(facts["data_position"])
            self.console.resumed(int(state.step), self.newest)
        if not self.own_batches and (note := self.setup.data.stream_note(jax.process_count(), batches.get_state())):
            self.console.note(note)
        config = config_text()
        parallel.once(outputs.write_start, self.folder, params, config)
        step = int(state.step)
        ahead = self.at_end.enter_context(Prefetched(batches, self.total_steps - step))
        return Start(state, step, facts, ahead, converter, config)

    def baselines(self) -> dict[str, dict[str, float]]:
        """Test scores without a model, see `verdict.baselines_of`; none where the caller makes the batches, whose examples are not known."""
        if self.own_batches:
            return {}
        with self.console.working("scoring without a model"):
            return parallel.once(baselines_of, self.eval_tasks, self.setup.data)

    def end_if_stopped(self, save: Callable[[], None]) -> None:
        """If a stop was requested, saves and raises `Stopped`."""
        if self.stop.requested():
            save()
            self.newest.wait()
            step = self.newest.latest_step()  # asked in all processes: none ends before the others have saved
            message = f"Stopped after step {step} and saved; rerun the same command to resume."
            raise self.stop.stopped(configuration.as_named(message))

    def _claim(self) -> None:
        """Locks the run's folder until the process leaves it."""
        self.at_end.enter_context(locks.hold_folder(self.folder))

    def _check(self) -> None:
        """Reads what the folder holds: a finished run, or one to resume, under these settings and perhaps elsewhere."""
        self.facts = self.newest.facts()
        self.best.facts()  # refuses a run with other settings that was killed before its first checkpoint
        newest_step = self.newest.latest_step() or 0
        summary = parallel.once(read_state, self.folder / outputs.SUMMARY, Summary)
        if summary and (summary.get("total_steps") or newest_step) >= self.total_steps:
            self.summary = summary
            self.console.already_done(summary)
            return
        earlier = [Segment.from_json(fields) for fields in self.facts.get("segments", ())]
        if warning := parallel.once(check_environment, earlier, newest_step):  # process 0's: all raise, or none
            self.console.warning(warning)
        if jax.config.values["jax_compilation_cache_dir"] is None:  # a resumed run then compiles nothing again
            jax.config.update("jax_compilation_cache_dir", str(self.folder / "compilation_cache"))
            jax.config.update(
                "jax_persistent_cache_min_compile_time_secs", 0.0
            )  # at its start a run compiles 70 small ones


@contextlib.contextmanager
def open_session(setup: Setup, microbatches: int = 1, model_dir: str = "") -> Iterator[Session]:
    """Opens what evaluation needs; `model_dir` is the folder that the console names.

    Raises:
      UserError: for bad settings and data.
      Stopped: after a stop was requested between two batches of an evaluation.
    """
    parallel.expect_devices()
    mesh, rules = parallel.make_mesh(), parallel.logical_axis_rules()
    with counting_transparent() as transparent:
        task, eval_tasks = check_data(setup, microbatches, mesh)
        with parallel.use_mesh(mesh, rules), StopRequest() as stop, Console(model_dir) as console:
            if setup.image_shape is not None and not task.has_images:
                console.note(f"{task.name} has no images: the vision tower and an adapter of images are not used.")
            try:
                yield Session(setup, mesh, rules, task, eval_tasks, console, stop)
            except Interrupted:  # `unless_stopped` was not used: nothing is unsaved
                raise stop.stopped() from None
            if note := transparency_note(transparent, setup.preparation):
                console.note(note)


@contextlib.contextmanager
def open_run(
    setup: Setup,
    model_dir: str,
    total_steps: int,
    microbatches: int,
    checkpoints: CheckpointConfig,
    settings: Callable[[], dict[str, str]],
    own_batches: bool = False,
) -> Iterator[RunSession]:
    """Opens the folder of a run; see `train` for the arguments. A finished run has a `summary`, and nothing is done for it.

    Args:
      own_batches: whether the caller makes the batches, so that the training split may have any size.

    Raises:
      UserError, CheckpointError: for bad settings, data and files, and a folder that holds another run.
    """
    check_run_folder(model_dir)
    check_trainable(setup)
    with open_session(setup, microbatches, model_dir) as session:
        if own_batches:
            session.console.note("The caller makes the batches; rows of train are not used.")
        else:
            _check_size(session.task, setup.data.batch_size)
        folder, identity = path_of(model_dir), identity_of(settings()) | _data_identity(session.task)
        newest = RunCheckpoints(folder / "checkpoints", checkpoints.keep, identity, checkpoints.period)
        best = RunCheckpoints(folder / "best", 1, identity)
        with outputs.naming(folder), contextlib.ExitStack() as at_end, newest, best:
            run = RunSession(**vars(session), folder=folder, identity=identity, newest=newest, best=best,
                             saves=SaveClock(checkpoints, session.stop), total_steps=total_steps, own_batches=own_batches, at_end=at_end)  # fmt: skip
            if not parallel.once((folder / outputs.SUMMARY).exists):
                parallel.once(run._claim)  # before it reads what another process may be writing
            run._check()
            if run.summary is None:
                parallel.once(run._claim)
            yield run


def check_trainable(setup: Setup) -> None:
    """Refuses a setup that cannot be trained.

    Raises:
      UserError: names the setting.
    """
    if not setup.trainable:
        raise UserError("Nothing is trainable: add --gin_file=gin/adapters/adalink.gin, or set TRAINABLE.")
    if setup.data.in_context_examples:
        raise UserError("in_context_examples are for frozen models, with `adalink eval`; leave them out to train.")
    if setup.data.pack:
        check_packable(setup.model.backbone, setup.model.adapter)
    split_abstract(setup.model, setup.trainable)


def _data_identity(task: Task) -> dict[str, str]:
    """What states the data of a cached task, wherever its folder is; nothing for other tasks."""
    digest = task.digest if isinstance(task, NumberedTask) else ""
    return {"DatasetConfig.task_cache digest": digest} if digest else {}


def _check_size(task: Task, batch_size: int) -> None:
    """Refuses a batch that is larger than the data, before memory is asked for it; `train_batches` is exact."""
    size = task.size("train", 0) if isinstance(task, NumberedTask) else None
    if size is None and batch_size > _LARGE_BATCH:
        size = sum(1 for _ in itertools.islice(task.examples("train"), batch_size))
    if size is not None and size < batch_size:
        raise UserError(f"BATCH_SIZE is {batch_size}, and {task.name} has {size} examples to train on; lower it.")


@timings.phase("data")
def check_data(setup: Setup, microbatches: int, mesh: Mesh) -> tuple[Task, Sequence[Task]]:
    """The task to train on and the tasks to score.

    Raises:
      UserError: if they do not fit the model, or the batch does not divide over the mesh.
    """
    check_batch(setup.data.batch_size, microbatches, parallel.data_axis_size(mesh))
    with reading_rows() as on_rows:
        task, eval_tasks = get_tasks(setup.data, on_rows)
    check_rows(f"The vocabulary of {task.name}", task.vocab_size, setup.model.backbone.config.vocab_size)
    if setup.trainable and (end := setup.model.backbone.token_ids.eos) != task.eos:
        raise UserError(
            f"The model ends outputs with id {end}, and targets end with the vocabulary's {task.eos}, so it would never end what it "
            f"learned to write; use the model's own VOCABULARY, or correct eos_token_id in the files that the base was made from."
        )
    if task.has_images and setup.image_shape is None:
        raise UserError(
            f"{task.name} has images, and the model takes none; use a model with a vision tower (gin/models/pali*.gin)."
        )
    if setup.needs_images and not task.has_images:
        raise UserError(
            f"{task.name} has no images, and the model takes them; use a task with images, set BLANK_IMAGE = True for a table of "
            f"your own, or use a model of text."
        )
    return task, eval_tasks
