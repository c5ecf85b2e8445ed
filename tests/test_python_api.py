"""The library without gin files: the bits of `adalink train`, gin's state, rows in every form, and custom loops."""

import io
import json
import pathlib
import re
import subprocess
import sys

import flax.linen as nn
import gin
import jax
import numpy as np
import optax
import pytest
from helpers import with_devices
from PIL import Image

import adalink_jax as al
from adalink_jax import configuration, parallel
from adalink_jax.adapters import AdaptedModel
from adalink_jax.cli.main import main
from adalink_jax.errors import CheckpointError, UserError
from adalink_jax.python_api.adapter_settings import bindings_of_adapter, usual_learning_rate
from adalink_jax.python_api.given_batches import GivenBatches
from adalink_jax.python_api.given_rows import checked_rows
from adalink_jax.serving.model_inputs import pixels as pixels_of
from adalink_jax.training import optimizers
from adalink_jax.training.step import TrainState, make_train_step

BASE, MODEL = "bundled:pali_nano_instruct", "gin/models/pali_nano.gin"
ROWS = [{"inputs": f"is {i} even", "targets": "no" if i % 2 else "yes"} for i in range(48)]
HELD = [{"inputs": f"and {i}", "targets": "no" if i % 2 else "yes"} for i in range(16)]
METRICS = ("accuracy", "macro_f1", "balanced_accuracy")  # what `adalink init` chooses for these targets
FEW = {"WARMUP_STEPS": 2, "EVAL_PERIOD": 4}
PAGE = re.findall(
    r"```python\n(.*?)```", (pathlib.Path(__file__).parent.parent / "docs/python.md").read_text(), re.DOTALL
)

# Orbax's own, as in test_run.py.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def base():
    return al.load_base(BASE)


def adapter_bytes(folder):
    return {file.name: file.read_bytes() for file in sorted(pathlib.Path(folder).iterdir())}


def values(leaves):
    return {name: np.asarray(leaf) for name, leaf in leaves.items()}


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def steps_of(base, model, optimizer, batches):
    """The trainable leaves and the last loss after the training step has seen the batches."""
    step = jax.jit(make_train_step(AdaptedModel(base.setup.model.backbone, model.adapter), optimizer))
    state, metrics = TrainState(jax.numpy.int32(0), model.trainable, optimizer.init(model.trainable)), {}
    with parallel.use_mesh(base.mesh, base.rules):
        for batch in batches:
            state, metrics = step(state, model.frozen, batch)
    return values(state.trainable), metrics["loss"]


def written(folder, name, rows):
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture(scope="module")
def fitted(base, tmp_path_factory):
    """A model after `fit`, and its run's folder."""
    folder = tmp_path_factory.mktemp("fit") / "run"
    model = al.attach(base, al.AdaLinkAdapter(rank=4))
    gin.bind_parameter(
        "AdaLinkAdapter.phi", "relu"
    )  # of the caller's own configuration: it stays, and changes nothing here
    before = gin.config_str()
    summary = model.fit(ROWS, HELD, steps=8, batch_size=16, model_dir=folder, settings=FEW)
    assert gin.config_str() == before and not gin.config_is_locked()
    gin.clear_config()
    return model, folder, summary


