"""A target whose inputs end in every way, to test the engine."""

import os
import pathlib
import time
from typing import Any

from hypothesis import strategies as st

from fuzz import outcomes
from fuzz.engine import Target
from fuzz.outcomes import Outcome, Run, judge

ENDS = ("equal", "sentence", "lines", "escape", "nameless", "no remedy", "exception", "slow", "large", "abort", "exit")
_SENTENCES = {
    "sentence": "error: x.json is damaged; copy it again.\n", "lines": "error: x.json is\ndamaged; copy it again.\n",
    "escape": "error: x.json is \x1b[31m; copy it again.\n", "nameless": "error: It is damaged; copy it again.\n",
    "no remedy": "error: x.json is damaged.\n",
}  # fmt: skip


def _run(end: str, originals: pathlib.Path) -> Outcome:
    pathlib.Path("input").write_text(end, encoding="utf-8")
    if end in _SENTENCES:
        return judge(Run(2, "", _SENTENCES[end]), lambda done: Outcome(outcomes.EQUAL), ("x.json",))
    held: Any = None
    match end:
        case "exception":
            raise KeyError("x")
        case "slow":
            time.sleep(60)
        case "large":
            held = b"x" * 400_000_000
        case "abort":
            os.abort()
        case "exit":
            os._exit(3)
    return Outcome(outcomes.EQUAL, str(held)[:10])


TARGETS = {"fakes": Target(lambda folder: None, lambda folder: st.sampled_from(ENDS), _run, "equal")}
