"""The files, commands and code of docs/extend.md work, unchanged, in an empty folder."""

import os
import pathlib
import re
import shlex
import sys

import pytest

PAGE = (pathlib.Path(__file__).parent.parent / "docs" / "extend.md").read_text()
FILES = dict(
    zip(("gated_bottleneck.py", "gated_bottleneck.gin"), re.findall(r"```(?:python)?\n(.*?)```", PAGE, re.DOTALL))
)
COMMANDS = re.findall(r"^    (adalink .*)$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the page's files, where its commands run."""
    pytest.importorskip("seqio")
    folder = tmp_path_factory.mktemp("extend")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [*sys.path])
        patch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])
        for name, text in FILES.items():
            (folder / name).write_text(text)
        yield folder


def test_the_page_has_its_parts():
    assert "class GatedBottleneck" in FILES["gated_bottleneck.py"] and "import gated" in FILES["gated_bottleneck.gin"]
    assert len([line for line in FILES["gated_bottleneck.py"].splitlines() if line.strip()]) <= 32
    assert [command.split()[1] for command in COMMANDS] == ["check-method", "train", "eval"]


@pytest.mark.parametrize(
    "command",
    # `check-method` takes minutes; the command has tests of its own.
    [pytest.param(command, marks=pytest.mark.slow) if "check-method" in command else command for command in COMMANDS],
    ids=lambda command: command.split()[1],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's own
def test_its_commands_run(folder, few_scenes, command, capsys):
    from adalink_jax.cli.main import main

    assert main(shlex.split(command)[1:]) == 0
    out = capsys.readouterr().out
    assert "fail" not in out.replace("none failed", "")
    if " train " in command:
        assert "import gated_bottleneck" in (folder / "runs/gated/config.gin").read_text()


def test_its_last_lines_run(folder):
    *_, code = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names = {}
    exec(code, names)
    assert names["params"].keys() == {"image", "text"}


def test_the_table_lists_all_behaviours():
    from adalink_jax.contract.behaviours import BEHAVIOURS

    names = [name for row in re.findall(r"^\| ([a-z ,]+) \|", PAGE, re.MULTILINE) for name in row.split(", ")]
    assert names == ["behaviour", *(behaviour.__name__.replace("_", " ") for behaviour in BEHAVIOURS)]
