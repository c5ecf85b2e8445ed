"""Checkpoints of a run, for resuming: the trainable state and the data's position, never the frozen base.

Orbax writes them in the background: `checkpoints/` keeps the newest, `best/` the one with the best validation metric. Each holds
a digest of every leaf, checked on restore; the run's identity, the settings that must not change when it is resumed; and the
run's segments. A damaged checkpoint is skipped for the newest good one, and replaced when its step is saved again.

In memory leaves are flat mappings; Orbax stores the trainable ones nested, as it always has.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import gin
import jax
import orbax.checkpoint as ocp
from etils import epath

from adalink_jax import configuration, parallel, timings
from adalink_jax.checkpoints import digests
from adalink_jax.errors import CheckpointError
from adalink_jax.files.places import path_of
from adalink_jax.models import paths
from adalink_jax.training.step import TrainState
from adalink_jax.typed_values import PositiveFloat, PositiveInt

T = TypeVar("T")
# Settings that may change when a run is resumed: they affect no result, or only how far the run goes.
MAY_CHANGE = ("CheckpointConfig.", "Setup.vision_cache", "DatasetConfig.task_cache", "expect_devices.", "compiler_flags.", "decoder_weights.", "make_mesh.",
              "logical_axis_rules.", "check_environment.", "Watchdog.", "DataAgreement.", *(
    f"{name}.{setting}" for name in ("train", "train_pack")
    for setting in ("model_dir", "total_steps", "log_period", "profile_steps", "checkpoints", "at_once", "trackers")
))  # fmt: skip


def identity_of(settings: Mapping[str, str]) -> dict[str, str]:
    """The settings that must not change when a run is resumed."""
    return {name: value for name, value in settings.items() if not name.startswith(MAY_CHANGE)}


@gin.configurable
@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and which are kept (t5x's names).

    Attributes:
      period: steps between checkpoints. One more is written at the end and when a run is stopped.
      keep: how many of the newest of every `period` steps are kept, with the newest of all; the best by validation metric is kept in
        addition.
      every_seconds: seconds between checkpoints besides, by the clock of process 0 (`save_clock`); None: by the steps alone.
    """

    period: PositiveInt = 1000
    keep: PositiveInt = 2
    every_seconds: PositiveFloat | None = 60.0


def _as_tree(state: TrainState) -> dict:
    """The nested dicts that Orbax stores; the optimizer's state by position."""
    return {
        "step": state.step,
        "trainable": paths.unflatten(state.trainable),
        "opt": {str(i): x for i, x in enumerate(jax.tree.leaves(state.opt_state))},
    }


def _from_tree(tree: dict, like: TrainState) -> TrainState:
    treedef = jax.tree.structure(like.opt_state)
    leaves = [tree["opt"][str(i)] for i in range(len(tree["opt"]))]
    return TrainState(tree["step"], paths.flatten(tree["trainable"]), jax.tree.unflatten(treedef, leaves))


def _abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


class _DamagedError(Exception):
    """A checkpoint cannot be read, or differs from what was written."""


