"""Checkpoints of a run, for resuming: the trainable state and the data's position, never the frozen base.

Orbax writes them in the background: `checkpoints/` keeps the newest, `best/` the one with the best validation metric.
Each carries a digest of every leaf, checked on restore, and the run's identity: the settings that must not change when
it is resumed. A damaged checkpoint is passed over for the newest good one; it is replaced when its step is saved again.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import gin
import jax
import orbax.checkpoint as ocp
from etils import epath

from adalink_jax import configuration, parallel
from adalink_jax.checkpoints import digests
from adalink_jax.errors import CheckpointError
from adalink_jax.training.step import TrainState


@gin.configurable
@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and which are kept (t5x's names).

    Attributes:
      period: steps between checkpoints. One more is written at the end and at an interruption.
      keep: how many of the newest are kept; the best by validation metric is kept besides.
    """

    period: int = 1000
    keep: int = 2


def _as_tree(state: TrainState) -> dict:
    """Plain nested dicts, as Orbax and the digests want them; the optimizer's state by position."""
    opt_leaves = jax.tree.leaves(state.opt_state)
    return {"step": state.step, "trainable": state.trainable, "opt": {str(i): x for i, x in enumerate(opt_leaves)}}


def _from_tree(tree: dict, like: TrainState) -> TrainState:
    treedef = jax.tree.structure(like.opt_state)
    leaves = [tree["opt"][str(i)] for i in range(len(tree["opt"]))]
    return TrainState(tree["step"], tree["trainable"], jax.tree.unflatten(treedef, leaves))


class _Damaged(Exception):
    """A checkpoint cannot be read, or is not what was written."""


