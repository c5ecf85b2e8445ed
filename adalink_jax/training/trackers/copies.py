"""Keeps the trackers equal to `metrics.jsonl`: each has every step once, whatever was killed, and none can stop the run."""

import importlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from etils import epath

from adalink_jax.errors import UserError
from adalink_jax.files import metric_log
from adalink_jax.files.typed_json import Form, read_state
from adalink_jax.files.whole_file import write_json
from adalink_jax.training.trackers.tracker import Opened, Row, RunFacts, Tracker

FILE = "trackers.json"  # in MODEL_DIR: tracker -> its name of the run


class _Runs(Form):
    __pydantic_extra__: dict[str, str]  # pyright: ignore[reportIncompatibleVariableOverride]  # pydantic's way


class Copies:
    """The trackers of one run, in process 0.

    A step is given to them once it is complete, in one piece; the steps of `metrics.jsonl` that a tracker lacks, because it was
    killed or down, are given to it when the run is resumed.

    Args:
      names: of the trackers.
      run: the run's facts.
      rows: the rows of `metrics.jsonl`, from which the run resumes, with the pictures of their steps.
      resumed_at: the step of the checkpoint that this process resumes from; None where nothing is resumed.
      note, warn: print a sentence.
    """

    def __init__(
        self,
        names: Sequence[str],
        run: RunFacts,
        rows: Iterable[Row],
        resumed_at: int | None,
        note: Callable[[str], None],
        warn: Callable[[str], None],
    ):
        self._run, self._note, self._warn = run, note, warn
        self._trackers: dict[str, Tracker] = {}
        self._first_steps: dict[str, int] = {}
        self._step: Row | None = None  # not complete yet
        state = run.folder / FILE
        runs: dict[str, Any] = read_state(state, _Runs) or {}
        for name in dict.fromkeys(names):
            if opened := self._open(name, runs.get(name), resumed_at):
                runs[name] = opened.run
        if named := {name: of_library for name, of_library in runs.items() if of_library}:
            write_json(state, named)
        for row in sorted(rows, key=lambda row: row.step):
            self.reached(row.step)
            self.add(row)

    def _open(self, name: str, known: str | None, resumed_at: int | None) -> Opened | None:
        def open_tracker() -> Opened:
            module = importlib.import_module(f"{__package__}.{name}_tracker")
            tracker: Tracker = module.Tracker()
            opened = tracker.open(self._run, known, resumed_at)
            self._trackers[name], self._first_steps[name] = tracker, opened.first_step
            if opened.place:
                self._note(f"{name} follows this run: {opened.place}")
            return opened

        return self._guarded(name, open_tracker)

    def _guarded(self, name: str, act: Callable[[], Opened | None]) -> Opened | None:
        """Does something with a tracker; if that fails, reports it, and does nothing with it any more."""
        try:
            return act()
        except UserError:  # of the run's own files
            raise
        except Exception as e:  # of any type: libraries raise their own
            reason = str(e).strip().split("\n")[0][:200].rstrip(".") or type(e).__name__
            self._warn(
                f"The tracker {name} failed ({reason}); the run continues without it. {metric_log.shown(self._run.folder)} has all "
                f"metrics, and gives {name} what it lacks if the run is resumed."
            )
            self._trackers.pop(name, None)
            return None

    def add(self, row: Row) -> None:
        """Adds values and pictures to a step."""
        if self._step is not None and row.step < self._step.step:  # such as step 0, where the first rows were lost
            self._write(row)
            return
        self.reached(row.step)
        self._step = self._step or Row(row.step)
        self._step.values |= row.values
        self._step.pictures |= row.pictures

    def reached(self, step: int) -> None:
        """Says that all earlier steps are complete."""
        if self._step is not None and self._step.step < step:
            self._write(self._step)
            self._step = None

    def close(self, finished: bool, adapter: epath.Path | None = None) -> None:
        """Ends the run at all trackers; of an unfinished one the last step may lack values, and is given when it is resumed."""
        if finished and self._step is not None:
            self._write(self._step)
        self._step = None
        for name, tracker in list(self._trackers.items()):
            self._guarded(name, lambda tracker=tracker: tracker.close(finished, adapter))
        self._trackers.clear()

    def _write(self, row: Row) -> None:
        for name, tracker in list(self._trackers.items()):
            if row.step >= self._first_steps[name]:
                self._guarded(name, lambda tracker=tracker: tracker.write(row))
