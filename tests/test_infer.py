"""Predictions by `Predictor` and `adalink infer`, where each row names its adapter."""

import csv
import dataclasses
import json
import os
import pathlib
import subprocess
import sys

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
from adalink_jax.data.images import PREPARATION, load_image
from adalink_jax.data.vocabularies import train_sentencepiece
from adalink_jax.errors import UserError
from adalink_jax.serving import Predictor
from adalink_jax.training.setup import Setup, load_parameters

FLAGS = ["--gin_file=gin/models/pali_nano.gin", "--gin.INITIAL_CHECKPOINT_PATH='bundled:pali_nano_instruct'",
         "--gin.VOCABULARY='bytes'", "--gin.BATCH_SIZE=4", "--gin.TASK_FEATURE_LENGTHS={'inputs': 24, 'targets': 4}"]  # fmt: skip
ROWS = 6


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Name -> folder, and name -> (module, parameters), of two adapters that change the base model's predictions."""
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
        save_adapter(str(folder / name), params, describe_adapter(module) | {"base": dataclasses.asdict(base)})
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


def test_predictions_of_the_base_model(configured, scenes):
    texts, images, targets = scenes
    found = Predictor()(texts, images)
    assert sum(a == b for a, b in zip(found, targets)) >= ROWS - 1  # 0.978 on all of test


def test_each_row_has_the_prediction_of_its_adapter_alone(configured, scenes, adapters):
    texts, images, _ = scenes
    folders, members = adapters
    predictor = Predictor(adapters=folders)
    names = ["a", None, "b", "b", "a", None]
    mixed = predictor(texts, images, names)
    alone = {None: Predictor()(texts, images)}
    setup = Setup()
    frozen = load_parameters(setup, parallel.make_mesh(), parallel.logical_axis_rules()).tree()
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
    assert predictor(texts, images, "b") == alone["b"] and predictor(texts, images, None) == alone[None]


