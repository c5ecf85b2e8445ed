"""The settings with which a job fits and, with its evaluations, is fastest: ranked by arithmetic, and the best of them compiled.

Settings that leave the model's numbers as they are come first (mesh, REMAT, microbatches); fewer bits of the frozen weights only where none
of those fits, and larger slices last.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from adalink_jax.parallel.accelerators import Topology, parse_topology
from adalink_jax.parallel.compiler_settings import sets_of
from adalink_jax.planning.arithmetic import Arithmetic, Choice, Guess
from adalink_jax.planning.plan import Job
from adalink_jax.planning.remedies import smaller
from adalink_jax.training.decoder_weights import decoder_weights

LIMIT = 8  # compilations of a search
MODEL = (1, 2, 4, 8)  # devices that share heads and MLPs
REMATS = ("none", "frozen", "full")

Settings = Mapping[str, str]  # macro or parameter -> text of the value, as typed after --gin.
# Compiles candidates, several at once; each becomes `Plan.to_json()`, or None where the job refuses its settings.
Attempt = Callable[[Sequence[tuple[Settings, str]]], Sequence[dict[str, Any] | None]]


class Tried(NamedTuple):
    """A candidate that was compiled: its settings, its topology and its plan as JSON values."""

    settings: Settings
    topology: str
    plan: dict[str, Any]


def search(
    first: dict[str, Any],
    job: Job,
    typed: Choice,
    attempt: Attempt,
    at_once: int,
    topology_of: Callable[[str], Topology] = parse_topology,
) -> Iterator[Tried]:
    """Compiles what arithmetic expects to fit, the fastest first, until nothing that is left could be faster.

    Args:
      first: the plan of the job as typed.
      job: that job.
      typed: its choice.
      attempt: compiles candidates.
      at_once: how many to compile at once.
      topology_of: the topology of a text.
    """
    left, best = LIMIT, first if first["fits"] else None
    settings, where = {}, first["topology"]
    if topology_of(where).accelerator is None:
        return
    arithmetic, learned = Arithmetic(job), _Learned()
    dtypes = [(where, dtype) for dtype in (typed.dtype, *smaller(job))]
    for topology, dtype in (*dtypes, *((topology, typed.dtype) for topology in topology_of(where).larger())):
        ranking = _Ranking(arithmetic, topology_of(topology), typed, dtype, learned)
        if (topology, dtype) == (where, typed.dtype):
            ranking.learn(typed, first)
        while left and (guesses := ranking.next(min(at_once, left), best)):
            wanted = [(ranking.settings(guess.choice), topology) for guess in guesses]
            left -= len(wanted)
            for guess, (chosen, _), plan in zip(guesses, wanted, attempt(wanted)):
                ranking.learn(guess.choice, plan)
                if plan is None:
                    continue
                yield Tried(chosen, topology, plan)
                if plan["fits"] and (best is None or _job_seconds(plan) < _job_seconds(best)):
                    best, settings = plan, chosen
        if best or not left:
            break
    if best and best["compiler"] == topology_of(best["topology"]).platform:
        others = [flag_set.name for flag_set in sets_of(best["compiler"]) if flag_set.name != best["compiler_flags"]]
        wanted = [({**settings, "COMPILER_FLAGS": repr(name)}, best["topology"]) for name in others]
        for (chosen, topology), plan in zip(wanted, attempt(wanted)):
            if plan is not None:
                yield Tried(chosen, topology, plan)


class _Seen(NamedTuple):
    """A figure of a compiled program, and what was guessed of that program."""

    guess: Guess
    topology: Topology
    value: float


@dataclasses.dataclass
class _Learned:
    """What compiled programs teach about all others.

    Attributes:
      evaluation: bytes that an evaluation needs beside the arguments, on all devices together; 0 if none was compiled. It depends on
        BATCH_SIZE, and little on the settings of a search.
      temporaries, seconds: of steps.
    """

    evaluation: float = 0.0
    temporaries: list[_Seen] = dataclasses.field(default_factory=list)
    seconds: list[_Seen] = dataclasses.field(default_factory=list)


class _Ranking:
    """The choices of one topology and dtype that are left, and what compiled ones taught."""

    def __init__(self, arithmetic: Arithmetic, topology: Topology, typed: Choice, dtype: str, learned: _Learned):
        assert topology.accelerator is not None
        self.topology, self.devices, self.memory = topology, topology.devices, topology.accelerator.memory
        self.typed, self.learned, self.steps = typed, learned, arithmetic.job.total_steps
        rows = arithmetic.job.setup.data.batch_size
        microbatches = [n for n in {typed.microbatches, *(2**i for i in range(rows.bit_length()))} if rows % n == 0]
        remats = dict.fromkeys((*REMATS, typed.remat))
        choices = (
            Choice(model, fsdp, remat, count, dtype)
            for model, fsdp, remat, count in itertools.product(
                {*MODEL, typed.model}, (False, True), remats, microbatches
            )
        )
        self.left = [guess for choice in choices if (guess := arithmetic.guess(topology, choice))]
        # Seconds of all the job's evaluations, with their collectives; no REMAT and no microbatches change them.
        self.evaluating: list[_Seen] = []
        self.sharded: set[tuple[int, bool]] = (
            set()
        )  # meshes whose evaluations fit only with DECODER_WEIGHTS = 'sharded'

    def settings(self, choice: Choice) -> dict[str, str]:
        """The settings of a choice that differ from the typed ones."""
        more = {"DECODER_WEIGHTS": "'sharded'"} if _mesh(choice) in self.sharded else {}
        return choice.settings(self.typed) | more

    def next(self, count: int, best: dict[str, Any] | None) -> list[Guess]:
        """The fastest guesses that should fit and be faster than `best`; of equal times the one with the fewest microbatches."""
        evaluation = self.learned.evaluation / self.devices
        fits = lambda g: g.arguments + max(self._temporaries(g), evaluation) <= self.memory
        faster = lambda g: best is None or self._least_seconds(g) < 0.98 * _job_seconds(best)
        # Times within a few percent are equal to what arithmetic knows.
        likely = lambda g: float(f"{self._likely_seconds(g):.1e}")
        order = lambda g: (likely(g), g.choice.microbatches, g.choice.model, g.temporaries)
        ranked = sorted((g for g in self.left if fits(g) and faster(g)), key=order)
        # The first of each REMAT that was never compiled, then the first of each mesh: one teaches about the others.
        compiled = {one.guess.choice.remat for one in self.learned.temporaries}
        remats = _firsts((g for g in ranked if g.choice.remat not in compiled), lambda g: g.choice.remat)
        meshes = _firsts(ranked, lambda g: _mesh(g.choice))
        return [*dict.fromkeys(remats + meshes)][:count]

    def _temporaries(self, guess: Guess) -> float:
        """Bytes of a guess, corrected: what all compiled programs needed beyond theirs is a constant, what is left of the most like one a factor."""
        seen = self.learned.temporaries
        like = self._most_like(seen, guess)
        if like is None:
            return guess.temporaries
        constant = max(0.0, min(one.value - one.guess.temporaries for one in seen))
        return constant + guess.temporaries * (like.value - constant) / like.guess.temporaries

    def _likely_seconds(self, guess: Guess) -> float:
        """Seconds of the job, corrected by the compiled programs that are most like a guess."""
        like = self._most_like(self.learned.seconds, guess)
        evaluating = self._most_like(self.evaluating, guess)
        ratio = like.value / like.guess.seconds if like else 1.0
        return self.steps * guess.seconds * ratio + (evaluating.value if evaluating else 0.0)

    def _least_seconds(self, guess: Guess) -> float:
        """Seconds that the job may take at best. Of a mesh or a REMAT without a compiled program nothing is known: the guess may be right."""
        of_mesh = [one for one in self.learned.seconds if _mesh(one.guess.choice) == _mesh(guess.choice)]
        of_remat = [one for one in self.learned.seconds if one.guess.choice.remat == guess.choice.remat]
        of_both = [one for one in of_mesh if one in of_remat]
        known = (of_both or of_mesh + of_remat) if of_mesh and of_remat else []
        ratio = min((one.value / one.guess.seconds for one in known), default=1.0)
        evaluating = (one.value for one in self.evaluating if _mesh(one.guess.choice) == _mesh(guess.choice))
        return self.steps * guess.seconds * ratio + min(evaluating, default=0.0)

    def _most_like(self, seen: Sequence[_Seen], guess: Guess) -> _Seen | None:
        """The program most like a guess. REMAT counts most: it decides what a step saves."""
        here, times = guess.choice, lambda one, other: abs(math.log2(one / other))
        differences = lambda one: (
            one.guess.choice.remat != here.remat,
            one.guess.choice.dtype != here.dtype,
            times(one.guess.choice.model, here.model) + (one.guess.choice.fsdp != here.fsdp),
            one.topology != self.topology,
            times(one.guess.choice.microbatches, here.microbatches),
        )
        return min(seen, key=differences, default=None)

    def learn(self, choice: Choice, plan: dict[str, Any] | None) -> None:
        """Removes a compiled choice, and corrects the guesses of those like it."""
        guess = next((g for g in self.left if g.choice == choice), None)
        self.left = [g for g in self.left if g.choice != choice]
        if guess is None or plan is None:
            return
        seen = lambda value: _Seen(guess, self.topology, value)
        if plan["compile_seconds"]:  # otherwise its arguments alone exceed the memory
            self.learned.temporaries.append(seen(plan["hbm_bytes"] - guess.arguments))
        if plan["estimated_step_seconds"]:
            self.learned.seconds.append(seen(plan["estimated_step_seconds"]))
        if plan["estimated_job_hours"]:
            self.evaluating.append(seen(_job_seconds(plan) - self.steps * plan["estimated_step_seconds"]))
        if not plan["eval_hbm_bytes"]:
            return
        gathers = choice.fsdp and decoder_weights() != "sharded" and _mesh(choice) not in self.sharded
        if not gathers:
            rest = (plan["eval_hbm_bytes"] - guess.arguments) * self.devices
            self.learned.evaluation = min(rest, self.learned.evaluation or rest)
        if plan["eval_hbm_bytes"] <= plan["hbm_limit_bytes"]:
            return
        if gathers:
            self.sharded.add(_mesh(choice))
            self.left.append(guess)
        else:  # no other REMAT and no microbatches change what an evaluation needs
            self.left = [g for g in self.left if _mesh(g.choice) != _mesh(choice)]


def _mesh(choice: Choice) -> tuple[int, bool]:
    return choice.model, choice.fsdp


def _firsts(guesses: Iterable[Guess], kind: Callable[[Guess], Any]) -> list[Guess]:
    """The first guess of each kind."""
    firsts: dict[Any, Guess] = {}
    for guess in guesses:
        firsts.setdefault(kind(guess), guess)
    return [*firsts.values()]


def _job_seconds(plan: dict[str, Any]) -> float:
    """Seconds of all steps and evaluations of a job that fits."""
    return plan["estimated_job_hours"] * 3600
