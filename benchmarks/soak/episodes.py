"""An episode: one job, killed several times, restarted each time, until it ends; then its result is compared.

Everything is drawn from the seed, the job and the episode's number, so that an episode can be repeated.
"""

import collections
import contextlib
import dataclasses
import pathlib
import random
import shutil
import signal
import time

from benchmarks.soak.jobs import Contents, Job, leftovers
from benchmarks.soak.process import PATIENCE, Command, held

MOST_KILLS = 4
SIGNALS = (signal.SIGKILL,) * 7 + (signal.SIGTERM,) * 2 + (signal.SIGINT,)
# A signal that comes before the command listens ends Python's start.
STATUSES = {signal.SIGTERM: (75, -signal.SIGTERM), signal.SIGINT: (130, -signal.SIGINT)}
DELAYS = (0.0, 0.0, 0.0, 0.002, 0.02)  # seconds from a change of the folder to the freezing
SIGNS = ("Traceback (most recent call last)", "cannot be used", "is damaged")  # of something wrong, in a log
TAKEN = 4
WAITS = "this one waits for it"


@dataclasses.dataclass(frozen=True)
class Reference:
    """An undisturbed run of a job.

    Attributes:
      seconds: how long it took.
      changes: of its folder, the most that one process made.
      contents: its result.
    """

    seconds: float
    changes: int
    contents: Contents


@dataclasses.dataclass
class Episode:
    """What happened, JSON-able.

    Attributes:
      command, job, number: what was killed.
      kills: one per kill: signal, moment (the change of the folder, or seconds), `inside` a save, `found` (what the restart could
        resume from), `second` (the exit status of a second process meanwhile).
      restart_seconds: of the start that ended the job.
      leftovers: hidden files of killed processes that remain at the end.
      wrong: sentences; none if everything was as it should be.
    """

    command: str
    job: str
    number: int
    kills: list[dict] = dataclasses.field(default_factory=list)
    restart_seconds: float = 0.0
    leftovers: list[str] = dataclasses.field(default_factory=list)
    wrong: list[str] = dataclasses.field(default_factory=list)