def test_fit_gives_the_bits_of_the_command(fitted, tmp_path):
    model, folder, summary = fitted
    data = {"train": written(tmp_path, "train.jsonl", ROWS), "validation": written(tmp_path, "dev.jsonl", HELD)}
    (tmp_path / "rows.gin").write_text(
        f"include 'gin/tasks/files.gin'\nDATA = {data}\nINPUTS = '{{inputs}}'\nTARGETS = '{{targets}}'\nVOCABULARY = 'bytes'\n"
        f"METRICS = {METRICS}\nMIXTURE_OR_TASK_NAME = 'rows'\nTASK_FEATURE_LENGTHS = {{'inputs': 16, 'targets': 4}}\nBLANK_IMAGE = True\nBATCH_SIZE = 16\n"
    )
    files = (
        "gin/models/pali_nano.gin",
        "gin/adapters/adalink.gin",
        str(tmp_path / "rows.gin"),
        "gin/runs/finetune.gin",
    )
    macros = {"INITIAL_CHECKPOINT_PATH": BASE, "MODEL_DIR": str(tmp_path / "run"), "RANK": 4, "TRAIN_STEPS": 8, **FEW}
    flags = [f"--gin_file={file}" for file in files] + [f"--gin.{name}={value!r}" for name, value in macros.items()]
    assert main(["train", *flags]) == 0
    for name in ("adapter", "adapter_last"):
        assert adapter_bytes(folder / name) == adapter_bytes(tmp_path / "run" / name)
    command = json.loads((tmp_path / "run" / "summary.json").read_text())
    timed = ("seconds", "step_seconds", "input_wait", "settings")
    assert {k: v for k, v in summary.items() if k not in timed} == {k: v for k, v in command.items() if k not in timed}
    differ = {k for k in command["settings"] if command["settings"][k] != summary["settings"].get(k)}
    assert command["settings"].keys() == summary["settings"].keys() and differ == {"FileTask.data"}
    assert model.lengths == {"inputs": 16, "targets": 4}


def test_what_is_saved_is_the_runs_adapter_and_loads(base, fitted, tmp_path):
    model, folder, _ = fitted
    model.save(tmp_path / "adapter")
    assert adapter_bytes(tmp_path / "adapter") == adapter_bytes(folder / "adapter")
    again = al.load_adapter(base, tmp_path / "adapter")
    assert_equal(values(again.trainable), values(model.trainable))
    assert again.adapter == model.adapter == al.AdaLinkAdapter(rank=4)
    other = al.load_base("bundled:pali_nano_raw", model=MODEL)
    with pytest.raises(CheckpointError, match="was trained on another base"):
        al.load_adapter(other, tmp_path / "adapter")


def test_predictions_are_those_of_the_run(fitted):
    model, folder, _ = fitted
    texts = [row["inputs"] for row in ROWS[:3]]
    predict = al.Predictor(str(folder))
    assert model(texts) == predict(texts) and model(texts[0]) == predict(texts)[0] == model(ROWS[0])
    assert model(texts, adapters=None) == predict(texts, adapters=None)
    choices = model(texts, choices=["yes", "no"], scores=True)
    assert choices == predict(texts, choices=["yes", "no"], scores=True)
    trained = model.trainable
    model.trainable = {name: leaf + 0.1 for name, leaf in trained.items()}
    assert model(texts, choices=["yes", "no"], scores=True) != choices
    model.trainable = trained
    assert model(texts, choices=["yes", "no"], scores=True) == choices


def test_a_finished_run_is_read_and_other_rows_are_refused(base, fitted):
    model, folder, summary = fitted
    same = al.attach(base, al.AdaLinkAdapter(rank=4))
    done = same.fit(ROWS, HELD, steps=8, batch_size=16, model_dir=folder, settings=FEW)
    assert done == json.loads((folder / "summary.json").read_text()) and done["step"] == summary["step"]
    with pytest.raises(UserError, match=r"train.jsonl holds other rows"):
        same.fit(ROWS[:40], HELD, steps=8, batch_size=16, model_dir=folder, settings=FEW)
    with pytest.raises(CheckpointError, match="holds a run of another configuration"):
        same.fit(ROWS, HELD, steps=9, batch_size=8, model_dir=folder, settings=FEW)


def test_a_second_fit_begins_with_the_first_ones_adapter_and_leaves_no_files(base, fitted, tmp_path, monkeypatch):
    model, folder, _ = fitted
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    trained, beside = al.load_adapter(base, folder / "adapter_last"), al.attach(base, al.AdaLinkAdapter(rank=2), seed=1)
    start, untouched = values(trained.trainable), values(beside.trainable)
    cache = jax.config.values["jax_compilation_cache_dir"]
    columns = {name: [row[name] for row in ROWS] for name in ("inputs", "targets")}
    trained.fit(
        columns, steps=2, batch_size=16, learning_rate=1e-30, settings={"WARMUP_STEPS": 0}, metrics=["exact_match"]
    )
    assert_equal(values(trained.trainable), start)  # such a rate changes no bit
    assert_equal(values(beside.trainable), untouched)
    assert not list(tmp_path.iterdir()) and jax.config.values["jax_compilation_cache_dir"] == cache


