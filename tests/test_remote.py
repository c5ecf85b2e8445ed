"""Runs in a bucket, on a full disk, and in a read-only folder.

The bucket is an in-memory file system for gs:// that, like a bucket, can neither append nor rename. Orbax and tensorstore have their
own code for gs://, which needs a network, so their checkpoints go to a local folder.
"""

import dataclasses
import json
import os
import subprocess
import tempfile

import fsspec
import numpy as np
import pytest
from etils import epath
from etils.epath import gpath
from fsspec.implementations.memory import MemoryFileSystem
from helpers import adalink_here

from adalink_jax.cli.main import main
from adalink_jax.data import DatasetConfig, get_tasks
from adalink_jax.errors import UserError
from adalink_jax.files import metric_log
from adalink_jax.files.metric_log import has_metrics, read_metrics
from adalink_jax.training.metric_writer import MetricWriter
from adalink_jax.training.run_checkpoints import RunCheckpoints

SETTINGS = {"TRAIN_STEPS": 12, "EVAL_PERIOD": 6, "CHECKPOINT_PERIOD": 6, "BATCH_SIZE": 40, "RANK": 4, "WARMUP_STEPS": 2}
pytestmark = pytest.mark.usefixtures("few_scenes")


class Bucket(MemoryFileSystem):
    """A file system of objects, which are written whole; code that appends or renames fails the test."""

    protocol = ("gs", "gcs")
    cachable = False

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.replace("gs://", "memory://"))

    def open(self, path, mode="rb", **options):
        if "a" in mode or "+" in mode:
            raise AssertionError("objects cannot be appended to")
        return super().open(path, mode, **options)

    def _refuse(self, *_, **__):
        raise AssertionError("objects cannot be renamed")

    mv = move = rename = _refuse


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    for protocol in Bucket.protocol:
        fsspec.register_implementation(protocol, Bucket, clobber=True)
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)  # TensorFlow would read gs:// itself
    MemoryFileSystem.store.clear()
    init = RunCheckpoints.__init__
    here = lambda folder: tmp_path / str(folder).removeprefix("gs://")
    monkeypatch.setattr(
        RunCheckpoints, "__init__", lambda self, folder, *rest: init(self, here(folder), *rest), raising=True
    )
    yield Bucket()
    MemoryFileSystem.store.clear()


def flags(model_dir, **macros):
    return [f"--gin.MODEL_DIR='{model_dir}'", *(f"--gin.{k}={v!r}" for k, v in (SETTINGS | macros).items())]


