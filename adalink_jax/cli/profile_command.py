"""`adalink profile`: traces a few steps of a run in progress, and says what they spend their time on."""

import dataclasses
import json
import sys
import time
import typing

from adalink_jax.cli.arguments import option, plain_parser, table, table_console
from adalink_jax.errors import UserError

if typing.TYPE_CHECKING:
    from etils import epath

    from adalink_jax.training.trace_requests import Answers


def profile(argv: list[str]) -> int:
    """`adalink profile`."""
    parser = plain_parser(
        "profile",
        "Trace a few steps of a run in progress, in all of its processes, and print the ten dearest operations and the share of\n"
        "collectives. The command and the run share only the run's folder. TensorBoard and xprof open the written trace.",
        "adalink profile runs/quickstart --steps 5",
        option("model_dir", metavar="MODEL_DIR", help="the run's folder, or the folder of an earlier trace below it"),
        option("--steps", type=int, default=5, metavar="N", help="steps to trace (default 5)"),
        option("--wait", type=int, default=600, metavar="SECONDS", help="give up after this time (default 600)"),
        option("--json", action="store_true", help="print one JSON object"),
    )  # fmt: skip
    options = parser.parse_args(argv)
    if options.steps < 1 or options.wait < 1:
        raise UserError("--steps and --wait are at least 1.")
    from adalink_jax.files.places import path_of
    from adalink_jax.training import trace_requests, trace_summary

    folder = path_of(options.model_dir)
    answers = trace_requests.answers(folder)
    if not answers.traced:
        run, folder = folder, trace_requests.ask(folder, options.steps)
        answers = _answers(run, folder, options.wait)
    summary = trace_summary.summarise(folder, answers.traced)
    if options.json:
        print(json.dumps({"folder": str(folder), **dataclasses.asdict(summary), "missing": answers.missing}))
        return 0
    shown = table("operation", "share", "ms", "times", title=f"The dearest operations of {folder}")
    for operation in summary.operations:
        shown.add_row(operation.name, f"{operation.share:.1%}", f"{1e3 * operation.seconds:.2f}", str(operation.times))
    out = table_console()
    out.print(shown)
    out.print(f"collectives: {summary.collectives:.1%} of the operations' time; traces of {summary.files} processes")
    if answers.missing:
        out.print(
            f"missing: process {', '.join(map(str, answers.missing))}, without a trace when the run or the wait ended"
        )
    return 0


def _answers(run: "epath.Path", folder: "epath.Path", seconds: int) -> "Answers":
    """Waits until every process has answered, the run has ended, or the time is over; then the traces that are there suffice.

    A run on another machine may hold a lock that this one does not see, so only a lock that was held before says that the run has ended.

    Raises:
      UserError: without any trace.
    """
    from adalink_jax.experiments.sweeps.run_folder import SUMMARY
    from adalink_jax.files import locks
    from adalink_jax.training import trace_requests

    deadline = time.monotonic() + seconds
    finished = lambda: (run / SUMMARY).exists()
    was_held = locks.is_held(run / locks.LOCK)
    if not was_held and not finished():
        print(
            f"Nobody seems to train in {run}; waiting {seconds} s for a run on another machine, at most.",
            file=sys.stderr,
        )
    while True:
        # Before the answers, since a run that ends writes them first.
        held = locks.is_held(run / locks.LOCK)
        # A run that is continued with more steps still has its summary.
        ended, was_held = not held and (was_held or finished()), was_held or held
        answers = trace_requests.answers(folder)
        late = time.monotonic() > deadline
        if answers.complete or ended or late:
            break
        time.sleep(0.5)
    if answers.traced:
        return answers
    if late:
        raise UserError(f"No run in {run} answered within {seconds} s; is it training? Give a longer --wait.")
    raise UserError(f"The run in {run} has ended its steps without a trace; ask while it trains.")