@functools.cache
def _hush() -> None:
    """When one leaf cannot be read or written, those of the others that are under way end in a loop that Orbax has closed. Each
    would print a traceback beside the one sentence that tells of it.
    """
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    shown = sys.unraisablehook

    def hook(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            shown(unraisable)

    sys.unraisablehook = hook


def _digest(meta: dict) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _check_digests(tree: dict, meta: dict) -> None:
    wrong = [name for name, digest in digests(tree).items() if meta["digests"].get(name) != digest]
    if wrong:
        raise _Damaged(f"the digest of {wrong[0]} differs")


class RunCheckpoints:
    """One folder of checkpoints. As a context it ends when all that was saved is on disk, however the run ended.

    Args:
      folder: `MODEL_DIR/checkpoints` (the newest) or `MODEL_DIR/best`.
      keep: how many of the newest are kept.
      identity: `{setting: value}`, JSON-able; a checkpoint whose identity differs is refused.

    Attributes:
      damaged: step -> why, of checkpoints that were found to be unusable.
    """

    def __init__(self, folder: str, keep: int, identity: dict):
        self.folder = epath.Path(folder).resolve()
        self._keep, self._identity = keep, identity
        self.damaged: dict[int, str] = {}

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        """Opened, and the folder made, when it is first needed: a run that is refused leaves nothing behind."""
        _hush()
        options = ocp.CheckpointManagerOptions(max_to_keep=self._keep, enable_async_checkpointing=True)
        return ocp.CheckpointManager(self.folder, options=options, item_names=("state", "meta"))

    def latest_step(self) -> int | None:
        """The newest step that was written whole."""
        return self._manager.latest_step() if parallel.once(self.folder.exists) else None

    def save(self, state: TrainState, **facts) -> None:
        """Writes the state in the background, with JSON-able `facts` (`data_position`, `score`).

        A step that is there already is left as it is, unless it was found damaged.

        Raises:
          CheckpointError: if this or the last one cannot be written.
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
          CheckpointError: if none of them can be read, or it is of a run of other settings (which are named).
        """
        return self._newest_good(self._meta) if self.latest_step() is not None else {}

    def steps(self) -> list[int]:
        """The steps that were written whole, ascending."""
        return sorted(self._manager.all_steps()) if parallel.once(self.folder.exists) else []

    def read_trainable(self, step: int, like, settings: dict[str, str]):
        """The trained leaves of one step, for evaluation, on whatever data; of the optimizer's state nothing is read.

        Args:
          step: one of `steps()`.
          like: a tree of the same shapes and shardings.
          settings: those in use; the run's own must be the same where it has them.

        Raises:
          CheckpointError: if it is damaged, or of a run of another base, model or adapter.
        """
        try:
            facts = self._facts_of(step)
            identity = facts["identity"]
            changed = [f"{key} {identity[key]} there, {settings[key]} here"
                       for key in sorted(identity.keys() & settings.keys())
                       if identity[key] != settings[key] and not key.startswith("DatasetConfig.")]  # fmt: skip
            if changed:
                raise CheckpointError(
                    f"{self.folder.parent} holds a run of another configuration ({'; '.join(changed[:5])}); give that run's config.gin."
                )
            as_abstract = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
            wanted = {"trainable": jax.tree.map(as_abstract, like)}
            placed = ocp.checkpoint_utils.construct_restore_args(wanted)
            part = ocp.args.PyTreeRestore(wanted, restore_args=placed, partial_restore=True)
            try:
                with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                    tree = reader.restore(self.folder / str(step) / "state", args=part)
            except Exception as e:  # see `_read`
                raise _Damaged(str(e).split("\n")[0][:200]) from e
            _check_digests(tree, facts)
        except _Damaged as e:
            raise CheckpointError(
                f"The checkpoint of step {step} in {self.folder} cannot be used ({e}); delete the folder {step} there, and the others can be."
            ) from e
        return tree["trainable"]

    def restore(self, like: TrainState) -> tuple[TrainState, dict]:
        """The newest good state, and its facts. What is passed over is in `damaged`.

        Args:
          like: a state of the same shapes, dtypes and shardings (abstract or not).

        Raises:
          CheckpointError: if there is none.
        """
        as_abstract = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
        abstract = jax.tree.map(as_abstract, _as_tree(like))

        def read(step):
            meta = self._meta(step)
            tree = self._read(step, state=ocp.args.StandardRestore(abstract))["state"]
            _check_digests(tree, meta)
            return _from_tree(tree, like), meta

        return self._newest_good(read)

    def _newest_good(self, read: Callable[[int], Any]) -> Any:
        """What `read` gives of the newest step that it can read, in all processes."""
        for step in sorted(self._manager.all_steps(), reverse=True):
            if step in self.damaged:
                continue
            found, why = None, None
            try:
                found = read(step)
            except _Damaged as e:
                why = str(e)
            if parallel.all_agree(why is None):
                return found
            self.damaged[step] = why or "another process could not read it"
        told = "; ".join(f"step {step}: {why}" for step, why in self.damaged.items())
        raise CheckpointError(
            f"No checkpoint in {self.folder} can be used ({told}); delete that folder to start afresh, or give another MODEL_DIR."
        )

    def _meta(self, step: int) -> dict:
        meta = self._facts_of(step)
        self._compare_identity(meta["identity"])
        return meta

    def _facts_of(self, step: int) -> dict:
        meta = self._read(step, meta=ocp.args.JsonRestore())["meta"]
        if not isinstance(meta, dict) or meta.pop("digest", None) != _digest(meta):
            raise _Damaged("the digest of its facts differs")
        return meta

    def _read(self, step: int, **items):
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as e:  # Orbax, tensorstore and JSON each have errors of their own for a damaged file
            raise _Damaged(str(e).split("\n")[0][:200]) from e

    @contextlib.contextmanager
    def _writing(self, step: int | None = None) -> Iterator[None]:
        """Says in one sentence what Orbax could not write; it tells of the last save when it is asked for the next."""
        try:
            yield
        except Exception as e:
            which = "A checkpoint" if step is None else f"The checkpoint of step {step}, or the one before,"
            why = (
                str(e).strip().split("\n")[-1].rpartition('": ')[2][:300]
            )  # behind the files' names: the system's own error
            raise CheckpointError(
                f"{which} could not be written to {self.folder} ({why}); make room there or make it writable, and the same "
                f"command goes on from the newest one that was."
            ) from e

    def _compare_identity(self, found: dict) -> None:
        """A setting that one side does not have, as it is newer, or older, has its default there."""
        names = sorted(found.keys() | self._identity.keys())
        default = {name: configuration.default_of(name) for name in found.keys() ^ self._identity.keys()}
        there, here = default | found, default | self._identity
        changed = [f"{key} {there[key]} there, {here[key]} here" for key in names if there[key] != here[key]]
        if changed:
            raise CheckpointError(
                f"{self.folder.parent} holds a run of another configuration ({'; '.join(changed[:5])}); "
                f"give another MODEL_DIR, or the settings of that run."
            )

    def wait(self) -> None:
        """Returns when all that was saved is on disk."""
        if "_manager" in vars(self):
            with self._writing():
                self._manager.wait_until_finished()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.wait()