class Killer:
    """Kills one job, again and again.

    Args:
      job: the job.
      reference: its undisturbed run.
      folder: for the episodes' folders.
      inputs: the folder of the inputs.
      seed: of the moments.
    """

    def __init__(self, job: Job, reference: Reference, folder: pathlib.Path, inputs: pathlib.Path, seed: int):
        self._job, self._reference, self._folder, self._seed = job, reference, folder, seed
        self._arguments = arguments_of(job, inputs)

    def episode(self, number: int, most: int) -> Episode:
        """Makes one episode, of at most `most` kills. Its folder is removed if nothing was wrong."""
        chance = random.Random(f"{self._seed} {self._job.name} {number}")
        place = self._folder / f"{self._job.slug}_{number}"
        episode = Episode(self._job.command, self._job.name, number)
        shutil.rmtree(place, ignore_errors=True)
        make_folders(self._job, place)
        (log := place.parent / f"{place.name}.log").unlink(missing_ok=True)
        for _ in range(min(most, chance.randint(1, MOST_KILLS))):
            if self._ended(place) or not self._kill(chance, place, episode) or episode.wrong:
                break
        if not episode.wrong:
            self._finish(place, episode)
        text = log.read_text(encoding="utf-8")
        episode.wrong += [f"the log has {sign!r}" for sign in SIGNS if sign in text]
        if not episode.wrong:
            shutil.rmtree(place)
            for path in (log, log.with_suffix(".mark")):
                path.unlink(missing_ok=True)
        return episode

    def _kill(self, chance: random.Random, place: pathlib.Path, episode: Episode) -> bool:
        """Starts the command and kills it; returns whether it did not end first."""
        number, inside = chance.choice(SIGNALS), chance.random() < 0.6
        at = chance.randint(1, self._reference.changes) if inside else None
        delay, seconds = chance.choice(DELAYS), chance.uniform(0.2, 1.0) * self._reference.seconds
        children = chance.random() < 0.7
        before = self._job.progress(place)
        command = Command(self._arguments, place, at, delay)
        if inside:
            status = command.wait(lambda: command.frozen() is not None)
        else:
            status = command.wait(seconds=seconds)
        if status is not None:
            if status or not self._ended(place):
                episode.wrong.append(f"a start that was not killed ended with status {status}")
            return False
        moment = command.change() if inside else f"after {time.monotonic() - command.began:.1f} s"
        kill = {"signal": number.name, "moment": moment, "inside": inside}
        waiting = None
        if inside and all("second" not in earlier for earlier in episode.kills):
            if self._job.refuses:
                kill |= self._second(place, command, episode)
            else:
                waiting = self._waiting(place, episode)
        if number == signal.SIGKILL:
            command.kill(children)
        else:
            status = kill["status"] = command.stop(number)
            if status not in (*STATUSES[number], 0):
                episode.wrong.append(f"{number.name} ({moment}): it ended with status {status}")
        if waiting is not None:
            if status := waiting.wait(seconds=PATIENCE):
                episode.wrong.append(f"{moment}: the second process, which waited, ended with status {status}")
            waiting.log.unlink()
        episode.kills.append(kill)
        kill["found"] = self._job.progress(place)
        if kill["found"] < before:
            episode.wrong.append(f"{number.name} ({moment}): work was lost, {before} before, {kill['found']} after")
        return True

    def _second(self, place: pathlib.Path, command: Command, episode: Episode) -> dict:
        """Starts the same command a second time, which must be refused and change nothing, if the first one holds a lock."""
        frozen = command.frozen()
        if not self._job.refuses or frozen is None or not held(place):
            return {}
        line = frozen.cmdline()
        arguments = line[line.index("adalink_jax") + 1 :]
        if "--follow" in arguments:
            at = arguments.index("--follow")
            del arguments[at : at + 2]
        elif "--run" in arguments:
            return {}  # two sweeps share the runs
        files = lambda: {str(path): path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}
        before = files()
        second = Command(arguments, place, name=f"{place.name}_second")
        status = second.wait(seconds=120)
        if status is None:
            second.kill(children=True)
        said = second.log.read_text(encoding="utf-8").strip().splitlines()[-1:]
        second.log.unlink()
        if status != TAKEN or not said or "Another process" not in said[0]:
            episode.wrong.append(f"{command.change()}: a second process ended with status {status}: {' '.join(said)}")
        changed = [name for name, when in files().items() if before.get(name) != when]
        if changed:
            episode.wrong.append(f"{command.change()}: a second process changed {', '.join(changed[:3])}")
        return {"second": status}

    def _waiting(self, place: pathlib.Path, episode: Episode) -> Command | None:
        """Starts the same command a second time, and returns it once it waits for the first one, if that holds a lock."""
        if not held(place):
            return None
        second = Command(self._arguments, place, name=f"{place.name}_second")
        status = second.wait(lambda: WAITS in second.log.read_text(encoding="utf-8"), seconds=120)
        if status is not None:
            episode.wrong.append(f"a second process did not wait; it ended with status {status}")
        return second

    def _finish(self, place: pathlib.Path, episode: Episode) -> None:
        """Lets the command end, unless it has, and compares its result."""
        if not self._ended(place):
            began = time.monotonic()
            status = Command(self._arguments, place).wait()
            episode.restart_seconds = round(time.monotonic() - began, 1)
            if status:
                episode.wrong.append(f"the restart ended with status {status}")
                return
        contents, expected = self._job.contents(place), self._reference.contents
        for name in sorted(contents.keys() | expected.keys()):
            if name not in contents or name not in expected:
                episode.wrong.append(f"{name} is {'missing' if name not in contents else 'left over'}")
            elif contents[name] != expected[name]:
                episode.wrong.append(f"{name} differs from an undisturbed run's")
        episode.leftovers = leftovers(place)

    def _ended(self, place: pathlib.Path) -> bool:
        """Whether everything that the command makes is there."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            return self._job.contents(place).keys() == self._reference.contents.keys() and not held(place)
        return False


def make_folders(job: Job, place: pathlib.Path) -> None:
    """The folders that exist before the job starts."""
    for folder in job.folders:
        (place / folder).mkdir(parents=True)


def arguments_of(job: Job, inputs: pathlib.Path) -> list[str]:
    """The command line of a job."""
    return [argument.replace("{inputs}", str(inputs)) for argument in job.arguments]


def undisturbed(job: Job, folder: pathlib.Path, inputs: pathlib.Path) -> Reference:
    """Makes the undisturbed run of a job, if its folder is not complete.

    Raises:
      SystemExit: if it fails.
    """
    place = folder / job.slug
    record, took = folder / f"{job.slug}.changes", folder / f"{job.slug}.seconds"
    if not took.exists():
        shutil.rmtree(place, ignore_errors=True)
        make_folders(job, place)
        command = Command(arguments_of(job, inputs), place, record=record)
        if status := command.wait():
            raise SystemExit(
                f"{job.name} ended with status {status}:\n{command.log.read_text(encoding='utf-8')[-3000:]}"
            )
        took.write_text(f"{time.monotonic() - command.began:.1f}\n", encoding="utf-8")
    of_process = collections.Counter(line.split("\t")[0] for line in record.read_text(encoding="utf-8").splitlines())
    return Reference(float(took.read_text(encoding="utf-8")), max(of_process.values()), job.contents(place))
