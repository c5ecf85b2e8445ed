"""This package's models, adapters and gin files in t5x's train loop, evaluation and inference; needs an installed t5x."""

import importlib.util
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from helpers import random_batch

from adalink_jax import AdaLinkAdapter, AdaptedModel, checkpoints, parallel
from adalink_jax.adapters import PromptTuning, fresh_params
from adalink_jax.checkpoints import t5x_format as t5x_files
from adalink_jax.checkpoints.source import Source
from adalink_jax.cli.main import main
from adalink_jax.errors import UserError
from adalink_jax.files.leaves import from_array
from adalink_jax.models import T5, T5Config, paths
from adalink_jax.training import optimizers
from adalink_jax.training.step import TrainState, make_train_step

if importlib.util.find_spec("t5x") is None:
    pytest.skip("t5x is not installed", allow_module_level=True)

pytestmark = [pytest.mark.t5x, pytest.mark.filterwarnings("default")]  # t5x's imports warn

ROOT = pathlib.Path(__file__).parent.parent
SIZES = {"vocab_size": 264, "emb_dim": 32, "num_heads": 4, "head_dim": 8, "mlp_dim": 64,
         "num_encoder_layers": 2, "num_decoder_layers": 2}  # fmt: skip
STEPS = 10
DATA = {
    "MIXTURE_OR_TASK_NAME": "next_letter", "MIXTURE_OR_TASK_MODULE": "t5x_task",
    "TASK_FEATURE_LENGTHS": {"inputs": 8, "targets": 4}, "VOCABULARY": "bytes",
}  # fmt: skip


def model_of(adapter, **more) -> AdaptedModel:
    return AdaptedModel(T5(T5Config(**SIZES, **more)), adapter)


def host_of(model, optimizer=None, **more):
    import seqio

    from adalink_jax.t5x import AdaptedEncoderDecoderModel

    ids = seqio.ByteVocabulary()
    return AdaptedEncoderDecoderModel(
        model, ids, ids, optimizer, loss_normalizing_factor="NUM_REAL_TARGET_TOKENS", **more
    )


def partitioner_of(num_partitions=1):
    from t5x import partitioning

    rules = partitioning.standard_logical_axis_rules(
        additional_rules=[(name, None) for name in ("adapter_embed", "adapter_rank", "adapter_length")]
    )
    return partitioning.PjitPartitioner(num_partitions=num_partitions, logical_axis_rules=rules)


def initializer_of(host, batch, partitioner):
    from t5x import utils

    shapes = {name: value.shape for name, value in batch.items()}
    return utils.TrainStateInitializer(host.optimizer_def, host.get_initial_variables, shapes, partitioner)


@pytest.mark.parametrize("adapter", [AdaLinkAdapter(rank=4), PromptTuning(length=3)])
def test_ten_steps_of_t5x_s_trainer_equal_ten_of_train(adapter, tmp_path):
    from t5x import trainer

    make = lambda: optimizers.adamw(optimizers.warmup_cosine(0.03, STEPS, 3), weight_decay=0.01, clip_norm=1.0)
    model = model_of(adapter)
    host, partitioner = host_of(model, make()), partitioner_of()
    batches = [random_batch(model.backbone, 8, 6, 4, seed) for seed in range(STEPS)]
    initializer = initializer_of(host, batches[0], partitioner)
    state = initializer.from_scratch(jax.random.PRNGKey(0))
    start = jax.tree.map(np.array, dict(state.params.unfreeze()))
    theirs = trainer.Trainer(
        host, state, partitioner, [], str(tmp_path), initializer.train_state_axes, jax.random.PRNGKey(1),
        learning_rate_fn=lambda step: 0.0, num_microbatches=None,
    )  # fmt: skip
    with theirs:
        theirs.train(iter(batches), STEPS).result()
        found = jax.tree.map(np.array, dict(theirs.train_state.params.unfreeze()))
    optimizer = make()
    trainable = {"adapter": jax.tree.map(jnp.asarray, start["adapter"])}
    frozen = {"backbone": jax.tree.map(jnp.asarray, start["backbone"])}
    ours, step = (
        TrainState(jnp.int32(0), trainable, optimizer.init(trainable)),
        jax.jit(make_train_step(model, optimizer)),
    )
    for batch in batches:
        ours, _ = step(ours, frozen, batch)
    for name, value in paths.flatten(ours.trainable["adapter"]).items():
        mine = paths.flatten(found["adapter"])[name]
        assert np.abs(mine - paths.flatten(start["adapter"])[name]).max() > 0.01
        np.testing.assert_allclose(mine, value, atol=1e-5, err_msg=name)
    same = lambda a, b: np.array_equal(a.view(np.int32), b.view(np.int32))
    assert all(jax.tree.leaves(jax.tree.map(same, found["backbone"], start["backbone"])))


