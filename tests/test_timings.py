"""`--timings`: seconds by phase of a command, and what its imports hold."""

import json
import subprocess
import sys
import threading

import pytest

from adalink_jax import timings
from adalink_jax.cli.main import main


@pytest.fixture(autouse=True)
def empty(monkeypatch):
    monkeypatch.setattr(timings, "_entries", {})


def test_phases_nest_and_count():
    for _ in range(3):
        with timings.phase("outer"), timings.phase("inner"):
            pass
    with pytest.raises(KeyError), timings.phase("last"):
        raise KeyError
    with timings.phase("outer"), timings.phase("second"):
        pass
    entries = timings.entries()
    assert list(entries) == [("outer",), ("outer", "inner"), ("outer", "second"), ("last",)]
    assert [entry.times for entry in entries.values()] == [4, 3, 1, 1]
    assert 0 <= entries["outer", "inner"].first <= entries["outer", "inner"].seconds <= entries["outer",].seconds


def test_other_threads_record_nothing():
    def work():
        with timings.phase("elsewhere"):
            pass

    with timings.phase("here"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert list(timings.entries()) == [("here",)]


def test_a_compilation_s_seconds_are_counted_once(monkeypatch):
    now = iter([10.0, 11.0, 12.0, 20.0])
    monkeypatch.setattr(timings.time, "perf_counter", lambda: next(now))
    listen = timings.compilation_listener()
    listen("/jax/core/compile/jaxpr_trace_duration", 1.0)  # 9 to 10, inside the third
    listen("/jax/core/compile/jaxpr_trace_duration", 0.5)  # 10.5 to 11, likewise
    listen("/jax/core/compile/jaxpr_trace_duration", 4.0)  # 8 to 12
    listen("/jax/core/compile/backend_compile_duration", 7.0, fun_name="step")  # 13 to 20
    listen("/jax/another/event", 7.0)
    first, second = timings.entries().values()
    assert (first.times, first.seconds) == (3, 4.0) and (second.times, second.seconds) == (1, 7.0)


def test_a_command_prints_its_phases_and_writes_them(tmp_path, capsys):
    file = tmp_path / "timings.json"
    assert main(["params", "--gin_file=gin/models/pali_nano.gin", "--json", f"--timings={file}"]) == 0
    printed = capsys.readouterr()
    json.loads(printed.out)  # the table is on stderr
    rows = {row["phase"]: row for row in json.loads(file.read_text())}
    assert list(rows)[0] == "imports" and "configuration" in rows and list(rows)[-1] == "process"
    assert all(row["phase"].split("/")[-1] in printed.err for row in rows.values())
    assert rows["process"]["seconds"] > rows["configuration"]["seconds"] >= rows["configuration"]["first"] > 0


def test_an_error_s_phases_are_printed_and_a_bad_file_is_refused(tmp_path, capsys):
    assert main(["params", "--gin_file=gin/models/no_such.gin", "--timings"]) == 2
    assert "configuration" in capsys.readouterr().err
    assert main(["params", "--gin_file=gin/models/pali_nano.gin", f"--timings={tmp_path}/no/t.json"]) == 2
    assert "parent folder" in capsys.readouterr().err
    assert main(["params", "--gin_file=gin/models/pali_nano.gin", "--timings="]) == 2
    assert "names no file" in capsys.readouterr().err


def test_no_command_s_help_imports_what_only_its_work_needs():
    code = """
import sys
from adalink_jax.cli.main import COMMANDS, main
for name in COMMANDS:
    try:
        main([name, "--help"])
    except SystemExit:
        pass
    heavy = [m for m in ("jax", "flax", "optax", "orbax", "tensorflow", "seqio", "matplotlib") if m in sys.modules]
    if heavy:
        sys.exit(f"{name}: {heavy}")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
