"""What a gin file can have run: a run's folder imports no module without consent; modules and includes that fail are one sentence."""

import os
import pathlib
import sys

import pytest

from adalink_jax import configuration
from adalink_jax.cli.main import main
from adalink_jax.errors import UserError
from adalink_jax.serving import Predictor
from adalink_jax.serving.opening import open_model

MODEL = "include 'gin/models/pali_nano.gin'\n"
BASE = "Setup.initial_checkpoint_path = 'bundled:pali_nano_instruct'\n"
IMPORTS = [
    "import intruder\n",
    "import \\\n  intruder\n",
    "from intruder import inner\n",
    "\ufefffrom intruder import inner as json\n",
    "include 'other.gin'\n",
    "a = '''\n'''; import intruder\n",
    "from __gin__ import dynamic_registration\n",
]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Makes the folder of a run with this configuration; the module `intruder` leaves a file when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "intruder").mkdir()
    code = f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
    (tmp_path / "intruder" / "__init__.py").write_text(code)
    (tmp_path / "intruder" / "inner.py").write_text("")
    (tmp_path / "intruder" / "inner.gin").write_text("import intruder\n")
    (tmp_path / "other.gin").write_text("import intruder.inner\n")

    def make(text):
        (tmp_path / "run" / "adapter").mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / "config.gin").write_text(text, encoding="utf-8")
        return str(tmp_path / "run")

    yield make
    for name in [name for name in sys.modules if name.split(".")[0] == "intruder"]:
        del sys.modules[name]


def ran(folder):
    return (pathlib.Path(folder).parent / "ran").exists()


@pytest.mark.parametrize("text", [*IMPORTS, "include 'intruder/inner.gin'\n"])
def test_a_run_imports_no_module_without_consent(run, text):
    folder = run(text + MODEL)
    with pytest.raises(UserError, match="--trust_modules|line 2: Expected newline"):
        open_model(folder)
    assert not ran(folder)


OPENERS = {
    "infer": ["infer", "rows.csv", "out.csv", "--run=run"],
    "infer a task": ["infer", "task:test", "out.csv", "--run=run"],
    "eval": ["eval", "--gin_file=run/config.gin"],
    "params": ["params", "--gin_file=run/config.gin"],
    "train": ["train", "--gin_file=run/config.gin", "--gin_file=gin/runs/finetune.gin"],
    "cache-vision": ["cache-vision", "--gin_file=./run/../run/config.gin"],
    "sweep": ["sweep", "--gin_file=run/config.gin", "--gin_file=gin/sweeps/digits_small.gin"],
    "convert": ["convert", "bundled:pali_nano_raw", "out", "--to=native", "--gin_file=run/config.gin"],
}


@pytest.mark.parametrize("name", OPENERS)
def test_each_command_asks(run, capsys, name, monkeypatch):
    monkeypatch.setitem(os.environ, "JAX_PLATFORMS", "cpu")
    folder = run("import intruder.inner\n" + MODEL)
    (pathlib.Path(folder).parent / "rows.csv").write_text("inputs,image\na,b.png\n")
    assert main(OPENERS[name]) == 2
    assert "run/config.gin, line 1: the run" in (err := capsys.readouterr().err) and "imports intruder.inner" in err, (
        err
    )
    assert not ran(folder)


def test_with_consent_it_is_imported(run, capsys):
    folder = run("import intruder.inner\n" + MODEL)
    assert main(["params", "--gin_file=run/config.gin", "--trust_modules"]) == 0
    assert ran(folder)
    with pytest.raises(UserError, match="--trust_modules"):
        Predictor(folder)
    assert open_model(folder, "bytes", trust_modules=True).adapters == {"adapter": f"{folder}/adapter"}


def test_a_run_cannot_consent_to_itself(run):
    with pytest.raises(UserError, match="trust_modules"):
        open_model(run("Predictor.trust_modules = True\n" + MODEL))


@pytest.mark.parametrize("how", [
    "DatasetConfig.mixture_or_task_module = 'intruder'", "DatasetConfig.mixture_or_task_module = %A\nA = 'intruder'",
])  # fmt: skip
@pytest.mark.parametrize("command", ["infer a task", "eval"])
def test_the_module_of_a_task_needs_consent_too(run, capsys, how, command):
    pytest.importorskip("seqio")
    task = "Setup.dataset = @DatasetConfig()\nDatasetConfig.mixture_or_task_name = 'a'\n" + how
    folder = run(MODEL + BASE + task + "\nDatasetConfig.task_feature_lengths = {'inputs': 8, 'targets': 8}\n"
                 "DatasetConfig.batch_size = 1\n")  # fmt: skip
    assert main(OPENERS[command]) == 2
    assert "MIXTURE_OR_TASK_MODULE: the run" in (err := capsys.readouterr().err) and "imports intruder" in err, err
    assert not ran(folder)
    assert main([*OPENERS[command], "--trust_modules"]) == 2  # which declares no task
    assert "There is no task" in capsys.readouterr().err and ran(folder)