def test_the_pages_first_lines_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"train": ROWS, "validation": HELD, "texts": ["is 1 even", "is 2 even"]}
    code = PAGE[0].replace("steps=500, batch_size=32", f"steps=4, batch_size=16, settings={FEW}")
    exec(code.replace('["negative", "positive"]', '["yes", "no"]'), names)
    assert repr(names["model"]).endswith("4,096 parameters trainable (1.20%), 337,536 frozen")
    assert_equal(values(names["again"].trainable), values(names["model"].trainable))


@pytest.mark.slow
def test_the_pages_other_settings_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"al": al, "train": ROWS}
    exec(PAGE[1].replace("steps=60, ", "steps=60, batch_size=16, "), names)
    assert (
        names["summary"]["steps"] == 60
        and names["base"].parameters.frozen["backbone/token_embedder/embedding"].dtype == "bfloat16"
    )
    assert al.Predictor("runs/lora")(ROWS[0]) == names["model"](ROWS[0])


LOOP = PAGE[2].replace("480", "48")


@pytest.fixture(scope="module")
def looped():
    """The names of the page's loop, after it ran."""
    names = {"train": ROWS}
    exec(LOOP, names)
    return names


def test_the_pages_loop_has_twelve_lines_and_makes_the_steps_of_the_training_step(base, looped):
    assert len([line for line in LOOP.splitlines() if line.strip()]) <= 12
    fresh = al.attach(base, al.AdaLinkAdapter(rank=4))
    frozen = values(fresh.frozen)
    leaves, loss = steps_of(base, fresh, optax.adam(0.01), [fresh.batch(ROWS[i : i + 16]) for i in range(0, 48, 16)])
    np.testing.assert_allclose(looped["loss"], loss, rtol=1e-5)
    for name, leaf in values(looped["model"].trainable).items():
        np.testing.assert_allclose(leaf, leaves[name], atol=1e-5, err_msg=name)
    assert_equal(values(looped["model"].frozen), frozen)


