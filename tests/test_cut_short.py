"""What is written is complete, once, and keeps what it does not replace: in folders that exist, buckets, and after kills."""

import errno
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from etils import epath
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_remote import bucket  # noqa: F401  a fixture

from adalink_jax.checkpoints import check_destination
from adalink_jax.errors import Taken, UserError
from adalink_jax.files import locks
from adalink_jax.files.json_lines import read_json_lines
from adalink_jax.files.whole_file import is_partial, writing_folder
from adalink_jax.serving.prediction_file import Output
from adalink_jax.training.contact_sheet import contact_sheet
from adalink_jax.training.metric_writer import MetricWriter


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.05)
    monkeypatch.setattr(locks, "SILENCE", 1.5)


def test_a_folder_that_exists_is_written_within_and_keeps_its_other_files(tmp_path):
    """It may be the root of a volume, which cannot be renamed."""
    path = epath.Path(tmp_path) / "mine"
    path.mkdir()
    (path / "notes.txt").write_text("mine")
    (path / "values").write_text("old")
    program = (
        "import os, signal\nfrom etils import epath\nfrom adalink_jax.files.whole_file import writing_folder\n"
        f"with writing_folder(epath.Path({os.fspath(path)!r})) as new:\n"
        "    (new / 'values').write_text('half')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == -9
    assert (path / "values").read_text() == "old" and is_partial(path)
    with writing_folder(path) as new:
        assert not list(new.iterdir())
        (new / "values").write_text("new")
    assert {file: (path / file).read_text() for file in os.listdir(path)} == {"notes.txt": "mine", "values": "new"}


def test_what_was_moved_into_a_folder_before_a_kill_is_replaced(tmp_path):
    """What makes it a checkpoint comes last; arrays are folders in some formats."""
    path = epath.Path(tmp_path) / "mine"
    path.mkdir()

    def write(text):
        with writing_folder(path, ("config.json", "checkpoint")) as new:
            for name in ("array", "other"):
                (new / name).mkdir()
                (new / name / "0").write_text(text)
            for name in ("checkpoint", "config.json", "a.json", "z.json", "values"):
                (new / name).write_text(text)

    moved = []
    with pytest.MonkeyPatch.context() as patch:
        replace = type(path).replace

        def killed(source, destination):
            if len(moved) == 5:
                raise KeyboardInterrupt
            moved.append(source.name)
            return replace(source, destination)

        patch.setattr(type(path), "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write("half")
    assert len(moved) == 5 and not {"checkpoint", "config.json"} & set(moved)
    write("whole")
    assert {file.read_text() for file in pathlib.Path(path).rglob("*") if file.is_file()} == {
        "whole"
    } and not is_partial(path)


def test_a_folder_of_a_bucket_that_was_not_finished_is_written_anew(bucket, fast):  # noqa: F811
    path = epath.Path("gs://bucket/base")
    with pytest.raises(RuntimeError), writing_folder(path) as new:
        (new / "values").write_text("half")
        raise RuntimeError
    assert check_destination("gs://bucket/base") == path and not list(path.glob("*"))
    # as a killed process leaves it
    (path / "values").write_text("half")
    (path / ".partial").write_text("another-machine 1 abc 7")
    check_destination("gs://bucket/base")
    with writing_folder(path) as new:
        assert [file.name for file in path.iterdir()] == [".partial"]
        (new / "facts").write_text("whole")
    assert [file.name for file in path.iterdir()] == ["facts"]
    with writing_folder(path) as new:
        (new / "facts").write_text("again")
        (new / "more").write_text("more")
    assert {file.name: file.read_text() for file in path.iterdir()} == {"facts": "again", "more": "more"}


def test_where_the_system_cannot_lock_a_heartbeat_does(tmp_path, monkeypatch, fast):
    fcntl = pytest.importorskip("fcntl")

    def missing(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", missing)
    folder = epath.Path(tmp_path)
    with locks.hold_folder(folder):
        assert str(os.getpid()) in (folder / locks.LOCK).read_text()
        assert locks.is_held(folder / locks.LOCK)
    assert not (folder / locks.LOCK).exists()


def test_of_two_that_begin_at_once_one_is_refused(tmp_path, monkeypatch, fast):
    monkeypatch.setattr(locks, "is_remote", lambda path: True)
    folder, sleep = epath.Path(tmp_path), locks.time.sleep

    def another_writes_too(seconds):
        (folder / locks.LOCK).write_text("another-machine 1 abc 0")
        sleep(seconds)

    monkeypatch.setattr(locks.time, "sleep", another_writes_too)
    with pytest.raises(Taken), locks.hold_folder(folder):
        pass
    assert "another-machine" in (folder / locks.LOCK).read_text()


def test_a_step_that_was_cut_short_is_in_tensorboard_once(tmp_path):
    picture = contact_sheet([{"image": np.zeros((8, 8, 3), "f"), "inputs": "", "target": "", "prediction": ""}], "")
    for resumed_at in (0, 6, 6):
        writer = MetricWriter(tmp_path, resumed_at)
        for step in (0, 6):
            if step >= resumed_at:
                writer.write_picture(step, "validation", picture)
                writer.write(step, {"validation/accuracy": step / 10})
        writer.close()
    assert [row["step"] for row in read_json_lines(epath.Path(tmp_path) / "metrics.jsonl")] == [0, 6]
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [event.step for event in found.Scalars("validation/accuracy")] == [0, 6]
    assert [event.step for event in found.Images("validation/samples")][0] == 0


def test_an_evaluation_of_something_else_is_written_too(tmp_path):
    for accuracy in (0.25, 0.5):
        MetricWriter(tmp_path, None).write(0, {"test/accuracy": accuracy})
    assert [row["test/accuracy"] for row in read_json_lines(epath.Path(tmp_path) / "metrics.jsonl")] == [0.25, 0.5]


def test_a_file_that_another_process_writes_is_left_alone(tmp_path):
    path = epath.Path(tmp_path) / "predictions.jsonl"
    program = (
        "import sys\nfrom adalink_jax.serving.prediction_file import Output\n"
        f"output = Output({os.fspath(path)!r}, ['text'], {{}})\nprint('held', flush=True)\nsys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(Taken, match="Another process is writing .*predictions.jsonl"):
            Output(os.fspath(path), ["text"], {})
        process.kill()
    output = Output(os.fspath(path), ["text"], {})
    output.append([{"text": "a"}])
    output.finish()
    assert os.listdir(tmp_path) == ["predictions.jsonl"]


def test_damaged_metrics_and_pictures_of_a_run_are_left_out_or_refused_in_one_sentence(tmp_path):
    writer = MetricWriter(tmp_path, resumed_at=None)
    writer.write(4, {"validation/accuracy": 0.5})
    (tmp_path / "metrics.jsonl").write_bytes((tmp_path / "metrics.jsonl").read_bytes() + b'{"step": 4, "x\xdb": 1}\n')
    assert MetricWriter(tmp_path, resumed_at=4).has(4, "validation/accuracy")
    assert (tmp_path / "metrics.jsonl").read_text(encoding="utf-8") == '{"step": 4, "validation/accuracy": 0.5}\n'
    (tmp_path / "samples" / "step_000004_validation.png").mkdir(parents=True)
    with pytest.raises(UserError, match="step_000004_validation.png is a folder; give a picture"):
        MetricWriter(tmp_path, resumed_at=4)
    (tmp_path / "samples" / "step_000004_validation.png").rmdir()
    (tmp_path / "samples" / "step_000004_validation.png").write_bytes(b"\xff" * 30)
    MetricWriter(tmp_path, resumed_at=4)