def test_what_the_users_own_files_and_flags_name_needs_no_consent(run):
    folder = run("import intruder\nimport adalink_jax.data.digits\n" + MODEL)
    flags, _ = configuration.parse_flags(["--gin_file=other.gin", f"--gin_file={folder}/config.gin"])
    with pytest.raises(UserError, match="imports intruder, "):
        configuration.load(flags, require_all=False)
    pathlib.Path("other.gin").write_text("import intruder\n", encoding="utf-8")
    configuration.load(flags, require_all=False)
    configuration.import_module("intruder", "here")
    with pytest.raises(UserError, match="here: the run .*imports wave,"):
        configuration.import_module("wave", "here")
    typed = flags.binding("DatasetConfig.mixture_or_task_module", "'wave'")
    with configuration.isolated():
        configuration.load(typed, require_all=False)
        configuration.import_module("wave", "here")
    with pytest.raises(UserError, match="imports wave,"):  # as before `isolated`
        configuration.import_module("wave", "here")


@pytest.mark.parametrize("code, words", [
    ("x = = 1", "SyntaxError: invalid syntax.*line 1"),
    ("import sys\nsys.exit(3)", "SystemExit: 3 .*line 2"),
    ("\n1 / 0", "ZeroDivisionError: division by zero .*line 2"),
    ("def f():\n  f()\nf()", "RecursionError: maximum recursion depth exceeded.*line 2"),
    ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module' .*line 1"),
    ("raise BaseException", r"imported: BaseException \(.*line 1"),
    ("import json\njson.loads('{')", "JSONDecodeError: .*failing.py, line 2"),
])  # fmt: skip
def test_a_module_that_raises_anything_is_one_sentence(tmp_path, monkeypatch, capsys, code, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "failing.py").write_text(code + "\n")
    (tmp_path / "mine.gin").write_text("# mine\nimport failing\n")
    assert main(["params", "--gin_file=mine.gin"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: mine.gin, line 2: failing cannot be imported: ") and err.count("\n") == 1, err
    with pytest.raises(UserError, match=words):
        configuration.import_module("failing", "here")


def test_a_byte_order_mark_is_passed_over(tmp_path, capsys):
    (tmp_path / "bom.gin").write_bytes(b"\xef\xbb\xbf# by an editor\r\n" + MODEL.encode())
    assert main(["params", f"--gin_file={tmp_path}/bom.gin", "--json"]) == 0
    (tmp_path / "utf16.gin").write_bytes(MODEL.encode("utf-16"))
    assert main(["params", f"--gin_file={tmp_path}/utf16.gin", "--json"]) == 2
    assert "utf16.gin is not a text in UTF-8" in capsys.readouterr().err


def test_includes_that_cannot_be_followed_name_their_chain(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo.gin")
    os.mkdir("folder.gin")
    files = {
        "self.gin": "include 'self.gin'", "a.gin": "\ninclude 'b.gin'", "b.gin": "include './a.gin'", "c.gin": "include 'fifo.gin'",
        "d.gin": "include 'folder.gin'", "e.gin": "include 'c.gin'", "f.gin": "include 'no/such.gin'", "g.gin": "x = {[]: 1}",
        "h.gin": "x = " + "[" * 3000, "deep9.gin": "",
    }  # fmt: skip
    files |= {f"deep{i}.gin": f"include 'deep{i + 1}.gin'\n" * 3 for i in range(9)}
    for name, text in files.items():
        pathlib.Path(name).write_text(text, encoding="utf-8")
    sentences = {
        "self.gin": "self.gin, line 1: self.gin includes itself; remove one of these includes.",
        "a.gin": "a.gin, line 2: b.gin, line 1: ./a.gin includes itself; remove one of these includes.",
        "c.gin": "c.gin, line 1: fifo.gin is not a regular file; name a gin file.",
        "d.gin": "d.gin, line 1: folder.gin is a folder; name a gin file.",
        "e.gin": "e.gin, line 1: c.gin, line 1: fifo.gin is not a regular file; name a gin file.",
        "f.gin": "f.gin, line 1: There is no gin file no/such.gin; ",
        "g.gin": "g.gin, line 1: the value cannot be read: unhashable type: 'list'.",
        "h.gin": "h.gin, line 1: the value cannot be read: brackets are nested too deeply.",
        "deep0.gin": "more than 200 files are included; remove includes.",
    }
    for name, sentence in sentences.items():
        assert main(["params", f"--gin_file={name}"]) == 2
        err = capsys.readouterr().err
        assert sentence in err and err.startswith("error: ") and err.count("\n") == 1, err
