"""Trackers (TRACKERS) hold what `metrics.jsonl` holds, each step once, and cannot stop a run.

Those of other libraries are read back by the libraries themselves, without a network; skipped without them (`make test-trackers`).
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
from importlib import metadata

import pytest

pytest.importorskip("seqio")

from adalink_jax.cli.main import main  # noqa: E402

LIBRARIES = {"wandb": "wandb", "mlflow": "mlflow-skinny", "trackio": "trackio"}
STEPS, KILLED_AT = 24, 17
SPEED = (
    "train/examples_per_second",
    "train/input_wait",
    "timing/step_seconds",
    "timing/target_tokens_per_second",
)  # of a step that was made twice, either is right

# Kills the run between two steps; W&B and trackio have written some of the earlier ones to the disk by then, but not all.
KILLED = f"""
import os, sys, time
from adalink_jax.cli.main import main
from adalink_jax.training.metric_writer import MetricWriter
reached = MetricWriter.reached
def killing(self, step):
    reached(self, step)
    if step == {KILLED_AT - 3}:
        time.sleep(2)
    if step == {KILLED_AT}:
        os.kill(os.getpid(), 9)
MetricWriter.reached = killing
main(sys.argv[1:])
"""


def installed(name):
    try:
        return bool(metadata.version(LIBRARIES[name]))
    except metadata.PackageNotFoundError:
        return False


def needs(name):
    return pytest.mark.skipif(not installed(name), reason=f"needs {LIBRARIES[name]} (make test-trackers)")


def flags(model_dir, names, **macros):
    macros = {
        "TRAIN_STEPS": STEPS, "EVAL_PERIOD": 12, "CHECKPOINT_PERIOD": 6, "BATCH_SIZE": 40, "RANK": 4, "WARMUP_STEPS": 5,
        "train.log_period": 1, "TRACKERS": names, "MODEL_DIR": str(model_dir),
    } | macros  # fmt: skip
    return ["quickstart", *(f"--gin.{name}={value!r}" for name, value in macros.items())]


def places(folder):
    """Where the libraries keep their files, all below `folder`, and where this package is."""
    return {
        "PYTHONPATH": str(pathlib.Path(__file__).parents[1]),
        "WANDB_MODE": "offline", "WANDB_CACHE_DIR": f"{folder}/wandb", "WANDB_DATA_DIR": f"{folder}/wandb",
        "WANDB_CONFIG_DIR": f"{folder}/wandb", "WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL": "0.2",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "TRACKIO_DIR": f"{folder}/trackio",
    }  # fmt: skip


def by_step(model_dir):
    """`metrics.jsonl` as step -> tag -> value."""
    steps = {}
    for line in (model_dir / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        steps.setdefault(row.pop("step"), {}).update(row)
    return steps


def check_equal(found, model_dir):
    """Compares steps, a list of (step, values), with `metrics.jsonl`."""
    recorded = by_step(model_dir)
    assert [step for step, _ in found] == sorted(recorded)
    for step, values in found:
        assert values.keys() == recorded[step].keys()
        fixed = [tag for tag in values if step <= 12 or step > KILLED_AT or tag not in SPEED]
        assert {tag: values[tag] for tag in fixed} == {tag: recorded[step][tag] for tag in fixed}


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """The folder of a run that was killed and resumed, with all trackers that are installed; around it their files."""
    folder = tmp_path_factory.mktemp("tracked")
    names = ("tensorboard", *filter(installed, LIBRARIES))
    arguments = flags(folder / "run", names)
    environment = os.environ | places(folder)
    how = {"cwd": folder, "env": environment, "capture_output": True, "text": True, "timeout": 300}
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], **how)
    assert killed.returncode == -9, killed.stderr[-3000:]
    runs = (folder / "run" / "trackers.json").read_text() if len(names) > 1 else None
    resumed = subprocess.run([sys.executable, "-m", "adalink_jax", *arguments], **how)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert "Resuming from step 12" in resumed.stdout and "failed" not in resumed.stdout
    if runs is not None:
        assert (folder / "run" / "trackers.json").read_text() == runs
    return folder / "run"


def run_of(tracked, name):
    return json.loads((tracked / "trackers.json").read_text())[name]


@pytest.mark.slow  # two processes; `make test-trackers` runs it
def test_tensorboard_has_each_step_once_after_a_kill(tracked):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tracked / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    recorded = by_step(tracked)
    for tag in {tag for row in recorded.values() for tag in row}:
        wanted = {step: row[tag] for step, row in recorded.items() if tag in row}
        assert {event.step: event.value for event in events.Scalars(tag)} == pytest.approx(wanted, rel=1e-6)
        assert [event.step for event in events.Scalars(tag)] == sorted(wanted)
    assert [event.step for event in events.Images("validation/samples")] == [0, 12, 24]


@needs("wandb")
def test_wandb_has_each_step_once_after_a_kill(tracked):
    name = run_of(tracked, "wandb")
    files = sorted(tracked.glob(f"wandb/offline-run-*-{name}/run-{name}.wandb"))
    assert len(files) == 2  # of the process that was killed, and of the one that resumed
    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json"]
    of_files = []
    for file in files:
        lines = subprocess.run([*inspect, str(file)], capture_output=True, text=True, check=True).stdout.splitlines()
        of_files.append([json.loads(line) for line in lines])
    assert all(any(record["type"] == "history" for record in records) for records in of_files)
    records = [record for records in of_files for record in records]
    rows = [record["history"]["item"] for record in records if record["type"] == "history"]
    metrics = lambda row: {tag: x for tag, x in row.items() if not tag.startswith("_") and "/samples." not in tag}
    check_equal([(row["_step"], metrics(row)) for row in rows], tracked)
    pictures = {row["_step"]: row["validation/samples.path"] for row in rows if "validation/samples.path" in row}
    assert sorted(pictures) == [0, 12, 24]
    assert all(list(tracked.glob(f"wandb/offline-run-*/files/{path}")) for path in pictures.values())
    config = {}
    for record in records:
        if record["type"] in ("run", "config"):
            config |= record[record["type"]].get("config", record[record["type"]]).get("update", {})
    assert config["RANK"] == 4 and "train.total_steps = %TRAIN_STEPS" in config["config.gin"]
    (artifact,) = [record["artifact"] for record in records if record["type"] == "artifact"]
    kept = {entry["path"] for entry in artifact["manifest"]["contents"]}
    assert artifact["type"] == "model" and kept == {path.name for path in (tracked / "adapter").iterdir()}


@needs("mlflow")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # SQLAlchemy's, of how MLflow uses it
def test_mlflow_has_each_step_once_after_a_kill(tracked, tmp_path):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tracked.parent}/mlflow.db")
    (experiment,) = client.search_experiments()
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == run_of(tracked, "mlflow") and run.info.status == "FINISHED"
    steps = {}
    for tag in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, tag):
            assert tag not in steps.setdefault(metric.step, {})
            steps[metric.step][tag] = metric.value
    check_equal(sorted(steps.items()), tracked)
    assert run.data.params["RANK"] == "4" and run.data.params["TRAIN_STEPS"] == str(STEPS)
    there = client.download_artifacts(run.info.run_id, "", str(tmp_path))
    read = lambda name: pathlib.Path(there, name).read_bytes()
    assert read("config.gin") == (tracked / "config.gin").read_bytes()
    assert read("adapter/adapter_model.safetensors") == (tracked / "adapter" / "adapter_model.safetensors").read_bytes()
    assert sorted(os.listdir(f"{there}/validation/samples")) == [f"step_{step:06d}.png" for step in (0, 12, 24)]


@needs("trackio")
def test_trackio_has_each_step_once_after_a_kill(tracked):
    read = (
        "import json, trackio\nfrom trackio.sqlite_storage import SQLiteStorage\n(run,) = trackio.Api().runs('adalink')\n"
        "print(json.dumps([run.name, run.config, SQLiteStorage.get_logs('adalink', run.name)]))"
    )
    environment = os.environ | places(tracked.parent)
    done = subprocess.run([sys.executable, "-c", read], env=environment, capture_output=True, text=True, check=True)
    name, config, rows = json.loads(done.stdout)
    assert name == run_of(tracked, "trackio")
    values = lambda row: {tag: x for tag, x in row.items() if tag not in ("step", "timestamp") and type(x) is not dict}
    check_equal([(row["step"], values(row)) for row in rows], tracked)
    pictures = {row["step"]: row["validation/samples"] for row in rows if "validation/samples" in row}
    assert sorted(pictures) == [0, 12, 24] and {x["_type"] for x in pictures.values()} == {"trackio.image"}
    assert config["RANK"] == 4 and "train.total_steps = %TRAIN_STEPS" in config["config.gin"]
    kept = [path.read_bytes() for path in (tracked.parent / "trackio" / "artifacts").rglob("*") if path.is_file()]
    assert (tracked / "adapter" / "adapter_model.safetensors").read_bytes() in kept


DOWN = {
    "wandb": {"WANDB_MODE": "online", "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "a" * 40, "WANDB_INIT_TIMEOUT": "2"},
    "mlflow": {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"},
    "trackio": {"TRACKIO_SERVER_URL": "http://127.0.0.1:9"},  # and no token for it
}  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in LIBRARIES])
def test_a_tracker_that_is_down_does_not_change_the_run(name, tracked, tmp_path):
    arguments = flags(tmp_path / "run", (name,))
    environment = os.environ | places(tmp_path) | DOWN[name]
    how = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run([sys.executable, "-m", "adalink_jax", *arguments], **how)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count(f"The tracker {name} failed (") == 1, done.stdout
    adapters = [folder / "adapter" / "adapter_model.safetensors" for folder in (tracked, tmp_path / "run")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_loaded(name, tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda of, *more: None if of == name else find(of, *more))
    assert main(flags(tmp_path / "run", ("tensorboard", name))) == 2
    sentence = f"TRACKERS has {name!r}, which is not installed: pip install 'adalink-jax[{name}]'."
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_folder_that_wandb_wrote_to_is_not_taken_for_the_library(tmp_path, monkeypatch):
    from adalink_jax.errors import UserError
    from adalink_jax.training.trackers import import_libraries

    (tmp_path / "some_library").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="not installed"):
        import_libraries(["some_library"])


@pytest.mark.parametrize("names, words", [
    (("tensorbord",), "'tensorboard' or 'wandb' or 'mlflow' or 'trackio'"), ("wandb", "a list, not one text"),
])  # fmt: skip
def test_an_unknown_tracker_is_refused(names, words, tmp_path, capsys):
    assert main(flags(tmp_path / "run", names)) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_pack_refuses_trackers_of_which_its_members_would_be_runs(tmp_path, capsys):
    files = ("models/pali_nano", "adapters/adalink", "tasks/digits")
    settings = {"MODEL_DIR": f"'{tmp_path}/pack'", "TRAIN_STEPS": 2, "BATCH_SIZE": 8, "TRACKERS": "('wandb',)",
                "INITIAL_CHECKPOINT_PATH": "'bundled:pali_nano_instruct'", "MIXTURE_OR_TASK_NAME": "'digits'"}  # fmt: skip
    command = ["pack", *(f"--gin_file=gin/{name}.gin" for name in files)]
    assert main([*command, *(f"--gin.{name}={value}" for name, value in settings.items())]) == 2
    assert (
        "TRACKERS has 'wandb', and the members of a pack are followed by tensorboard alone" in capsys.readouterr().err
    )


def test_without_trackers_a_run_writes_metrics_alone(tmp_path, capsys):
    assert (
        main(flags(tmp_path / "run", (), TRAIN_STEPS=2, WARMUP_STEPS=1, EVAL_PERIOD=0, **{"train.metric": None})) == 0
    )
    assert not (tmp_path / "run" / "tensorboard").exists() and by_step(tmp_path / "run").keys() == {1, 2}
    assert "tensorboard" not in capsys.readouterr().out