@functools.cache
def _silence_closed_event_loops() -> None:
    """Suppresses the tracebacks of reads and writes in flight when another leaf failed: Orbax has closed their event loop, and the
    failure itself is raised.
    """
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    default_hook = sys.unraisablehook

    def hook(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            default_hook(unraisable)

    sys.unraisablehook = hook


def _digest(meta: dict) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _check_digests(tree: dict, meta: dict) -> None:
    wrong = [name for name, digest in digests(tree).items() if meta["digests"].get(name) != digest]
    if wrong:
        raise _DamagedError(f"the digest of {wrong[0]} differs")


@dataclasses.dataclass(frozen=True)
class _Preservation:
    """Orbax' policy: the newest checkpoint, and the newest `keep` of every `period` steps; others while there are fewer than `keep`."""

    keep: int
    period: int

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Whether each of the checkpoints, which ascend, is kept."""
        newest_first = [one.step for one in reversed(checkpoints)]
        steps = {*newest_first[:1], *[step for step in newest_first if step % self.period == 0][: self.keep]}
        others = (step for step in newest_first if step not in steps)
        steps |= set(itertools.islice(others, max(0, self.keep - len(steps))))
        return [one.step in steps for one in checkpoints]


class RunCheckpoints(contextlib.AbstractContextManager["RunCheckpoints"]):
    """One folder of checkpoints. Leaving its context waits until everything saved is on disk, however the run ended.

    Args:
      folder: `MODEL_DIR/checkpoints` (the newest) or `MODEL_DIR/best`.
      keep: how many of the newest of every `period` steps are kept, with the newest of all.
      identity: `{setting: value}`, JSON-able; a checkpoint whose identity differs is refused.
      period: see `keep`.

    Attributes:
      damaged: step -> reason, of checkpoints that turned out to be unusable.
    """

    def __init__(self, folder: str | epath.Path, keep: int, identity: Mapping[str, str], period: int = 1):
        self.folder = path_of(folder).resolve()
        self._policy, self._identity = _Preservation(keep, period), dict(identity)
        self.damaged: dict[int, str] = {}

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        """Created, with its folder, when it is first needed: a run that is refused leaves nothing behind."""
        _silence_closed_event_loops()
        options = ocp.CheckpointManagerOptions(preservation_policy=self._policy, enable_async_checkpointing=True)
        try:
            return ocp.CheckpointManager(self.folder, options=options, item_names=("state", "meta"))
        except ValueError as e:  # Orbax reads every step's metadata here
            raise CheckpointError(
                f"{self.folder} has a step whose _CHECKPOINT_METADATA is damaged ({e}); delete that step's folder."
            ) from e

    def latest_step(self) -> int | None:
        """The newest step that was written completely; None if no checkpoint exists."""
        return self._manager.latest_step() if parallel.once(self.folder.exists) else None

    @timings.phase("checkpoint")
    def save(self, state: TrainState, **facts) -> None:
        """Writes the state in the background, with JSON-able `facts` (`data_position`, `segments`, `score`).

        A step that exists already is left unchanged, unless it was found damaged.

        Raises:
          CheckpointError: if this checkpoint or the previous one cannot be written.
        """
        step = int(state.step)
        if step in self.damaged:
            with self._writing(step):
                self._manager.delete(step)
            del self.damaged[step]
        if step in self._manager.all_steps():
            return
        tree = _as_tree(state)
        meta = {"digests": digests(tree), "identity": self._identity, **facts}
        meta["digest"] = _digest(meta)
        items = ocp.args.Composite(state=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave(meta))
        with self._writing(step):
            self._manager.save(step, args=items, force=True)

    def facts(self) -> dict:
        """The newest good checkpoint's facts; {} where there is no checkpoint.

        Raises:
          CheckpointError: if none of them can be read, or if it is from a run with other settings (which are named).
        """
        return self._newest_good(self._meta) if self.latest_step() is not None else {}

    def steps(self) -> list[int]:
        """The steps that were written completely, ascending."""
        return sorted(self._manager.all_steps()) if parallel.once(self.folder.exists) else []

    def read_trainable(
        self, step: int, like: Mapping[str, jax.Array], settings: Mapping[str, str]
    ) -> dict[str, jax.Array]:
        """The trainable leaves of one step by name, for evaluation on any data; the optimizer's state is not read.

        Args:
          step: one of `steps()`.
          like: leaves of the same names, shapes and shardings.
          settings: the settings in use; those that the run recorded must be equal, except the data's.

        Raises:
          CheckpointError: if it is damaged, or from a run with another base, model or adapter.
        """
        try:
            facts = self._facts_of(step)
            recorded = {name: x for name, x in facts["identity"].items() if not name.startswith("DatasetConfig.")}
            self._check_equal(recorded, settings, "use that run's config.gin")
            wanted = {"trainable": jax.tree.map(_abstract, paths.unflatten(like))}
            placed = ocp.checkpoint_utils.construct_restore_args(wanted)
            part = ocp.args.PyTreeRestore(wanted, restore_args=placed, partial_restore=True)
            try:
                with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                    tree = reader.restore(self.folder / str(step) / "state", args=part)
            except Exception as e:  # see `_read`
                raise _DamagedError(str(e).split("\n")[0][:200]) from e
            _check_digests(tree, facts)
        except _DamagedError as e:
            raise CheckpointError(
                f"The checkpoint of step {step} in {self.folder} cannot be used ({e}); "
                f"delete the folder {step} there to use the others."
            ) from e
        return paths.flatten(tree["trainable"])

    @timings.phase("restore")
    def restore(self, like: TrainState) -> tuple[TrainState, dict]:
        """The newest good state, and its facts. Damaged checkpoints are skipped, and recorded in `damaged`.

        Args:
          like: a state of the same shapes, dtypes and shardings (abstract or not).

        Raises:
          CheckpointError: if there is no good checkpoint.
        """
        abstract = jax.tree.map(_abstract, _as_tree(like))

        def read(step: int) -> tuple[TrainState, dict]:
            meta = self._meta(step)
            tree = self._read(step, state=ocp.args.StandardRestore(abstract))["state"]
            _check_digests(tree, meta)
            return _from_tree(tree, like), meta

        return self._newest_good(read)

    def _newest_good(self, read: Callable[[int], T]) -> T:
        """`read(step)` of the newest step that every process can read; a save that failed is reported as such, not as damage."""
        self.wait()
        for step in sorted(self._manager.all_steps(), reverse=True):
            if step in self.damaged:
                continue
            try:
                content, reason = read(step), None
            except _DamagedError as e:
                content, reason = None, str(e)
            if parallel.all_agree(reason is None) and content is not None:
                return content
            self.damaged[step] = reason or "another process could not read it"
        reasons = "; ".join(f"step {step}: {reason}" for step, reason in self.damaged.items())
        raise CheckpointError(
            f"No checkpoint in {self.folder} can be used ({reasons}); delete that folder to start afresh, or set another "
            f"MODEL_DIR."
        )

    def _meta(self, step: int) -> dict:
        """The facts of a step of a run with these settings. One that only one side has (another version's) is its default."""
        meta = self._facts_of(step)
        one_sided = configuration.as_in_0_1_0(dict.fromkeys(meta["identity"].keys() ^ self._identity.keys(), ""))
        default = {name: configuration.default_of(name) for name in one_sided}
        remedy = "set another MODEL_DIR, or use that run's settings"
        self._check_equal(default | meta["identity"], default | self._identity, remedy)
        return meta

    def _facts_of(self, step: int) -> dict:
        meta = self._read(step, meta=ocp.args.JsonRestore())["meta"]
        if not isinstance(meta, dict) or meta.pop("digest", None) != _digest(meta):
            raise _DamagedError("the digest of its facts differs")
        return meta

    def _read(self, step: int, **items) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as e:  # Orbax, tensorstore and JSON each raise their own errors for a damaged file
            raise _DamagedError(str(e).split("\n")[0][:200]) from e

    @contextlib.contextmanager
    def _writing(self, step: int | None = None) -> Iterator[None]:
        """Turns Orbax's error into one sentence. Orbax reports a failed save at the next one."""
        try:
            yield
        except Exception as e:
            which = "A checkpoint" if step is None else f"The checkpoint of step {step}, or the one before,"
            # The system's own error follows the files' names.
            why = str(e).strip().split("\n")[-1].rpartition('": ')[2][:300]
            raise CheckpointError(
                f"{which} could not be written to {self.folder} ({why}); make room there or make it writable, then rerun the "
                f"same command to resume from the newest checkpoint."
            ) from e

    def _check_equal(self, there: Mapping, here: Mapping, remedy: str) -> None:
        """Refuses a run whose settings differ; a setting that only one side has is ignored."""
        changed = [
            f"{name} {there[name]} there, {here[name]} here"
            for name in sorted(there.keys() & here.keys())
            if there[name] != here[name]
        ]
        if changed:
            raise CheckpointError(
                f"{self.folder.parent} holds a run of another configuration ({'; '.join(changed[:5])}); {remedy}."
            )

    @timings.phase("checkpoint")
    def wait(self) -> None:
        """Returns once everything saved is on disk."""
        if "_manager" in vars(self):
            with self._writing():
                self._manager.wait_until_finished()

    def __exit__(self, *_) -> None:
        self.wait()
