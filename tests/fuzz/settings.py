"""Wrong values of gin's settings and damaged gin files, through `adalink train` up to its first compilation."""

import json
import os
import pathlib
import re
from typing import Any

import gin_values
from hypothesis import strategies as st

from fuzz import damage
from fuzz.engine import Target
from fuzz.outcomes import EQUAL, EXCEPTION, UNCLEAR, UNPROTECTED, Outcome, Run, judge

FILE = "own.gin"
_TEXTS = damage.TEXTS.map(lambda text: text[:300])
# What gin can parse: Python's literals, references, macros; and what it cannot.
LITERALS = st.one_of(
    st.sampled_from(gin_values.WRONG_VALUES),
    st.integers(1, 64).map(repr),
    st.floats(0, 1).map(repr), damage.ODD_NUMBERS.map(repr), _TEXTS.map(repr),
    st.lists(st.one_of(damage.ODD_NUMBERS, _TEXTS), max_size=3).map(repr),
    st.lists(st.tuples(_TEXTS, damage.ODD_NUMBERS), max_size=3).map(lambda pairs: repr(tuple(pairs))),
    st.dictionaries(_TEXTS, damage.ODD_NUMBERS, max_size=2).map(repr), st.text(max_size=10),
    st.sampled_from(("1 if True else 2", "open('x')", "f(1)", "*", "[1,", "'''", "1\n2", "@x/y()", "%A.b", "lambda: 1", "1_000", "0x1F", "1j")),
)  # fmt: skip
LINES = st.one_of(
    st.sampled_from(
        ("include 'own.gin'", "include 'missing.gin'", "include '/dev/zero'", "include ''", "import missing_module", "import sys, os", "A = %A",
         "A = %B\nB = %A", "RANK = %RANK", "x.y.z = 1", "AdaLinkAdapter.rank = @AdaLinkAdapter()", "train.setup = @train()", "\ufeffA = 1",
         "a/b/c.d = 1", "RANK = (", "'''", "RANK 16", "= 3", "RANK = = 3", "\tRANK = 3", "class A: pass", "# \x00", "TRAIN_STEPS = 7 # \u2028x")
    ),
    st.tuples(st.text(max_size=8), LITERALS).map(lambda pair: f"{pair[0]} = {pair[1]}"), st.text(max_size=30),
)  # fmt: skip


def _prepare(folder: pathlib.Path) -> None:
    flags = gin_values.files(folder)
    names = gin_values.settings(flags)
    # Where a macro gives a parameter, binding the parameter leaves the macro unused, which is refused.
    names = [name for name in names if name.isupper() or name.split(".")[-1].upper() not in names]
    (folder / "names.json").write_text(json.dumps(names), encoding="utf-8")
    (folder / "gin").mkdir()
    includes = [f"include {flag.partition('=')[2]!r}\n" for flag in flags if flag.startswith("--gin_file")]
    bindings = [
        flag.removeprefix("--gin.").replace("=", " = ", 1) + "\n" for flag in flags if flag.startswith("--gin.")
    ]
    text = "".join([*includes, "\n", *bindings]).replace(str(folder / "run"), "run")
    (folder / "gin" / FILE).write_text(text, encoding="utf-8")


def _value_plans(originals: pathlib.Path) -> st.SearchStrategy[tuple[tuple[str, str], ...]]:
    names = json.loads((originals / "names.json").read_text(encoding="utf-8"))
    return st.lists(st.tuples(st.sampled_from(names), LITERALS), min_size=1, max_size=2).map(tuple)


def _run_values(plan: tuple[tuple[str, str], ...], originals: pathlib.Path) -> Outcome:
    rows = originals / "rows.csv"
    flags = [flag.replace(str(originals / "run"), "run") for flag in gin_values.files(originals)]
    assert rows.exists()
    return _judge([*flags, *(f"--gin.{name}={text}" for name, text in plan)], EQUAL)


def _file_plans(originals: pathlib.Path) -> st.SearchStrategy[tuple[str, Any]]:
    edits = damage.edits(originals / "gin")
    return st.one_of(
        st.tuples(st.just("edits"), edits),
        st.tuples(st.just("lines"), st.lists(st.tuples(damage.WHERE, LINES), min_size=1, max_size=2)),
    )


def _run_file(plan: tuple[str, Any], originals: pathlib.Path) -> Outcome:
    how, value = plan
    damage.damaged(originals / "gin", pathlib.Path("files"), value if how == "edits" else [])
    path = pathlib.Path("files", FILE)
    if how == "lines":
        text = path.read_text(encoding="utf-8").splitlines()
        for where, line in value:
            text.insert(int(where * len(text)), line)
        path.write_text("\n".join(text), encoding="utf-8", errors="surrogatepass")
    os.chdir("files")
    return _judge([f"--gin_file={FILE}"], UNPROTECTED if value else EQUAL)


def _judge(flags: list[str], accepted: str) -> Outcome:
    text = gin_values.outcome(flags)
    if text == "reached":
        return Outcome(accepted)
    if text.startswith("refused: "):
        return judge(Run(2, "", text.removeprefix("refused: ") + "\n"), lambda done: Outcome(EQUAL))
    if text.startswith("status "):
        return Outcome(UNCLEAR, text.partition(":")[0], text)
    places = re.findall(r'adalink_jax/(\S+\.py)", line (\d+)', text)
    kind = re.findall(r"^([\w.]+)(?::|$)", text, re.MULTILINE)[-1]
    return Outcome(EXCEPTION, f"{kind} at {':'.join(places[-1]) if places else '?'}", text[-6000:])


TARGETS = {
    "gin values": Target(_prepare, _value_plans, _run_values, (), share=4),
    "gin files": Target(_prepare, _file_plans, _run_file, ("edits", []), share=2),
}
