"""A step whose loss or gradient is not finite: the state before it is kept, and one sentence names what made it so.

Invariant: a normal step computes nothing for this but whether to keep its state (`holding`). What made a step fail is searched for
afterwards, from the step's own state and batch: its gradients are computed again, on fewer and fewer different rows. Every process of
a job runs the same programs and reads the same answers.
"""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from adalink_jax import parallel
from adalink_jax.adapters import AdaptedModel
from adalink_jax.data import DatasetConfig, Task
from adalink_jax.data.batch_order import epoch_seed
from adalink_jax.data.user_files.file_task import LoadedFileTask
from adalink_jax.data.user_files.row_store import StoredRow
from adalink_jax.errors import NotFinite
from adalink_jax.models.backbone import Backbone
from adalink_jax.models.seam import KINDS, Inputs
from adalink_jax.parallel import missing_peer
from adalink_jax.training import partition
from adalink_jax.training.loop import StepNotFinite
from adalink_jax.training.partition import Leaves
from adalink_jax.training.run_checkpoints import RunCheckpoints
from adalink_jax.training.step import TrainState

LOWER = "lower the learning rate, or clip gradients"
_SHOWN = 60  # characters of an example's texts
_STAGES = {"embed": "embeddings", "adapt": "embeddings after the adapter", "encode": "encoder states", "decode_states": "decoder states"}  # fmt: skip


