"""Draws inputs, runs them in worker processes within limits, and counts what came of them."""

import collections
import concurrent.futures
import dataclasses
import importlib
import json
import multiprocessing
import os
import pathlib
import queue
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import hypothesis

from fuzz import outcomes
from fuzz.outcomes import Outcome

KEPT_PER_CAUSE = 2  # failing inputs whose folders are kept
FIRST_SECONDS = 180  # of a sound input in a new worker, which imports and compiles
POLL_SECONDS = 0.02


@dataclasses.dataclass(frozen=True)
class Target:
    """One kind of input.

    Attributes:
      prepare: makes sound originals in a folder.
      inputs: the strategy of plans, given the folder of the originals.
      run: makes the input of a plan in the current folder, runs the command, and judges what came of it.
      sound: the plan of an input that is accepted; tried before all others.
      share: of the inputs, relative to that of other targets.
    """

    prepare: Callable[[pathlib.Path], None]
    inputs: Callable[[pathlib.Path], hypothesis.strategies.SearchStrategy[Any]]
    run: Callable[[Any, pathlib.Path], Outcome]
    sound: Any
    share: int = 1


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of one input."""

    seconds: float = 10.0
    megabytes: float = 2000.0


class Worker:
    """A process that runs inputs of any target, one after the other; a new one replaces one that dies."""

    def __init__(self, module: str, folder: pathlib.Path):
        self._module, self._folder = module, folder
        self._process = None
        self._tried: set[str] = set()

    def prepare(self, kind: str) -> None:
        """Makes the originals of a target."""
        outcome = self._ask((kind, None, None), Limits(FIRST_SECONDS, 8000))
        if outcome.is_failure:
            raise RuntimeError(f"The originals of {kind} cannot be made: {outcome.detail}\n{outcome.text}")

    def run(self, kind: str, plan: Any, place: pathlib.Path, limits: Limits, sound: Any) -> Outcome:
        """Runs one input in the new folder `place`."""
        if self._process is None or kind not in self._tried:
            self._try_sound(kind, sound)
        place.mkdir(parents=True)
        return self._ask((kind, plan, place), limits)

    def close(self) -> None:
        """Stops the process, and what it has started."""
        if self._process is not None and self._process.pid is not None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                self._process.kill()
            self._process.join()
        self._process, self._tried = None, set()

    def _try_sound(self, kind: str, sound: Any) -> None:
        place = self._folder / "sound"
        place.mkdir(parents=True)
        outcome = self._ask((kind, sound, place), Limits(FIRST_SECONDS, 8000))
        if outcome.kind != outcomes.EQUAL:
            raise RuntimeError(f"A sound input of {kind} is {outcome.kind}: {outcome.detail}\n{outcome.text}")
        shutil.rmtree(place)
        self._tried.add(kind)

    def _ask(self, question: tuple, limits: Limits) -> Outcome:
        if self._process is None:
            self._start()
        assert self._process is not None
        began = time.monotonic()
        self._pipe.send(question)
        size = resident(self._process.pid)
        while not self._pipe.poll(POLL_SECONDS):
            seconds = time.monotonic() - began
            grown = resident(self._process.pid) - size
            if not self._process.is_alive() and not self._pipe.poll():
                return self._replaced(outcomes.CRASHED, f"exit status {self._process.exitcode}", seconds)
            if seconds > limits.seconds:
                return self._replaced(outcomes.SLOW, f"more than {limits.seconds:g} s", seconds)
            if grown > limits.megabytes:
                return self._replaced(outcomes.LARGE, f"more than {limits.megabytes:g} MB", seconds, grown)
        try:
            outcome = self._pipe.recv()
        except EOFError:
            self._process.join()
            return self._replaced(outcomes.CRASHED, f"exit status {self._process.exitcode}", time.monotonic() - began)
        if outcome.megabytes > limits.megabytes:
            return dataclasses.replace(outcome, kind=outcomes.LARGE, detail=f"more than {limits.megabytes:g} MB")
        return outcome

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._folder.mkdir(parents=True, exist_ok=True)
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(self._module, theirs, self._folder.parent / "originals", self._folder), daemon=True
        )
        self._process.start()
        theirs.close()

    def _replaced(self, kind: str, detail: str, seconds: float, megabytes: float = 0.0) -> Outcome:
        self.close()
        log = self._folder / "output.txt"
        return Outcome(kind, detail, log.read_text(errors="replace")[-3000:], seconds, megabytes)


def resident(pid: int | None) -> float:
    """The memory of a process that is in use, in megabytes; 0 of one that has ended."""
    try:
        return (
            int(pathlib.Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1])
            * resource.getpagesize()
            / 1e6
        )
    except (OSError, IndexError):
        return 0.0


def _serve(module: str, pipe, originals: pathlib.Path, folder: pathlib.Path) -> None:
    """The worker: answers `(kind, plan, place)` with an outcome, and `(kind, None, None)` by making the originals."""
    os.setsid()
    log = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    home = folder / "home"
    home.mkdir(exist_ok=True)
    os.environ |= {"HOME": str(home), "HF_HUB_OFFLINE": "1", "COLUMNS": "200", "JAX_PLATFORMS": "cpu"}
    targets: Mapping[str, Target] = importlib.import_module(module).TARGETS
    while True:
        try:
            kind, plan, place = pipe.recv()
        except EOFError:
            return
        pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
        before, began = resident(os.getpid()), time.monotonic()
        where = originals / kind
        try:
            if place is None:
                where.mkdir(parents=True)
                os.chdir(where)
                targets[kind].prepare(where)
                outcome = Outcome(outcomes.EQUAL)
            else:
                os.chdir(place)
                outcome = targets[kind].run(plan, where)
        except BaseException as e:  # noqa: BLE001  whatever comes of it is counted
            outcome = outcomes.of_exception(e)
        os.chdir(folder)
        grown = _peak() - before
        pipe.send(dataclasses.replace(outcome, seconds=time.monotonic() - began, megabytes=grown))


def _peak() -> float:
    text = pathlib.Path("/proc/self/status").read_text(encoding="utf-8")
    return int(text.partition("VmHWM:")[2].split()[0]) / 1000


@dataclasses.dataclass
class Tally:
    """Counts of outcomes.

    Attributes:
      counts: `(kind of input, kind of outcome)` -> number.
      causes: `(kind of input, kind of outcome, detail)` -> number, of failures.
      kept: a folder of each cause.
      slowest, largest: kind of input -> seconds and megabytes.
    """

    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    causes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    kept: dict[tuple[str, str, str], pathlib.Path] = dataclasses.field(default_factory=dict)
    slowest: dict[str, float] = dataclasses.field(default_factory=dict)
    largest: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(self, kind: str, outcome: Outcome) -> None:
        """Counts one outcome."""
        self.counts[kind, outcome.kind] += 1
        self.slowest[kind] = max(self.slowest.get(kind, 0.0), outcome.seconds)
        self.largest[kind] = max(self.largest.get(kind, 0.0), outcome.megabytes)
        if outcome.is_failure:
            self.causes[kind, outcome.kind, outcome.detail] += 1

    def of(self, *kinds: str) -> int:
        """The number of outcomes of these kinds, of all inputs."""
        return sum(count for (_, outcome), count in self.counts.items() if outcome in kinds)


def fuzz(
    module: str,
    counts: Mapping[str, int],
    seed: int,
    out: pathlib.Path,
    *,
    workers: int = 1,
    limits: Limits = Limits(),  # noqa: B008  frozen
    on_outcome: Callable[[str, int, Outcome], None] = lambda kind, number, outcome: None,
    only: int | None = None,
) -> Tally:
    """Runs inputs of several targets.

    Args:
      module: the module whose `TARGETS` maps kinds of input to targets.
      counts: kind of input -> number of inputs.
      seed: of all inputs.
      out: a new folder, for the originals, the inputs and what is kept of them.
      workers: processes that run inputs.
      limits: of each input.
      on_outcome: called with the kind of input, its number, and its outcome.
      only: the number of the one input to run; the others are only drawn.
    """
    targets: Mapping[str, Target] = importlib.import_module(module).TARGETS
    tally, lock = Tally(), threading.Lock()
    idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    crew = [Worker(module, out / f"worker_{i}") for i in range(workers)]

    def try_one(kind: str, number: int, plan: Any) -> None:
        worker, place = idle.get(), out / "inputs" / f"{kind}_{number}"
        try:
            outcome = worker.run(kind, plan, place, limits, targets[kind].sound)
        finally:
            idle.put(worker)
        with lock:
            tally.add(kind, outcome)
            cause = (kind, outcome.kind, outcome.detail)
            if outcome.is_failure and (only is not None or tally.causes[cause] <= KEPT_PER_CAUSE):
                tally.kept.setdefault(cause, keep(place, out / "failures", kind, number, seed, plan, outcome))
        shutil.rmtree(place, ignore_errors=True)
        on_outcome(kind, number, outcome)

    try:
        for kind in counts:
            crew[0].prepare(kind)
        for worker in crew:
            idle.put(worker)
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            tasks: list[concurrent.futures.Future] = []
            for kind, count in counts.items():
                numbered = enumerate(draw(targets[kind].inputs(out / "originals" / kind), count, seed))
                tasks += [pool.submit(try_one, kind, i, plan) for i, plan in numbered if only in (None, i)]
            try:
                for task in concurrent.futures.as_completed(tasks):
                    task.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        for worker in crew:
            worker.close()
    return tally


def draw(strategy: hypothesis.strategies.SearchStrategy[Any], count: int, seed: int) -> list[Any]:
    """Values of a strategy: the same for the same seed; fewer than `count` if there are no more."""
    values: list[Any] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count, database=None, deadline=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(strategy)
    def collect(value: Any) -> None:
        values.append(value)

    collect()
    return values[:count]


def keep(
    place: pathlib.Path, failures: pathlib.Path, kind: str, number: int, seed: int, plan: Any, outcome: Outcome
) -> pathlib.Path:
    """Keeps a failing input: its folder, what it was made of, and what came of it."""
    folder = failures / f"{kind.replace(' ', '_')}_{seed}_{number}"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "input", ignore_errors=True)
    if place.exists():
        os.replace(place, folder / "input")
    about = {
        "again": f"make fuzz FUZZ_ARGS='--kinds \"{kind}\" --seed {seed} --only {number}' (the same --inputs)",
        "kind": kind, "seed": seed, "number": number, "outcome": outcome.kind, "detail": outcome.detail,
        "plan": repr(plan)[:20_000],
    }  # fmt: skip
    (folder / "about.json").write_text(json.dumps(about, indent=2) + "\n")
    (folder / "output.txt").write_text(outcome.text, errors="backslashreplace")
    return folder
