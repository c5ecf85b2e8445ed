"""Published images as tasks: captions and questions, from files to batches and to a run's picture."""

import collections
import io
import json
import pathlib

import gin
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("seqio")

from published import LENGTHS, SHAPE, example, picture, tasks_of, whole, write, write_free, write_tfds, write_vqa  # noqa: E402

from adalink_jax.data import DatasetConfig, FeatureConverter, train_batches  # noqa: E402
from adalink_jax.errors import UserError  # noqa: E402

# --- from TFDS ---


def test_coco_captions_as_tfds_prepares_them_up_to_the_model_s_batch(tmp_path):
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(encoding_format="png"),
        "image/id": np.int64,
        "captions": tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()}),
    }
    (tmp_path / "red.png").write_bytes(picture((255, 0, 0)))
    row = lambda i, n: {
        "image": str(tmp_path / "red.png"), "image/id": i,
        "captions": [{"id": j, "text": f"a red  thing\n{i} {j}"} for j in range(n)],
    }  # fmt: skip
    parts = {"train": [row(1, 2)], "restval": [row(2, 1)], "val": [row(3, 2)], "test": [row(4, 5), row(5, 1)]}
    write_tfds(tmp_path, "coco_captions", features, parts)
    task, _ = tasks_of("captioning", "coco_captions", tmp_path, "tfds")
    assert task.has_images
    by_split = whole(task, "inputs_pretokenized", "targets_pretokenized")
    assert by_split["train"] == [("caption en", f"a red thing {x}") for x in ("1 0", "1 1", "2 0")]  # a row a caption
    assert len(by_split["test"]) == 2  # a row an image
    examples = list(task.examples("test"))
    assert examples[0]["references"].decode().count("red") == 5 and isinstance(examples[0]["image"], bytes)
    config = DatasetConfig("coco_captions", {"inputs": 16, "targets": 32}, 2)
    batch = next(train_batches(task, config, FeatureConverter(config.task_feature_lengths, SHAPE)))
    assert {name: x.shape for name, x in batch.items()} == {
        "encoder_input_tokens": (2, 16), "decoder_target_tokens": (2, 32), "decoder_input_tokens": (2, 32),
        "decoder_loss_weights": (2, 32), "images": (2, *SHAPE), "image_present": (2,),
    }  # fmt: skip
    np.testing.assert_array_equal(batch["images"], np.broadcast_to(np.float32([1, -1, -1]), (2, *SHAPE)))


# --- from files as published ---


def test_captions_from_json_and_a_folder_of_images(tmp_path):
    for part, ids in (("train", (1, 2)), ("val", range(10, 22))):
        entries = [{"id": i, "file_name": f"{i:012d}.jpg"} for i in ids]
        captions = [{"image_id": i, "caption": f"picture {i} {x}"} for i in ids for x in "ab"]
        write(tmp_path / f"coco/annotations/captions_{part}2017.json", {"images": entries, "annotations": captions})
    task, _ = tasks_of("captioning", "coco_captions", tmp_path)
    by_split = whole(task, "targets_pretokenized", "image_file")
    assert by_split["train"][0] == ("picture 1 a", str(tmp_path / "coco/train2017/000000000001.jpg"))
    assert len(by_split["train"]) == 4 and len(by_split["validation"]) + len(by_split["test"]) == 12
    rows = [{"image_id": f"x{i // 2}", "caption_str": f"says {i}"} for i in range(16)]
    for part in ("train", "val"):
        write(tmp_path / f"textcaps/TextCaps_0.1_{part}.json", {"data": rows})
    by_split = whole(tasks_of("captioning", "textcaps", tmp_path)[0], "references", "image_file")
    assert len(by_split["train"]) == 16
    assert sorted(by_split["validation"] + by_split["test"])[0] == (
        "says 0\x1fsays 1",
        str(tmp_path / "textcaps/train_images/x0.jpg"),
    )


@pytest.mark.parametrize("name, folder, prefix", [("vqav2", "vqav2", "v2_"), ("okvqa", "okvqa", "")])
def test_questions_about_coco_images(tmp_path, name, folder, prefix):
    write_vqa(tmp_path / folder, prefix)
    task, _ = tasks_of("vqa", name, tmp_path)
    by_split = whole(task, "inputs_pretokenized", "targets_pretokenized", "image_file")
    assert by_split["train"][0][:2] == ("answer en what is 1?", "maybe")  # the most frequent answer
    assert len(by_split["validation"]) + len(by_split["test"]) == 24
    images = {split: {file for *_, file in rows} for split, rows in by_split.items()}
    assert images["validation"] and images["test"] and not images["validation"] & images["test"]
    assert next(iter(task.examples("test")))["references"].decode().split("\x1f") == ["yes"] * 3 + ["maybe"] * 7
    config = DatasetConfig(name, {"inputs": 32, "targets": 8}, 4)
    batch = next(train_batches(task, config, FeatureConverter(config.task_feature_lengths, SHAPE)))
    assert sorted(np.round((batch["images"][:, 0, 0, 0] + 1) * 127.5)) == [1, 1, 2, 2]
    next(pathlib.Path(tmp_path / folder / "train2014").iterdir()).write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"train2014/COCO_train2014_0000\d+.jpg is damaged, or not a picture"):
        next(train_batches(task, config, FeatureConverter(config.task_feature_lengths, SHAPE)))


