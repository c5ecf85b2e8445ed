"""The settings with which a job fits and, with its evaluations, is fastest: ranked by arithmetic, and the best of them compiled.

Settings that leave the model's numbers as they are come first (mesh, REMAT, microbatches); fewer bits of the frozen weights only where none
of those fits, and larger slices last.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
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


@dataclasses.dataclass
class _Learned:
    """What compiled programs teach about all others.

    Attributes:
      evaluation: bytes that an evaluation needs beside the arguments, on all devices together; 0 if none was compiled. It depends on
        BATCH_SIZE, and little on the settings of a search.
      slower: mesh -> the least ratio of compiled to guessed seconds of a step. Of meshes without a compiled program nothing is known, so the
        best of each is compiled.
    """

    evaluation: float = 0.0
    slower: dict[tuple[int, bool], float] = dataclasses.field(default_factory=dict)


class _Ranking:
    """The choices of one topology and dtype that are left, and what compiled ones taught."""

    def __init__(self, arithmetic: Arithmetic, topology: Topology, typed: Choice, dtype: str, learned: _Learned):
        assert topology.accelerator is not None
        self.devices, self.memory = topology.devices, topology.accelerator.memory
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
        self.more: dict[tuple[int, bool], float] = {}  # mesh -> bytes that its programs needed beyond their guesses
        # Mesh -> seconds of all the job's evaluations, with their collectives; no REMAT and no microbatches change them.
        self.evaluating: dict[tuple[int, bool], float] = {}
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
        step = lambda g: g.temporaries + self.more.get(_mesh(g.choice), 0)
        fits = lambda g: g.arguments + max(step(g), evaluation) <= self.memory
        evaluating = lambda g: self.evaluating.get(_mesh(g.choice), 0.0)
        stepping = lambda g: self.steps * g.seconds * self.learned.slower.get(_mesh(g.choice), 1)
        faster = lambda g: best is None or stepping(g) + evaluating(g) < 0.98 * _job_seconds(best)
        # Times within a few percent are equal to what arithmetic knows.
        seconds = lambda g: float(f"{self.steps * g.seconds + evaluating(g):.1e}")
        order = lambda g: (seconds(g), g.choice.microbatches, g.choice.model, g.temporaries)
        ranked = sorted((g for g in self.left if fits(g) and faster(g)), key=order)
        of_meshes: dict[tuple[int, bool], Guess] = {}
        for guess in ranked:
            of_meshes.setdefault(_mesh(guess.choice), guess)
        return [*of_meshes.values()][:count]  # one of each mesh at once, since one teaches about the others

    def learn(self, choice: Choice, plan: dict[str, Any] | None) -> None:
        """Removes a compiled choice, and corrects the guesses of those like it."""
        guess = next((g for g in self.left if g.choice == choice), None)
        self.left = [g for g in self.left if g.choice != choice]
        if guess is None or plan is None:
            return
        needed = plan["hbm_bytes"] - guess.arguments - guess.temporaries
        self.more[_mesh(choice)] = max(needed, self.more.get(_mesh(choice), 0))
        if plan["estimated_step_seconds"]:
            slower = plan["estimated_step_seconds"] / guess.seconds
            self.learned.slower[_mesh(choice)] = min(slower, self.learned.slower.get(_mesh(choice), slower))
        if plan["estimated_job_hours"]:
            self.evaluating[_mesh(choice)] = _job_seconds(plan) - self.steps * plan["estimated_step_seconds"]
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


def _job_seconds(plan: dict[str, Any]) -> float:
    """Seconds of all steps and evaluations of a job that fits."""
    return plan["estimated_job_hours"] * 3600
