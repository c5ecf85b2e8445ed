"""Jobs of several processes: the same results, the same data, orderly ends. Each process is an `adalink train` of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

pytest.importorskip("seqio")

from adalink_jax.cli.main import main  # noqa: E402
from adalink_jax.data import EpochIterator, FeatureConverter, padded_batches  # noqa: E402

STEPS = 40
TASK = """
import functools
import seqio
import tensorflow as tf
from adalink_jax.data import digits, seqio_tasks

def scenes(split, shuffle_files, seed=None):
    count = {"train": 1000, "validation": 20, "test": 40}[split]
    return tf.data.Dataset.from_tensor_slices(digits.compose("digits_reverse", split)).take(count)

task = seqio.TaskRegistry.get("digits_reverse")
seqio.TaskRegistry.add(
    "digits_few", source=seqio.FunctionDataSource(scenes, splits=["train", "validation", "test"]),
    preprocessors=task.preprocessors, output_features=task.output_features, metric_fns=task.metric_fns)
"""


def flags(model_dir, **macros):
    macros = {
        "MODEL_DIR": str(model_dir),
        "TRAIN_STEPS": STEPS,
        "EVAL_PERIOD": 20,
        "CHECKPOINT_PERIOD": 1000,
        "BATCH_SIZE": 32,  # the 40 test examples leave a batch in which three of four processes have padding only
        "RANK": 4,
        "WARMUP_STEPS": 2,
        "LEARNING_RATE": 1e-3,
        "MIXTURE_OR_TASK_NAME": "digits_few",
        "DatasetConfig.mixture_or_task_module": "few_digits",
        "train.log_period": 1,
    } | macros
    return [*(f"--gin.{name}={value!r}" for name, value in macros.items())]


class Job:
    """Processes that run one command; at the end of the context none is left."""

    def __init__(self, count, arguments, cwd, devices=1):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "adalink_jax", *arguments]
        several = lambda i: [
            f"--coordinator_address=localhost:{port}",
            f"--process_count={count}",
            f"--process_index={i}",
        ]
        env = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        start = lambda i: subprocess.Popen(
            command + (several(i) if count > 1 else []), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=env, cwd=cwd,
        )  # fmt: skip
        self.processes = [start(i) for i in range(count)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.communicate()

    def wait_for(self, condition, seconds=240):
        deadline = time.monotonic() + seconds
        while not condition():
            for process in self.processes:
                assert process.poll() is None, process.communicate()[0][-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def end(self, seconds=240):
        """Exit statuses and outputs."""
        deadline = time.monotonic() + seconds
        outputs = [process.communicate(timeout=max(1, deadline - time.monotonic()))[0] for process in self.processes]
        return [process.returncode for process in self.processes], outputs


def rows(model_dir):
    path = model_dir / "metrics.jsonl"
    return [json.loads(row) for row in path.read_text().splitlines()] if path.exists() else []


def trained(model_dir, step):
    return any(row["step"] >= step and "train/loss" in row for row in rows(model_dir))


def assert_same_run(found, wanted):
    keep = lambda row: {name: value for name, value in row.items() if name != "train/examples_per_second"}
    assert [list(keep(row)) for row in rows(found)] == [list(keep(row)) for row in rows(wanted)]
    for one, other in zip(rows(found), rows(wanted)):
        assert keep(one) == pytest.approx(keep(other), rel=1e-5)
    for folder in ("adapter", "adapter_last"):
        one, other = (load_file(path / folder / "adapter_model.safetensors") for path in (found, wanted))
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_allclose(one[name], other[name], atol=1e-5, err_msg=f"{folder} {name}")
    one, other = (json.loads((path / "summary.json").read_text()) for path in (found, wanted))
    assert one | {"seconds": 0} == other | {"seconds": 0}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the task's module, from which every command is given."""
    folder = tmp_path_factory.mktemp("hosts")
    (folder / "few_digits.py").write_text(TASK)
    return folder


@pytest.fixture(scope="module")
def alone(place):
    """The run of one process that nothing disturbs."""
    with Job(1, ["quickstart", *flags(place / "alone")], place) as job:
        statuses, outputs = job.end()
    assert statuses == [0], outputs[0][-3000:]
    return place / "alone"


def test_two_processes_give_the_run_of_one(place, alone):
    with Job(2, ["quickstart", *flags(place / "two")], place) as job:
        statuses, outputs = job.end()
    assert statuses == [0, 0], [text[-3000:] for text in outputs]
    assert_same_run(place / "two", alone)
    assert "best step" in outputs[0] and "best step" not in outputs[1]  # one of them prints


def test_a_job_stopped_with_four_goes_on_with_two_and_ends_with_one(place, alone):
    model_dir, saved = place / "fewer", []
    for count, until in ((4, 4), (2, 16)):
        with Job(count, ["quickstart", *flags(model_dir)], place) as job:
            job.wait_for(lambda until=until: trained(model_dir, until))
            job.processes[-1].send_signal(signal.SIGTERM)
            statuses, outputs = job.end(60)
        assert statuses == [75] * count, [text[-3000:] for text in outputs]
        saved.append(max(int(path.name) for path in (model_dir / "checkpoints").iterdir()))
        for text in outputs:
            assert f"Stopped after step {saved[-1]} and saved; the same command goes on from there." in text
            assert "Traceback" not in text
    assert saved[0] < saved[1] < STEPS
    assert not (model_dir / "summary.json").exists()
    with Job(1, ["quickstart", *flags(model_dir)], place) as job:
        statuses, outputs = job.end()
    assert statuses == [0], outputs[0][-3000:]
    assert f"Going on from step {saved[1]} " in outputs[0]
    assert_same_run(model_dir, alone)


@pytest.mark.parametrize("victim", [1, 0])
def test_a_killed_process_ends_the_job(place, victim):
    model_dir = place / f"killed_{victim}"
    with Job(2, ["quickstart", *flags(model_dir, TRAIN_STEPS=100_000, EVAL_PERIOD=0)], place) as job:
        job.wait_for(lambda: trained(model_dir, 5))
        job.processes[victim].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        statuses, outputs = job.end(90)
    assert time.monotonic() - killed < 60
    assert all(statuses), outputs
    print(statuses, time.monotonic() - killed, outputs[1 - victim][-3000:])
