"""A whole training run: everything is checked first; then load, evaluate, train, evaluate, write.

A run can be killed at any moment and started again by the same command: it goes on from its newest checkpoint and ends,
on the same machine and devices, with the same bits as one that was never killed.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Sequence

import gin
import jax
import jax.numpy as jnp
import optax
from etils import epath

from adalink_jax import parallel
from adalink_jax.data import BatchIterator, FeatureConverter, VisionCache, get_tasks, train_batches
from adalink_jax.errors import NotFinite, UserError
from adalink_jax.training import fill_vision_cache, outputs
from adalink_jax.training.console import Console, reading_rows
from adalink_jax.training.evaluation import Evaluator, Result
from adalink_jax.training.flops import count_traced
from adalink_jax.training.interrupt import Interrupted, StopRequest
from adalink_jax.training.loop import Period, run_loop
from adalink_jax.training.metric_writer import MetricWriter
from adalink_jax.training.run_checkpoints import CheckpointConfig, RunCheckpoints
from adalink_jax.training.setup import Parameters, Setup, load_parameters, split_abstract
from adalink_jax.training.step import CrossEntropy, TrainState, check_batch, make_train_step

NUM_SAMPLES = 12
# Settings that may have another value when a run goes on: they change no result, or only how far the run goes.
MAY_CHANGE = ("CheckpointConfig.", "Setup.vision_cache", "expect_devices.", "make_mesh.", "logical_axis_rules.", *(
    f"{name}.{setting}" for name in ("train", "train_pack")
    for setting in ("model_dir", "total_steps", "eval_period", "log_period", "profile_steps", "checkpoints",
                    "at_once")
))  # fmt: skip


@gin.configurable
def train(
    setup: Setup,
    optimizer: optax.GradientTransformation,
    model_dir: str,
    total_steps: int,
    *,
    loss: CrossEntropy | None = None,
    checkpoints: CheckpointConfig | None = None,
    eval_period: int = 0,
    metric: str | None = "accuracy",
    microbatches: int = 1,
    log_period: int = 50,
    profile_steps: tuple[int, int] | None = None,
    settings: Callable[[], dict[str, str]] = dict,
    config_text: Callable[[], str] = lambda: "",
) -> dict:
    """Makes a training run, or goes on with one.

    Args:
      setup: model, data, sources of the parameters.
      optimizer: for the trainable tree.
      model_dir: folder of the run.
      total_steps: steps to train.
      loss: by default the cross-entropy.
      checkpoints: when they are written and kept.
      eval_period: steps between evaluations on `validation` (0: only before and after).
      metric: the validation metric that chooses the best step; higher is better. None: nothing is scored, and the last step is
        what leaves the run (pre-training on prose, whose accuracy is 0 all the way).
      microbatches: parts that a batch is cut into, one after the other, to save memory.
      log_period: steps between logged training metrics.
      profile_steps: `(first, last)` step of a profiler window, whose trace goes to `model_dir/profile`.
      settings: gives `{setting: value}` when all is configured; a run goes on only under the same ones (but for those in
        `MAY_CHANGE`).
      config_text: gives the text of `config.gin` when all is configured.

    Returns:
      What `summary.json` holds.

    Raises:
      UserError, CheckpointError: for bad settings and files, before anything is compiled or overwritten.
      NotFinite: if the loss of a step is NaN or infinite.
      Stopped: after a stop was asked for and the state was saved.
    """
    started = time.time()
    parallel.expect_devices()
    mesh, rules = parallel.make_mesh(), parallel.logical_axis_rules()
    task, eval_tasks = check_setup(setup, microbatches, mesh)
    loss, checkpoints = loss or CrossEntropy(), checkpoints or CheckpointConfig()  # with gin's settings
    identity = identity_of(settings())
    folder = epath.Path(model_dir)
    newest = RunCheckpoints(folder / "checkpoints", checkpoints.keep, identity)
    best = RunCheckpoints(folder / "best", 1, identity)

    with (
        parallel.use_mesh(mesh, rules), outputs.naming(folder), StopRequest() as stop, Console(model_dir) as console,
        newest, best,
    ):  # fmt: skip
        facts = newest.facts()
        best.facts()  # refuses a run of other settings that was killed before its first checkpoint
        if (newest.latest_step() or 0) >= total_steps and (summary := parallel.once(outputs.read_summary, folder)):
            console.already_done(summary)
            return summary
        if jax.config.jax_compilation_cache_dir is None:  # a run that is started again does not compile again
            jax.config.update("jax_compilation_cache_dir", str(folder / "compilation_cache"))
        params = load_parameters(setup, mesh, rules)
        state = TrainState(jnp.int32(0), params.trainable, optimizer.init(params.trainable))
        state = parallel.on_mesh(state, mesh)
        console.parameters(params)
        console.notes(eval_tasks)
        cache = fill_vision_cache.prepare(setup, params, eval_tasks, mesh, console, stop)
        converter = setup.converter(setup.dataset.task_feature_lengths, cache)
        batches = train_batches(task, setup.dataset, converter, parallel.local_rows(setup.dataset.batch_size, mesh))
        if facts:
            state, facts = newest.restore(state)
            batches.set_state(facts["data_position"])
            console.resumed(int(state.step), newest)
        config = config_text()
        parallel.once(outputs.write_start, folder, params, config)
        evaluator = make_evaluator(setup, eval_tasks, converter, mesh)
        writer = MetricWriter(folder, resumed_at=int(state.step))
        run = Run(setup, params, folder, newest, best, writer, console, stop, batches, evaluator, metric, identity)
        if eval_period and int(state.step) % eval_period == 0:
            run.evaluate(state)  # also where the run was killed between a checkpoint and its evaluation
        before = run.score_before(state)
        step_fn = make_train_step(
            setup.model, optimizer, loss=loss, seed=setup.random_seed, microbatches=microbatches,
            shards=parallel.shards_of(params.trainable, mesh),
        )  # fmt: skip
        state = run.train(
            jax.jit(step_fn, donate_argnums=0), state, mesh=mesh, total_steps=total_steps,
            on_metrics=console.progress(int(state.step), total_steps, run.log_every(log_period)),
            after_steps=[Period(checkpoints.period, run.save), Period(eval_period, run.evaluate)],
            profile=profile_steps, profile_dir=str(folder / "profile"),
        )  # fmt: skip
        after = run.score_chosen(state)
        if stop.requested():
            run.save(state)
            newest.wait()
            step = newest.latest_step()  # asked of all processes: none ends before the others have saved
            raise stop.stopped(f"Stopped after step {step} and saved; the same command goes on from there.")
        return run.finish(state, before, after, time.time() - started)


def identity_of(settings: dict[str, str]) -> dict[str, str]:
    """The settings that must stay when a run goes on."""
    return {name: value for name, value in settings.items() if not name.startswith(MAY_CHANGE)}


def check_setup(setup: Setup, microbatches: int, mesh):
    """Refuses what can be refused before anything is read; gives the tasks to train on and to evaluate."""
    if not setup.trainable:
        raise UserError("Nothing is trainable: add --gin_file=gin/adapters/adalink.gin, or set TRAINABLE.")
    if setup.dataset.in_context_examples:
        raise UserError("in_context_examples are for frozen models, with `adalink eval`; leave them out to train.")
    split_abstract(setup.model, setup.trainable)
    return _check_data(setup, microbatches, mesh)


def _check_data(setup: Setup, microbatches: int, mesh):
    check_batch(setup.dataset.batch_size, microbatches, parallel.data_axis_size(mesh))
    with reading_rows() as on_rows:
        task, eval_tasks = get_tasks(setup.dataset, on_rows)
    rows = setup.model.backbone.config.vocab_size
    if task.vocab_size > rows:
        raise UserError(
            f"The vocabulary of {task.name} has {task.vocab_size} ids and the model's embedding only {rows} rows; "
            f"use a task with the model's vocabulary."
        )
    if task.has_images != (setup.image_shape is not None):
        is_so = (
            f"{task.name} has images, and the model takes none; use a model with a vision tower (gin/models/pali*.gin)"
            if task.has_images
            else f"{task.name} has no images, and the model takes them; use a task with images, or a model of text"
        )
        raise UserError(f"{is_so}.")
    return task, eval_tasks


def make_evaluator(setup: Setup, tasks, converter: FeatureConverter, mesh, at_once: int | None = None) -> Evaluator:
    """Of `setup.model`, with `setup.decoding`; for a pack see `map_members`."""
    return Evaluator(setup.model, tasks, converter, setup.dataset.batch_size, mesh, setup.decoding, at_once)


@dataclasses.dataclass
class Run:
    """The parts of a run in progress, and what happens around its steps. Evaluations give up when a stop is asked for."""

    setup: Setup
    params: Parameters
    folder: epath.Path
    newest: RunCheckpoints
    best: RunCheckpoints
    writer: MetricWriter
    console: Console
    stop: StopRequest
    batches: BatchIterator
    evaluator: Evaluator
    metric: str | None
    settings: dict[str, str]
    step_seconds: list[float] = dataclasses.field(default_factory=list)
    step_flops: int | None = None

    def train(self, step_fn: Callable, state: TrainState, **options) -> TrainState:
        """`run_loop` from `state` on, then an evaluation of its last state.

        Raises:
          NotFinite: says what the newest checkpoint is, and what may help.
        """

        def counted(*arguments):
            if self.step_flops is None:  # traced once, for this and for the call
                self.step_flops = count_traced(step_fn.trace(*arguments).jaxpr)
            return step_fn(*arguments)

        try:
            state = run_loop(counted, state, self.params.frozen, self.batches, stop=self.stop.before_step, **options)
        except NotFinite as e:
            self.newest.wait()
            step = self.newest.latest_step()
            newest = "no checkpoint had been written" if step is None else f"the newest checkpoint is of step {step}"
            raise NotFinite(f"{e} Training stopped; {newest}; lower the learning rate, or clip gradients.") from e
        self.evaluate(state)
        return state

    def save(self, state: TrainState) -> None:
        """Writes a checkpoint, with the position of the data."""
        self.newest.save(state, data_position=self.batches.get_state())

    def evaluate(self, state: TrainState) -> None:
        """Scores `validation`, unless this step was scored before, and keeps the state if it is the best so far."""
        if self.metric is None:
            return
        step = int(state.step)
        if self.writer.has(step, f"validation/{self.metric}") and self.best.latest_step() is not None:
            return
        result = self._score(state.trainable, "validation")
        if result is None:
            return
        score = selected(result, self.metric)
        known = self.best.facts().get("score")
        if known is None or score > known:
            self.best.save(state, score=score)
        self.writer.write(step, tagged("validation", result))
        outputs.write_samples(self.folder, self.writer, step, "validation", result)
        self.console.scores(step, "validation", result.scores)

    def score_before(self, state: TrainState) -> Result | None:
        """Scores of the model as it was before its first step, from the run's own file if it was resumed; None without a metric."""
        if self.metric is None:
            return None
        known = outputs.read_before(self.folder)
        if known is not None:
            return known
        if int(state.step):
            raise UserError(f"{self.folder} lost {outputs.BEFORE}; start the run in another MODEL_DIR.")
        self.evaluate(state)
        result = self._score(state.trainable, "test")
        if result is not None:
            parallel.once(outputs.write_before, self.folder, result)
            self.writer.write(0, tagged("test", result))
            self.console.scores(0, "test", result.scores)
        return result

    def score_chosen(self, last: TrainState) -> tuple[TrainState, Result | None] | None:
        """The state with the best validation score, and its scores on `test`, measured once, at the end; without a metric the last."""
        if self.stop.requested():
            return None
        if self.metric is None:
            return last, None
        self.best.wait()
        chosen, _ = self.best.restore(last)
        result = self._score(chosen.trainable, "test")
        return None if result is None else (chosen, result)

    def finish(
        self, state: TrainState, before: Result | None, after: tuple[TrainState, Result | None], seconds: float
    ) -> dict:
        """Writes what leaves the run."""
        chosen, result = after
        step = int(chosen.step)
        self.newest.wait()
        scored = {}
        if result is not None:
            self.writer.write(int(state.step), tagged("test", result))
            scored = {
                f"frozen_{self.metric}": before.scores[self.metric],
                f"adapted_{self.metric}": result.scores[self.metric],
            }
        summary = {
            **scored,
            "seconds": round(seconds, 1),
            "trainable": outputs.count(self.params.trainable),
            "frozen": outputs.count(self.params.frozen),
            "step": step,
            "steps": int(state.step),
            "base": self.params.base,
            "task": self.setup.dataset.mixture_or_task_name,
            "scores": result.scores if result else {},
            "metric": self.metric,
            "validation": self.best.facts()["score"] if result else None,
            "step_seconds": statistics.median(self.step_seconds) if self.step_seconds else None,
            "step_flops": self.step_flops,
            "settings": self.settings,
            "versions": outputs.versions(),
        }
        written = outputs.write_end(
            self.folder, self.setup, self.params, chosen.trainable, state.trainable, before, result, summary
        )
        self.console.finished(summary, before, result, written)
        return summary

    def log_every(self, period: int) -> Callable[[int, dict, float], None]:
        """Writes a step's training metrics when it is a multiple of `period`."""

        def log(step: int, metrics: dict, examples_per_second: float) -> None:
            self.step_seconds.append(self.setup.dataset.batch_size / examples_per_second)
            if step % period == 0:
                rows = {f"train/{name}": value for name, value in metrics.items()}
                self.writer.write(step, rows | {"train/examples_per_second": examples_per_second})

        return log

    def _score(self, trainable, split: str) -> Result | None:
        try:
            with self.console.working(f"evaluating {split}"):
                return self.evaluator(trainable, self.params.frozen, split, NUM_SAMPLES, self.stop.check)
        except Interrupted:
            return None


