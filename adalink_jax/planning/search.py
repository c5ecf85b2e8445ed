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
    arithmetic: Arithmetic,
    typed: Choice,
    attempt: Attempt,
    at_once: int,
    topology_of: Callable[[str], Topology] = parse_topology,
) -> Iterator[Tried]:
    """Compiles what should fit until nothing that is left could be faster, or LIMIT programs were compiled.

    Args:
      first: the plan of the job as typed.
      arithmetic: guesses of that job.
      typed: its choice.
      attempt: compiles candidates.
      at_once: how many to compile at once.
      topology_of: the topology of a text.
    """
    left, best = LIMIT, first if first["fits"] else None
    settings, where = {}, first["topology"]
    if topology_of(where).accelerator is None:
        return
    learned = _Learned()
    dtypes = [(where, dtype) for dtype in (typed.dtype, *smaller(arithmetic.job))]
    for topology, dtype in (*dtypes, *((topology, typed.dtype) for topology in topology_of(where).larger())):
        ranking = _Ranking(arithmetic, topology_of(topology), typed, dtype, learned)
        if (topology, dtype) == (where, typed.dtype):
            ranking.learn(typed, first)
        while left and (guesses := ranking.next(min(at_once, left), best)):
            wanted = [(ranking.settings(guess.choice), topology) for guess in guesses]
            left -= len(wanted)
            for guess, (chosen, _), plan in zip(guesses, wanted, attempt(wanted)):
                ranking.learn(guess.choice, plan, "DECODER_WEIGHTS" in chosen)
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


class _Measurement(NamedTuple):
    """A figure of a compiled program, and the guess for that program."""

    guess: Guess
    topology: Topology
    value: float


