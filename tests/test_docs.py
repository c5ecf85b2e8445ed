"""The pages of docs/: every command is real, what is not marked runs, and the site builds.

A block of commands is run by `test_the_commands_run` (slow, with fewer training steps), unless a comment above it says
`<!-- not run: WHAT IT NEEDS -->`; the site shows that note. pip and make are not run: they install, and run the tests.
"""

import argparse
import dataclasses
import importlib.util
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# docs/extend.md and launch/README.md have tests of their own, which run all that they show.
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "docs" / "results").glob("*.md"))
PAGES = [page for page in PAGES if page.name != "extend.md"]
PROGRAMS = ("adalink", "python", "pip", "make")
NEEDS = ("network", "hours", "minutes", "data sets", "GPU", "devices", "processes", "disk", "day", "run", "checkpoint")


@dataclasses.dataclass(frozen=True)
class Command:
    """A command on a page; `needs` is why it is not run, or empty."""

    page: str
    text: str
    needs: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)


def commands_of(page: pathlib.Path) -> list[Command]:
    out, needs, inside = [], "", False
    for line in page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        if match := re.match(r"<!-- not run: (.+) -->$", line):
            needs, inside = match[1], False
        elif line.startswith(tuple(f"    {program} " for program in PROGRAMS)):
            out.append(Command(page.relative_to(ROOT).as_posix(), re.sub(r"\s+", " ", line.strip()), needs))
            inside = True
        elif line.strip() and not line.startswith("    ") and inside:
            needs, inside = "", False
    return out


COMMANDS = [command for page in PAGES for command in commands_of(page)]
ADALINK = {command.text: command for command in COMMANDS if command.words[0] == "adalink"}
# What pages write before they read it, or stand for the reader's own.
WRITTEN = re.compile(r"(runs|reviews|photos|tuned)\b.*\.gin$")


def test_pages_show_commands_and_say_what_they_need():
    assert len(ADALINK) > 50
    for command in COMMANDS:
        assert not command.needs or any(word in command.needs for word in NEEDS), command
        remote = re.search(r"hf://|gs://", command.text)
        assert command.needs or not remote, f"{command.page}: {command.text} needs the network; mark it"


def test_no_mark_stands_without_a_command():
    for page in PAGES:
        for block in re.findall(r"<!-- not run: .+ -->\n\n(.*)", page.read_text()):
            assert block.startswith(("    ", "```python")), (page, block)


@pytest.mark.parametrize("line", ADALINK)
def test_every_adalink_command_parses(line, monkeypatch):
    """Each goes as far as its own parser, and its gin files exist."""
    from adalink_jax.cli.main import main

    class Parsed(Exception):
        pass

    parse = argparse.ArgumentParser.parse_args

    def parse_only(self, argv):
        parse(self, argv)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    words = shlex.split(line)
    if words[1] != "--version":
        with pytest.raises(Parsed):
            main(words[1:])
    for word in words:
        path = word.removeprefix("--gin_file=")
        if path.endswith(".gin") and not WRITTEN.match(path):
            assert (ROOT / path).exists(), path


def test_other_commands_name_what_exists():
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    setup = (ROOT / "setup.py").read_text()
    for command in COMMANDS:
        program, *rest = command.words
        if program == "make":
            assert rest[0] in targets, command
        elif program == "pip":
            assert all(f'"{name}":' in setup for text in rest for name in re.findall(r"\[(\w+)\]", text)), command
        elif program == "python" and rest[0] != "-m":
            assert (ROOT / rest[0]).exists(), command
    for page in PAGES:
        for target in re.findall(r"`make ([a-z0-9-]+)", page.read_text()):
            assert target in targets, (page, target)


def test_settings_of_the_commands_exist(monkeypatch):
    """gin takes the files and bindings of every command: a misspelt or unused setting is an error.

    A study passes bindings on to its cells, and a launcher passes on a whole command.
    """
    from adalink_jax import configuration
    from adalink_jax.cli.arguments import register
    from adalink_jax.experiments.comparisons import compare  # noqa: F401

    register()
    monkeypatch.chdir(ROOT)
    tried = 0
    for line in ADALINK:
        command = shlex.split(line)[1]
        flags, _ = configuration.parse_flags(shlex.split(line)[2:])
        if command in ("launch", "study") or not flags.files or any(WRITTEN.match(str(file)) for file in flags.files):
            continue
        file = {"infer": "infer", "plan": "plan", "pack": "pack", "tune": "tune", "compare": "pack"}.get(command)
        with configuration.isolated():
            configuration.load(flags, extra_files=(f"gin/runs/{file}.gin",) if file else (), require_all=False)
        tried += 1
    assert tried > 20


