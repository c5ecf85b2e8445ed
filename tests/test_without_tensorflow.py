"""Without TensorFlow and seqio everything works except seqio tasks, up to training on NumPy batches."""

import subprocess
import sys
import textwrap

import pytest

BLOCK = """
import importlib.machinery
import sys

BLOCKED = ("tensorflow", "tensorflow_text", "tensorflow_datasets", "seqio", "keras")
find = importlib.machinery.PathFinder.find_spec
hide = lambda name, path=None, target=None: None if name.split(".")[0] in BLOCKED else find(name, path, target)
importlib.machinery.PathFinder.find_spec = hide
"""

TRAIN = """
import jax
import jax.numpy as jnp
import numpy as np

import adalink_jax
from adalink_jax import AdaLinkAdapter, AdaptedModel, PaLI, T5Config, ViTConfig, checkpoints, parallel
from adalink_jax.data import EpochIterator, FeatureConverter, digits
from adalink_jax.data.vocabularies import ByteVocabulary
from adalink_jax.training import metric_writer, optimizers, partition, run, setup
from adalink_jax.training.evaluation import Evaluator
from adalink_jax.training.loop import run_loop
from adalink_jax.training.step import TrainState, make_train_step

vocabulary, scenes = ByteVocabulary(), digits.compose("digits_reverse", "validation")


def examples(seed, start):
    for i in np.random.default_rng(seed).permutation(len(scenes["image"]))[start:]:
        ids = {name: [*vocabulary.encode(str(scenes[name][i])), 1] for name in ("inputs", "targets")}
        yield {**ids, "image": scenes["image"][i]}


backbone = PaLI(T5Config(264, 32, 4, 8, 64, 2, 2), ViTConfig((8, 16), 4, 32, 4, 64, 2, channels=1))
model = AdaptedModel(backbone, AdaLinkAdapter(rank=4))
mesh, rules = parallel.make_mesh(), parallel.logical_axis_rules()
losses = []
with parallel.use_mesh(mesh, rules):
    everything = setup.Setup(model, trainable=(".*",))
    base = setup.load_parameters(everything, mesh, rules)
    checkpoints.save_base(sys.argv[1], base.tree()["backbone"], "tiny", {})
    params = setup.load_parameters(setup.Setup(model, ("adapter/.*",), initial_checkpoint_path=sys.argv[1]), mesh, rules)
    optimizer = optimizers.adamw(0.01)
    state = TrainState(jnp.int32(0), params.trainable, optimizer.init(params.trainable))
    batches = EpochIterator(examples, FeatureConverter({"inputs": 24, "targets": 4}), 16, seed=0)
    writer = metric_writer.MetricWriter(sys.argv[1], resumed_at=0)
    state = run_loop(
        jax.jit(make_train_step(model, optimizer)), state, params.frozen, batches, mesh=mesh, total_steps=20,
        on_metrics=lambda step, metrics, rate: (losses.append(metrics["loss"]), writer.write(step, metrics)),
        after_steps=[],
    )
assert losses[-1] < losses[0], losses
assert not [name for name in sys.modules if name.split(".")[0] in ("tensorflow", "seqio")]
print("trained", len(losses))
"""


def run(code, *args):
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code), *args], capture_output=True, text=True)


def test_training_on_numpy_batches(tmp_path):
    done = run(BLOCK + TRAIN, str(tmp_path / "base"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "trained 20" in done.stdout


def test_a_seqio_task_says_what_is_missing():
    code = (
        BLOCK + "from adalink_jax.cli.main import main; sys.exit(main(['quickstart', \"--gin.MODEL_DIR='/nowhere'\"]))"
    )
    done = run(code)
    assert done.returncode == 2, done.stderr
    assert "seqio" in done.stderr and "pip install" in done.stderr and "Traceback" not in done.stderr


def test_importing_the_package_imports_nothing_heavy():
    done = run("import sys, adalink_jax; print([m for m in ('jax', 'flax', 'gin', 'tensorflow') if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


OWN_FILES = """
import csv, pathlib
from adalink_jax.cli.main import main

rows = [("a good thing number %d" % i, "yes") if i % 2 else ("a bad thing number %d" % i, "no") for i in range(80)]
with open("rows.csv", "w", newline="") as file:
    csv.writer(file).writerows([("text", "label"), *rows])
assert main(["init", "rows.csv", "--quick", "--base=bundled:pali_nano_instruct"]) == 0
train = ["--gin_file=gin/models/pali_nano.gin", "--gin_file=gin/adapters/adalink.gin", "--gin_file=rows.gin",
         "--gin_file=gin/runs/finetune.gin", "--gin.INITIAL_CHECKPOINT_PATH='bundled:pali_nano_instruct'", "--gin.MODEL_DIR='run'",
         "--gin.TRAIN_STEPS=6", "--gin.WARMUP_STEPS=1", "--gin.BATCH_SIZE=8"]
assert main(["train", *train]) == 0
assert main(["eval", "--gin_file=run/config.gin", "--gin.INITIAL_ADAPTER_PATH='run/adapter'", "--split=validation"]) == 0
assert main(["infer", "rows.csv", "out.jsonl", "--run=run"]) == 0
assert len(pathlib.Path("out.jsonl").read_text().splitlines()) == 80
assert not [name for name in sys.modules if name.split(".")[0] in BLOCKED]
"""


@pytest.mark.parametrize("installed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_csv_is_looked_at_trained_on_scored_and_predicted_for(tmp_path, installed):
    """Nothing of TensorFlow is imported, installed or not."""
    names = next(line for line in BLOCK.splitlines() if line.startswith("BLOCKED"))
    code = (f"import sys\n{names}\n" if installed else BLOCK) + textwrap.dedent(OWN_FILES)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