@dataclasses.dataclass
class _Learned:
    """What compiled programs teach about all others.

    Attributes:
      evaluation: bytes that an evaluation needs beside the arguments, on all devices together; 0 if none was compiled. It depends on
        BATCH_SIZE, and little on the settings of a search.
      remats: every REMAT that was tried.
      temporaries: bytes of each compiled step.
      seconds: of each compiled step whose time is known.
    """

    evaluation: float = 0.0
    remats: set[str] = dataclasses.field(default_factory=set)
    temporaries: list[_Measurement] = dataclasses.field(default_factory=list)
    seconds: list[_Measurement] = dataclasses.field(default_factory=list)


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
        # Mesh -> seconds of all the job's evaluations, with their collectives; no REMAT and no microbatches change them.
        self.evaluating: dict[tuple[int, bool], float] = {}
        # Meshes whose evaluations fit only with DECODER_WEIGHTS = 'sharded'.
        self.sharded: set[tuple[int, bool]] = set()

    def settings(self, choice: Choice) -> dict[str, str]:
        """The settings of a choice that differ from the typed ones."""
        more = {"DECODER_WEIGHTS": "'sharded'"} if _mesh(choice) in self.sharded else {}
        return choice.settings(self.typed) | more

    def next(self, count: int, best: dict[str, Any] | None) -> list[Guess]:
        """The guesses to compile next: the best of each REMAT that was never tried; once all were, the best of each mesh.

        All should fit, and may be faster than `best`. The best has the fewest seconds; of equal ones, the fewest microbatches.
        """
        evaluation = self.learned.evaluation / self.devices
        fits = lambda g: g.arguments + max(self._temporaries(g), evaluation) <= self.memory
        faster = lambda g: best is None or self._least_seconds(g) < 0.98 * _job_seconds(best)
        # Times within a few percent are equal to what arithmetic knows.
        likely = lambda g: float(f"{self._likely_seconds(g):.1e}")
        order = lambda g: (likely(g), g.choice.microbatches, g.choice.model, g.temporaries)
        ranked = sorted((g for g in self.left if fits(g) and faster(g)), key=order)
        new = [g for g in ranked if g.choice.remat not in self.learned.remats]
        return (_firsts(new, lambda g: g.choice.remat) or _firsts(ranked, lambda g: _mesh(g.choice)))[:count]

    def _temporaries(self, guess: Guess) -> float:
        """Bytes of a guess, corrected: a constant that all compiled programs needed, and a factor from the most similar one."""
        measured = self.learned.temporaries
        nearest = self._most_similar(measured, guess)
        if nearest is None:
            return guess.temporaries
        constant = min(self._constant(), nearest.value)
        return constant + guess.temporaries * (nearest.value - constant) / nearest.guess.temporaries

    def _constant(self) -> float:
        """Bytes of temporaries that more microbatches do not save, by programs that differ in MICROBATCHES alone; 0 without such."""
        alike = lambda one: (one.topology, dataclasses.replace(one.guess.choice, microbatches=1))
        constants = []
        for a, b in itertools.combinations(self.learned.temporaries, 2):
            apart = a.guess.temporaries - b.guess.temporaries
            if alike(a) == alike(b) and apart:
                constants.append(a.value - a.guess.temporaries * (a.value - b.value) / apart)
        return max(0.0, min(constants, default=0.0))

    def _likely_seconds(self, guess: Guess) -> float:
        """Seconds of the job, corrected by the most similar program; evaluations of an unknown mesh as the least known."""
        nearest = self._most_similar(self.learned.seconds, guess)
        ratio = nearest.value / nearest.guess.seconds if nearest else 1.0
        least = min(self.evaluating.values(), default=0.0)
        return self.steps * guess.seconds * ratio + self.evaluating.get(_mesh(guess.choice), least)

    def _least_seconds(self, guess: Guess) -> float:
        """Seconds of the job if all goes well: of a mesh or a REMAT without a compiled program, the guess may be right."""
        measured = self.learned.seconds
        of_mesh = [one for one in measured if _mesh(one.guess.choice) == _mesh(guess.choice)]
        of_remat = [one for one in measured if one.guess.choice.remat == guess.choice.remat]
        of_both = [one for one in of_mesh if one.guess.choice.remat == guess.choice.remat]
        ratio_of = lambda one: one.value / one.guess.seconds
        if of_mesh and of_remat:
            ratio = min(map(ratio_of, of_both or of_mesh + of_remat))
        else:
            ratio = min((1.0, *map(ratio_of, measured)))
        return self.steps * guess.seconds * ratio + self.evaluating.get(_mesh(guess.choice), 0.0)

    def _most_similar(self, measured: Sequence[_Measurement], guess: Guess) -> _Measurement | None:
        """The program most similar to a guess. REMAT counts most: it decides what a step saves."""
        wanted = guess.choice
        octaves = lambda a, b: abs(math.log2(a / b))
        differences = lambda one: (
            one.guess.choice.remat != wanted.remat,
            one.guess.choice.dtype != wanted.dtype,
            octaves(one.guess.choice.model, wanted.model) + (one.guess.choice.fsdp != wanted.fsdp),
            one.topology != self.topology,
            octaves(one.guess.choice.microbatches, wanted.microbatches),
        )
        return min(measured, key=differences, default=None)

    def learn(self, choice: Choice, plan: dict[str, Any] | None, sharded: bool = False) -> None:
        """Removes a compiled choice, and corrects the guesses of those like it; `sharded` if it was compiled with sharded DECODER_WEIGHTS."""
        guess = next((g for g in self.left if g.choice == choice), None)
        self.left = [g for g in self.left if g.choice != choice]
        self.learned.remats.add(choice.remat)
        if plan is None:  # refused, and so would others of this mesh and REMAT be
            alike = lambda g: (_mesh(g.choice), g.choice.remat) == (_mesh(choice), choice.remat)
            self.left = [g for g in self.left if not alike(g)]
        if guess is None or plan is None:
            return
        measured = lambda value: _Measurement(guess, self.topology, value)
        # A program that was not compiled counts its arguments alone, one that was refused may count another memory.
        if plan["compile_seconds"] and plan["hbm_bytes"] > guess.arguments:
            self.learned.temporaries.append(measured(plan["hbm_bytes"] - guess.arguments))
        if plan["estimated_step_seconds"]:
            self.learned.seconds.append(measured(plan["estimated_step_seconds"]))
        if plan["estimated_job_hours"]:
            self.evaluating[_mesh(choice)] = _job_seconds(plan) - self.steps * plan["estimated_step_seconds"]
        if not plan["eval_hbm_bytes"]:
            return
        gathers = choice.fsdp and decoder_weights() != "sharded" and not sharded
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
