"""A training run: check everything, then load, evaluate, train, evaluate, write.

Kill it at any point: rerunning the same command resumes from the newest checkpoint and gives, on the same machine, devices and
versions, the same bits as an uninterrupted run.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import gin
import jax
import jax.numpy as jnp
import optax

from adalink_jax import moved, parallel
from adalink_jax.data import train_batches
from adalink_jax.data.batch_order import BatchIterator
from adalink_jax.files import metric_log
from adalink_jax.files.places import RunFolder
from adalink_jax.files.whole_file import write_text
from adalink_jax.training import outputs, speed
from adalink_jax.training.data_agreement import DataAgreement
from adalink_jax.training.evaluation import NUM_SAMPLES, Evaluator, Result, check_metric
from adalink_jax.training.flops import count_traced
from adalink_jax.training.loop import Period, StepNotFinite, run_loop
from adalink_jax.training.metric_writer import MetricWriter, log_every
from adalink_jax.training.not_finite import Explanation, holding
from adalink_jax.training.run_checkpoints import CheckpointConfig
from adalink_jax.training.session import RunSession, Start, open_run
from adalink_jax.training.setup import Parameters, Setup, load_parameters
from adalink_jax.training.step import CrossEntropy, TrainState, make_gradients, make_train_step
from adalink_jax.training.trace_requests import TraceRequests
from adalink_jax.training.trackers import TENSORBOARD, RunFacts, TrackerName, import_libraries
from adalink_jax.training.verdict import Training, after_overfit, nothing_learned, whose_scores
from adalink_jax.typed_values import NonNegativeInt, PositiveInt


# The caller of a process has them; a configuration cannot.
@gin.configurable(denylist=["base", "batches", "keep_folder"])  # pyright: ignore[reportCallIssue]  # gin has no type hints
def train(
    setup: Setup,
    optimizer: optax.GradientTransformation,
    model_dir: RunFolder,
    total_steps: PositiveInt,
    *,
    loss: CrossEntropy | None = None,
    checkpoints: CheckpointConfig | None = None,
    eval_period: NonNegativeInt = 0,
    metric: str | None = "accuracy",
    microbatches: PositiveInt = 1,
    log_period: PositiveInt | None = None,
    profile_steps: tuple[NonNegativeInt, PositiveInt] | None = None,
    trackers: Sequence[TrackerName] = (TENSORBOARD,),
    settings: Callable[[], dict[str, str]] = dict,
    config_text: Callable[[], str] = lambda: "",
    macros: Callable[[], dict[str, Any]] = dict,
    base: Parameters | None = None,
    batches: BatchIterator | None = None,
    keep_folder: bool = True,
) -> dict:
    """Starts a training run, or resumes it.

    Args:
      setup: model, data, sources of the parameters.
      optimizer: for the trainable leaves.
      model_dir: folder of the run.
      total_steps: steps to train.
      loss: by default the cross-entropy.
      checkpoints: when they are written and how many are kept.
      eval_period: steps between evaluations on `validation` (0: only before and after).
      metric: the validation metric that selects the best step; higher is better. None scores nothing and keeps the last step
        (pre-training on prose, whose accuracy is 0 throughout).
      microbatches: parts that a batch is divided into, computed one after the other to save memory.
      log_period: steps between logged training metrics; None is a fortieth of the steps, and at most 50.
      profile_steps: `(first, last)` step of a profiler trace, written to `model_dir/profile`.
      trackers: those that are given the metrics, see `training.trackers`; `metrics.jsonl` is always written.
      settings: returns `{setting: value}` once everything is configured; a run is resumed only under equal settings (except
        those in `run_checkpoints.MAY_CHANGE`).
      config_text: returns the text of `config.gin` once everything is configured.
      macros: returns gin's macros by name, for the trackers.
      base: the backbone's leaves, if this process has them already, see `load_parameters`.
      batches: yields each batch to train on, in place of the training split, of which nothing is read then.
      keep_folder: whether the folder is kept after the run; if not, its files are not announced.

    Returns:
      The contents of `summary.json`.

    Raises:
      UserError, CheckpointError: for bad settings and files, before anything is compiled or overwritten.
      NotFinite: if the loss or the gradient of a step is NaN or infinite.
      Stopped: after a stop was requested and the state was saved.
    """
    check_metric(metric)
    import_libraries(trackers)
    started, run_start = time.time(), speed.RunStart()
    agreement = DataAgreement()  # with gin's settings
    loss, checkpoints = loss or CrossEntropy(), checkpoints or CheckpointConfig()  # with gin's settings
    with open_run(setup, model_dir, total_steps, microbatches, checkpoints, settings, batches is not None) as session:
        if session.summary is not None:
            return session.summary
        params = load_parameters(setup, session.mesh, session.rules, base)
        rows = parallel.local_rows(setup.data.batch_size, session.mesh).tolist()
        make_batches = lambda converter: batches or train_batches(session.task, setup.data, converter, rows)
        start = session.start(
            params,
            TrainState(jnp.int32(0), params.trainable, optimizer.init(params.trainable)),
            make_batches,
            config_text,
        )
        evaluator = session.evaluator(start.converter, setup.model)
        facts = RunFacts(session.folder, start.config, macros())
        writer = MetricWriter(
            session.folder, start.step, trackers, facts, session.console.note, session.console.warning
        )
        session.at_end.callback(writer.close, finished=False)
        run = Run(session, start, params, evaluator, writer, metric, keep_folder, agreement, run_start)
        run.compare_data(start.state)
        if start.step and metric is not None and not run.writer.has(0, f"validation/{metric}"):
            session.console.warning(
                f"{metric_log.shown(model_dir)} lacks earlier rows; a tracker, such as {model_dir}/tensorboard, may still have them."
            )
        if eval_period and start.step % eval_period == 0:
            run.evaluate(start.state)  # also where the run was killed between a checkpoint and its evaluation
        before = run.score_before(start.state)
        options: Any = {"loss": loss, "seed": setup.random_seed, "microbatches": microbatches,
                        "shards": parallel.shards_of(params.trainable, session.mesh)}  # fmt: skip
        step = holding(make_train_step(setup.model, optimizer, **options))
        dataset = None if session.own_batches else setup.data
        state = run.train(
            jax.jit(step, donate_argnums=0),
            Explanation(
                setup.model, make_gradients(setup.model, **options), session.mesh, session.task, dataset, start.step
            ),
            total_steps,
            eval_period,
            log_period or log_every(total_steps),
            profile_steps,
        )
        after = run.score_selected(state)
        session.end_if_stopped(lambda: run.save(state))
        return run.finish(state, before, after, time.time() - started)


@dataclasses.dataclass
class Run:
    """A run in progress: what happens before, between and after its steps. A requested stop cuts evaluations short."""

    session: RunSession
    start: Start
    params: Parameters
    evaluator: Evaluator
    writer: MetricWriter
    metric: str | None
    keep_folder: bool = True
    agreement: DataAgreement = DataAgreement()
    run_start: speed.RunStart | None = None
    step_seconds: list[float] = dataclasses.field(default_factory=list)
    input_seconds: list[float] = dataclasses.field(default_factory=list)
    step_flops: int | None = None

    def train(
        self,
        step: jax.stages.Wrapped,
        explanation: Explanation,
        total_steps: int,
        eval_period: int,
        log_period: int,
        profile_steps: tuple[int, int] | None,
    ) -> TrainState:
        """Trains from the start to `total_steps`, and evaluates the last state.

        Raises:
          NotFinite: names the step, what made it so, the newest checkpoint and a remedy.
        """
        session = self.session

        def before_step(state: TrainState) -> None:
            explanation.before_step(self.start.batches.get_state())
            requests.before_step(state)

        def counted_step(*arguments):
            if self.step_flops is None:  # traced once, for this and for the call
                self.step_flops = count_traced(step.trace(*arguments).jaxpr)
            return step(*arguments)

        try:
            with self.start.batches as batches, TraceRequests(session.folder) as requests:
                state = run_loop(
                    counted_step, self.start.state, self.params.frozen, batches, mesh=session.mesh,
                    total_steps=total_steps,
                    on_metrics=session.console.progress(self.start.step, total_steps, self._log_every(log_period)),
                    after_steps=[
                        Period(self.agreement.every, self.compare_data),
                        *session.saves.actions(self.save),
                        Period(eval_period, self.evaluate),
                    ],
                    stop=session.saves.before_step, profile=profile_steps, profile_dir=str(session.folder / "profile"),
                    watchdog=session.watchdog, before_step=before_step,
                )  # fmt: skip
        except StepNotFinite as e:
            raise explanation.of(e, self.params.frozen, session.newest, session.console.warning) from e
        self.evaluate(state)
        return state

    def compare_data(self, state: TrainState) -> None:
        """See `DataAgreement.check`; batches that the caller makes are not compared."""
        session, start = self.session, self.start
        if not session.own_batches:
            self.agreement.check(
                session.task, session.setup.data, start.converter, int(state.step), start.batches.get_state()
            )

    def save(self, state: TrainState) -> None:
        """Writes a checkpoint, with the position of the data and the run's segments."""
        self.writer.flush()
        segments = self.start.segments(int(state.step))
        self.session.newest.save(state, data_position=self.start.batches.get_state(), segments=segments)

    def evaluate(self, state: TrainState) -> None:
        """Scores `validation`, unless this step was scored before, and keeps the state if it is the best so far."""
        if self.metric is None:
            return
        step, best = int(state.step), self.session.best
        if self.writer.has(step, f"validation/{self.metric}") and best.latest_step() is not None:
            return
        result = self._score(state, "validation")
        if result is None:
            return
        score = result.selecting_score(self.metric)
        best_score = best.facts().get("score")
        if best_score is None or score > best_score:
            best.save(state, score=score)
        outputs.write_pictures(self.writer, step, "validation", result)
        self.writer.write(step, result.tagged("validation"))
        self.session.console.scores(step, "validation", result.scores)

    def score_before(self, state: TrainState) -> outputs.Before | None:
        """Test scores before the first step and without a model, read from the run's file if it has them; None without a metric."""
        if self.metric is None:
            return None
        folder = self.session.folder
        if (saved := outputs.read_before(folder)) is not None:
            return saved
        if self.start.step:  # the file was lost or damaged
            state = TrainState(jnp.int32(0), self.params.trainable, state.opt_state)
        else:
            self.evaluate(state)
        result = self._score(state, "test")
        if result is None:
            return None
        before = outputs.Before(result, self.session.baselines())
        parallel.once(outputs.write_before, folder, before)
        self.writer.write(0, result.tagged("test"))
        self.session.console.scores(0, "test", result.scores)
        self.session.console.baselines(before.baselines)
        return before

    def score_selected(self, last: TrainState) -> tuple[TrainState, Result | None]:
        """The state with the best validation score, and its scores on `test`, measured once, at the end.

        Without a metric it is the last state. There are no scores without a metric, or if a stop was requested.
        """
        if self.metric is None or self.session.stop.requested():
            return last, None
        self.session.best.wait()
        selected, _ = self.session.best.restore(last)
        return selected, self._score(selected, "test")

    def finish(
        self,
        last: TrainState,
        before: outputs.Before | None,
        selected: tuple[TrainState, Result | None],
        seconds: float,
    ) -> dict:
        """Writes the run's results, prints them, and returns the contents of `summary.json`.

        Args:
          last: the last state.
          before: what was scored before the first step; None without a metric.
          selected: the result of `score_selected`.
          seconds: since this process started the run.
        """
        state, after = selected
        session, setup = self.session, self.session.setup
        session.newest.wait()
        scores = {}
        if self.metric is not None:
            assert before is not None and after is not None  # a stopped run does not come here
            self.writer.write(int(last.step), after.tagged("test"))
            frozen, adapted = before.result.scores[self.metric], after.scores[self.metric]
            training = Training(self.writer.series("train/loss"), setup.initial_checkpoint_path, setup.data.overfit)
            scores = {
                f"frozen_{self.metric}": frozen,
                f"adapted_{self.metric}": adapted,
                "scores_are_of": whose_scores(int(state.step), setup.initial_adapter_path),
                "baselines": before.baselines,
                "nothing_learned": nothing_learned(
                    self.metric, int(state.step), adapted, frozen, before.baselines, training
                ),
                "learned_by_heart": after_overfit(self.metric, adapted, training),
            }
        summary = {
            **scores,
            "seconds": round(seconds, 1),
            "trainable": outputs.count(self.params.trainable),
            "frozen": outputs.count(self.params.frozen),
            "step": int(state.step),
            "steps": int(last.step),
            "base": self.params.base and dataclasses.asdict(self.params.base),
            "task": setup.data.mixture_or_task_name,
            "empty_input": session.task.encode(""),
            "scores": after.scores if after else {},
            "metric": self.metric,
            "validation": session.best.facts()["score"] if after else None,
            "step_seconds": statistics.median(self.step_seconds) if self.step_seconds else None,
            "step_flops": self.step_flops,
            "input_wait": self.input_wait,
            "settings": session.identity,
            "versions": outputs.versions(),
            "segments": self.start.segments(int(last.step)),
        }
        if parallel.is_first() and (shares := speed.goodput(session.folder, int(last.step), self.step_seconds)):
            write_text(session.folder / "goodput.json", json.dumps(shares, indent=2) + "\n")
            session.console.goodput(shares)
        untrained = before and before.result
        written = outputs.write_end(
            session.folder, setup, self.params, state.trainable, last.trainable, untrained, after, summary
        )
        for picture in (session.folder / name for name, _ in written if name.endswith(".png")):
            self.writer.add_picture(int(last.step), f"test/{picture.stem}", picture)
        adapter = session.folder / "adapter"
        self.writer.close(finished=True, adapter=adapter if parallel.is_first() and adapter.exists() else None)
        session.console.finished(summary, untrained, after, written if self.keep_folder else [])
        return summary

    @property
    def input_wait(self) -> float | None:
        """The share of the steps' time in which they waited for batches, in this process and without its first step, which compiles;
        None if there is no other."""
        steps, waits = self.step_seconds[1:], self.input_seconds[1:]
        return round(sum(waits) / sum(steps), 4) if steps else None

    def _log_every(self, period: int) -> Callable[[int, dict, float], None]:
        """Writes the training metrics of every step that is a multiple of `period`."""

        def log(step: int, metrics: dict, examples_per_second: float) -> None:
            examples = metrics.get("examples", self.session.setup.data.batch_size)
            self.step_seconds.append(examples / examples_per_second)
            self.input_seconds.append(metrics["input_wait"] * self.step_seconds[-1])
            self.writer.reached(step)
            if self.run_start is not None and parallel.is_first():
                self.session.console.note(self.run_start.record(self.session.folder, step))
            self.run_start = None
            if step % period == 0:
                values = {f"train/{name}": value for name, value in metrics.items()}
                values |= {"train/examples_per_second": examples_per_second}
                self.writer.write(step, values | speed.measured(self.step_seconds[-1], metrics, self.step_flops))

        return log

    def _score(self, state: TrainState, split: str) -> Result | None:
        step, frozen = int(state.step), self.params.frozen
        score = lambda check: self.evaluator(state.trainable, frozen, split, step, NUM_SAMPLES, check)
        return self.session.unless_stopped(split, score)


_ELSEWHERE = "adalink_jax.training.without_training"
__getattr__ = moved.names(__name__, {"evaluate": _ELSEWHERE, "cache_vision": _ELSEWHERE})