def test_predictions_for_the_rows_of_a_csv_file(tmp_path, scenes, adapters, capsys):
    texts, images, targets = scenes
    folders, _ = adapters
    with open(tmp_path / "rows.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "inputs", "image", "adapter"])
        for i, (text, image) in enumerate(zip(texts, images)):
            picture = Image.fromarray(np.round((image[..., 0] + 1) * 127.5).astype(np.uint8))
            picture.putalpha(255 if i else 254)
            picture.save(tmp_path / f"{i}.png")
            table.writerow([i, text, f"{i}.png", "a" if i == 0 else ""])
    command = ["infer", str(tmp_path / "rows.csv"), str(tmp_path / "out.csv"), *FLAGS]
    assert main([*command, "--adapters", ",".join(f"{name}={path}" for name, path in folders.items())]) == 0
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert (
        list(rows[0]) == ["id", "inputs", "image", "adapter", "prediction"] and [row["inputs"] for row in rows] == texts
    )
    assert sum(row["prediction"] == target for row, target in zip(rows[1:], targets[1:])) >= ROWS - 2
    assert "1 picture has transparent pixels; they were composed on white" in capsys.readouterr().err
    before = (tmp_path / "out.csv").read_bytes()
    assert main([*command, "--adapters", f"a={folders['a']}"]) == 2
    assert "out.csv exists already" in capsys.readouterr().err
    assert (tmp_path / "out.csv").read_bytes() == before


def test_a_kill_while_the_server_s_file_is_written_costs_nothing(tmp_path, scenes, monkeypatch):
    from adalink_jax.data import answer_files
    from adalink_jax.serving import prediction_file

    inputs, images, _ = scenes
    Image.fromarray(np.round((images[0][..., 0] + 1) * 127.5).astype(np.uint8)).save(tmp_path / "0.png")
    (tmp_path / "rows.csv").write_text(f"question_id,inputs,image\n7,{inputs[0]},0.png\n", encoding="utf-8")
    command = ["infer", str(tmp_path / "rows.csv"), str(tmp_path / "answers.json"), "--format=vqav2", *FLAGS]
    before = sorted(os.listdir(tmp_path))

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    calls = iter([answer_files.vqav2, interrupted])  # a trial, and the real one
    with monkeypatch.context() as patch:  # before the file is there
        patch.setitem(answer_files.FORMATS, "vqav2", lambda *args: next(calls)(*args))
        assert main(command) == 130
    assert not (tmp_path / "answers.json").exists()
    with monkeypatch.context() as patch:  # after it is there
        patch.setattr(Predictor, "__call__", interrupted)  # nothing is predicted again
        patch.setattr(prediction_file.Output, "finish", interrupted)
        assert main(command) == 130
    assert (tmp_path / "answers.json").exists()
    assert main(command) == 0 and sorted(os.listdir(tmp_path)) == sorted([*before, "answers.json"])
    assert main(command) == 2


def test_an_evaluation_server_s_file(tmp_path, scenes, capsys):
    inputs, images, _ = scenes
    with open(tmp_path / "rows.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, ["question_id", "inputs", "image"])
        table.writeheader()
        for i, (text, image) in enumerate(zip(inputs[:2], images)):
            Image.fromarray(np.round((image[..., 0] + 1) * 127.5).astype(np.uint8)).save(tmp_path / f"{i}.png")
            table.writerow({"question_id": 70 + i, "inputs": text, "image": f"{i}.png"})
    rows = str(tmp_path / "rows.csv")
    assert main(["infer", rows, str(tmp_path / "plain.csv"), *FLAGS]) == 0
    assert main(["infer", rows, str(tmp_path / "answers.json"), "--format=vqav2", *FLAGS]) == 0
    with open(tmp_path / "plain.csv", encoding="utf-8", newline="") as file:
        expected = [row["prediction"] for row in csv.DictReader(file)]
    found = json.loads((tmp_path / "answers.json").read_text())
    assert found == [{"question_id": 70 + i, "answer": text} for i, text in enumerate(expected)]
    for flags, message in (
        (["--format=coco"], "needs a column `image_id`"),
        (["--format=glue", "--task=rte"], "needs --task, one of cola"),
        (["--task=rte"], "need --format=glue"),
    ):
        capsys.readouterr()
        assert main(["infer", rows, str(tmp_path / "other"), *flags, *FLAGS]) == 2
        assert message in capsys.readouterr().err


def test_pictures_are_scaled_to_the_model(tmp_path):
    Image.new("RGB", (40, 20), (255, 255, 255)).save(tmp_path / "white.png")
    found = load_image(tmp_path / "white.png", (8, 16, 1))
    np.testing.assert_array_equal(found, np.ones((8, 16, 1), np.float32))
    with pytest.raises(UserError, match="There is no picture"):
        load_image(tmp_path / "none.png", (8, 16, 1))
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="damaged, or not a picture"):
        load_image(tmp_path / "bad.png", (8, 16, 1))


def test_invalid_calls_are_refused(configured, scenes, adapters):
    texts, images, _ = scenes
    predictor = Predictor(adapters=adapters[0])
    with pytest.raises(UserError, match="takes an image for each input \\(b'' for none\\), not 6 inputs and 0 images"):
        predictor(texts, None, "a")
    with pytest.raises(UserError, match="Which adapter\\? Name one of a, b"):
        predictor(texts, images)
    with pytest.raises(UserError, match="There is no adapter 'c'; there are: a, b"):
        predictor(texts, images, "c")
    with pytest.raises(UserError, match="2 adapters are named for 6 inputs"):
        predictor(texts, images, ["a", "b"])
    with pytest.raises(UserError, match=r"Image 0 is float32 \(8, 8, 1\); the model takes float32 \(8, 16, 1\)"):
        predictor(texts, images[:, :, :8], "a")


@pytest.mark.parametrize("text, more, words", [
    ("inputs,image\n", [], "no rows below its header"),
    ("text\nx\n", [], "needs a column `inputs`, filled in every row; it has text"),
    ("inputs\nx\n", [], "needs a column `image`"),
    ("inputs,image,adapter\nx,p.png,b\n", ["--adapters", "a=p"], "names the adapter 'b'; --adapters has a"),
    ("inputs,image\nx,p.png\n", ["--adapters", "a=p,b=q"], "has no column `adapter`, and --adapters names 2"),
    ("inputs\nx\n", ["--adapters", "a=p,a=q"], "with each name once"),
    ("inputs,prediction\nx,y\n", [], "has a column `prediction` already"),
])  # fmt: skip
def test_invalid_files_are_reported_in_one_sentence(tmp_path, capsys, text, more, words):
    (tmp_path / "rows.csv").write_text(text)
    Image.new("L", (16, 8)).save(tmp_path / "p.png")
    assert main(["infer", str(tmp_path / "rows.csv"), str(tmp_path / "out.csv"), *FLAGS, *more]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1
    assert not (tmp_path / "out.csv").exists()


def test_sampled_outputs_depend_on_the_row_and_the_seed_alone(scenes):
    register()
    sampling = [*FLAGS, "--gin_file=gin/decoding/sampling.gin", "--gin.TEMPERATURE=30.0"]
    configuration.load(configuration.parse_flags(sampling)[0], extra_files=("gin/runs/infer.gin",))
    texts, images = scenes[0][:1] * 9, np.repeat(scenes[1][:1], 9, axis=0)
    predictor = Predictor(batch_size=4, seed=7)
    first, second = predictor(texts, images), predictor(texts, images)
    assert len(set(first)) > 5, "batches share their draws"
    assert first != second, "calls share their draws"
    again = Predictor(batch_size=8, seed=7)
    assert again(texts[:2], images[:2]) + again(texts[2:], images[2:]) == first, "a draw depends on the batch"
    assert Predictor(batch_size=8, seed=8)(texts, images) != first


# --- without gin ---


@pytest.fixture(scope="module")
def predict(adapters):
    return Predictor(
        "bundled:pali_nano_instruct", adapters=adapters[0], task_feature_lengths={"inputs": 32, "targets": 8}
    )


def test_a_base_model_is_opened_by_name_and_gin_s_state_is_restored(configured, predict, scenes):
    texts, images, targets = scenes
    before = configuration.bindings()
    again = Predictor("bundled:pali_nano_instruct")
    assert configuration.bindings() == before
    assert sum(a == b for a, b in zip(again(texts, images), targets)) >= ROWS - 1
    assert again(texts, images) == predict(texts, images, None)


def test_every_form_of_images_and_a_single_input(predict, scenes, tmp_path):
    texts, images, _ = scenes
    pixels = np.round((images[0][..., 0] + 1) * 127.5).astype(np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "0.png")
    path = tmp_path / "0.png"
    forms = [picture, path, str(path), path.read_bytes(), pixels, pixels.astype(np.float32)[..., None] / 127.5 - 1]
    assert {predict(texts[0], form, None) for form in forms} == {predict(texts[:1], [forms[-1]], None)[0]}
    assert predict([], [], None) == []


def test_log_likelihoods_are_sums_over_tokens(predict, scenes):
    texts, images, _ = scenes
    choices = ["11", "42", "7"]
    by_choice = predict(texts, images, "a", choices=choices, scores=True)
    assert predict(texts, images, "a", choices=choices) == [max(each, key=each.get) for each in by_choice]
    assert [list(each.values()) for each in by_choice] == [sorted(each.values(), reverse=True) for each in by_choice]
    said = predict(texts, images, None, scores=True)
    for (text, score), each in zip(said, predict(texts, images, None, choices=[said[0][0], "11"], scores=True)):
        assert score <= 0 and (text != said[0][0] or each[text] == pytest.approx(score, abs=1e-5))
    # computed from the logits of teacher forcing
    setup = Setup(**{"model": predict._setup.model, "initial_checkpoint_path": "bundled:pali_nano_instruct"})
    frozen = load_parameters(setup, parallel.make_mesh(), parallel.logical_axis_rules()).tree()
    ids = [*(byte + 3 for byte in b"42"), 1]
    batch = {
        "encoder_input_tokens": np.array([[*(byte + 3 for byte in texts[0].encode()), 1]], np.int32),
        "images": images[:1],
        "decoder_input_tokens": np.array([[0, *ids[:-1]]], np.int32),
    }
    logits = jax.jit(AdaptedModel(setup.model.backbone).apply)({"params": frozen}, batch)
    by_hand = sum(float(jax.nn.log_softmax(logits[0, i])[x]) for i, x in enumerate(ids))
    found = predict(texts[0], images[0], None, choices=["42", "7"], scores=True)["42"]
    assert found == pytest.approx(by_hand, abs=1e-4)


def test_a_vocabulary_with_more_ids_than_rows_is_refused(tmp_path, capsys):
    text = ["the film was good and the film was bad", "a dull film walks in the park", "what is this? hello 123 456"]
    spiece = str(train_sentencepiece(text * 300, 287, str(tmp_path)))
    message = "has 387 ids and the model's embedding only 264 rows"
    with pytest.raises(UserError, match=message):
        Predictor("bundled:pali_nano_instruct", vocabulary=spiece)
    Image.fromarray(np.zeros((8, 16), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "rows.csv").write_text("inputs,image,label\nread,a.png,x\nread,a.png,x\n")
    flags = [*FLAGS, f"--gin.VOCABULARY={spiece!r}"]
    assert main(["infer", str(tmp_path / "rows.csv"), str(tmp_path / "out.csv"), *flags]) == 2
    assert (
        main(
            [
                "init",
                str(tmp_path / "rows.csv"),
                "--base=bundled:pali_nano_instruct",
                "--vocabulary",
                spiece,
                "--out",
                str(tmp_path / "out.gin"),
            ]
        )
        == 2
    )
    errors = capsys.readouterr().err
    assert errors.count(message) == 2 and not (tmp_path / "out.csv").exists()


def test_other_adapters_do_not_recompile(predict, scenes):
    texts, images, _ = scenes
    predict(texts, images, "a")
    compiled = predict._generate._cache_size()
    predict(texts, images, "b")
    predict(texts, images, ["a", None, "b"] * 2)
    predict([text.upper() for text in texts][:5], images[:5], None)
    assert predict._generate._cache_size() == compiled


def test_invalid_inputs_of_a_predictor_are_reported_in_one_sentence(predict, scenes, tmp_path):
    texts, images, _ = scenes
    for message, call in {
        "all different to the vocabulary": lambda: predict(texts, images, "a", choices=["1", "1"]),
        "give a list of answers": lambda: predict(texts, images, "a", choices="12"),
        "Image 0 is int64": lambda: predict(texts[0], np.zeros((8, 16, 1), int), "a"),
        "Only a run on your own files": lambda: predict({"question": "x"}, images[0], "a"),
        "longer than 8 tokens": lambda: predict(texts, images, "a", choices=["1", "123456789"]),
        "There is no picture": lambda: predict(texts[0], tmp_path / "none.png", "a"),
        "Image 0 is damaged": lambda: predict(texts[0], b"no picture", "a"),
        "is not a base model": lambda: Predictor(str(tmp_path)),
    }.items():
        with pytest.raises(UserError, match=message):
            call()


# --- own files: init, train, predict, resume ---


def test_a_run_that_is_not_there_is_reported_with_the_others_of_its_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new.csv").write_text("inputs\na\n")
    for name in ("a", "b", "c", "d", "sst2", "vqa"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.gin").write_text("")
    (tmp_path / "runs" / "notes").mkdir()
    first = "runs/a, runs/b, runs/c, runs/d, runs/sst2, and 1 more"
    near = "runs/sst2, runs/a, runs/b, runs/c, runs/d, and 1 more"
    for typed, others in (("runs/x", first), ("runs", first), ("runs/sst", near), ("rnus/sst2", "runs/sst2")):
        for source in ("new.csv", "task:test"):
            assert main(["infer", source, "out.jsonl", f"--run={typed}"]) == 2
            assert capsys.readouterr().err == f"error: {typed} is not a run; runs near it: {others}.\n"
        with pytest.raises(UserError, match=f"{typed} is not a run; runs near it: "):
            Predictor(typed)
    with pytest.raises(UserError, match="There is no folder other/x; did you mean hf://other/x"):
        Predictor("other/x")
    with pytest.raises(UserError, match="did you mean bundled:pali_nano_instruct"):
        Predictor("pali_nano_instuct")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An AdaLink run on a CSV of scenes, by the commands that `adalink init` prints."""
    folder = tmp_path_factory.mktemp("own")
    found = digits.compose("digits_reverse", "train")
    with open(folder / "scenes.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["photo", "question", "answer"])
        for i in range(300):
            pixels = np.round((found["image"][i][..., 0] + 1) * 127.5).astype(np.uint8)
            (folder / "photos").mkdir(exist_ok=True)
            Image.fromarray(pixels).save(folder / "photos" / f"{i}.png")
            table.writerow([f"{i}.png", str(found["inputs"][i]), str(found["targets"][i])])
    task = folder / "task.gin"
    assert main(["init", str(folder / "scenes.csv"), f"--out={task}", "--base=bundled:pali_nano_instruct"]) == 0
    train = [
        "train",
        "--gin_file=gin/models/pali_nano.gin",
        "--gin_file=gin/adapters/adalink.gin",
        f"--gin_file={task}",
    ]
    train += ["--gin_file=gin/runs/finetune.gin", "--gin.INITIAL_CHECKPOINT_PATH='bundled:pali_nano_instruct'"]
    train += [f"--gin.MODEL_DIR='{folder / 'run'}'", "--gin.TRAIN_STEPS=40", "--gin.WARMUP_STEPS=2"]
    assert main(train) == 0
    return folder


def test_init_writes_a_complete_task_file(trained):
    text = (trained / "task.gin").read_text()
    for line in ("INPUTS = '{question}'", "TARGETS = '{answer}'", "IMAGE = '{photo}'", "METRIC = 'accuracy'",
                 "TASK_FEATURE_LENGTHS = {'inputs': 24, 'targets': 4}"):  # fmt: skip
        assert line in text
    assert f"IMAGES = '{trained / 'photos'}'" in text and (trained / "task.sheet.png").exists()


def test_a_run_predicts_with_its_templates_and_has_the_same_score(trained, capsys):
    rows = list(csv.DictReader((trained / "scenes.csv").read_text().splitlines()))
    predict = Predictor(trained / "run")
    assert predict({"question": rows[0]["question"]}, trained / "photos" / rows[0]["photo"]) == predict(
        rows[0]["question"], trained / "photos" / rows[0]["photo"]
    )
    asked = [row["question"] for row in rows], [trained / "photos" / row["photo"] for row in rows]
    found = predict(*asked)
    assert main(["infer", str(trained / "scenes.csv"), str(trained / "a.jsonl"), f"--run={trained / 'run'}"]) == 0  # fmt: skip
    written = [json.loads(line) for line in (trained / "a.jsonl").read_text().splitlines()]
    assert [row["prediction"] for row in written] == found and [row["photo"] for row in written] == [
        r["photo"] for r in rows
    ]
    assert main(["infer", "task:test", str(trained / "test.jsonl"), f"--run={trained / 'run'}"]) == 0
    tested = [json.loads(line) for line in (trained / "test.jsonl").read_text().splitlines()]
    share = sum(row["prediction"] == row["target"] for row in tested) / len(tested)
    summary = json.loads((trained / "run" / "summary.json").read_text())
    assert share == pytest.approx(summary["adapted_accuracy"])


def test_a_folder_of_new_pictures_is_predicted(trained, capsys):
    """The pictures that the run was trained on are in another folder (IMAGES)."""
    for name in ("7.png", "more/8.png"):
        (trained / "new" / name).parent.mkdir(parents=True, exist_ok=True)
        (trained / "new" / name).write_bytes((trained / "photos" / pathlib.Path(name).name).read_bytes())
    (trained / "new" / "7.txt").write_text("no picture")
    command = ["infer", str(trained / "new"), str(trained / "new.jsonl"), f"--run={trained / 'run'}"]
    assert main(command) == 2 and "has other columns (it has image); give --inputs" in capsys.readouterr().err
    assert main([*command, "--inputs=what is this?", "--images=x"]) == 2
    assert "is a folder of pictures itself; leave out --images" in capsys.readouterr().err
    assert main([*command, "--inputs=what is this?"]) == 0
    said = capsys.readouterr().err
    assert "1 files in " in said and "are not pictures, and left out." in said
    written = [json.loads(line) for line in (trained / "new.jsonl").read_text().splitlines()]
    predict = Predictor(trained / "run")
    expected = predict(["what is this?"] * 2, [trained / "photos" / "7.png", trained / "photos" / "8.png"])
    assert written == [{"image": name, "prediction": x} for name, x in zip(("7.png", "more/8.png"), expected)]


@pytest.mark.parametrize("column", ["photo", "file_name"])
def test_a_folder_of_pictures_with_a_table_metadata_has_its_rows(tmp_path, column):
    """Named in the run's own column, or in that of Hugging Face's imagefolder; the run's pictures (IMAGES) are elsewhere."""
    from adalink_jax.serving import rows

    for number, name in enumerate(("new/a.png", "new/more/b.png", "new/unnamed.png", "photos/a.png")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 16), 50 * number, np.uint8)).save(tmp_path / name)
    table, folder = tmp_path / "new" / "metadata.csv", str(tmp_path / "new")
    table.write_text(f"{column},question\nmore/b.png,what is it?\na.png,which one?\n")
    run = {"inputs": "{question}", "image": "{photo}", "images": str(tmp_path / "photos")}
    options = dict.fromkeys(("inputs", "image", "images", "encoding"))
    source = rows.of_file(folder, options, run, wants_images=True)
    assert [ask.text for ask in source.asks()] == ["what is it?", "which one?"]
    assert source.columns == (column, "question") and source.table == str(table)
    for ask, name in zip(source.asks(), ("more/b.png", "a.png"), strict=True):
        expected = load_image(f"{folder}/{name}", (8, 16, 1))
        np.testing.assert_array_equal(ask.picture((8, 16, 1), PREPARATION), expected)
    without_run = {**options, "inputs": "{question}"}
    if column == "file_name":  # of a base model that can do without pictures, too
        source = rows.of_file(folder, without_run, {}, wants_images=True, needs_images=False)
        assert all(ask.picture for ask in source.asks())
    table.write_text(f"{column},question\nmore/c.png,what is it?\n")
    with pytest.raises(UserError, match=r"Line 2 of .*new/metadata.csv: there is no picture more/c.png in .*/new"):
        rows.of_file(folder, options, run, wants_images=True)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_stopped_predictions_resume(trained, suffix, monkeypatch, capsys):
    from adalink_jax.cli import infer_command

    monkeypatch.setattr(infer_command, "BATCHES_PER_WRITE", 1)
    command = lambda name: ["infer", str(trained / "scenes.csv"), str(trained / f"{name}{suffix}"),
                            f"--run={trained / 'run'}"]  # fmt: skip
    assert main(command("whole")) == 0
    calls, called = [], Predictor.__call__

    def killed_at_the_third(self, *args, **options):
        calls.append(len(args[0]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return called(self, *args, **options)

    monkeypatch.setattr(Predictor, "__call__", killed_at_the_third)
    assert main(command("cut")) == 130
    out = trained / f"cut{suffix}"
    with out.open("ab") as file:
        file.write(b'{"half a row')
    with pytest.raises(AssertionError):
        assert main([*command("cut"), "--inputs={answer}"]) == 0
    assert "was begun by another command" in capsys.readouterr().err
    calls[:] = [0] * 10
    assert main(command("cut")) == 0
    assert sum(calls[10:]) == 300 - 64  # nothing is predicted twice
    assert out.read_bytes() == (trained / f"whole{suffix}").read_bytes()
    assert main(command("cut")) == 2 and "exists already" in capsys.readouterr().err


def test_a_run_s_configuration_is_known_to_a_process_that_only_predicts():
    """The commands import more modules than a script with a `Predictor`."""
    program = (
        "from adalink_jax import configuration\n"
        "from adalink_jax.serving import opening\n"
        "opening.register()\n"
        "configuration.load(configuration.GinFlags(('gin/runs/quickstart.gin',)), require_all=False)\n"
        "assert 'compiler_flags.name' in configuration.bindings()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
