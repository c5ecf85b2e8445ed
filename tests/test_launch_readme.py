"""Every command in launch/README.md that begins with `$` prints the lines under it.

ADALINK_WRITE_GOLDEN=1 writes the commands' output into the page.
"""

import os
import pathlib
import re
import subprocess
import sys

import pytest
from launch_cases import fake, path_with

ROOT = pathlib.Path(__file__).parent.parent
PAGE = ROOT / "launch" / "README.md"
INDENT = "    "
LEFT_OUT = "[...]"


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Each command of a page, with the lines under it."""
    out, open_block = [], False
    for line in text.splitlines():
        if line.startswith(f"{INDENT}$ "):
            out.append((line.removeprefix(f"{INDENT}$ "), []))
        elif out and open_block and (line.startswith(INDENT) or not line):
            out[-1][1].append(line.removeprefix(INDENT))
        else:
            open_block = False
            continue
        open_block = True
    for _, lines in out:
        while lines and not lines[-1]:
            lines.pop()
    return out


def normal(text: str) -> list[str]:
    """Lines without the file of uncommitted changes, which not every tree has, and without trailing spaces."""
    text = re.sub(r", tree\.diff|^tree\.diff\n", "", text, flags=re.MULTILINE)
    return [line.rstrip() for line in text.rstrip("\n").splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with only the templates, and a folder with this `adalink` and with fakes of the clusters' programs."""
    folder = tmp_path_factory.mktemp("readme")
    fakes = folder.parent / f"{folder.name}_fakes"
    for name in ("gcloud", "kubectl", "sbatch", "squeue", "sacct", "scancel"):
        fake(fakes, name, "exit 9")
    (fakes / "adalink").write_text(f'#!/bin/bash\nexec {sys.executable} -m adalink_jax "$@"\n')
    (fakes / "adalink").chmod(0o755)
    (folder / "launch").symlink_to(ROOT / "launch")
    return folder, fakes


def run(place, command: str) -> list[str]:
    folder, fakes = place
    env = os.environ | {"PATH": path_with(fakes), "PYTHONPATH": str(ROOT), "LC_ALL": "C"}
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return normal(done.stdout)


def test_every_command_prints_the_lines_under_it(place):
    shown = commands(PAGE.read_text())
    assert len(shown) >= 10
    printed = [run(place, command) for command, _ in shown]
    if os.environ.get("ADALINK_WRITE_GOLDEN"):
        write(shown, printed)
        shown = commands(PAGE.read_text())
    for (command, wanted), output in zip(shown, printed, strict=True):
        assert matches(wanted, output), f"$ {command}\n" + "\n".join(output)
    assert not any(path.read_text() for path in place[1].glob("*.calls"))


def matches(wanted: list[str], found: list[str]) -> bool:
    """Whether lines match the wanted ones, among which `[...]` stands for any lines."""
    pattern = "".join(r"(?:.*\n)*?" if line == LEFT_OUT else re.escape(line) + "\n" for line in wanted)
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in found)) is not None


def test_lines_may_be_left_out_only_at_the_mark():
    assert matches(["a", LEFT_OUT, "c"], ["a", "b", "c"]) and matches(["a"], ["a"])
    assert not matches(["a", "c"], ["a", "b", "c"]) and not matches(["a"], ["a", "b"]) and not matches([], ["a"])


def write(shown, printed) -> None:
    text = PAGE.read_text()
    block = lambda lines: "".join(f"{INDENT}{line}".rstrip() + "\n" for line in lines)
    for (command, wanted), output in zip(shown, printed, strict=True):
        if matches(wanted, output):
            continue
        head = f"{INDENT}$ {command}\n"
        assert head + block(wanted) in text
        text = text.replace(head + block(wanted), head + block(output), 1)
    PAGE.write_text(text)


def test_files_and_launchers_of_the_page_exist():
    text = PAGE.read_text()
    for name in set(re.findall(r"`((?:gin|tests|adalink_jax)/[a-z\d_./]+)`", text)):
        assert (ROOT / name).exists(), name
    launchers = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert launchers == {path.stem for path in (ROOT / "gin" / "launch").glob("*.gin")}
