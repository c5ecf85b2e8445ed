"""A training run of a pack: several adapters in one program, each scored, kept and written as a run of its own would be.

Like a single run it can be killed at any point and resumed by rerunning the command.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax

from adalink_jax.errors import UserError
from adalink_jax.files.places import RunFolder
from adalink_jax.training import outputs, partition
from adalink_jax.training.evaluation import Evaluator, Result, check_metric
from adalink_jax.training.loop import Period, StepNotFinite, run_loop
from adalink_jax.training.metric_writer import MetricWriter, log_every
from adalink_jax.training.not_finite import holding
from adalink_jax.training.packs.failures import Failures
from adalink_jax.training.packs.members import Batches, Member, Progress, grid, own_batches
from adalink_jax.training.packs.pack import Pack, load_pack, make_packed_step
from adalink_jax.training.partition import Leaves
from adalink_jax.training.run_checkpoints import CheckpointConfig
from adalink_jax.training.session import RunSession, Start, open_run
from adalink_jax.training.setup import Setup
from adalink_jax.training.step import CrossEntropy, TrainState
from adalink_jax.training.trace_requests import TraceRequests
from adalink_jax.training.trackers import TENSORBOARD, TrackerName
from adalink_jax.training.verdict import Training, nothing_learned, whose_scores
from adalink_jax.typed_values import NonNegativeInt, PositiveFloat, PositiveInt, Seed

MEMBERS = "members"


@gin.configurable
def train_pack(
    setup: Setup,
    optimizer: optax.GradientTransformation,
    model_dir: RunFolder,
    total_steps: PositiveInt,
    learning_rates: Sequence[PositiveFloat],
    seeds: Sequence[Seed],
    *,
    ranks: Sequence[PositiveInt] | None = None,
    patience: PositiveInt | None = None,
    loss: CrossEntropy | None = None,
    checkpoints: CheckpointConfig | None = None,
    eval_period: NonNegativeInt = 0,
    metric: str | None = "accuracy",
    microbatches: PositiveInt = 1,
    log_period: PositiveInt | None = None,
    at_once: PositiveInt | None = None,
    test: bool = True,
    trackers: Sequence[TrackerName] = (TENSORBOARD,),
    settings: Callable[[], dict[str, str]] = dict,
    config_text: Callable[[], str] = lambda: "",
    macros: Callable[[], dict[str, Any]] = dict,
) -> dict:
    """Trains every combination of learning rate, seed and rank, or resumes.

    Args:
      setup, total_steps, loss, checkpoints, eval_period, metric, microbatches, log_period: as for `train`.
      optimizer: its learning rate is multiplied by each member's; so its updates must be proportional to it, as AdamW's are, and
        Adafactor's without `weight_decay`.
      model_dir: folder of the pack; the members' are in `members/`.
      learning_rates, seeds: of the members; a seed stands for RANDOM_SEED and DATA_SEED alike.
      ranks: of the members' adapters; None for the method's own.
      patience: a member has reached its plateau, and its best step is final, after this many evaluations in a row without
        improvement; the pack ends early once all have. None trains all members to the end.
      at_once: how many members are computed at once; None is all of them, on a CPU one after the other.
      test: score each member's best step on `test`, once, at the end.
      trackers: TensorBoard, or nothing.
      settings, config_text, macros: as for `train`.

    Returns:
      The contents of `summary.json`: `members`, a dict per member, in the order of the grid, and what they share.

    Raises:
      UserError, CheckpointError: for bad settings and files, before anything is compiled or overwritten.
      NotFinite: if the loss or the gradient of every member is NaN or infinite.
      Stopped: after a stop was requested and the state was saved.
    """
    if metric is None:
        raise UserError("A pack keeps each member's best step on validation, so it needs a metric: set METRIC.")
    check_metric(metric)
    if others := [name for name in trackers if name != TENSORBOARD]:
        raise UserError(
            f"TRACKERS has {others[0]!r}, and the members of a pack are followed by {TENSORBOARD} alone; leave it out, or "
            f"make each member a run of its own (`adalink sweep`)."
        )
    started, members = time.time(), check_members(learning_rates, seeds, ranks)
    loss, checkpoints = loss or CrossEntropy(), checkpoints or CheckpointConfig()  # with gin's settings
    with open_run(members[0].setup(setup), model_dir, total_steps, microbatches, checkpoints, settings) as session:
        if session.summary is not None:
            return session.summary
        session.console.members([member.name for member in members])
        run = PackRun.load(session, setup, members, optimizer, config_text, metric, patience, at_once, trackers)
        step = holding(make_packed_step(
            run.pack.model, optimizer, own_batches=own_batches(members), at_once=at_once, loss=loss,
            microbatches=microbatches,
        ))  # fmt: skip
        failures = Failures(run.pack, members, session, run.start, loss=loss, microbatches=microbatches)
        state = run.train(
            jax.jit(step, donate_argnums=0), failures, total_steps, eval_period, log_period or log_every(total_steps)
        )
        results = run.score(run.best, "test", 0) if test else None
        session.end_if_stopped(lambda: run.save(state))
        return run.finish(state, results, total_steps, time.time() - started)


def check_members(learning_rates: Sequence[float], seeds: Sequence[int], ranks: Sequence[int] | None) -> list[Member]:
    """The members of a pack, if one can be trained here; see `train_pack`.

    Raises:
      UserError: for a job of several processes, and values that do not make a grid.
    """
    if jax.process_count() > 1:
        raise UserError(f"A pack is trained by one process, on all of its devices; this job has {jax.process_count()}.")
    return grid(learning_rates, seeds, ranks)


def _joined(state: TrainState, best: Leaves) -> TrainState:
    """The state with each member's best parameters beside the last, as checkpoints hold it."""
    leaves = {f"last/{name}": leaf for name, leaf in state.trainable.items()}
    return TrainState(state.step, leaves | {f"best/{name}": leaf for name, leaf in best.items()}, state.opt_state)


