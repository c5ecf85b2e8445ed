"""Predictions: each row by the adapter that it names, as a library and from a CSV file."""

import csv
import json

import jax
import numpy as np
import pytest
from PIL import Image

from adalink_jax import AdaLinkAdapter, AdaptedModel, configuration, parallel
from adalink_jax.adapters import describe_adapter, fresh_params
from adalink_jax.checkpoints import save_adapter
from adalink_jax.cli.arguments import register
from adalink_jax.cli.main import main
from adalink_jax.data import digits
from adalink_jax.data.images import load_image
from adalink_jax.errors import UserError
from adalink_jax.training.predictor import Predictor
from adalink_jax.training.setup import Setup, load_parameters

FLAGS = ["--gin_file=gin/models/pali_nano.gin", "--gin.INITIAL_CHECKPOINT_PATH='bundled:pali_nano_instruct'",
         "--gin.VOCABULARY='bytes'", "--gin.BATCH_SIZE=4", "--gin.TASK_FEATURE_LENGTHS={'inputs': 24, 'targets': 4}"]  # fmt: skip
ROWS = 6


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Name -> folder, and name -> (module, parameters), of two adapters that change what the base says."""
    folder, found, folders = tmp_path_factory.mktemp("adapters"), {}, {}
    register()
    configuration.load(configuration.parse_flags(FLAGS)[0], extra_files=("gin/runs/infer.gin",))
    setup = Setup()
    base = load_parameters(setup, parallel.make_mesh(), parallel.logical_axis_rules()).base
    for name, rank in (("a", 2), ("b", 4)):
        module = AdaLinkAdapter(rank=rank)
        params = parallel.unbox(fresh_params(AdaptedModel(setup.model.backbone, module), rank))["adapter"]
        params = jax.tree.map(
            lambda x, rank=rank: x + 2.0 * np.sin(rank * np.arange(x.size, dtype=np.float32)).reshape(x.shape), params
        )
        save_adapter(str(folder / name), params, describe_adapter(module) | {"base": base})
        found[name], folders[name] = (module, params), str(folder / name)
    return folders, found


@pytest.fixture
def configured():
    register()
    configuration.load(configuration.parse_flags(FLAGS)[0], extra_files=("gin/runs/infer.gin",))


@pytest.fixture(scope="module")
def scenes():
    found = digits.compose("digits_read", "test")
    return (
        [str(text) for text in found["inputs"][:ROWS]],
        found["image"][:ROWS],
        [str(t) for t in found["targets"][:ROWS]],
    )


def test_the_base_answers(configured, scenes):
    texts, images, targets = scenes
    found = Predictor()(texts, images)
    assert sum(a == b for a, b in zip(found, targets)) >= ROWS - 1  # 0.978 on all of test


def test_each_row_has_the_answer_of_a_run_of_its_adapter(configured, scenes, adapters):
    texts, images, _ = scenes
    folders, members = adapters
    predictor = Predictor(adapters=folders)
    names = ["a", None, "b", "b", "a", None]
    mixed = predictor(texts, images, names)
    alone = {None: Predictor()(texts, images)}
    setup = Setup()
    frozen = load_parameters(setup, parallel.make_mesh(), parallel.logical_axis_rules()).frozen
    ids = np.zeros((ROWS, 24), np.int32)
    for row, text in zip(ids, texts):
        row[: len(text) + 1] = [*(byte + 3 for byte in text.encode()), 1]
    for name, (module, params) in members.items():
        run = jax.jit(AdaptedModel(setup.model.backbone, module).apply, static_argnums=2, static_argnames="method")
        batch = {"encoder_input_tokens": ids, "images": images}
        out = np.asarray(run({"params": {**frozen, "adapter": params}}, batch, 4, method="generate").ids)[:, 0]
        alone[name] = [
            bytes(int(i) - 3 for i in row[: np.argmax(row == 1) if 1 in row else None] if 3 <= i < 259).decode(
                "utf-8", "ignore"
            )
            for row in out
        ]
    assert mixed == [alone[name][i] for i, name in enumerate(names)]
    assert alone["a"] != alone[None] and alone["b"] != alone["a"]
    assert predictor(texts, images, "b") == alone["b"] and predictor(texts, images) == alone[None]


def test_a_csv_file_is_answered_row_by_row(tmp_path, scenes, adapters, capsys):
    texts, images, targets = scenes
    folders, _ = adapters
    with open(tmp_path / "rows.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "inputs", "image", "adapter"])
        for i, (text, image) in enumerate(zip(texts, images)):
            Image.fromarray(np.round((image[..., 0] + 1) * 127.5).astype(np.uint8)).save(tmp_path / f"{i}.png")
            table.writerow([i, text, f"{i}.png", "a" if i == 0 else ""])
    command = ["infer", str(tmp_path / "rows.csv"), str(tmp_path / "out.csv"), *FLAGS]
    assert main([*command, "--adapters", ",".join(f"{name}={path}" for name, path in folders.items())]) == 0
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert (
        list(rows[0]) == ["id", "inputs", "image", "adapter", "prediction"] and [row["inputs"] for row in rows] == texts
    )
    assert sum(row["prediction"] == target for row, target in zip(rows[1:], targets[1:])) >= ROWS - 2
    before = (tmp_path / "out.csv").read_bytes()
    assert main([*command, "--adapters", f"a={folders['a']}"]) == 2
    assert "out.csv is there already" in capsys.readouterr().err
    assert (tmp_path / "out.csv").read_bytes() == before


def test_an_evaluation_server_s_file(tmp_path, scenes, capsys):
    inputs, images, _ = scenes
    with open(tmp_path / "rows.csv", "w", newline="") as file:
        table = csv.DictWriter(file, ["question_id", "inputs", "image"])
        table.writeheader()
        for i, (text, image) in enumerate(zip(inputs[:2], images)):
            Image.fromarray(np.round((image[..., 0] + 1) * 127.5).astype(np.uint8)).save(tmp_path / f"{i}.png")
            table.writerow({"question_id": 70 + i, "inputs": text, "image": f"{i}.png"})
    rows = str(tmp_path / "rows.csv")
    assert main(["infer", rows, str(tmp_path / "plain.csv"), *FLAGS]) == 0
    assert main(["infer", rows, str(tmp_path / "answers.json"), "--format=vqav2", *FLAGS]) == 0
    with open(tmp_path / "plain.csv", newline="") as file:
        expected = [row["prediction"] for row in csv.DictReader(file)]
    found = json.loads((tmp_path / "answers.json").read_text())
    assert found == [{"question_id": 70 + i, "answer": text} for i, text in enumerate(expected)]
    for flags, told in (
        (["--format=coco"], "needs a column `image_id`"),
        (["--format=glue", "--task=rte"], "needs --task, one of cola"),
        (["--task=rte"], "go with --format=glue"),
    ):
        capsys.readouterr()
        assert main(["infer", rows, str(tmp_path / "other"), *flags, *FLAGS]) == 2
        assert told in capsys.readouterr().err


def test_pictures_are_scaled_to_the_model(tmp_path):
    Image.new("RGB", (40, 20), (255, 255, 255)).save(tmp_path / "white.png")
    found = load_image(tmp_path / "white.png", (8, 16, 1))
    np.testing.assert_array_equal(found, np.ones((8, 16, 1), np.float32))
    with pytest.raises(UserError, match="There is no picture"):
        load_image(tmp_path / "none.png", (8, 16, 1))
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="damaged, or no picture"):
        load_image(tmp_path / "bad.png", (8, 16, 1))


def test_calls_that_fit_nothing_are_refused(configured, scenes, adapters):
    texts, images, _ = scenes
    predictor = Predictor(adapters=adapters[0])
    with pytest.raises(UserError, match="takes an image for each input; 6 inputs and 0 images"):
        predictor(texts)
    with pytest.raises(UserError, match="There is no adapter 'c'; there are: a, b"):
        predictor(texts, images, "c")
    with pytest.raises(UserError, match="2 adapters are named for 6 inputs"):
        predictor(texts, images, ["a", "b"])
    with pytest.raises(UserError, match=r"Image 0 is \(8, 8, 1\); the model takes \(8, 16, 1\)"):
        predictor(texts, images[:, :, :8])


@pytest.mark.parametrize("text, more, words", [
    ("inputs\n", [], "no rows below its header"),
    ("text\nx\n", [], "needs a column `inputs`, filled in every row; it has text"),
    ("inputs\nx\n", [], "needs a column `image`"),
    ("inputs,adapter\nx,b\n", ["--adapters", "a=p"], "names the adapter 'b'; --adapters has a"),
    ("inputs\nx\n", ["--adapters", "a=p,b=q"], "has no column `adapter`, and --adapters names 2"),
    ("inputs\nx\n", ["--adapters", "a=p,a=q"], "with each name once"),
    ("inputs,prediction\nx,y\n", [], "has a column `prediction` already"),
])  # fmt: skip
def test_files_that_fit_nothing_are_one_sentence(tmp_path, capsys, text, more, words):
    (tmp_path / "rows.csv").write_text(text)
    assert main(["infer", str(tmp_path / "rows.csv"), str(tmp_path / "out.csv"), *FLAGS, *more]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1
    assert not (tmp_path / "out.csv").exists()
