"""What comes from outside is printed and written as it is: no markup, any locale, closed outputs."""

import ast
import json
import os
import pathlib
import re
import subprocess
import sys
import time

from PIL import Image
from rich import progress, table
from rich.text import Text
from test_results import write_run

from adalink_jax import terminal
from adalink_jax.cli.main import main
from adalink_jax.training.console import Console

PACKAGE = pathlib.Path(terminal.__file__).parent
HOSTILE = "[/INST] [bold red]no[/] :smile: {0}"
ASCII = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "JAX_PLATFORMS": "cpu"}
READS_MARKUP = {"rich.console.Console", "rich.progress.TextColumn", "rich.print", "rich.markup", "rich.status.Status"}


def uses_of_markup(file):
    """The lines of a module where rich would read markup."""
    names, found = {}, []
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rich"):
            found += [node.lineno] if node.module in READS_MARKUP else []
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            name = names.get(called, called)
            known = name in READS_MARKUP or name.endswith((".from_markup", "console.status", "_out.status"))
            markup = any(keyword.arg in ("markup", "emoji") for keyword in node.keywords)
            found += [node.lineno] if known or markup else []
    return [f"{file.name}:{line}" for line in found]


def test_only_one_module_makes_consoles_and_none_writes_markup(tmp_path):
    files = [file for file in PACKAGE.rglob("*.py") if file != pathlib.Path(terminal.__file__)]
    assert [line for file in files for line in uses_of_markup(file)] == []
    bad = tmp_path / "bad.py"
    bad.write_text("from rich.console import Console\nfrom rich import print\nConsole()\nprint('x')\nx.status('')\n")
    assert len(uses_of_markup(bad)) == 2


def test_tables_bars_rules_and_spinners_show_text_as_it_is(capsys):
    out = terminal.console(width=200)
    cells = table.Table(HOSTILE, title=HOSTILE, caption=HOSTILE)
    cells.add_row(HOSTILE)
    out.print(HOSTILE)
    out.print(cells)
    out.rule(HOSTILE)
    assert capsys.readouterr().out.count(HOSTILE) == 6
    with progress.Progress(terminal.title_column(HOSTILE), console=out) as bar:
        bar.add_task(HOSTILE, total=1)
    assert HOSTILE in capsys.readouterr().out
    spinner = terminal.status(out, HOSTILE).renderable
    assert isinstance(spinner.text, Text) and spinner.text.plain == HOSTILE


def test_a_run_s_console_shows_text_as_it_is(capsys):
    with Console(HOSTILE) as out:
        out.warning(HOSTILE)
        out.note(HOSTILE)
        out.members([HOSTILE])
        out.scores(1, HOSTILE, {})
    assert capsys.readouterr().out.count(HOSTILE) == 4


def test_without_a_terminal_a_line_is_printed_now_and_then(monkeypatch, capsys):
    monkeypatch.setattr(terminal, "LINE_EVERY_SECONDS", 0.05)
    with terminal.progress() as show:
        show(HOSTILE)
        time.sleep(0.12)
        show(HOSTILE, 0.25)
        time.sleep(0.12)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and 2 <= len(lines) <= 5
    assert lines[0] == f"{HOSTILE}  (0 s)" and re.fullmatch(
        re.escape(HOSTILE) + r": 25%, \d s left  \(0 s\)", lines[-1]
    )
    time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_long_commands_report_their_progress(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(terminal, "LINE_EVERY_SECONDS", 0.002)
    write_run(tmp_path / "runs" / "a", rank=1, seed=0, accuracy=0.5)
    assert main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "page.html")]) == 0
    assert "writing the page" in capsys.readouterr().err
    assert main(["convert", "bundled:pali_nano_instruct", str(tmp_path / "base"), "--to", "native"]) == 0
    assert re.search(r"to native: \d+%, \d+ s left", capsys.readouterr().err)


def adalink(*words, **how):
    how = {"stdout": subprocess.PIPE} | how
    process = subprocess.run(
        [sys.executable, "-m", "adalink_jax", *words],
        stderr=subprocess.PIPE,
        env={**os.environ, **ASCII},
        check=False,
        **how,
    )
    assert b"Traceback" not in process.stderr
    return process.returncode, (process.stdout or b"").decode(), process.stderr.decode()


def test_files_are_utf_8_in_an_ascii_locale(tmp_path):
    Image.new("L", (28, 28)).save(tmp_path / "a.png")
    rows = [
        {"question_id": i, "inputs": text, "image": "a.png"}
        for i, text in enumerate(["caf\u00e9", "a\u2028b", "a\u0085b"])
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
    flags = ["--gin_file=gin/models/pali_nano.gin", "--gin.INITIAL_CHECKPOINT_PATH='bundled:pali_nano_instruct'",
             "--gin.VOCABULARY='bytes'", "--gin.TASK_FEATURE_LENGTHS={'inputs': 16, 'targets': 4}"]  # fmt: skip
    status, _, said = adalink("infer", "rows.jsonl", "out.json", "--format=vqav2", *flags, cwd=tmp_path)
    assert status == 0, said
    assert [row["question_id"] for row in json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))] == [0, 1, 2]


def test_a_closed_output_and_a_deleted_folder_are_one_sentence(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as closed:
        closed.setattr(sys, "stdout", None)
        assert main(["inspect", "x"]) == 2
    assert "standard output is closed" in capsys.readouterr().err
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert main(["inspect", "x"]) == 2
    assert capsys.readouterr().err.startswith("error: The current folder no longer exists")
    monkeypatch.chdir(tmp_path)


def test_a_reader_that_has_closed_the_pipe_ends_a_command_without_a_traceback(monkeypatch, capsys):
    outlet, inlet = os.pipe()
    os.close(outlet)
    with open(inlet, "w", encoding="ascii") as pipe, monkeypatch.context() as closed:
        closed.setattr(sys, "stdout", pipe)
        assert main(["inspect", "bundled:pali_nano_instruct"]) == 141
        print("dropped")
    assert capsys.readouterr().err.strip() == ""
