"""Profiler traces of a run in progress: `adalink profile` leaves a request in the run's folder, and every process traces some steps.

A thread looks for the request every few seconds, so the loop itself reads no file, and waits for nothing until a trace ends. Each
process answers with a file `done_I.txt` beside its trace, or `ended_I.txt` if its steps ended before it began one; both hold the number
of processes.
"""

import contextlib
import dataclasses
import threading
import time
from typing import Any

import jax
from etils import epath

from adalink_jax.errors import UserError
from adalink_jax.files.typed_json import Form, read_state
from adalink_jax.files.whole_file import write_json, write_text
from adalink_jax.typed_values import PositiveInt

FOLDER, REQUEST = "profile", "request.json"
LOOK_SECONDS = 2.0


class Request(Form):
    """`MODEL_DIR/profile/request.json`."""

    name: str
    steps: PositiveInt


def ask(model_dir: epath.Path, steps: int) -> epath.Path:
    """Asks the run in `model_dir` for a trace of so many steps; returns the folder to which it will be written.

    Raises:
      UserError: if there is no run.
    """
    if not (model_dir / "config.gin").exists():
        raise UserError(f"{model_dir} holds no run (it has no config.gin); give the MODEL_DIR of a run in progress.")
    name = time.strftime("%Y%m%d_%H%M%S")
    (model_dir / FOLDER).mkdir(parents=True, exist_ok=True)
    write_json(model_dir / FOLDER / REQUEST, {"name": name, "steps": steps})
    return model_dir / FOLDER / name


@dataclasses.dataclass(frozen=True)
class Answers:
    """How the processes of a run answered a request.

    Attributes:
      traced: the processes that wrote a trace.
      missing: the others.
      complete: whether all have answered, with a trace or by their end.
    """

    traced: tuple[int, ...]
    missing: tuple[int, ...]
    complete: bool


def answers(folder: epath.Path) -> Answers:
    """The answers in the folder of a trace; no process is in those of another folder."""
    of_kind = lambda kind: {int(path.stem.split("_")[1]): path for path in folder.glob(f"{kind}_*.txt")}
    done, ended = of_kind("done"), of_kind("ended")
    # Earlier versions left these files empty.
    count = max((int(path.read_text() or 1) for path in [*done.values(), *ended.values()]), default=0)
    missing = tuple(index for index in range(count) if index not in done)
    return Answers(tuple(sorted(done)), missing, count > 0 and ended.keys() >= set(missing))


class TraceRequests(contextlib.AbstractContextManager["TraceRequests"]):
    """A context around a training loop, which calls `before_step` before each step, and once after the last one.

    Args:
      model_dir: the run's folder.
    """

    def __init__(self, model_dir: epath.Path):
        self._folder = model_dir / FOLDER
        self._asked: dict[str, Any] | None = None
        self._seen = self._last = ""
        self._left = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="trace requests", daemon=True)

    def __enter__(self) -> "TraceRequests":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        self._thread.join()
        if self._left:
            self._end()
        with contextlib.suppress(OSError, UserError):
            if request := self._unanswered():
                self._answer("ended", request["name"])

    def before_step(self, state: Any) -> None:
        """Begins the trace that was asked for, or ends one after its last step; `state` is that of the step before."""
        if self._left:
            self._left -= 1
            if not self._left:
                jax.block_until_ready(state)
                self._end()
        elif self._asked is not None:
            request, self._asked = self._asked, None
            self._last, self._left = request["name"], request["steps"]
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._trace_folder()))

    def _end(self) -> None:
        self._left = 0
        jax.profiler.stop_trace()
        self._answer("done", self._last)

    def _answer(self, kind: str, name: str) -> None:
        (self._folder / name).mkdir(parents=True, exist_ok=True)
        write_text(self._folder / name / f"{kind}_{jax.process_index()}.txt", str(jax.process_count()))

    def _unanswered(self, seen: str = "") -> dict[str, Any] | None:
        """The newest request, unless it is called `seen` or this process has answered it; None without any."""
        request = read_state(self._folder / REQUEST, Request)
        if not request or request["name"] == seen:
            return None
        files = (f"{kind}_{jax.process_index()}.txt" for kind in ("done", "ended"))
        return None if any((self._folder / request["name"] / file).exists() for file in files) else request

    def _trace_folder(self) -> epath.Path:
        """JAX names the files after the host, which several processes may share: each has a folder of its own."""
        folder = self._folder / self._last
        return folder if jax.process_count() == 1 else folder / f"process_{jax.process_index()}"

    def _look(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            with contextlib.suppress(OSError, UserError):  # a request that cannot be read must not end the run
                if request := self._unanswered(self._seen):
                    self._seen, self._asked = request["name"], request