@pytest.mark.parametrize("tied", [False, True])
def test_t5_has_the_logits_of_t5x_s_network(tied, exact_matmuls):
    from t5x.examples.t5 import network

    more = {"logits_via_embedding": tied, "mlp_activations": ("relu",) if tied else ("gelu", "linear")}
    model = model_of(None, **more)
    batch = random_batch(model.backbone, 4, 9, 6, seed=3)
    batch["encoder_input_tokens"][:, 7:] = 0
    params = parallel.unbox(fresh_params(model, 0))
    theirs = network.Transformer(network.T5Config(**SIZES, **more, dtype="float32"))
    names = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
    batch["decoder_target_tokens"] = np.maximum(batch["decoder_target_tokens"], 1)  # t5x masks by the targets
    expected = theirs.apply(
        {"params": params["backbone"]}, *(batch[name] for name in names), enable_dropout=False, decode=False
    )
    found = jax.jit(model.apply)({"params": params}, batch)
    np.testing.assert_allclose(found, expected, atol=1e-5 * float(np.std(expected)))


def test_adafactor_s_factors_have_axes():
    model = model_of(AdaLinkAdapter(rank=4))
    host = host_of(model, optimizers.adafactor(0.1, clip_norm=1.0))
    batch = random_batch(model.backbone, 2, 4, 3, seed=0)
    initializer = initializer_of(host, batch, partitioner_of())
    state = initializer.from_scratch(jax.random.PRNGKey(0))
    assert any(leaf.ndim == 2 for leaf in jax.tree.leaves(state.param_states))


def test_unsupported_settings_are_reported_in_one_sentence(monkeypatch):
    from adalink_jax import configuration
    from adalink_jax.t5x import with_adapter

    with pytest.raises(UserError, match="add --gin.SCAN_LAYERS=False"):
        host_of(model_of(None, scan_layers=True))
    model = model_of(AdaLinkAdapter(rank=2))
    batch = random_batch(model.backbone, 2, 4, 3, seed=0)
    packed = {**batch, "encoder_segment_ids": batch["encoder_input_tokens"]}
    with pytest.raises(UserError, match="set utils.DatasetConfig.pack = False"):
        initializer_of(host_of(model), packed, partitioner_of())
    with pytest.raises(UserError, match="takes no decoder_params"):
        host_of(model).predict_batch_with_aux({}, batch, decoder_params={"alpha": 0.6})
    with pytest.raises(UserError, match="There is no adapter to train"):
        host_of(model_of(None), optimizers.adamw(0.1))
    with pytest.raises(UserError, match="There is no task or mixture 'second_letter'.*MIXTURE_OR_TASK_MODULE"):
        host_of(model, mixture_or_task_name="second_letter")
    leaf = ocp.metadata.tree.ValueMetadataEntry(value_type="jax.Array")
    with pytest.raises(UserError, match="Orbax.s format.*adalink convert"):
        with_adapter({"target": {"backbone": {"x": leaf}}}, {"target": {}}, model)
    monkeypatch.setattr(configuration, "bindings", lambda: {"Setup.decoding": "@BeamSearch()"})
    with pytest.raises(UserError, match="bind AdaptedEncoderDecoderModel.decoding"):
        host_of(model)
    monkeypatch.undo()
    monkeypatch.setattr("adalink_jax.t5x.model.macros_set", lambda: {"FROZEN_DTYPE": "int4"})
    with pytest.raises(UserError, match="FROZEN_DTYPE is 'int4', and t5x keeps every leaf as it trains it"):
        host_of(model)
    monkeypatch.undo()
    with pytest.raises(UserError, match="set INITIAL_ADAPTER_PATH"):
        with_adapter({"target": {"encoder": {}}}, {"target": {"adapter": {}}}, model)
    with pytest.raises(UserError, match="TRAINABLE"):
        host_of(model, optimizers.adamw(0.1), trainable=("adaptor/.*",)).optimizer_def.mask(
            {"adapter": {"x": np.zeros(1)}}
        )


