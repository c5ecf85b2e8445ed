"""Members of a pack whose loss or gradient is not finite: each is named when it fails, and of the last one what made it so."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adalink_jax.errors import NotFinite
from adalink_jax.training import loop
from adalink_jax.training.loop import StepNotFinite
from adalink_jax.training.not_finite import Explanation
from adalink_jax.training.packs.members import Member, own_batches
from adalink_jax.training.packs.pack import Pack
from adalink_jax.training.partition import Leaves
from adalink_jax.training.session import RunSession, Start
from adalink_jax.training.step import TrainState, make_gradients

_LOWER = "lower LEARNING_RATES, or clip gradients"


class Failures:
    """The failures of a pack's members.

    A member that fails is named once, and its steps are still made: as a rule its parameters are not finite from then on, but they stay finite
    where only the norm of a clipped gradient overflowed. When all fail in one step, `not_finite.holding` keeps the state before it, and the
    search is that of a run alone.

    Args:
      pack, members: what is trained.
      session: names the newest checkpoint, and shows what is said.
      start: where the run starts; members whose parameters are not finite there are named.
      **options: `loss` and `microbatches` of `make_gradients`.
    """

    def __init__(self, pack: Pack, members: Sequence[Member], session: RunSession, start: Start, **options: Any):
        self._pack, self._members, self._session = pack, members, session
        self._explanations = [
            Explanation(
                setup.model,
                make_gradients(setup.model, seed=setup.random_seed, **options),
                session.mesh,
                session.task,
                setup.data,
                start.step,
                _LOWER,
            )
            for setup in pack.setups
        ]
        self._named = set[int]()
        for number in np.flatnonzero(~_finite(start.state.trainable)).tolist():
            self._name(number, f"parameters of step {start.step} are not finite")

    def before_step(self, positions: Mapping[str, Mapping[str, Any]]) -> None:
        """Remembers where the data is (`Batches.get_state`)."""
        for member, explanation in zip(self._members, self._explanations):
            explanation.before_step(positions[str(member.seed)])

    def note(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Names the members that have failed since the last call, while others are trained on."""
        for number, what in enumerate(loop.failures(step, metrics)):
            if what is not None:
                self._name(number, what)

    def _name(self, number: int, what: str) -> None:
        if number not in self._named:
            self._named.add(number)
            self._session.console.warning(
                f"{self._members[number].name}: its {what}. The other members are trained on."
            )

    def of(self, failed: StepNotFinite) -> NotFinite:
        """The exception to raise: the first of the members that failed last, and what `Explanation.of` says of it.

        Its parameters were finite before the step. Where no member's were, it is one that was not named before.
        """
        frozen, finite = self._pack.params.frozen, _finite(failed.state.trainable)
        number = min(range(len(self._members)), key=lambda i: (not finite[i], i in self._named))
        batch = failed.batch
        if own_batches(self._members):
            batch = {name: x[:, number] for name, x in batch.items()}
        state = TrainState(failed.state.step, self._pack.member(failed.state.trainable, number), failed.state.opt_state)
        what = f"{failed.of_members[number]} in {self._members[number].name}, and no other member is trained any more"
        alone = StepNotFinite(what, failed.step, state, batch)
        return self._explanations[number].of(alone, frozen, self._session.newest, self._session.console.warning)


@jax.jit
def _all_finite(trainable: Leaves) -> jax.Array:
    flags = [jnp.isfinite(leaf).all(axis=tuple(range(1, leaf.ndim))) for leaf in trainable.values()]
    return jnp.stack(flags).all(axis=0)


def _finite(trainable: Leaves) -> np.ndarray:
    """Which members' leaves are all finite, bool [A]."""
    return jax.device_get(_all_finite(trainable))
