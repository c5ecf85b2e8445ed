"""The folder of one run of a sweep: which settings it belongs to, who trains it, and how its attempts ended.

Beside what `adalink train` writes, it holds

    sweep.json       the settings that the run's name stands for, from its first start on
    attempts.jsonl   one line when a process starts the run, and one when the process ends with an exit status
    lock             locked by the process that trains (see `files.locks`)
    log.txt          the process's output, if `adalink sweep --run` started it
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping

from etils import epath

from adalink_jax import configuration
from adalink_jax.errors import Preempted, Stopped, Taken, UserError
from adalink_jax.files import locks
from adalink_jax.files.json_lines import append_json, read_json_lines
from adalink_jax.files.metric_log import read_metrics
from adalink_jax.files.places import path_of
from adalink_jax.files.run_files import Attempt, Record, Summary
from adalink_jax.files.typed_json import read_state
from adalink_jax.files.whole_file import write_json

SUMMARY = "summary.json"  # as in `training.outputs`, which would import JAX into every process that only watches
RECORD, ATTEMPTS, LOG = "sweep.json", "attempts.jsonl", "log.txt"
DONE, RUNNING, STOPPED, FAILED, NEW = "done", "running", "stopped", "failed", "new"


# Exit statuses of a run that was stopped, or that another process trains.
RESUMABLE = (Preempted.status, Stopped.status, Taken.status)


class RunFolder:
    """The folder of one run.

    Args:
      path: `MODEL_DIR/<name of the run>`.
      bindings: those of this run alone, name -> literal.
      settings: gin name -> literal, of everything that must stay the same when the run is resumed.
      total_steps: the number of steps at which it is finished.
    """

    local_settings: tuple[str, ...] = ()  # ends of names of settings that may differ, such as places on another machine

    def __init__(self, path: str, bindings: Mapping[str, str], settings: Mapping[str, str], total_steps: int):
        self.path = path_of(path)
        self.bindings, self.settings, self.total_steps = dict(bindings), dict(settings), total_steps

    @property
    def settings_in_0_1_0(self) -> dict[str, str]:
        """The settings as version 0.1.0 recorded them."""
        return configuration.as_in_0_1_0(self.settings)

    def check(self) -> None:
        """Refuses a folder whose run was started with other settings.

        Raises:
          UserError: names one of them.
        """
        record = read_state(self.path / RECORD, Record)
        recorded = self.settings if record is None else record["settings"]
        settings = self.settings if len(configuration.as_in_0_1_0(recorded)) < len(recorded) else self.settings_in_0_1_0
        for name in sorted(recorded.keys() | settings.keys()):
            default = configuration.default_of(name) or "not set"  # another version has settings of its own
            old, new = recorded.get(name, default), settings.get(name, default)
            if old != new and not name.lower().endswith(self.local_settings):
                raise UserError(
                    f"{self.path} was made with {name} = {old}, and the sweep now says {new}; restore the setting, choose "
                    f"another MODEL_DIR, or delete that folder."
                )

    def summary(self) -> dict | None:
        """The contents of `summary.json`; None until the run is finished."""
        return read_state(self.path / SUMMARY, Summary)

    def finished(self) -> bool:
        """Whether all steps are done and scored."""
        summary = self.summary()
        return summary is not None and (summary.get("total_steps") or summary.get("steps") or 0) >= self.total_steps

    def taken(self) -> bool:
        """Whether some process trains it now."""
        return locks.is_held(self.path / locks.LOCK)

    def state(self) -> str:
        """One of DONE, RUNNING, STOPPED, FAILED, NEW."""
        return DONE if self.finished() else state_of(self.path)

    def step(self) -> int:
        """The last step with metrics."""
        return last_step(self.path)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Locks the run inside the context.

        Raises:
          Taken: if another process has it.
          UserError: see `check`.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with locks.hold_folder(self.path):
            self.check()
            yield

    def begin(self) -> None:
        """Records that this process, which holds the run, starts it."""
        if read_state(self.path / RECORD, Record) is None:
            write_json(self.path / RECORD, {"bindings": self.bindings, "settings": self.settings})
        self._record(what="start", host=socket.gethostname(), pid=os.getpid())

    def end(self, status: int) -> None:
        """Records the run's exit status."""
        self._record(what="end", status=status)

    def make(self, command: Callable[[], int], title: str, cache_dir: str) -> int:
        """Makes or resumes the run in this process, which holds the folder meanwhile.

        Args:
          command: does the work; returns an exit status.
          title: printed when the run starts.
          cache_dir: holds the compilation cache of all runs, which compile much the same programs.

        Returns:
          The exit status; 0 if the run is finished already.

        Raises:
          Taken, UserError: see `held`.
        """
        import jax

        with self.held():
            if self.finished():
                print(f"The run in {self.path} is already finished.")
                return 0
            self.begin()
            print(title, flush=True)
            if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]  set at run time
                jax.config.update("jax_compilation_cache_dir", f"{cache_dir}/.compilation_cache")
            try:
                status = command()
            except BaseException:
                self.end(1)
                raise
            self.end(status)
            return status

    def _record(self, **facts: str | int) -> None:
        append_json(self.path / ATTEMPTS, {"time": round(time.time(), 1), **facts})


def state_of(path: epath.Path) -> str:
    """The state of an unfinished run."""
    if locks.is_held(path / locks.LOCK):
        return RUNNING
    attempts = read_json_lines(path / ATTEMPTS, Attempt)
    if attempts and attempts[-1].get("status", 0) not in (0, *RESUMABLE):
        return FAILED
    return STOPPED if attempts else NEW


def last_step(path: epath.Path) -> int:
    """The last step in `metrics.jsonl`, of a pack's first member if it is a pack; 0 without any."""
    if (members := path / "members").is_dir():
        path = min(members.iterdir(), key=lambda member: member.name, default=path)
    return max((row.get("step", 0) for row in read_metrics(path)[-1:]), default=0)
