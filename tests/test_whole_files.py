"""Files and folders are whole or absent, and one process at a time writes a folder."""

import ast
import os
import pathlib
import stat
import subprocess
import sys
import threading
import time

import pytest
from etils import epath
from helpers import hold_in_another_process

import adalink_jax
from adalink_jax.errors import Taken, UserError
from adalink_jax.files import locks, whole_file
from adalink_jax.files.typed_json import Form, read_state
from adalink_jax.files.whole_file import is_partial, write_json, write_text, writing, writing_folder

PACKAGE = pathlib.Path(adalink_jax.__file__).parent
# What appends, or writes within a folder that gets its name at the end.
IN_PLACE = {
    "checkpoints/adapter_files.py", "checkpoints/native.py", "checkpoints/hugging_face.py", "checkpoints/t5x_format.py",
    "interop/folded.py", "interop/hook.py", "launching/supervisor.py", "launching/submit.py", "serving/rows.py",
    "experiments/sweeps/runner.py", "cli/main.py", "stack_traces.py",  # logs, and /dev/null
    "launching/ray_tasks.py",  # a temporary folder
}  # fmt: skip


def test_a_file_keeps_its_contents_until_the_new_one_is_whole(tmp_path):
    path = epath.Path(tmp_path) / "facts.json"
    write_json(path, {"step": 1})
    with pytest.raises(RuntimeError, match="the disk is full"), writing(path) as file:
        file.write(b'{"step"')
        raise RuntimeError("the disk is full")
    assert read_state(path, Form) == {"step": 1}
    assert os.listdir(tmp_path) == ["facts.json"]


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    path = epath.Path(tmp_path) / "base"
    with pytest.raises(RuntimeError), writing_folder(path) as new:
        (new / "values").write_text("half")
        assert not path.exists() and new.name == "base"
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    for text in ("first", "second"):
        with writing_folder(path) as new:
            (new / text).write_text(text)
            assert not (path / text).exists()
    assert sorted(os.listdir(path)) == ["first", "second"] and os.listdir(tmp_path) == ["base"]


def test_a_folder_named_by_dots_or_a_link_keeps_what_it_holds(tmp_path, monkeypatch):
    (tmp_path / "mine" / "sub").mkdir(parents=True)
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "link").symlink_to("mine")
    monkeypatch.chdir(tmp_path / "mine" / "sub")
    for name in ("..", str(tmp_path / "link"), "."):
        with writing_folder(epath.Path(name)) as new:
            (new / "values").write_text(name)
    assert sorted(os.listdir(tmp_path / "mine")) == ["sub", "thesis.txt", "values"]
    assert os.listdir(tmp_path / "mine" / "sub") == ["values"] and (tmp_path / "link").is_symlink()
    (tmp_path / "page.html").symlink_to("mine/thesis.txt")
    write_text(epath.Path(tmp_path) / "page.html", "a page")
    assert (tmp_path / "page.html").is_symlink() and (tmp_path / "mine" / "thesis.txt").read_text() == "a page"


def test_what_a_killed_process_left_is_removed(tmp_path):
    program = (
        "import os, signal\nfrom etils import epath\nfrom adalink_jax.files.whole_file import writing_folder\n"
        f"with writing_folder(epath.Path({str(tmp_path)!r}) / 'base') as new:\n"
        "    (new / 'values').write_text('half')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == -9
    assert os.listdir(tmp_path) == [".base.partial"]
    with writing_folder(epath.Path(tmp_path) / "base") as new:
        assert not list(new.iterdir())
    assert os.listdir(tmp_path) == ["base"]


def test_a_folder_whose_files_were_moved_in_part_stays_marked_until_it_is_written_again(tmp_path, monkeypatch):
    folder, stopped = epath.Path(tmp_path), []

    def stop(source, destination):
        if stopped:
            raise KeyboardInterrupt
        stopped.append(source.replace(destination))

    def write():
        with writing_folder(folder) as new:
            for name in ("a", "b"):
                (new / name).write_text(name)

    with monkeypatch.context() as patch:
        patch.setattr(whole_file, "_move", stop)
        with pytest.raises(KeyboardInterrupt):
            write()
    assert is_partial(folder)
    write()
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_nothing_else_writes_in_place():
    """`write_text`, `write_bytes` and `open(..., "w")` leave half a file behind if they are cut short."""
    found = set()
    for file in PACKAGE.rglob("*.py"):
        name = file.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(file.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name)):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            modes = [x.value for x in node.args if isinstance(x, ast.Constant) and isinstance(x.value, str)]
            in_place = isinstance(node.func, ast.Attribute) and called in ("write_text", "write_bytes")
            if in_place or (called == "open" and any(set(mode) & set("wa") and len(mode) < 4 for mode in modes)):
                found.add(name)
    assert {name for name in found if not name.startswith("files/")} <= IN_PLACE


def test_a_folder_that_another_process_writes_is_left_alone(tmp_path):
    folder = epath.Path(tmp_path)
    with hold_in_another_process(tmp_path) as process:
        assert locks.is_held(folder / locks.LOCK)
        with (
            pytest.raises(Taken, match="Another process is writing .*; this one leaves it alone"),
            locks.hold_folder(folder),
        ):
            pass
        process.kill()
    with locks.hold_folder(folder), locks.hold_folder(folder):
        assert locks.is_held(folder / locks.LOCK)
    assert not locks.is_held(folder / locks.LOCK)


def test_a_lock_lasts_as_long_as_the_outermost_hold(tmp_path):
    with locks.hold_folder(epath.Path(tmp_path) / "new"):
        with locks.hold_folder(epath.Path(tmp_path) / "new"):
            pass
        assert locks.is_held(epath.Path(tmp_path) / "new" / locks.LOCK)
    assert not (tmp_path / "new").exists()


@pytest.fixture
def without_flock(monkeypatch):
    """A file system without locks, as a bucket is."""
    monkeypatch.setattr(locks, "is_remote", lambda path: True)
    monkeypatch.setattr(locks, "BEAT", 0.05)
    monkeypatch.setattr(locks, "SILENCE", 1.0)


def test_a_heartbeat_keeps_others_away_and_its_silence_lets_them_in(tmp_path, without_flock):
    folder, refused = epath.Path(tmp_path), []
    with locks.hold_folder(folder), locks.hold_folder(folder):
        record = (tmp_path / locks.LOCK).read_text()
        assert str(os.getpid()) in record
        assert locks.is_held(folder / locks.LOCK)

        def other():
            held = dict(locks._held)
            locks._held.clear()
            try:
                with locks.hold_folder(folder):
                    pass
            except Taken as e:
                refused.append(str(e))
            locks._held.update(held)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 1 and not (tmp_path / locks.LOCK).exists()
    (tmp_path / locks.LOCK).write_text("")  # a holder is writing its record
    began = time.monotonic()
    with locks.hold_folder(folder):
        assert time.monotonic() - began >= 1.0
    write_text(folder / locks.LOCK, "another-machine 1 abc 7")
    with locks.hold_folder(folder):
        assert "another-machine" not in (tmp_path / locks.LOCK).read_text()


def test_a_device_or_a_pipe_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(UserError, match="pipe is not a regular file; move it away"):
            write_text(epath.Path(tmp_path / name), "x")
    assert stat.S_ISFIFO(os.stat(tmp_path / "link").st_mode)
