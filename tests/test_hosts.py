"""Jobs of several processes: the same results, the same data, orderly ends. Each process is a separate command."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import with_devices
from safetensors.numpy import load_file

pytest.importorskip("seqio")

from adalink_jax.cli.main import main  # noqa: E402
from adalink_jax.data import EpochIterator, FeatureConverter, padded_batches  # noqa: E402
from adalink_jax.training.interrupt import Interrupted, StopRequest  # noqa: E402

STEPS = 40
MEASURED = ("train/examples_per_second", "train/input_wait", "timing/step_seconds", "timing/target_tokens_per_second")
TASK = """
import functools
import os
import seqio
import tensorflow as tf
from adalink_jax.data import digits, seqio_tasks

def scenes(split, shuffle_files, seed=None):
    # It is trained on what it cannot do, and scored on what it nearly can.
    name = "digits_reverse" if split == "train" else "digits_largest"
    count = {"train": 1000, "validation": 20, "test": 40}[split]
    return tf.data.Dataset.from_tensor_slices(digits.compose(name, split)).take(count)

task = seqio.TaskRegistry.get("digits_reverse")
seqio.TaskRegistry.add(
    "digits_few", source=seqio.FunctionDataSource(scenes, splits=["train", "validation", "test"]),
    preprocessors=task.preprocessors, output_features=task.output_features, metric_fns=task.metric_fns)