def test_every_command_has_its_row():
    from adalink_jax.cli.main import COMMANDS as ALL

    page = (ROOT / "docs" / "commands.md").read_text()
    assert set(re.findall(r"^\| .*? \| `adalink ([a-z-]+)", page, re.MULTILINE)) == set(ALL)


def test_files_that_are_named_exist():
    named = [
        (page, n)
        for page in PAGES
        for n in re.findall(r"`((?:gin|tests|adalink_jax|benchmarks)/[\w./]+)`", page.read_text())
    ]
    assert len(named) > 100
    for page, name in named:
        assert "NAME" in name or "GROUP" in name or (ROOT / name).exists(), (page, name)


def test_links_lead_somewhere():
    for page in [*PAGES, ROOT / "docs/extend.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"]:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[\w-]*)?\)", page.read_text()):
            generated = target.startswith("_generated/")
            assert generated or (page.parent / target).exists(), (page, target)


def site_pages():
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "docs" / "site_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_whole(monkeypatch):
    """Every command, every gin file and every layer has its place in the generated pages."""
    monkeypatch.setenv("COLUMNS", "84")  # which the pages set; restored afterwards
    from adalink_jax.cli.main import COMMANDS as ALL

    pages = site_pages()
    text = pages.command_line()
    assert all(f"## adalink {name}\n\n```text\nusage: adalink {name}" in text for name in ALL)
    macros = pages.gin_macros()
    assert all(f"## {p.relative_to(ROOT).as_posix()}\n" in macros for p in (ROOT / "gin").rglob("*.gin"))
    assert "| `FROZEN_DTYPE` | `'float32'` |" in macros and "| `TRAIN_STEPS` | *required* |" in macros
    assert "autoclass:: adalink_jax.adapters.AdaLink\n" in pages.api_page("adapters", "")
    layers = {p.name for p in (ROOT / "adalink_jax").iterdir() if (p / "__init__.py").exists()} - {"cli", "t5x"}
    assert layers == set(pages.LAYERS)


def test_docstrings_become_valid_restructuredtext():
    as_rst = site_pages().as_rst
    assert as_rst(["Uses `x` and *args.", "", "    y = x * 2", "", "Then:", "- a", "- b"]) == [
        "Uses ``x`` and \\*args.", "", "::", "", "    y = x * 2", "", "Then:", "", "- a", "- b",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    pytest.importorskip("sphinx", reason="pip install -c constraints.txt '.[docs]'")
    out = tmp_path / "html"
    command = [
        sys.executable,
        "-W",
        "default",
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        "docs",
        str(out),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "fold_adapter" in (out / "_generated/api_adapters.html").read_text()


RUNNABLE = [command.text for command in ADALINK.values() if not command.needs]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the commands run, with the reader's own files in it."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "docs").symlink_to(ROOT / "docs")
    rows = [f"a {word} film number {i},{label}" for i in range(60) for word, label in (("good", "yes"), ("bad", "no"))]
    (folder / "reviews.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    (folder / "new.csv").write_text("text\na good film\na bad film\n")
    return folder


def shortened(line: str) -> list[str]:
    """The command with a few steps, so that all of them take minutes."""
    words = shlex.split(line)[1:]
    if words[0] in ("quickstart", "train", "tune", "pack"):
        words += ["--gin.TRAIN_STEPS=6", "--gin.WARMUP_STEPS=2", "--gin.EVAL_PERIOD=3", "--gin.CHECKPOINT_PERIOD=3"]
    elif words[0] == "sweep":
        words += ["--gin.TRIED_RANKS=(1, 2)", "--gin.TRIED_RATES=(0.01,)", "--gin.TRIED_SEEDS=(0,)"]
    elif words[0] == "plan":
        words += ["--quick"]
    return words


@pytest.mark.slow
@pytest.mark.parametrize("line", RUNNABLE)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's own
def test_the_commands_run(folder, monkeypatch, line):
    """In the order of the pages, each once; later ones use what earlier ones wrote."""
    from adalink_jax.cli.main import main

    if " plan " in line or "--plan" in line:
        pytest.importorskip("libtpu")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])
    assert main(shortened(line)) == 0
