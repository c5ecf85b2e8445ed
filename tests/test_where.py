"""docs/where.md is true: every file that it names exists, and defines the name beside it."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "where.md").read_text()
ROWS = re.findall(r"^\| (\d+)\. (.+?) \| `([\w/.]+)` \| `(\w+)` \|$", TEXT, re.MULTILINE)


def test_there_are_twenty_four_questions():
    assert [int(number) for number, *_ in ROWS] == list(range(1, 25))
    folders = {path.split("/")[1] for *_, path, _ in ROWS}
    assert {"cli", "configuration", "parallel", "models", "adapters", "checkpoints", "data", "training"} <= folders


@pytest.mark.parametrize("question, path, name", [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_the_file_defines_what_is_named(question, path, name):
    body = ast.parse((ROOT / path).read_text()).body
    assert name in {node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}, question