def selected(result: Result, metric: str) -> float:
    """The score that chooses.

    Raises:
      UserError: if the task has no such metric.
    """
    if metric not in result.scores:
        raise UserError(f"The metric that chooses is {metric!r}; the task has {', '.join(sorted(result.scores))}.")
    return result.scores[metric]


def tagged(split: str, result: Result) -> dict[str, float]:
    """The scores as the metric files name them."""
    return {f"{split}/{name}": value for name, value in result.scores.items()}


def evaluate(
    setup: Setup,
    split: str = "test",
    output_dir: str | None = None,
    run_dir: str | None = None,
    settings: Callable[[], dict[str, str]] = dict,
) -> dict[int, dict[str, float]]:
    """Scores a base model, with an adapter or without, on a split; or each checkpoint that a run keeps.

    Args:
      setup: `initial_checkpoint_path` and, for an adapted model, `initial_adapter_path`; a fresh AdaLink is the identity.
      split: "train", "validation" or "test".
      output_dir: where the scores go as a run's do (`metrics.jsonl`, TensorBoard), and, of a task with images, a contact sheet
        (`samples/`); None: nowhere. Of a run's checkpoints, those whose scores are there already are not scored again.
      run_dir: the `MODEL_DIR` of a run of this configuration, for all its checkpoints: the newest, and the best.
      settings: gives those in use, which must be the run's.

    Returns:
      step (0 where there is no run) -> metric -> value.

    Raises:
      UserError, CheckpointError: for bad settings and files.
    """
    parallel.expect_devices()
    mesh, rules = parallel.make_mesh(), parallel.logical_axis_rules()
    _, tasks = _check_data(setup, 1, mesh)
    with parallel.use_mesh(mesh, rules), StopRequest() as stop, Console("") as console:
        params = load_parameters(setup, mesh, rules)
        cache = fill_vision_cache.prepare(setup, params, tasks, mesh, console, stop, (split,))
        converter = setup.converter(setup.dataset.task_feature_lengths, cache)
        evaluator = make_evaluator(setup, tasks, converter, mesh)
        states = {0: lambda: params.trainable}
        if run_dir is not None:
            states = _checkpoints_of(run_dir, params.trainable, settings())
        folder = None if output_dir is None else epath.Path(output_dir)
        if folder is not None:
            parallel.once(outputs.claim_scores, folder, run_dir)
        writer = None if folder is None else MetricWriter(folder, resumed_at=None)
        scores = {}
        for step, trainable in states.items():
            if run_dir is not None and writer is not None and (known := writer.values(step, f"{split}/")):
                scores[step] = known
                continue
            result = evaluator(trainable(), params.frozen, split, NUM_SAMPLES, stop.check)
            scores[step] = result.scores
            if folder is not None:
                with outputs.naming(folder):
                    writer.write(step, tagged(split, result))
                    outputs.write_samples(folder, writer, step, split, result)
        return scores


