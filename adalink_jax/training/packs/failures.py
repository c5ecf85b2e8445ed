"""Members of a pack whose loss or gradient is not finite: each is named when it fails, and of the last one what made it so."""

from collections.abc import Mapping, Sequence
from typing import Any

from adalink_jax.errors import NotFinite
from adalink_jax.training import loop
from adalink_jax.training.loop import StepNotFinite
from adalink_jax.training.not_finite import Explanation
from adalink_jax.training.packs.members import Member, own_batches
from adalink_jax.training.packs.pack import Pack
from adalink_jax.training.session import RunSession
from adalink_jax.training.step import TrainState, make_gradients


class Failures:
    """The failures of a pack's members.

    A member that fails is not trained any more: its parameters are not finite after that step. When the last ones fail, `not_finite.holding`
    keeps their state, and the search is that of a run alone.

    Args:
      pack, members: what is trained.
      session: names the newest checkpoint, and shows what is said.
      step: the step that the run starts from.
      **options: `loss` and `microbatches` of `make_gradients`.
    """

    def __init__(self, pack: Pack, members: Sequence[Member], session: RunSession, step: int, **options: Any):
        self._pack, self._members, self._session = pack, members, session
        self._failed: set[int] = set()
        self._explanations = [
            Explanation(
                setup.model,
                make_gradients(setup.model, seed=setup.random_seed, **options),
                session.mesh,
                session.task,
                setup.data,
                step,
            )
            for setup in pack.setups
        ]

    def before_step(self, positions: Mapping[str, Mapping[str, Any]]) -> None:
        """Remembers where the data is (`Batches.get_state`)."""
        for member, explanation in zip(self._members, self._explanations):
            explanation.before_step(positions[str(member.seed)])

    def note(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Names the members that have failed since the last call, while others are trained on."""
        for number, what in enumerate(loop.failures(step, metrics)):
            if what is not None and number not in self._failed:
                self._failed.add(number)
                self._session.console.warning(f"{self._members[number].name} is not trained any more: its {what}.")

    def of(self, failed: StepNotFinite) -> NotFinite:
        """The exception to raise: the first of the members that failed last, and what `Explanation.of` says of it."""
        frozen = self._pack.params.frozen
        number = next(i for i in range(len(self._members)) if i not in self._failed)
        batch = failed.batch
        if own_batches(self._members):
            batch = {name: x[:, number] for name, x in batch.items()}
        state = TrainState(failed.state.step, self._pack.member(failed.state.trainable, number), failed.state.opt_state)
        what = f"{failed.of_members[number]} in {self._members[number].name}, and no other member is trained any more"
        alone = StepNotFinite(what, failed.step, state, batch)
        return self._explanations[number].of(alone, frozen, self._session.newest, self._session.console.warning)