def test_the_loop_gives_the_same_on_eight_devices(looped, tmp_path):
    """Rows split over four, parameters over both axes of the mesh."""
    mesh = {"make_mesh.model": 2, "logical_axis_rules.fsdp": True}
    loop = LOOP.replace('_instruct")', f'_instruct", settings={mesh})')
    report = "print(json.dumps([len(leaf.sharding.device_set) for leaf in model.frozen.values()] + [float(loss)]))"
    (tmp_path / "loop.py").write_text(f"import json\ntrain = {ROWS}\n{loop}\n{report}\n")
    env = with_devices(8) | {"PYTHONPATH": str(pathlib.Path(al.__file__).parent.parent)}
    done = subprocess.run([sys.executable, tmp_path / "loop.py"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    *devices, loss = json.loads(done.stdout.splitlines()[-1])
    assert set(devices) == {8}
    np.testing.assert_allclose(loss, looped["loss"], rtol=1e-5)


@pytest.mark.slow
def test_dropout_needs_a_key():
    model = al.attach(al.load_base(BASE, model=MODEL, settings={"DROPOUT_RATE": 0.5}), al.AdaLinkAdapter(rank=2))
    loss = lambda *key: float(model.loss(model.trainable, model.frozen, model.batch(ROWS[:4]), *key))
    assert loss() == loss() != loss(jax.random.key(0)) != loss(jax.random.key(1))


def test_ready_batches_are_taken_in_their_order(base):
    fresh, model = al.attach(base, al.AdaLinkAdapter(rank=4)), al.attach(base, al.AdaLinkAdapter(rank=4))
    batches = lambda rows: (fresh.batch(rows[i : i + 16]) for i in range(0, 48, 16))
    last_step = {"METRIC": None, "WARMUP_STEPS": 1}  # without a metric, a run keeps its last step
    summary = model.fit(batches(ROWS), HELD[:8], steps=3, batch_size=16, settings=last_step)
    assert summary["steps"] == summary["step"] == 3
    again = al.attach(base, al.AdaLinkAdapter(rank=4))
    scored = again.fit(batches(ROWS), HELD[:8], steps=3, batch_size=16, settings={"WARMUP_STEPS": 1})
    assert scored["baselines"] == {}  # whose training examples would be the rows of validation
    optimizer = optimizers.adamw(optimizers.warmup_cosine(0.01, 3, 1), clip_norm=1.0)
    expected, _ = steps_of(base, fresh, optimizer, batches(ROWS))
    for name, leaf in values(model.trainable).items():
        np.testing.assert_allclose(leaf, expected[name], rtol=1e-5, atol=1e-8, err_msg=name)
    ready = [fresh.batch(ROWS[i : i + 16]) for i in (0, 16, 32)]
    given = GivenBatches(iter(ready), 16, 3, range(16))
    given.set_state({"batch": 1})
    for batch in ready[1:]:
        assert_equal(next(given), values(batch))
    assert given.get_state() == {"batch": 3}
    for iterator, message in (
        (iter([]), "`train` ended after 0 batches, and `steps` is 3"),
        (iter(ROWS), "Batch 0 of `train` has no 'encoder_input_tokens'; it has 'inputs', 'targets'"),
        (iter([fresh.batch(ROWS[:8])]), "Batch 0 of `train` has 8 rows of '.*', and `batch_size` is 16"),
        (iter([3]), "Batch 0 of `train` is 3, a whole number"),
    ):
        with pytest.raises(UserError, match=message):
            next(GivenBatches(iterator, 16, 3, range(16)))


def test_rows_in_every_form_are_the_same(tmp_path):
    pixels = np.arange(8 * 16, dtype=np.uint8).reshape(8, 16)
    Image.fromarray(pixels).save(tmp_path / "a.png")

    class DataSet:  # as `datasets.Dataset`: rows by number, and by iteration
        def __init__(self, rows):
            self.rows = rows

        def __len__(self):
            return len(self.rows)

        def __iter__(self):
            return iter(self.rows)

    rows = [{"inputs": "a", "targets": 1, "other": None}, {"inputs": "b ", "targets": ["x", "y"]}]
    wanted = [{"inputs": "a", "targets": "1"}, {"inputs": "b", "targets": ["x", "y"]}]
    columns = {name: [row[name] for row in rows] for name in ("inputs", "targets")}
    for given in (rows, tuple(rows), columns, DataSet(rows)):
        assert checked_rows(given, "train") == wanted
    images = [tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(pixels), pixels, pixels[..., None]]
    for image in images:
        (row,) = checked_rows([{"inputs": "", "targets": "x", "image": image}], "train")
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(row["image"]))), pixels)


def test_images_reach_the_model_as_the_predictor_prepares_them(base):
    model, pixels = al.attach(base, al.AdaLinkAdapter(rank=2)), np.arange(128, dtype=np.uint8).reshape(8, 16)
    row = {"inputs": "a", "targets": "b", "image": pixels}
    shown = pixels_of(pixels, base.setup.image_shape, "it", base.setup.preparation)
    batch = model.batch([row, row, row])
    np.testing.assert_array_equal(batch["images"], [shown] * 3)
    assert not model.batch([{"inputs": "a", "targets": "b"}])["image_present"].any()