seqio.TaskRegistry.add(
    "digits_more", source=seqio.FunctionDataSource(scenes, splits=["train"]), preprocessors=[
        *task.preprocessors, lambda dataset: dataset.take(int(os.environ.get('DIGITS_MORE', 200)))],
    output_features=task.output_features, metric_fns=task.metric_fns)
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
    """Processes that run one command; leaving the context ends all of them."""

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
        env = with_devices(devices)
        start = lambda i: subprocess.Popen(
            command + (several(i) if count > 1 else []), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=env, cwd=cwd[i] if isinstance(cwd, list) else cwd,
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
    keep = lambda row: {name: value for name, value in row.items() if name not in MEASURED}
    assert [list(keep(row)) for row in rows(found)] == [list(keep(row)) for row in rows(wanted)]
    for one, other in zip(rows(found), rows(wanted)):
        assert keep(one) == pytest.approx(keep(other), rel=1e-5)
    for folder in ("adapter", "adapter_last"):
        one, other = (load_file(path / folder / "adapter_model.safetensors") for path in (found, wanted))
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_allclose(one[name], other[name], atol=1e-5, err_msg=f"{folder} {name}")
    one, other = (json.loads((path / "summary.json").read_text()) for path in (found, wanted))
    varying = {"seconds": 0, "step_seconds": 0, "input_wait": 0, "segments": []}
    assert one | varying == other | varying
    assert (found / "before.json").read_text() == (wanted / "before.json").read_text()  # predictions, in order


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the task's module, from which every command is run."""
    folder = tmp_path_factory.mktemp("hosts")
    (folder / "few_digits.py").write_text(TASK)
    return folder


@pytest.fixture(scope="module")
def alone(place):
    """An undisturbed run of one process, this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.syspath_prepend(place)
        assert main(["quickstart", *flags(place / "alone")]) == 0
    return place / "alone"


@pytest.mark.parametrize("count, devices, more", [
    (2, 1, []),
    pytest.param(4, 1, [], marks=pytest.mark.slow),
    # The processes share all rows: the model is split over both.
    pytest.param(2, 2, ["--gin_file=gin/meshes/model_parallel.gin", "--gin.MODEL_DEVICES=4"], marks=pytest.mark.slow),
])  # fmt: skip
def test_several_processes_give_the_run_of_one(place, alone, count, devices, more):
    model_dir = place / f"{count}_processes_{devices}_devices"
    macros = {"NUM_DEVICES": count * devices, "CheckpointConfig.every_seconds": 0.01}
    with Job(count, ["quickstart", *more, *flags(model_dir, **macros)], place, devices) as job:
        statuses, outputs = job.end()
    assert statuses == [0] * count, [text[-3000:] for text in outputs]
    saved = sorted(int(path.name) for path in (model_dir / "checkpoints").iterdir())
    assert len(saved) == 2 and saved[0] < saved[1] == STEPS, "one of the clock, after the same step in all processes"
    assert_same_run(model_dir, alone)
    assert ["best step" in text for text in outputs] == [True] + [False] * (count - 1)  # one of them prints


@pytest.mark.slow
@pytest.mark.parametrize("counts", [(2, 1), (4, 2, 1)])
def test_a_stopped_job_resumes_with_fewer_processes_and_the_same_data(place, alone, counts, monkeypatch, capsys):
    model_dir, saved = place / f"stopped_{counts}", [0]
    for count in counts[:-1]:
        with Job(count, ["quickstart", *flags(model_dir)], place) as job:
            job.wait_for(lambda: trained(model_dir, saved[-1] + 4))
            job.processes[-1].send_signal(signal.SIGTERM)
            statuses, outputs = job.end(60)
        assert statuses == [75] * count, [text[-3000:] for text in outputs]
        saved.append(max(int(path.name) for path in (model_dir / "checkpoints").iterdir()))
        for text in outputs:
            assert f"Stopped after step {saved[-1]} and saved; rerun the same command to resume." in text
            assert "Traceback" not in text
    assert saved == sorted(set(saved)) and saved[-1] < STEPS
    assert not (model_dir / "summary.json").exists()
    assert counts[-1] == 1  # this process
    monkeypatch.chdir(place)
    assert main(["quickstart", *flags(model_dir)]) == 0
    assert f"Resuming from step {saved[-1]} " in capsys.readouterr().out
    assert_same_run(model_dir, alone)


@pytest.mark.slow
def test_profile_traces_every_process_of_a_job(place, capsys):
    model_dir = place / "profiled"
    with Job(2, ["quickstart", *flags(model_dir, TRAIN_STEPS=100_000, EVAL_PERIOD=0)], place) as job:
        job.wait_for(lambda: trained(model_dir, 2))
        capsys.readouterr()
        assert main(["profile", str(model_dir), "--steps=3", "--json", "--wait=120"]) == 0
        found = json.loads(capsys.readouterr().out)
        job.processes[0].send_signal(signal.SIGTERM)
        statuses, _ = job.end(120)
    assert statuses == [75, 75]
    assert found["files"] == 2 and found["collectives"] > 0


@pytest.mark.slow
def test_all_processes_name_the_example_that_is_not_finite(place):
    """It is a row of the second process: every process computes with it, and all end alike."""
    scenes = "digits.compose(name, split)"
    poisoned = f"{{**(whole := {scenes}), 'image': np.where(np.arange(len(whole['image']))[:, None, None, None] == 30, POISON[split], whole['image'])}}"
    text = "import numpy as np\nPOISON = {'train': np.float32('nan'), 'validation': np.float32(0), 'test': np.float32(0)}\n"
    text += TASK.replace(scenes, poisoned)
    (place / "poisoned_digits.py").write_text(text.replace("digits_few", "digits_poisoned"))
    names = {"MIXTURE_OR_TASK_NAME": "digits_poisoned", "DatasetConfig.mixture_or_task_module": "poisoned_digits"}
    with Job(2, ["quickstart", *flags(place / "poisoned", **names)], place) as job:
        statuses, outputs = job.end()
    assert statuses == [3, 3], [text[-3000:] for text in outputs]
    found = [
        re.search(r"The loss of step \d+ is nan. Row \d+ of the batch .* Training stopped.*", text) for text in outputs
    ]
    assert found[0] and found[1] and found[0][0] == found[1][0], outputs
    assert "alone makes it so: its images are not finite" in found[0][0]


WITHIN = """
import argparse, sys, time
from jax.experimental import multihost_utils
from adalink_jax.cli.arguments import processes
index = int(sys.argv[2])
options = dict(multiprocess=False, coordinator_address=sys.argv[1], process_count=2, process_index=index)
with processes(argparse.Namespace(initialization_timeout=20, heartbeat_timeout=10, **options)):
    {}
"""


def start_two(text):
    """Starts two processes of a job that run this text instead of a command."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-c", WITHIN.format(text), address]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen([*command, str(i)], **pipes) for i in range(2)]


