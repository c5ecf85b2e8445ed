"""`adalink profile`: traces a few steps of a run in progress, and says what they spend their time on."""

import dataclasses
import json
import time

from adalink_jax.cli.arguments import option, plain_parser, table, table_console
from adalink_jax.errors import UserError


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
    if not trace_requests.is_done(folder):
        folder = trace_requests.ask(folder, options.steps)
        _wait(lambda: trace_requests.is_done(folder), options.wait, options.model_dir)
    summary = trace_summary.summarise(folder)
    if options.json:
        print(json.dumps({"folder": str(folder), **dataclasses.asdict(summary)}))
        return 0
    shown = table("operation", "share", "ms", "times", title=f"The dearest operations of {folder}")
    for operation in summary.operations:
        shown.add_row(operation.name, f"{operation.share:.1%}", f"{1e3 * operation.seconds:.2f}", str(operation.times))
    out = table_console()
    out.print(shown)
    out.print(f"collectives: {summary.collectives:.1%} of the operations' time; traces of {summary.files} processes")
    return 0


def _wait(done, seconds: int, model_dir: str) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise UserError(f"No run in {model_dir} answered within {seconds} s; is it training? Give a longer --wait.")
        time.sleep(0.5)