@pytest.mark.parametrize(
    "adapter, usual",
    [
        (al.AdaLinkAdapter(rank=16, kinds=("text",), scale=0.5), "0.01"),
        (al.LoRA(rank=4, projections=(r"encoder/.*/query",)), "0.01"),
        (al.PromptTuning(length=5), "0.3"),
        (al.Chain((al.AdaLinkAdapter(rank=2), al.PromptTuning(3), al.AdaLinkAdapter(rank=3, phi="relu"))), "0.01"),
    ],
    ids=lambda value: getattr(type(value), "__name__", value),
)
def test_gin_builds_the_adapter_that_is_attached(adapter, usual):
    bindings = bindings_of_adapter(adapter)
    with configuration.isolated():
        configuration.load(configuration.GinFlags((MODEL,), tuple(bindings)), require_all=False)
        assert AdaptedModel().adapter == adapter
        assert usual_learning_rate(adapter) == usual


def test_a_method_that_gin_does_not_know_is_refused():
    class Own(nn.Module):
        pass

    with pytest.raises(UserError, match="Own is not known to gin.*put @gin.configurable above the class"):
        bindings_of_adapter(Own())
    assert usual_learning_rate(Own()) is None


GOOD = {"inputs": "a", "targets": "b"}


@pytest.mark.parametrize(
    "rows, message",
    [
        ([GOOD, {"inputs": "a"}], r"train\[1\] has no 'targets'; it has 'inputs'"),
        ([GOOD, {"text": "a", "label": 1}], r"train\[1\] has no 'inputs'; it has 'text', 'label'"),
        (
            [GOOD, {"inputs": 3 * [1], "targets": "b"}],
            r"train\[1\] has 'inputs', which is .* a list; it must be a text",
        ),
        ([GOOD, {"inputs": "a", "targets": []}], r"train\[1\] has an empty 'targets'"),
        ([GOOD, {"inputs": "a", "targets": {"x": 1}}], r"train\[1\] has 'targets', which is .* a mapping"),
        ([GOOD, {"inputs": " ", "targets": "b"}], r"train\[1\] has an empty 'inputs'"),
        ([GOOD, {**GOOD, "image": "a.png"}], r"train\[1\]: .*a\.png"),
        ([GOOD, {**GOOD, "image": np.zeros((4, 4))}], r"train\[1\] has 'image', which is float64 \(4, 4\)"),
        ([GOOD, {**GOOD, "image": np.zeros((4, 4), np.uint8)}], r"train\[1\] has an 'image', and train\[0\] has none"),
        ([GOOD, "text"], r"train\[1\] is 'text', a text; a row is a mapping"),
        (
            {"inputs": ["a"], "targets": ["b", "c"]},
            r"columns of `train` have different lengths: 'inputs' 1, 'targets' 2",
        ),
        ([], "`train` has no rows"),
        (42, "`train` is 42, a whole number; give a list of rows"),
        ("rows.jsonl", "`train` is 'rows.jsonl', a text; .*read files"),
    ],
)
def test_rows_that_cannot_be_used_are_named(rows, message):
    with pytest.raises(UserError, match=message):
        checked_rows(rows, "train")


def test_targets_that_are_lists_are_what_the_caller_states(base):
    model = al.attach(base, al.AdaLinkAdapter(rank=2))
    rows = [{"inputs": f"film {i}", "targets": ["funny", "short"] if i % 2 else ["funny"]} for i in range(48)]
    fit = lambda **settings: model.fit(rows, steps=4, batch_size=8, settings=FEW | settings)
    with pytest.raises(
        UserError, match=r"train\[1\] has a list as 'targets', \['funny', 'short'\]; state what lists are: settings="
    ):
        fit()
    assert fit(LISTS="labels")["metric"] == "micro_f1"
    assert fit(LISTS="alternatives")["metric"] == "exact_match"


