"""Captions of images: COCO captions and TextCaps.

Training uses one example per caption; evaluation shows each image once and scores against all of its captions. `test` is the
published split if that has captions; else the published validation split is halved by image.

`coco_captions`: with `source` "tfds" the data set of this name, in Karpathy's splits (train and restval; val; test). With
  "files" `coco/` with `annotations/captions_train2017.json` and `captions_val2017.json`, and the images in `train2017/` and
  `val2017/` (or 2014 in all four).
`textcaps`: `textcaps/TextCaps_0.1_train.json`, `TextCaps_0.1_val.json`, images in `train_images/`.
"""

import collections
import functools
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath

from adalink_jax.data.published import readers
from adalink_jax.data.published.registration import (
    MANY,
    PublishedTask,
    Row,
    Rows,
    TextExample,
    add_tasks,
    image_id,
    metric,
    tfds_rows,
)
from adalink_jax.data.published.settings import TFDS, PublishedData
from adalink_jax.data.splits import Splits, as_published, halved

PROMPT = "caption en"  # as PaliGemma's
METRICS = [metric("captions")]  # CIDEr, BLEU, ROUGE-L


def register() -> None:
    """Declares the tasks, with the settings of `PublishedData`."""
    data = PublishedData()
    if data.source == TFDS:
        rows = functools.partial(_coco_tfds_rows, tfds_rows(data, "coco_captions", "image"))
        tasks = [_task("coco_captions", rows, as_published("train+restval", "val", "test"), "image", keep=False)]
    else:
        readers_of_files = {"coco_captions": _coco_rows, "textcaps": _textcaps_rows}
        tasks = [
            _task(name, functools.partial(rows, data), halved(validation="val"), "image_file")
            for name, rows in readers_of_files.items()
        ]
    add_tasks(tasks, data)


def caption_form(row: Row, train: bool) -> Iterator[TextExample]:
    """Writes one example per caption for training, else one with all; a row has `image` and `captions`."""
    captions = [" ".join(caption.split()) for caption in row["captions"]]
    if train:
        for caption in captions:
            yield TextExample(PROMPT, caption, image=row["image"])
    else:
        yield TextExample(PROMPT, captions[0], tuple(captions), image=row["image"])


def _task(name: str, rows: Rows, splits: Splits, image: str, keep: bool = True) -> PublishedTask:
    return PublishedTask(name, rows, caption_form, image_id, splits, METRICS, MANY, image, keep)


def _coco_tfds_rows(read: Rows, split: str, seed: int | None) -> Iterator[Row]:
    for row in read(split, seed):
        yield {"image": row["image"], "image_id": row["image/id"], "captions": row["captions"]["text"]}


def _by_image(entries: Iterable[Row], caption: str, path: epath.Path) -> dict[Any, list[str]]:
    """The captions of each image; `caption` is their field."""
    captions: dict[Any, list[str]] = collections.defaultdict(list)
    for entry in entries:
        image, text = readers.fields(entry, ("image_id", caption), path)
        captions[image].append(text)
    return captions


def _coco_rows(data: PublishedData, split: str, seed: int | None) -> Iterator[Row]:
    folder = data.folder("coco", "coco_captions")
    path = readers.first_existing(folder / "annotations", f"captions_{split}2017.json", f"captions_{split}2014.json")
    content = readers.json_file(path, "images", "annotations")
    captions = _by_image(content["annotations"], "caption", path)
    for entry in content["images"]:
        image, name = readers.fields(entry, ("id", "file_name"), path)
        if image in captions:
            file = folder / path.stem.removeprefix("captions_") / name
            yield {"image": str(file), "image_id": image, "captions": captions[image]}


def _textcaps_rows(data: PublishedData, split: str, seed: int | None) -> Iterator[Row]:
    folder = data.folder("textcaps")
    path = folder / f"TextCaps_0.1_{split}.json"
    for image, texts in _by_image(readers.json_file(path, "data")["data"], "caption_str", path).items():
        yield {"image": str(folder / "train_images" / f"{image}.jpg"), "image_id": image, "captions": texts}