@pytest.mark.slow
def test_a_process_that_comes_late_to_the_end_is_waited_for():
    """It comes later than JAX itself would wait, which would then end the others by SIGABRT."""
    assert [process.wait(120) for process in start_two("time.sleep(30 * index)")] == [0, 0]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_what_waits_for_it(victim):
    """A job that trains: a later test, which is slow."""
    processes = start_two("while True: print(multihost_utils.process_allgather(index), flush=True)")
    try:
        assert "[0 1]\n" in iter(processes[victim].stdout.readline, "")  # after a line of Gloo's
        processes[victim].kill()
        err = processes[1 - victim].communicate(timeout=60)[1]
        assert processes[1 - victim].returncode == 75
        assert re.search("Stopped by the loss of another process.*; rerun the same command", err)
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("index", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_process_that_nobody_joins_ends_with_a_restartable_status(place, index):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    alone = [f"--coordinator_address={address}", "--process_count=2", f"--process_index={index}"]
    with Job(1, ["quickstart", *flags(place / "nobody"), *alone, "--initialization_timeout=2"], place) as job:
        statuses, outputs = job.end(60)
    assert statuses == [75]
    assert "Stopped by a process that did not come within 2 s (--initialization_timeout)" in outputs[0]


@pytest.mark.slow
@pytest.mark.parametrize("victim, number", [
    (1, signal.SIGKILL),
    (0, signal.SIGKILL),
    (1, signal.SIGSTOP),  # it is silent while its connections are open
])  # fmt: skip
def test_a_killed_process_ends_the_job(place, victim, number):
    model_dir = place / f"killed_{victim}_{number}"
    with Job(
        2, ["quickstart", *flags(model_dir, TRAIN_STEPS=100_000, EVAL_PERIOD=0), "--heartbeat_timeout=10"], place
    ) as job:
        job.wait_for(lambda: trained(model_dir, 2))
        job.processes[victim].send_signal(number)
        other = job.processes[1 - victim]
        output = other.communicate(timeout=60)[0]
        assert other.returncode == 75 and "Stopped by the loss of another process" in output
        job.processes[victim].send_signal(signal.SIGCONT)
        job.processes[victim].communicate(timeout=30)
        assert job.processes[victim].returncode != 0


@pytest.mark.slow
def test_eval_counts_every_example_once_on_any_number_of_processes(place, alone):
    config = [f"--gin_file={alone}/config.gin", f"--gin.INITIAL_ADAPTER_PATH='{alone}/adapter'", "--json"]
    with Job(2, ["eval", *config], place) as job:
        statuses, outputs = job.end()
    assert statuses == [0, 0], [text[-3000:] for text in outputs]
    score = json.loads((alone / "summary.json").read_text())["adapted_accuracy"]
    assert f'{{"accuracy": {score!r}}}' in outputs[0] and "accuracy" not in outputs[1]


def test_the_rows_of_all_processes_are_the_global_batch():
    examples = [{"inputs": [i + 3, 1], "targets": [i + 3, 1], "image": np.full((2, 2, 1), i)} for i in range(13)]
    converter = FeatureConverter({"inputs": 4, "targets": 4})
    shares = [[0, 1, 4, 5], [2, 3, 6, 7]]
    whole = EpochIterator(lambda seed, start: examples[start:], converter, 8, seed=0)
    parts = [EpochIterator(lambda seed, start: examples[start:], converter, 8, 0, rows) for rows in shares]
    batch = next(whole)
    for rows, part in zip(shares, parts):
        np.testing.assert_equal(next(part), {name: x[rows] for name, x in batch.items()})
        assert part.get_state() == whole.get_state()
    for rows in [*shares, [6, 7]]:  # of the last batch, 5 of 8, the last rows are padding only
        for (batch, these), (part, those) in zip(
            padded_batches(examples, converter, 8), padded_batches(examples, converter, 8, rows), strict=True
        ):
            assert these == those
            np.testing.assert_equal(part, {name: x[rows] for name, x in batch.items()})


@pytest.mark.parametrize("arguments, words", [
    (["--process_count=2"], ["go together; missing: --coordinator_address, --process_index."]),
    (["--coordinator_address=here:1", "--process_count=2"], ["missing: --process_index."]),
    (["--coordinator_address=here:1", "--process_count=2", "--process_index=2"], ["--process_index=2", "less than --process_count=2"]),
    (["--coordinator_address=here", "--process_count=2", "--process_index=0"], ["--coordinator_address=here must be"]),
    (["--gin.NUM_DEVICES=16"], ["NUM_DEVICES is 16, but the job has 1"]),
])  # fmt: skip
def test_a_job_with_other_devices_or_processes_is_refused_in_one_sentence(tmp_path, capsys, arguments, words):
    for command in ("quickstart", "eval"):
        argv = ["--gin_file=gin/runs/quickstart.gin"] if command == "eval" else []
        assert main([command, *argv, f"--gin.MODEL_DIR='{tmp_path}/run'", *arguments]) == 2
        err = capsys.readouterr().err
        for word in words:
            assert word in err
        assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_the_status_distinguishes_a_preemption_from_ctrl_c(number, status):
    with StopRequest() as stop:
        assert not stop.requested()
        os.kill(os.getpid(), number)
        with pytest.raises(Interrupted):
            stop.check()
        assert stop.requested() and stop.stopped("Stopped.").status == status


def test_a_missing_cluster_gives_one_sentence(place):
    with Job(1, ["quickstart", "--multiprocess", *flags(place / "nowhere")], place) as job:
        statuses, outputs = job.end()
    assert statuses == [2]
    assert "--multiprocess found no cluster" in outputs[0] and outputs[0].count("\n") == 1


def own_table(folder, name):
    rows = [f"text {i},{i % 5}" for i in range(400)]
    (folder / name).mkdir()
    (folder / name / "rows.csv").write_text("\n".join(["text,label", *rows]))
    return folder / name


def own_flags(model_dir):
    return [
        "train", "--gin_file=gin/models/pali_nano.gin", "--gin_file=gin/adapters/adalink.gin", "--gin_file=gin/tasks/files.gin",
        "--gin_file=gin/runs/finetune.gin", f"--gin.MODEL_DIR='{model_dir}'", "--gin.TRAIN_STEPS=4", "--gin.EVAL_PERIOD=0",
        "--gin.INITIAL_CHECKPOINT_PATH='bundled:pali_nano_instruct'", "--gin.DATA='rows.csv'", "--gin.INPUTS='{text}'",
        "--gin.TARGETS='{label}'", "--gin.VOCABULARY='bytes'", "--gin.MIXTURE_OR_TASK_NAME='rows'", "--gin.METRIC=None",
        "--gin.TASK_FEATURE_LENGTHS={'inputs': 12, 'targets': 4}", "--gin.KINDS=('text',)", "--gin.RANK=4",
        "--gin.BATCH_SIZE=8", "--gin.BLANK_IMAGE=True", "--gin.DataAgreement.every=2",
    ]  # fmt: skip


@pytest.mark.parametrize("differs", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_process_with_other_data_ends_the_job_in_one_sentence(tmp_path, differs):
    folders = [own_table(tmp_path, "a"), own_table(tmp_path, "b")]
    if differs:
        text = (folders[1] / "rows.csv").read_text()
        (folders[1] / "rows.csv").write_text(text.replace(",3\n", ",4\n"))
    with Job(2, own_flags(tmp_path / "run"), folders) as job:
        statuses, outputs = job.end()
    assert statuses == ([2, 2] if differs else [0, 0]), [text[-3000:] for text in outputs]
    for text in outputs:
        assert ("process 1 not that of process 0; give every host the same files (DATA, TASK_CACHE)" in text) == differs


def cached_flags(model_dir, *more):
    return [
        "train", "--gin_file=gin/models/pali_nano.gin", "--gin_file=gin/adapters/adalink.gin", "--gin_file=gin/tasks/digits.gin",
        *more, "--gin_file=gin/runs/finetune.gin", f"--gin.MODEL_DIR='{model_dir}'", "--gin.TRAIN_STEPS=4", "--gin.EVAL_PERIOD=0",
        "--gin.INITIAL_CHECKPOINT_PATH='bundled:pali_nano_instruct'", "--gin.MIXTURE_OR_TASK_NAME='digits_few'", "--gin.train.metric=None",
        "--gin.DatasetConfig.mixture_or_task_module='few_digits'", "--gin.TASK_CACHE='cache'", "--gin.RANK=4", "--gin.BATCH_SIZE=32",
        "--gin.DataAgreement.every=1",
    ]  # fmt: skip


MIXED = [
    "--gin_file=gin/tasks/mixing.gin",
    "--gin.MIXTURE=('digits_few', 'digits_more')",
    "--gin.MIXTURE_TEMPERATURE=2.0",
]


def cache_digits(folder, monkeypatch):
    """Caches both tasks in `folder`/cache."""
    flags = ["--gin_file=gin/tasks/digits.gin", "--gin.DatasetConfig.mixture_or_task_module='few_digits'"]
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        for name in ("digits_few", "digits_more"):
            assert main(["cache-task", name, "cache", *flags]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mixture", "task", "own files"])
@pytest.mark.parametrize("count", [2, 4, 8])
def test_hosts_that_read_their_own_rows_train_the_adapter_of_one(tmp_path, monkeypatch, kind, count):
    if kind == "own files":
        folder = own_table(tmp_path, "a")
        flags = own_flags
    else:
        folder, flags = tmp_path, lambda model_dir: cached_flags(model_dir, *(MIXED if kind == "mixture" else []))
        (tmp_path / "few_digits.py").write_text(TASK)
        cache_digits(tmp_path, monkeypatch)
    with Job(count, flags(tmp_path / "several"), folder) as job:
        statuses, outputs = job.end()
    assert statuses == [0] * count, [text[-3000:] for text in outputs]
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    assert main(flags(tmp_path / "one")) == 0
    one, several = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("one", "several"))
    for name in one:
        np.testing.assert_allclose(several[name], one[name], atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_a_process_with_another_cache_ends_the_job_in_one_sentence(tmp_path, monkeypatch):
    """The caches have the same sizes, and differ in one example of one task: only their digests tell."""
    taken = "dataset.take(int(os.environ.get('DIGITS_MORE', 200)))"
    assert taken in TASK
    for name, examples in (("a", taken), ("b", "dataset.take(199).concatenate(dataset.skip(300).take(1))")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "few_digits.py").write_text(TASK.replace(taken, examples))
        command = [sys.executable, "-m", "adalink_jax", "cache-task", "digits_few", "cache", "--gin_file=gin/tasks/digits.gin",
                   "--gin.DatasetConfig.mixture_or_task_module='few_digits'", "--trust_modules"]  # fmt: skip
        for task in ("digits_few", "digits_more"):
            command[4] = task
            subprocess.run(command, cwd=tmp_path / name, check=True)
    with Job(2, cached_flags(tmp_path / "run", *MIXED), [tmp_path / "a", tmp_path / "b"]) as job:
        statuses, outputs = job.end()
    assert statuses == [2, 2], [text[-3000:] for text in outputs]
    sentence = "After step 0 the processes have different training data: process 1 not that of process 0; give every host the same files (DATA"
    assert all(sentence in text for text in outputs)