@dataclasses.dataclass
class PackRun:
    """A pack's run in progress: what happens before, between and after its steps.

    Attributes:
      session, start: the open folder, and where the run starts; `start.state` is the last state without the best parameters.
      pack, members: what is trained.
      evaluator, writers: score all members, and write the metrics of each.
      metric, patience: see `train_pack`.
      best: the leaves of each member's best step by name, the members on axis 0.
      progress: each member's scores so far.
    """

    session: RunSession
    start: Start
    pack: Pack
    members: list[Member]
    evaluator: Evaluator
    writers: list[MetricWriter]
    metric: str
    patience: int | None
    best: Leaves
    progress: Progress

    @classmethod
    def load(
        cls,
        session: RunSession,
        setup: Setup,
        members: list[Member],
        optimizer: optax.GradientTransformation,
        config_text: Callable[[], str],
        metric: str,
        patience: int | None,
        at_once: int | None,
        trackers: Sequence[str],
    ) -> "PackRun":
        """Loads the pack, or its newest checkpoint; see `train_pack` for the arguments."""
        pack = load_pack(setup, members, session.mesh, session.rules)
        opt_state = jax.jit(jax.vmap(optimizer.init))(pack.trainable)
        joined = _joined(TrainState(jnp.int32(0), pack.trainable, opt_state), pack.trainable)
        make_batches = lambda converter: Batches.of(setup.data, session.task, members, converter)
        start = session.start(pack.params, joined, make_batches, config_text)
        last, best = (partition.below(start.state.trainable, which) for which in ("last", "best"))
        start = dataclasses.replace(start, state=dataclasses.replace(start.state, trainable=last))
        writers = [MetricWriter(session.folder / MEMBERS / member.name, start.step, trackers) for member in members]
        for writer in writers:
            session.at_end.callback(writer.close, finished=False)
        progress = Progress(**start.facts["progress"]) if start.facts else Progress.start(len(members))
        evaluator = session.evaluator(start.converter, pack.model, at_once)
        return cls(session, start, pack, members, evaluator, writers, metric, patience, best, progress)

    def train(
        self, step: Callable, failures: Failures, total_steps: int, eval_period: int, log_period: int
    ) -> TrainState:
        """Trains to `total_steps`, or until every member has reached its plateau, and evaluates the last state.

        Raises:
          NotFinite: when no member's loss and gradient are finite; names the last member that failed, what made it so, and a remedy.
        """
        session, first = self.session, self.start.step
        if not first or (eval_period and first % eval_period == 0):
            self.evaluate(self.start.state)  # also where the run was stopped before an evaluation

        def before_step(state: TrainState) -> None:
            failures.before_step(self.start.batches.get_state())
            requests.before_step(state)

        try:
            with self.start.batches as batches, TraceRequests(session.folder) as requests:
                state = run_loop(
                    lambda state, frozen, batch: step(state, self.pack.members, frozen, batch),
                    self.start.state, self.pack.params.frozen, batches, mesh=session.mesh, total_steps=total_steps,
                    on_metrics=self._log_every(log_period, session.console.progress(first, total_steps, lambda *_: None), failures),
                    after_steps=[Period(eval_period, self.evaluate), *session.saves.actions(self.save)],
                    stop=lambda: session.saves.before_step() or self.at_plateau(), watchdog=session.watchdog,
                    before_step=before_step,
                )  # fmt: skip
        except StepNotFinite as e:
            raise failures.of(e) from e
        self.evaluate(state)
        return state

    def save(self, state: TrainState) -> None:
        """Writes a checkpoint: the last state, each member's best parameters, the data's position, the segments."""
        for writer in self.writers:
            writer.flush()
        self.session.newest.save(
            _joined(state, self.best),
            data_position=self.start.batches.get_state(),
            progress=dataclasses.asdict(self.progress),
            segments=self.start.segments(int(state.step)),
        )

    def evaluate(self, state: TrainState) -> None:
        """Scores all members on `validation`, unless this step was scored before, and keeps the best of each."""
        step = int(state.step)
        scored = all(writer.has(step, f"validation/{self.metric}") for writer in self.writers)
        if (
            scored and None not in self.progress.scores
        ):  # they are None if the pack was killed before its first checkpoint
            return
        results = self.score(state.trainable, "validation", step)
        if results is None:
            return
        scores = [result.selecting_score(self.metric) for result in results]
        improved = self.progress.add(step, scores, self.patience)
        keep = lambda new, old: jnp.where(improved.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
        self.best = jax.tree.map(keep, state.trainable, self.best)
        for writer, result in zip(self.writers, results) if not scored else ():
            writer.write(step, result.tagged("validation"))
        self.session.console.scores(step, "validation", {"best": max(scores), "median": float(np.median(scores))})

    def at_plateau(self) -> bool:
        """Whether every member has reached its plateau."""
        return all(self.progress.at_plateau(i, self.patience) for i in range(len(self.members)))

    def finish(self, state: TrainState, results: list[Result] | None, total_steps: int, seconds: float) -> dict:
        """Writes each member's files and the pack's summary. The last adapter of a member that diverged is not written."""
        session, params = self.session, self.pack.params
        baselines = {} if results is None else session.baselines()
        shared = {
            "frozen": outputs.count(params.frozen),
            "base": params.base and dataclasses.asdict(params.base),
            "task": session.setup.data.mixture_or_task_name,
            "empty_input": session.task.encode(""),
            "metric": self.metric,
            "baselines": baselines,
            "seconds": round(seconds, 1),
            "settings": session.identity,
            "versions": outputs.versions(),
            "segments": self.start.segments(int(state.step)),
        }
        rows = []
        for i, (member, setup) in enumerate(zip(self.members, self.pack.setups)):
            best, last = self.pack.member(self.best, i), self.pack.member(state.trainable, i)
            diverged = not all(np.isfinite(leaf).all() for leaf in jax.device_get(last).values())
            row = dataclasses.asdict(member) | {
                "name": member.name,
                "trainable": outputs.count(best),
                "validation": self.progress.scores[i],
                "step": self.progress.steps[i],
                "steps": self.progress.last[i],
                "diverged": diverged,
            }
            if results is not None:
                score = results[i].scores[self.metric]
                training = Training(
                    self.writers[i].series("train/loss"), setup.initial_checkpoint_path, setup.data.overfit
                )
                learned_nothing = nothing_learned(self.metric, row["step"], score, None, baselines, training)
                row |= {
                    f"adapted_{self.metric}": score,
                    "scores": results[i].scores,
                    "scores_are_of": whose_scores(row["step"], setup.initial_adapter_path),
                    "nothing_learned": learned_nothing,
                }
            folder = session.folder / MEMBERS / member.name
            outputs.write_parameters(folder, setup, params, best, {} if diverged else last, shared | row)
            outputs.write_summary(folder, shared | row)
            rows.append(row)
        summary = {"members": rows, "steps": int(state.step), "total_steps": total_steps} | shared
        outputs.write_summary(session.folder, summary)
        for writer in self.writers:
            writer.close()
        session.console.members_finished(summary)
        return summary

    def _log_every(self, period: int, bar: Callable, failures: Failures) -> Callable[[int, dict, float], None]:
        """Shows the lowest loss in the bar, names members that fail, and writes the training metrics of every `period`-th step."""

        def log(step: int, metrics: dict, examples_per_second: float) -> None:
            bar(step, {"loss": float(np.nanmin(metrics["loss"]))}, examples_per_second)
            failures.note(step, metrics)
            for writer in self.writers:
                writer.reached(step)
            if step % period == 0:
                by_member = {name: np.broadcast_to(value, len(self.writers)) for name, value in metrics.items()}
                for i, writer in enumerate(self.writers):
                    writer.write(step, {f"train/{name}": values[i] for name, values in by_member.items()})

        return log

    def score(self, trainable: Leaves, split: str, step: int) -> list[Result] | None:
        """Each member's scores on a split; None if a stop was requested."""
        padding, frozen = self.pack.members.padding, self.pack.params.frozen
        score = lambda check: self.evaluator.of_pack(trainable, padding, frozen, split, step, 0, check)
        return self.session.unless_stopped(split, score)