# --- the commands ---


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base model that answers with the first letter, as a legacy t5x checkpoint, and the gin file of its sizes."""
    from t5x_task import words

    folder = tmp_path_factory.mktemp("base")
    model, optimizer = model_of(None), optimizers.adamw(0.003)
    ids = lambda text: [ord(letter) + 3 for letter in text] + [1]
    pad = lambda rows, length: np.array([row + [0] * (length - len(row)) for row in rows], np.int32)
    inputs, targets = pad([ids(w) for w in words("train")], 8), pad([ids(w[0]) for w in words("train")], 4)
    batch = {
        "encoder_input_tokens": inputs, "decoder_target_tokens": targets,
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1], "decoder_loss_weights": (targets > 0) * np.float32(1),
    }  # fmt: skip
    trainable = parallel.unbox(fresh_params(model, 0))
    state, step = (
        TrainState(jnp.int32(0), trainable, optimizer.init(trainable)),
        jax.jit(make_train_step(model, optimizer)),
    )
    for _ in range(120):
        state, metrics = step(state, {}, batch)
    assert metrics["loss"] < 0.05
    leaves = {
        name: from_array(np.asarray(leaf), name) for name, leaf in paths.flatten(state.trainable["backbone"]).items()
    }
    t5x_files.write(epath.Path(folder) / "checkpoint_1000", Source("", "", "", leaves, None), None)
    sizes = "".join(f"T5Config.{name} = {value}\n" for name, value in SIZES.items())
    head = "include 'gin/models/t5_1_1.gin'\nACTIVATION_DTYPE = 'float32'\nSCAN_LAYERS = False\n"
    (folder / "tiny.gin").write_text(head + sizes)
    return folder


def flags(files, **macros):
    files = [f"--gin_file={file}" for file in files]
    return [*files, *(f"--gin.{name}={value!r}" for name, value in macros.items())]


def hosted(what, base, *more, log=None, devices=1, files=None, task=DATA, rank=8, **macros):
    """Runs `python -m t5x.WHAT` with the shipped gin files and returns its output; with `log`, a file for the output, only starts it."""
    first = f"gin/t5x/{'finetune' if what == 'train' else what}.gin"
    files = [first, *(files or [base / "tiny.gin", "gin/adapters/adalink.gin"])]
    env = {
        **os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }  # fmt: skip
    command = [sys.executable, "-m", f"t5x.{what}", f"--gin_search_paths={ROOT}"]
    command += [*flags(files, **{**task, **({"RANK": rank} if rank else {}), **macros}), *more]
    if log is not None:
        with log.open("w") as out:
            return subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


SCHEDULE = {"TRAIN_STEPS": 200, "EVAL_PERIOD": 50, "CHECKPOINT_PERIOD": 50, "WARMUP_STEPS": 10, "EVAL_STEPS": 1,
            "LEARNING_RATE": 0.1}  # fmt: skip


def start(base, folder):
    return {**SCHEDULE, "INITIAL_CHECKPOINT_PATH": str(base / "checkpoint_1000"), "MODEL_DIR": str(folder)}


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """A run that was killed after its first checkpoint and resumed, with its output."""
    folder = tmp_path_factory.mktemp("t5x") / "run"
    log = folder.parent / "log.txt"
    deadline = time.monotonic() + 600
    first = hosted("train", base, log=log, **start(base, folder))
    while not (folder / "checkpoint_50").exists():
        assert time.monotonic() < deadline
        assert first.poll() is None, log.read_text()[-4000:]
        time.sleep(0.2)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not (folder / "checkpoint_200").exists()
    out = hosted("train", base, **start(base, folder))
    return folder, log.read_text() + out


@pytest.fixture(scope="module")
def extracted(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    assert main(["adapters", "extract", str(run[0]), str(folder)]) == 0
    return folder


def test_t5x_trains_only_the_adapter_and_a_killed_run_resumes(base, run):
    folder, out = run
    steps = sorted(int(path.name.removeprefix("checkpoint_")) for path in folder.glob("checkpoint_*"))
    assert steps == [150, 200]  # KEEP
    state = ocp.StandardCheckpointer().restore(folder / "checkpoint_200" / "state")["state"]
    counts = [leaf for name, leaf in paths.flatten(state["param_states"]).items() if name.endswith("count")]
    assert counts and all(int(count) == 200 for count in counts)  # the optimizer's count, not the log's
    assert re.search(r"Starting main loop over steps (50|100|150)-200", out)
    losses = [float(x) for x in re.findall(r"loss_per_nonpadding_target_token=([\d.e-]+)", out)]
    rates = [float(x) for x in re.findall(r"learning_rate/current=([\d.e-]+)", out)]
    assert losses[-1] < losses[0] / 2 and rates[-1] < 0.001 < rates[0]
    before, after = (
        checkpoints.open_source(str(path)).leaves for path in (base / "checkpoint_1000", folder / "checkpoint_200")
    )
    bits = lambda leaf: leaf.whole().view(np.int32)
    assert {n for n in after if n.startswith("backbone/")} == {f"backbone/{name}" for name in before}
    assert all(np.array_equal(bits(leaf), bits(after[f"backbone/{name}"])) for name, leaf in before.items())
    assert sorted(n for n in after if n.startswith("adapter/")) == ["adapter/text/down", "adapter/text/up"]
    assert after["adapter/text/up"].whole().any()


def native(base, extracted):
    files = [base / "tiny.gin", "gin/adapters/adalink.gin", "gin/tasks/seqio.gin", "gin/runs/finetune.gin"]
    data = {name: value for name, value in DATA.items() if name != "VOCABULARY"}
    more = {"MODEL_DIR": "none", "TRAIN_STEPS": 1, "RANK": 8, "INITIAL_CHECKPOINT_PATH": str(base / "checkpoint_1000")}
    return flags(files, **data, **more, INITIAL_ADAPTER_PATH=str(extracted))


def test_t5x_s_scores_and_predictions_equal_those_of_eval_and_infer(
    base, run, extracted, tmp_path, capsys, monkeypatch
):
    monkeypatch.syspath_prepend(ROOT / "tests")
    split = '--gin.utils.DatasetConfig.split="validation"'
    last = str(run[0] / "checkpoint_200")
    hosted("eval", base, split, CHECKPOINT_PATH=last, EVAL_OUTPUT_DIR=str(tmp_path / "eval"))
    scored = json.loads((tmp_path / "eval/inference_eval/next_letter-metrics.jsonl").read_text().splitlines()[-1])
    capsys.readouterr()
    assert main(["eval", *native(base, extracted), "--split=validation", "--json"]) == 0
    mine = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert scored["accuracy"] == pytest.approx(mine["accuracy"])
    assert mine["accuracy"] > 0.3  # the base answers with the first letter, which is never right

    predicted = {}
    other = {"CHECKPOINT_PATH": str(base / "checkpoint_1000"), "INITIAL_ADAPTER_PATH": str(extracted)}
    with pytest.raises(AssertionError, match="has scale = 1.0, where 2.0 is wanted"):
        hosted(
            "infer", base, split, "--gin.AdaLinkAdapter.scale=2.0", **other, INFER_OUTPUT_DIR=str(tmp_path / "other")
        )
    for name, where in {  # the run's whole checkpoint; the base with the adapter's file
        "checkpoint": {"CHECKPOINT_PATH": last},
        "file": {"CHECKPOINT_PATH": str(base / "checkpoint_1000"), "INITIAL_ADAPTER_PATH": str(extracted)},
    }.items():
        hosted("infer", base, split, **where, INFER_OUTPUT_DIR=str(tmp_path / name))
        rows = (tmp_path / name / "next_letter-predict.jsonl-00000-of-00001").read_text().splitlines()
        predicted[name] = [json.loads(row)["prediction"] for row in rows]
    mine = flags(
        [base / "tiny.gin", "gin/tasks/seqio.gin"], **DATA, INITIAL_CHECKPOINT_PATH=str(base / "checkpoint_1000")
    )
    assert main(["infer", "task:validation", str(tmp_path / "mine.jsonl"), *mine, f"--adapters=a={extracted}"]) == 0
    mine = [json.loads(row)["prediction"] for row in (tmp_path / "mine.jsonl").read_text().splitlines()]
    assert predicted["checkpoint"] == predicted["file"] == mine and len(set(mine)) > 2


def test_the_frozen_base_and_every_checkpoint_of_a_run_are_scored(base, run, tmp_path):
    split = '--gin.utils.DatasetConfig.split="validation"'
    first = {**DATA, "MIXTURE_OR_TASK_NAME": "first_letter"}
    more = {"CHECKPOINT_PATH": str(base / "checkpoint_1000"), "EVAL_OUTPUT_DIR": str(tmp_path / "base")}
    hosted("eval", base, split, files=[base / "tiny.gin"], task=first, rank=None, **more)
    rows = (tmp_path / "base/inference_eval/first_letter-metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["accuracy"] > 0.9
    every = '--gin.utils.RestoreCheckpointConfig.mode="all"'
    hosted("eval", base, split, every, CHECKPOINT_PATH=str(run[0]), EVAL_OUTPUT_DIR=str(tmp_path / "all"))
    rows = (tmp_path / "all/inference_eval/next_letter-metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [150, 200]


def test_a_published_task_lora_a_beam_microbatches_and_dropout(base, tmp_path):
    from published import write_rte

    write_rte(tmp_path)
    files = [base / "tiny.gin", "gin/adapters/lora.gin", "gin/tasks/glue.gin"]
    task = {"MIXTURE_OR_TASK_NAME": "glue_rte", "DATA_DIR": str(tmp_path), "VOCABULARY": "bytes", "BATCH_SIZE": 4,
            "TASK_FEATURE_LENGTHS": {"inputs": 48, "targets": 16}}  # fmt: skip
    short = {
        "TRAIN_STEPS": 4,
        "WARMUP_STEPS": 1,
        "EVAL_PERIOD": 4,
        "CHECKPOINT_PERIOD": 4,
        "MICROBATCHES": 2,
        "DROPOUT_RATE": 0.1,
    }
    beam = ["--gin.AdaptedEncoderDecoderModel.decoding=@BeamSearch()", "--gin.BeamSearch.num_decodes=2"]
    hosted("train", base, *beam, files=files, task=task, **{**start(base, tmp_path / "run"), **short})
    assert main(["adapters", "extract", str(tmp_path / "run"), str(tmp_path / "lora")]) == 0
    leaves, about = checkpoints.open_adapter(str(tmp_path / "lora"))
    assert about["method"] == "LoRA" and any(leaf.whole().any() for name, leaf in leaves.items() if name.endswith("up"))


def test_a_run_starts_from_an_adapter_file(base, extracted, tmp_path):
    short = {"TRAIN_STEPS": 1, "WARMUP_STEPS": 0, "EVAL_PERIOD": 1, "CHECKPOINT_PERIOD": 1}
    more = {**start(base, tmp_path / "run"), **short, "INITIAL_ADAPTER_PATH": str(extracted)}
    hosted("train", base, **more)
    first = checkpoints.open_source(str(tmp_path / "run" / "checkpoint_0")).leaves
    for name, leaf in checkpoints.open_adapter(str(extracted))[0].items():
        np.testing.assert_array_equal(leaf.whole(), first[f"adapter/{name}"].whole())


def test_an_adapter_is_extracted_from_a_t5x_run(run, extracted, base, capsys):
    leaves, about = checkpoints.open_adapter(str(extracted))
    stored = checkpoints.open_source(str(run[0] / "checkpoint_200")).leaves
    for name, leaf in leaves.items():
        np.testing.assert_array_equal(leaf.whole(), stored[f"adapter/{name}"].whole())
    assert about["step"] == 200 and about["settings"]["rank"] == 8 and about["task"] == "next_letter"
    capsys.readouterr()
    assert main(["adapters", "verify", str(extracted), "--base", str(base / "checkpoint_1000")]) == 0
    assert main(["adapters", "extract", str(run[0]), str(extracted)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["adapters", "extract", str(base), str(extracted.parent / "other")]) == 2
    assert "has no adapter.json" in capsys.readouterr().err


def test_tensor_parallel_and_data_parallel_devices_give_the_same_adapter(base, tmp_path):
    short = {"TRAIN_STEPS": 4, "WARMUP_STEPS": 1, "EVAL_PERIOD": 4, "CHECKPOINT_PERIOD": 4}
    found = {}
    for devices, parts in ((1, 1), (4, 2)):
        folder = tmp_path / str(devices)
        more = [f"--gin.PjitPartitioner.num_partitions={parts}"]
        hosted("train", base, *more, devices=devices, **{**start(base, folder), **short})
        found[devices] = checkpoints.open_source(str(folder / "checkpoint_4")).leaves
    for name, leaf in found[1].items():
        np.testing.assert_allclose(leaf.whole(), found[4][name].whole(), atol=1e-5, err_msg=name)
    assert found[1]["adapter/text/up"].whole().any()


def test_a_model_with_images_trains(tmp_path):
    """The digit scenes, with the bundled base as a t5x checkpoint."""
    leaves = {name: leaf for name, leaf in checkpoints.open_source("bundled:pali_nano_instruct").leaves.items()}
    t5x_files.write(epath.Path(tmp_path) / "checkpoint_1000", Source("", "", "", leaves, None), None)
    task = {"MIXTURE_OR_TASK_NAME": "digits_reverse", "VOCABULARY": "bytes"}
    short = {"TRAIN_STEPS": 60, "EVAL_PERIOD": 30, "CHECKPOINT_PERIOD": 60, "LEARNING_RATE": 0.03, "RANK": 16}
    more = {**start(tmp_path, tmp_path / "run"), **short, "BATCH_SIZE": 128, "EVALUATOR_NUM_EXAMPLES": 100}
    files = ["gin/models/pali_nano.gin", "gin/adapters/adalink.gin", "gin/tasks/digits.gin"]
    out = hosted("train", tmp_path, files=files, task=task, **more)
    losses = [float(x) for x in re.findall(r"loss_per_nonpadding_target_token=([\d.e-]+)", out)]
    assert losses[-1] < losses[0] / 2
    scores = (tmp_path / "run/inference_eval/digits_reverse-metrics.jsonl").read_text().splitlines()
    assert json.loads(scores[-1])["accuracy"] > 0.5