def _checkpoints_of(run_dir: str, like, settings: dict[str, str]) -> dict[int, Callable]:
    """step -> what reads its trained leaves, of the checkpoints that a run keeps."""
    if not like:
        raise UserError(
            "Nothing is trainable in this configuration, so a run of it has no checkpoints; give the run's config.gin."
        )
    found = {}
    for name in ("checkpoints", "best"):
        kept = RunCheckpoints(f"{run_dir}/{name}", 1, {})
        found |= {step: functools.partial(kept.read_trainable, step, like, settings) for step in kept.steps()}
    if not found:
        raise UserError(f"{run_dir} holds no checkpoints of a run; give its MODEL_DIR.")
    return dict(sorted(found.items()))


def cache_vision(setup: Setup, splits: Sequence[str] = fill_vision_cache.SPLITS) -> VisionCache:
    """Computes the vision tower's outputs for all images of the data, into `setup.vision_cache`; goes on where it was stopped.

    Raises:
      UserError, CheckpointError: for bad settings and files.
      Stopped: after a stop was asked for.
    """
    if setup.vision_cache is None:
        raise UserError("VISION_CACHE is not set; name the folder of the cache.")
    parallel.expect_devices()
    mesh, rules = parallel.make_mesh(), parallel.logical_axis_rules()
    _, tasks = _check_data(setup, 1, mesh)
    with parallel.use_mesh(mesh, rules), StopRequest() as stop, Console("") as console:
        params = load_parameters(setup, mesh, rules)
        return fill_vision_cache.prepare(setup, params, tasks, mesh, console, stop, splits)
