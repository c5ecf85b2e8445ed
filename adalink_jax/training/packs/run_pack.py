"""A training run of a pack: several adapters in one program, each scored, kept and written as a run of its own would be.

It can be killed and started again like a single run.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from adalink_jax import parallel
from adalink_jax.errors import NotFinite, UserError
from adalink_jax.training import fill_vision_cache, outputs
from adalink_jax.training.console import Console
from adalink_jax.training.evaluation import Evaluator, Result
from adalink_jax.training.interrupt import Interrupted, StopRequest
from adalink_jax.training.loop import Period, run_loop
from adalink_jax.training.metric_writer import MetricWriter
from adalink_jax.training.packs.members import Batches, Member, Progress, grid, own_batches
from adalink_jax.training.packs.pack import Pack, load_pack, make_packed_step
from adalink_jax.training.run import check_setup, identity_of, make_evaluator, selected, tagged
from adalink_jax.training.run_checkpoints import CheckpointConfig, RunCheckpoints
from adalink_jax.training.setup import Setup
from adalink_jax.training.step import CrossEntropy, TrainState

MEMBERS = "members"


@gin.configurable
def train_pack(
    setup: Setup,
    optimizer: optax.GradientTransformation,
    model_dir: str,
    total_steps: int,
    learning_rates: Sequence[float],
    seeds: Sequence[int],
    *,
    ranks: Sequence[int] | None = None,
    patience: int | None = None,
    loss: CrossEntropy | None = None,
    checkpoints: CheckpointConfig | None = None,
    eval_period: int = 0,
    metric: str = "accuracy",
    microbatches: int = 1,
    log_period: int = 50,
    at_once: int | None = None,
    test: bool = True,
    settings: Callable[[], dict[str, str]] = dict,
    config_text: Callable[[], str] = lambda: "",
) -> dict:
    """Trains every combination of learning rate, seed and rank, or goes on with it.

    Args:
      setup: model, data, sources of the parameters; as for `train`.
      optimizer: its learning rate is multiplied by each member's; so its updates must be in proportion to it, as AdamW's are, and
        Adafactor's without `weight_decay`.
      model_dir: folder of the pack; the members' are in `members/`.
      total_steps: steps to train.
      learning_rates: of the members.
      seeds: of the members; each stands for RANDOM_SEED and DATA_SEED alike.
      ranks: of the members' adapters; None for the method's own.
      patience: a member has reached its plateau, and its best step is final, when so many evaluations in a row were no
        better; the pack ends early when all have. None trains all to the end.
      loss, checkpoints, eval_period, metric, microbatches, log_period: as for `train`.
      at_once: how many members are computed at once; None is all of them, on a CPU one after the other.
      test: score each member's best step on `test`, once, at the end.
      settings, config_text: as for `train`.

    Returns:
      What `summary.json` holds: `members`, a dict for each, in the order of the grid, and what they share.

    Raises:
      UserError, CheckpointError: for bad settings and files, before anything is compiled or overwritten.
      NotFinite: if the losses of all members are NaN or infinite.
      Stopped: after a stop was asked for and the state was saved.
    """
    started = time.time()
    if jax.process_count() > 1:
        raise UserError(f"A pack is trained by one process, on all of its devices; this job has {jax.process_count()}.")
    if metric is None:
        raise UserError("A pack keeps each member's best step on validation, so it needs a metric: set METRIC.")
    parallel.expect_devices()
    mesh, rules = parallel.make_mesh(), parallel.logical_axis_rules()
    members = grid(learning_rates, seeds, ranks)
    task, eval_tasks = check_setup(members[0].setup(setup), microbatches, mesh)
    loss, checkpoints = loss or CrossEntropy(), checkpoints or CheckpointConfig()
    folder = epath.Path(model_dir)
    identity = identity_of(settings())
    saved = RunCheckpoints(folder / "checkpoints", checkpoints.keep, identity)

    with contextlib.ExitStack() as during:
        during.enter_context(parallel.use_mesh(mesh, rules))
        during.enter_context(outputs.naming(folder))
        stop, console = during.enter_context(StopRequest()), during.enter_context(Console(model_dir))
        facts = during.enter_context(saved).facts()
        summary = outputs.read_summary(folder)
        if summary and summary["total_steps"] >= total_steps:
            console.already_done(summary)
            return summary
        pack = load_pack(setup, members, mesh, rules)
        console.parameters(pack.params)
        console.notes(eval_tasks)
        console.members([member.name for member in members])
        cache = fill_vision_cache.prepare(setup, pack.params, eval_tasks, mesh, console, stop)
        converter = setup.converter(setup.dataset.task_feature_lengths, cache)
        batches = Batches.of(setup.dataset, task, members, converter)
        state = TrainState(jnp.int32(0), pack.trainable, jax.jit(jax.vmap(optimizer.init))(pack.trainable))
        best = pack.trainable
        if facts:
            joined, facts = saved.restore(_joined(state, best))
            state, best = _unjoined(joined)
            batches.set_state(facts["data_position"])
            console.resumed(int(state.step), saved)
        outputs.write_start(folder, pack.params, config_text())
        writer = lambda member: MetricWriter(folder / MEMBERS / member.name, int(state.step))
        writers = [writer(member) for member in members]
        evaluator = make_evaluator(dataclasses.replace(setup, model=pack.model), eval_tasks, converter, mesh, at_once)
        run = PackRun(pack, members, folder, saved, writers, console, stop, batches, evaluator, metric, identity,
                      patience, best, Progress(**facts["progress"]) if facts else Progress.start(len(members)))  # fmt: skip
        if not int(state.step) or (eval_period and int(state.step) % eval_period == 0):
            run.evaluate(state)  # also where the run was stopped before an evaluation
        step_fn = make_packed_step(
            pack.model,
            optimizer,
            own_batches=own_batches(members),
            at_once=at_once,
            loss=loss,
            microbatches=microbatches,
        )
        state = run.train(
            jax.jit(step_fn, donate_argnums=0), state, mesh=mesh, total_steps=total_steps,
            on_metrics=run.log_every(log_period, console.progress(int(state.step), total_steps, lambda *_: None)),
            after_steps=[Period(eval_period, run.evaluate), Period(checkpoints.period, run.save)],
        )  # fmt: skip
        results = run.score_test() if test else None
        if stop.requested():
            run.save(state)
            raise stop.stopped(f"Stopped after step {int(state.step)} and saved; the same command goes on from there.")
        return run.finish(state, results, total_steps, time.time() - started)


def _joined(state: TrainState, best: dict) -> TrainState:
    return TrainState(state.step, {"last": state.trainable, "best": best}, state.opt_state)


def _unjoined(state: TrainState) -> tuple[TrainState, dict]:
    return TrainState(state.step, state.trainable["last"], state.opt_state), state.trainable["best"]


@dataclasses.dataclass
class PackRun:
    """The parts of a pack's run in progress, and what happens around its steps."""

    pack: Pack
    members: Sequence[Member]
    folder: epath.Path
    saved: RunCheckpoints
    writers: Sequence[MetricWriter]
    console: Console
    stop: StopRequest
    batches: Batches
    evaluator: Evaluator
    metric: str
    settings: dict[str, str]
    patience: int | None
    best: dict
    progress: Progress

    def train(self, step_fn: Callable, state: TrainState, **options) -> TrainState:
        """`run_loop` from `state` on, until all members are at their plateau, then an evaluation of its last state.

        Raises:
          NotFinite: when no member's loss is finite; says what may help.
        """
        step = lambda state, frozen, batch: step_fn(state, self.pack.members, frozen, batch)
        stop = lambda: self.stop.before_step() or self.at_plateau()
        try:
            state = run_loop(step, state, self.pack.params.frozen, self.batches, stop=stop, **options)
        except NotFinite as e:
            raise NotFinite(f"{e} Training stopped; lower LEARNING_RATES, or clip gradients.") from e
        self.evaluate(state)
        return state

    def save(self, state: TrainState) -> None:
        """Writes a checkpoint: the last state, each member's best parameters, the position of the data."""
        facts = {"data_position": self.batches.get_state(), "progress": dataclasses.asdict(self.progress)}
        self.saved.save(_joined(state, self.best), **facts)

    def evaluate(self, state: TrainState) -> None:
        """Scores all members on `validation`, unless this step was scored before, and keeps the best of each."""
        step = int(state.step)
        if all(writer.has(step, f"validation/{self.metric}") for writer in self.writers):
            return
        results = self._score(state.trainable, "validation")
        if results is None:
            return
        scores = [selected(result, self.metric) for result in results]
        better = self.progress.add(step, scores, self.patience)
        keep = lambda new, old: jnp.where(better.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
        self.best = jax.tree.map(keep, state.trainable, self.best)
        for writer, result in zip(self.writers, results):
            writer.write(step, tagged("validation", result))
        self.console.scores(step, "validation", {"best": max(scores), "median": float(np.median(scores))})

    def at_plateau(self) -> bool:
        """Whether every member has reached its plateau."""
        return all(self.progress.at_plateau(i, self.patience) for i in range(len(self.members)))

    def score_test(self) -> list[Result] | None:
        """Each member's best step on `test`."""
        return None if self.stop.requested() else self._score(self.best, "test")

    def log_every(self, period: int, bar: Callable) -> Callable[[int, dict, float], None]:
        """Writes the members' training metrics of every `period`-th step, and shows their lowest loss in the bar."""

        def log(step: int, metrics: dict, examples_per_second: float) -> None:
            bar(step, {"loss": float(np.nanmin(metrics["loss"]))}, examples_per_second)
            if step % period == 0:
                for i, writer in enumerate(self.writers):
                    writer.write(step, {f"train/{name}": value[i] for name, value in metrics.items()})

        return log

    def finish(self, state: TrainState, results: list[Result] | None, total_steps: int, seconds: float) -> dict:
        """Writes each member's files, and the pack's summary. The last adapter of a member that diverged is not written."""
        shared = {
            "frozen": outputs.count(self.pack.params.frozen),
            "base": self.pack.params.base,
            "task": self.pack.setups[0].dataset.mixture_or_task_name,
            "metric": self.metric,
            "seconds": round(seconds, 1),
            "settings": self.settings,
            "versions": outputs.versions(),
        }
        rows = []
        for i, member in enumerate(self.members):
            best, last = self.pack.member(self.best, i), self.pack.member(state.trainable, i)
            diverged = not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(last)))
            row = dataclasses.asdict(member) | {
                "name": member.name,
                "trainable": outputs.count(best),
                "validation": self.progress.scores[i],
                "step": self.progress.steps[i],
                "steps": self.progress.last[i],
                "diverged": diverged,
            }
            if results is not None:
                row |= {f"adapted_{self.metric}": results[i].scores[self.metric], "scores": results[i].scores}
            folder = self.folder / MEMBERS / member.name
            kept = {} if diverged else last
            outputs.write_parameters(folder, self.pack.setups[i], self.pack.params, best, kept, shared | row)
            outputs.write_summary(folder, shared | row)
            rows.append(row)
        steps = {"steps": int(state.step), "total_steps": total_steps}
        summary = {"members": rows} | steps | shared
        outputs.write_summary(self.folder, summary)
        self.console.members_finished(summary)
        return summary

    def _score(self, trainable: dict, split: str) -> list[Result] | None:
        try:
            with self.console.working(f"evaluating {split}"):
                return self.evaluator.of_pack(
                    trainable, self.pack.members.padding, self.pack.params.frozen, split, 0, self.stop.check
                )
        except Interrupted:
            return None