def test_wrong_arguments_are_one_sentence(base):
    model = al.attach(base, al.AdaLinkAdapter(rank=2))
    fit = lambda **arguments: model.fit(ROWS, **({"steps": 4, "batch_size": 16, "settings": FEW} | arguments))
    cases = [
        (lambda: al.Predictor(42), "`model` is 42, a whole number; give a run's folder, or a base model"),
        (lambda: al.Predictor(BASE, batch_size=0), "`batch_size` is 0"),
        (lambda: al.load_base(42), "`path` is 42, a whole number; it must be"),
        (
            lambda: al.load_base(BASE, model=MODEL, settings={"DROPOUT_RAT": 0.1}),
            "DROPOUT_RAT is set, but nothing refers to it; nearest: DROPOUT_RATE",
        ),
        (
            lambda: al.load_base(BASE, model=MODEL, settings={"FROZEN_DTYPE": np.float32}),
            "`settings` has 'FROZEN_DTYPE', which is the class float32",
        ),
        (lambda: al.load_base(BASE, model="gin/models/t5_1_1_small.gin"), "pali_nano"),
        (lambda: al.attach(BASE, al.AdaLinkAdapter()), r"`base` is 'bundled.*'; load it first: load_base\('bundled"),
        (lambda: al.attach(base, "lora"), r"`adapter` is 'lora'; give an adapter, such as AdaLinkAdapter\(rank=16\)"),
        (lambda: al.attach(base, al.AdaLinkAdapter), "`adapter` is <class .*; give an adapter"),
        (lambda: al.attach(base, al.AdaLinkAdapter(rank="16")), "AdaLink's rank is '16'; it must be at least 1"),
        (lambda: model(5), "`inputs` is 5; give a text, a row, or a list of them"),
        (lambda: model.save(__file__), "is a file; give a folder"),
        (lambda: al.load_adapter(base, 3), "`folder` is 3"),
        (lambda: al.load_adapter(base, "nowhere"), "nowhere is not an adapter"),
        (lambda: fit(steps=0), "`steps` is 0, a whole number; it must be 1 or more"),
        (lambda: fit(learning_rate="fast"), "`learning_rate` is 'fast', a text; it must be a number"),
        (lambda: fit(metrics=["bleu"]), "`metrics` has 'bleu'"),
        (
            lambda: fit(settings={"TRIAN_STEPS": 3}),
            "TRIAN_STEPS is set, but nothing refers to it; nearest: `steps`",
        ),
        (lambda: fit(settings={"adamw.b3": 3.0}), "adamw takes no b3"),
        (lambda: fit(settings={"WARMUP_STEPS": 4}), "the warm-up must be shorter"),
        (lambda: fit(batch_size=64), "`batch_size` is 64, and rows has .* examples to train on"),
        (lambda: fit(model_dir=__file__), "`model_dir` cannot be .* is not a folder"),
        (lambda: fit(lengths={"inputs": 2, "targets": 2}), "raise `lengths`, or allow more"),
        (
            lambda: model.fit(ROWS[:3], steps=4),
            "The split .* give it rows of its own \\(`train`, `validation`, `test`\\)",
        ),
        (lambda: fit(test=HELD), "`test` is given, and `validation`"),
        (lambda: model.fit(iter([]), steps=3), "`train` is an iterator, of which no rows can be held out"),
        (lambda: fit(settings={"TRAIN_STEPS": 3}), "`settings` has 'TRAIN_STEPS'; give it as `steps`"),
        (lambda: fit(settings={**FEW, "FROZEN_DTYPE": "bfloat16"}), "change the base, which is loaded already"),
        (lambda: setattr(model, "lengths", {"inputs": 8}), "`lengths` has 'inputs'; give 'inputs' and 'targets'"),
        (lambda: setattr(model, "trainable", {}), "`trainable` has adapter/image/down"),
        (lambda: model.batch([{"inputs": "a"}]), r"rows\[0\] has no 'targets'"),
        (lambda: model.save(3), "`folder` is 3"),
    ]
    with pytest.raises(UserError) as refused:
        fit(batch_size=64)
    assert "\n" not in str(refused.value)  # nor what gin adds
    before = values(model.trainable)
    for call, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value).split("\n  In call to configurable")[0]
    assert_equal(values(model.trainable), before)


def test_an_adapter_that_was_saved_takes_texts_alone_as_the_one_that_was_fitted(base, tmp_path):
    model = al.attach(base, al.AdaLinkAdapter(rank=2))
    model.save(tmp_path / "adapter")
    again = al.load_adapter(base, tmp_path / "adapter")
    assert again("a text") == model("a text") == model("a text", b"")