def holding(
    step: Callable[..., tuple[TrainState, dict[str, jax.Array]]],
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """`step`, whose state stays as it was before the first step whose loss or gradient (for a pack: every member's) is not finite.

    From then on the state's `step` is `~step`, which is negative, and nothing changes it: the loop has dispatched the next step already
    when it reads the metrics of this one.
    """

    def held(state: TrainState, *arguments: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        after, metrics = step(state, *arguments)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        keep = (state.step >= 0) & finite.any()
        before = state.replace(step=jnp.where(state.step < 0, state.step, ~state.step))  # pyright: ignore[reportAttributeAccessIssue]  # flax's
        return jax.tree.map(lambda new, old: jnp.where(keep, new, old), after, before), metrics

    return held


@dataclasses.dataclass
class Explanation:
    """Finds what made a step fail.

    Attributes:
      model: what is trained.
      gradients: of the step, see `make_gradients`.
      mesh: where batches go.
      task: names examples.
      dataset: in whose order the batches are; None where the caller makes them.
      step: the number of steps that `before_step` was called for, and of those before the run.
      lower: the remedy for a step that was too large.
    """

    model: AdaptedModel
    gradients: Callable[[TrainState, Leaves, Leaves], tuple[tuple[jax.Array, jax.Array], Leaves]]
    mesh: Mesh
    task: Task
    dataset: DatasetConfig | None
    step: int
    lower: str = LOWER

    def __post_init__(self) -> None:
        self._positions = collections.deque[tuple[int, Mapping[str, Any]]](maxlen=2)

    def before_step(self, position: Mapping[str, Any]) -> None:
        """Remembers where the data is (`BatchIterator.get_state`)."""
        self.step += 1
        self._positions.append((self.step, position))

    def of(
        self, failed: StepNotFinite, frozen: Leaves, newest: RunCheckpoints, tell: Callable[[str], None]
    ) -> NotFinite:
        """The exception to raise: the step, what made it fail, the newest checkpoint, a remedy. All processes must call it.

        Args:
          failed: with the state that `holding` has kept.
          frozen: the frozen leaves by name.
          newest: names the newest checkpoint.
          tell: is given a sentence before the search, which may take minutes.
        """
        newest.wait()
        step = newest.latest_step()
        tell(f"{failed} Searching for what made it so.")
        saved = "no checkpoint had been written" if step is None else f"the newest checkpoint is of step {step}"
        try:
            cause, remedy = self.cause(failed, frozen)
        except (jax.errors.JaxRuntimeError, MemoryError, ValueError) as e:
            # Such as memory that the search needs and the step did not.
            if missing_peer.is_lost_peer(e):
                raise
            cause, remedy = f"What made it so was not found ({type(e).__name__}).", self.lower
        return NotFinite(f"{failed} {cause} Training stopped; {saved}; {remedy}.")

    def cause(self, failed: StepNotFinite, frozen: Leaves) -> tuple[str, str]:
        """What made the step fail, as a sentence, and what the user can do, as a part of one. All processes must call it.

        Args:
          failed: with the state that `holding` has kept.
          frozen: the frozen leaves by name.
        """
        state = failed.state.replace(step=~failed.state.step)  # pyright: ignore[reportAttributeAccessIssue]  # flax's
        of_leaves = _first_bad(_leaves)
        if leaf := of_leaves(state.trainable):
            return f"The trainable leaf {leaf} was not finite before this step.", self.lower
        if leaf := of_leaves(frozen):
            return f"The frozen leaf {leaf} is not finite.", "use another base, or convert this one again"
        size = len(next(iter(failed.batch.values())))
        pick = jax.jit(_rows_of, out_shardings=parallel.batch_sharding(self.mesh))
        # The batch with these rows, repeated, in place of its own: the same program for any number of them.
        only = lambda rows: parallel.settle(pick(failed.batch, np.resize(np.asarray(rows, np.int32), size)))
        of_parts = _first_bad(self._parts)
        bad_part = lambda rows: of_parts(state, frozen, only(rows))
        row = first_failing(lambda rows: bad_part(rows) is not None, range(size))
        if row is None:
            if (part := bad_part(range(size))) is None:
                squares = "Computed again, the loss and every gradient are finite: a square in the gradient's norm overflowed, or the step"
                return f"{squares} does not repeat.", self.lower
            return f"No row of the batch makes it so alone; the {part} of all together are not finite.", self.lower
        others = [other for other in range(size) if other != row]
        which = "is the first of several rows that make it so" if others and bad_part(others) else "alone makes it so"
        alone = only([row])
        features = {name: x[0] for name, x in parallel.to_host(alone).items()}
        part, remedy = (
            next((name for name, x in features.items() if not np.isfinite(x).all()), None),
            "correct it or leave it out",
        )
        if part is None:
            part = _first_bad(self._stages)(state, frozen, alone) or bad_part([row])
            remedy = f"{self.lower}, or leave this example out"
        example = self._example(failed.step, row, features)
        return f"Row {row} of the batch{example} {which}: its {part} are not finite.", remedy

    def _stages(self, state: TrainState, frozen: Leaves, batch: Leaves) -> "_Flags":
        """Whether what each stage of the model returns is finite, in the order of the stages."""
        flags: _Flags = []

        def note(call: Callable, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            value = call(*args, **kwargs)
            if context.method_name in _STAGES and isinstance(context.module, (AdaptedModel, Backbone)):
                stage = _STAGES[context.method_name]
                kinds = (
                    {f"{kind} {stage}": getattr(value, kind) for kind in KINDS}
                    if isinstance(value, Inputs)
                    else {stage: value}
                )
                flags.extend((name, _all_finite(part)) for name, part in kinds.items())
            return value

        with nn.intercept_methods(note):
            self.model.apply({"params": partition.merge(state.trainable, frozen)}, batch, method="states")
        return flags

    def _parts(self, state: TrainState, frozen: Leaves, batch: Leaves) -> "_Flags":
        """Whether the loss and each gradient are finite."""
        (loss, _), grads = self.gradients(state, frozen, batch)
        return [
            ("token losses", _all_finite(loss)),
            *((f"gradients of {name}", _all_finite(x)) for name, x in grads.items()),
        ]

    def _example(self, step: int, row: int, features: Mapping[str, np.ndarray]) -> str:
        """The texts of a row and, of a file, its line; "" for a row without text."""
        ids, facts = self.model.backbone.token_ids, []
        for side, name in (("input", "encoder_input_tokens"), ("target", "decoder_target_tokens")):
            if name in features:
                tokens = [int(i) for i in features[name] if i != ids.pad]
                text = self.task.decode(ids.before_end(tokens))
                facts.append(f"{side} {text[:_SHOWN]!r}{'...' if len(text) > _SHOWN else ''}")
        position, plain = dict(self._positions).get(step), self.dataset
        if (
            isinstance(self.task, LoadedFileTask)
            and plain is not None
            and not plain.pack
            and plain.train_examples is None
            and position
        ):
            epoch, batch = position["epoch"], position["batch"]
            if batch == self.task.size("train") // plain.batch_size:
                epoch, batch = epoch + 1, 0  # the next epoch's first
            number = batch * plain.batch_size + row
            stored = cast(StoredRow, self.task.rows("train", epoch_seed(plain.seed, epoch))[number])
            facts.append(f"line {stored['line']} of the data")
        return f" ({', '.join(facts)})" if facts else ""


def first_failing(fails: Callable[[Sequence[int]], bool], rows: Sequence[int]) -> int | None:
    """The first row that fails alone, found by halves; None if rows fail only together, or not again.

    Args:
      fails: whether a batch of nothing but some of the rows fails.
      rows: among which it is.
    """
    while len(rows) > 1:
        middle = len(rows) // 2
        rows = next((half for half in (rows[:middle], rows[middle:]) if fails(half)), ())
    return rows[0] if rows and fails(rows) else None


def _rows_of(batch: Leaves, rows: jax.Array) -> Leaves:
    return jax.tree.map(lambda x: x[rows], batch)


def _all_finite(tree: Any) -> jax.Array:
    floats = [jnp.isfinite(x).all() for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.stack(floats).all() if floats else jnp.bool_(True)


def _leaves(leaves: Leaves) -> "_Flags":
    return [(name, _all_finite(leaf)) for name, leaf in leaves.items()]


_Flags = list[tuple[str, jax.Array]]  # names of parts, and whether each is finite


def _first_bad(flags_of: Callable[..., _Flags]) -> Callable[..., str | None]:
    """`flags_of`, compiled: the name of the first part that is not finite; None if all are."""
    names: list[str] = []

    def run(*arguments: Any) -> list[jax.Array]:
        flags = flags_of(*arguments)
        names[:] = [name for name, _ in flags]
        return [flag for _, flag in flags]

    compiled = jax.jit(run)

    def first(*arguments: Any) -> str | None:
        flags = jax.device_get(parallel.settle(compiled(*arguments)))
        return next((name for name, finite in zip(names, flags) if not finite), None)

    return first