def test_a_text_stands_for_the_image_where_the_model_reads_it_in_the_text(tmp_path):
    gin.bind_parameter("PublishedData.image_text", "<start_of_image>")
    write_vqa(tmp_path / "okvqa", "")
    inputs = whole(tasks_of("vqa", "okvqa", tmp_path)[0], "inputs_pretokenized")
    assert inputs["train"][0] == "<start_of_image>answer en what is 1?"


def test_questions_about_texts_and_documents(tmp_path):
    said = {"question": "what?", "answers": ["a b", "c"]}
    for part, n in (("train", 1), ("val", 12)):
        rows = [said | {"image_id": f"t{i}"} for i in range(n)]
        write(tmp_path / f"textvqa/TextVQA_0.5.1_{part}.json", {"data": rows})
        rows = [
            said | {"image": f"documents/{i}_{j}.png", "ucsf_document_id": f"d{i}"} for i in range(n) for j in (0, 1)
        ]
        write(tmp_path / f"docvqa/{part}_v1.0_withQT.json", {"data": rows})
    by_split = whole(tasks_of("vqa", "textvqa", tmp_path)[0], "targets_pretokenized", "image_file")
    assert by_split["train"] == [("a b", str(tmp_path / "textvqa/train_images/t0.jpg"))]
    by_split = whole(tasks_of("vqa", "docvqa", tmp_path)[0], "image_file")
    assert by_split["train"][0] == str(tmp_path / "docvqa/documents/0_0.png")
    pages = {split: [file.rpartition("_")[0] for file in files] for split, files in by_split.items()}
    assert set(collections.Counter(pages["test"]).values()) == {2} and not set(pages["test"]) & set(pages["validation"])
    write(tmp_path / "docvqa/val_v1.0_withQT.json", {"dataset": []})
    with pytest.raises(UserError, match="val_v1.0_withQT.json has no data; is it the published file?"):
        tasks_of("vqa", "docvqa", tmp_path)


# --- images in the converter ---


def test_encoded_images_of_any_size_are_scaled_to_the_model_s():
    converter = FeatureConverter(LENGTHS, SHAPE, "things")
    ready = np.full(SHAPE, 0.5, np.float32)
    batch = converter([example(picture((255, 255, 255), (40, 7), "JPEG")), example(ready)], batch_size=3)
    np.testing.assert_allclose(batch["images"][0], 1.0, atol=0.02)
    np.testing.assert_array_equal(batch["images"][1], ready)
    np.testing.assert_array_equal(batch["images"][2], 0)  # padding
    grey = FeatureConverter(LENGTHS, (4, 4, 1))([example(picture((0, 0, 0)))])
    np.testing.assert_array_equal(grey["images"], np.full((1, 4, 4, 1), -1, np.float32))
    stripes = np.repeat(np.arange(8, dtype=np.uint8)[None] * 30, 6, 0)
    file = io.BytesIO()
    Image.fromarray(stripes).save(file, "PNG")  # of the model's size: not a pixel is touched
    same = FeatureConverter(LENGTHS, (6, 8, 1)).image(example(file.getvalue()))
    np.testing.assert_allclose(same[..., 0], stripes / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize(
    "image, message",
    [
        (np.zeros((4, 4, 3), np.float32), r"'what is it' of things is \(4, 4, 3\) and the model takes \(8, 12, 3\)"),
        (picture((1, 2, 3))[:45], "image of the example 'what is it' of things is damaged"),
        (None, "no image in the example 'what is it' of things, and the model takes images"),
    ],
    ids=["another size", "cut short", "missing"],
)
def test_an_image_that_cannot_be_used_names_its_example(image, message):
    row = example(image)
    if image is None:
        del row["image"]
    with pytest.raises(UserError, match=message):
        FeatureConverter(LENGTHS, SHAPE, "things")([row])


def test_an_encoded_image_needs_the_model_s_shape():
    with pytest.raises(UserError, match="give FeatureConverter the model's image_shape"):
        FeatureConverter(LENGTHS)([example(picture((1, 2, 3)))])


# --- a run ---


@pytest.mark.slow
def test_a_run_on_image_files_from_the_gin_files_to_the_picture(tmp_path):
    from adalink_jax.cli.main import main

    write_free(tmp_path)
    files = ["models/pali_nano", "adapters/adalink", "tasks/free", "runs/finetune"]
    macros = {
        "MODEL_DIR": str(tmp_path / "run"), "DATA_DIR": str(tmp_path), "VOCABULARY": "bytes", "BATCH_SIZE": 4,
        "MIXTURE_OR_TASK_NAME": "vqa_easy", "TASK_FEATURE_LENGTHS": {"inputs": 24, "targets": 4}, "TRAIN_STEPS": 2,
        "WARMUP_STEPS": 1, "INITIAL_CHECKPOINT_PATH": "bundled:pali_nano_raw", "EVAL_PERIOD": 0, "RANK": 2,
    }  # fmt: skip
    command = [f"--gin_file=gin/{file}.gin" for file in files] + [f"--gin.{k}={v!r}" for k, v in macros.items()]
    assert main(["train", *command]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["task"] == "vqa_easy" and 0 <= summary["scores"]["accuracy"] <= 1
    with Image.open(tmp_path / "run" / "samples.png") as image:
        assert image.width > 500
