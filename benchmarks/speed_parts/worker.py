"""A process that holds one contender's program and runs it when it is asked to: libraries do not share threads, caches or memory.

Reads its task as JSON from the first line of stdin. Answers with one JSON object per line: the facts once the program is compiled and warm,
with its first result as `first`; and `{"seconds", "cpu", "peak"}` for each further line. `Contender` is the other side.
"""

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

WARM = 2  # runs before the first that counts


class Contender:
    """The process of one contender, from the side of the one who measures.

    Args:
      task: see `prepare`.

    Raises:
      ModuleNotFoundError: if its library is not installed.
      RuntimeError: if the process fails; with the end of what it printed.
    """

    def __init__(self, **task: Any):
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8")
        # Threads of OpenMP that wait actively would take time from the contender whose turn it is.
        env = {**os.environ, "OMP_WAIT_POLICY": "passive"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.speed_parts.worker"], text=True, env=env, encoding="utf-8",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
        )  # fmt: skip
        try:
            self.facts = self._ask(json.dumps(task))
        except RuntimeError:
            self.end()
            raise
        if missing := self.facts.get("missing"):
            self.end()
            raise ModuleNotFoundError(missing)

    def run(self) -> dict[str, Any]:
        """Runs the program once."""
        return self._ask("run")

    def end(self) -> None:
        """Ends the process."""
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(BrokenPipeError):  # it has ended
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # its error is read below
        answer = self._process.stdout.readline()
        if not answer:
            self._log.seek(0)
            raise RuntimeError(self._log.read()[-3000:])
        return json.loads(answer)


def prepare(task: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The program of a task, and its facts.

    Args:
      task: `{"contender", "work", "model", "base"}` for a row of the table, `{"curve", "point", "model"}` for a point of a curve; or
        `{"gpu", "method", "most", "dtype", "model"}`, which is measured here, so that nothing is left to run.
    """
    from benchmarks.speed_parts.work import Model, Work

    model = Model(**task["model"])
    if "gpu" in task:
        from benchmarks.speed_parts import gpu

        return (lambda: None), gpu.measure(task["gpu"], model, task["method"], task["most"], task["dtype"])
    if "curve" in task:
        from benchmarks.speed_parts import growth

        return growth.prepare(task["curve"], task["point"], model)
    if task["contender"].split()[0] in ("ours", "matmul"):
        from adalink_jax.cli.host_memory import keep_freed_pages

        keep_freed_pages()  # as every command does, before JAX starts
        from benchmarks.speed_parts import ours as library
    else:
        from benchmarks.speed_parts import theirs as library
    return library.prepare(task["contender"], Work(**task["work"]), model, task["base"])


def main() -> None:
    """See the module's docstring."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is not an answer
    answer = lambda value: print(json.dumps(value), file=answers, flush=True)
    try:
        run, facts = prepare(json.loads(sys.stdin.readline()))
    except ModuleNotFoundError as e:
        return answer({"missing": e.name})
    first = run()
    for _ in range(WARM - 1):
        run()
    answer(facts | {"first": first})
    for _ in sys.stdin:
        began, used = time.perf_counter(), time.process_time()
        run()
        seconds, cpu = time.perf_counter() - began, time.process_time() - used
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        answer({"seconds": seconds, "cpu": cpu, "peak": peak})


if __name__ == "__main__":
    main()