@pytest.mark.slow
def test_a_run_in_a_bucket_is_a_run_in_a_folder(bucket, tmp_path, capsys):
    assert main(["quickstart", *flags("gs://bucket/run")]) == 0
    assert main(["quickstart", *flags(tmp_path / "run")]) == 0
    read = lambda name: bucket.cat(f"gs://bucket/run/{name}")
    steps = lambda text: [json.loads(row)["step"] for row in text.splitlines()]
    found = [row["step"] for row in read_metrics(epath.Path("gs://bucket/run"))]
    assert found == steps((tmp_path / "run" / "metrics.jsonl").read_text())
    name = "adapter/adapter_model.safetensors"
    assert read(name) == (tmp_path / "run" / name).read_bytes()
    assert read("samples.png")[:4] == b"\x89PNG"
    summary = json.loads(read("summary.json"))
    assert {"config.gin", "model-info.txt", "before.json"} < {p.split("/")[-1] for p in bucket.ls("/bucket/run", False)}
    (events,) = bucket.ls("/bucket/run/tensorboard", False)
    local = tmp_path / "events" / events.split("/")[-1]
    local.parent.mkdir()
    local.write_bytes(bucket.cat(events))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(local.parent))
    found.Reload()
    assert [event.step for event in found.Scalars("validation/accuracy")] == [0, 6, 12]
    capsys.readouterr()
    argv = [
        "eval",
        "--gin_file=gin/runs/quickstart.gin",
        "--json",
        "--gin.INITIAL_ADAPTER_PATH='gs://bucket/run/adapter'",
    ]
    assert main([*argv, "--gin.RANK=4", "--gin.BATCH_SIZE=40"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == summary["adapted_accuracy"]


def test_a_run_in_a_bucket_goes_on(bucket, capsys):
    assert main(["quickstart", *flags("gs://bucket/run", TRAIN_STEPS=6)]) == 0
    bucket.rm("/bucket/run/summary.json")
    more = ["--gin.warmup_cosine.total_steps=6"]
    assert main(["quickstart", *flags("gs://bucket/run", TRAIN_STEPS=12), *more]) == 0
    assert "Resuming from step 6" in capsys.readouterr().out
    rows = read_metrics(epath.Path("gs://bucket/run"))
    assert [row["step"] for row in rows if "validation/accuracy" in row] == [0, 6, 12]


def test_metrics_in_a_bucket_are_parts_that_are_written_once(bucket, monkeypatch):
    folder, now = epath.Path("gs://bucket/parts"), [0.0]
    monkeypatch.setattr(metric_log.time, "monotonic", lambda: now[0])
    names = lambda: sorted(path.split("/")[-1] for path in bucket.ls("/bucket/parts", False))
    writer = MetricWriter(folder, 0, ())
    for step in range(1, 7):
        writer.write(step, {"train/loss": 1 / step})
        now[0] += 11
    assert names() == ["metrics-00001.jsonl"] and [row["step"] for row in read_metrics(folder)] == [1, 2, 3, 4]
    writer.write(6, {"validation/accuracy": 0.5})  # an evaluation's scores are there at once
    first = {name: bucket.cat(f"/bucket/parts/{name}") for name in names()}
    assert len(first) == 2 and len(read_metrics(folder)) == 7
    resumed = MetricWriter(folder, 3, ())  # killed, and resumed from step 3
    assert resumed.series("train/loss") == [1, 1 / 2, 1 / 3] and not resumed.has(6, "validation/accuracy")
    for step in (3, 4, 5):
        resumed.write(step, {"train/loss": 9.0})
    resumed.close()
    assert {name: bucket.cat(f"/bucket/parts/{name}") for name in names()[:2]} == first
    assert [(row["step"], row["train/loss"]) for row in read_metrics(folder)] == [
        (1, 1), (2, 1 / 2), (3, 1 / 3), (4, 9), (5, 9)
    ]  # fmt: skip
    bucket.pipe("/bucket/parts/metrics.jsonl", b'{"step": 0, "test/accuracy": 0.25}\n')  # of an earlier version
    assert has_metrics(folder) and len(read_metrics(folder)) == 6


@pytest.mark.parametrize("kilobytes, words", [
    pytest.param(2, "could not be written (File too large); make room there", marks=pytest.mark.slow),
    pytest.param(60, "File too large", marks=pytest.mark.slow),
])  # fmt: skip
def test_a_full_disk_is_one_sentence_and_nothing_is_lost(tmp_path, kilobytes, words):
    """A limit on the size of files stands for a full disk: the first meets a file of the run, the second a checkpoint."""
    command = ["quickstart", *flags(tmp_path / "run", RANK=64)]
    limited = ["bash", "-c", f'ulimit -f {kilobytes}; exec "$@"', "bash", *adalink_here(*command)]
    env = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "0"}
    done = subprocess.run(limited, capture_output=True, text=True, env=env)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr and str(tmp_path / "run") in done.stderr
    assert "could not be written" in done.stderr and "make room there" in done.stderr
    assert done.stderr.count("\n") == 1
    assert main(command) == 0


def test_a_folder_that_cannot_be_made_is_one_sentence(capsys):
    assert main(["quickstart", *flags("/dev/null/run")]) == 2
    err = capsys.readouterr().err
    assert "/dev/null" in err and "give another folder" in err and err.count("\n") == 1


@pytest.mark.slow
def test_a_task_is_cached_in_a_bucket_and_read_from_copies(bucket, tmp_path, monkeypatch):
    pytest.importorskip("seqio")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert main(["cache-task", "digits_reverse", "gs://bucket/cache", "--gin_file=gin/tasks/digits.gin"]) == 0
    dataset = DatasetConfig("digits_reverse", {"inputs": 24, "targets": 4}, 8, task_cache="gs://bucket/cache")
    (cached, _), (uncached, _) = get_tasks(dataset), get_tasks(dataclasses.replace(dataset, task_cache=None))
    for read, example in zip(cached.examples("train"), uncached.examples("train"), strict=True):
        assert all(np.array_equal(read[name], example[name]) for name in ("inputs", "targets", "image"))
    (copy,) = tmp_path.glob("adalink_task_cache_*/*.array_record")
    copy.write_bytes(b"?" * copy.stat().st_size)
    again, _ = get_tasks(dataset)  # copies it anew
    for read, example in zip(again.examples("train"), uncached.examples("train"), strict=True):
        assert np.array_equal(read["inputs"], example["inputs"])
    shard = "/bucket/cache/digits_reverse/test-00000.array_record"
    bucket.pipe(shard, bucket.cat(shard)[:-1] + b"?")
    with pytest.raises(UserError, match="test-00000.array_record is damaged .its digest is not the stated one"):
        next(iter(cached.examples("test")))
