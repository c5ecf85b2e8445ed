"""Questions about images: VQAv2, OK-VQA, TextVQA, DocVQA.

The training target is the most frequent answer (the first of equally frequent ones); evaluation compares with all answers:
VQA accuracy against the ten of VQAv2, OK-VQA and TextVQA, ANLS for DocVQA. Their test splits have no public answers, so
`validation` is halved by image (DocVQA: by document): no image is in two splits.

`vqav2`: `vqav2/v2_OpenEnded_mscoco_{train2014,val2014}_questions.json`, `v2_mscoco_{...}_annotations.json`, images
  `train2014/COCO_train2014_000000000009.jpg` and `val2014/...`.
`okvqa`: the same in `okvqa/`, without `v2_` (the images may be links to those of VQAv2).
`textvqa`: `textvqa/TextVQA_0.5.1_{train,val}.json`, images `train_images/IMAGE_ID.jpg`.
`docvqa`: `docvqa/{train,val}_v1.0_withQT.json` (or `{train,val}_v1.0.json`), images as the files name them (`documents/...png`).
"""

import functools
import statistics
from collections.abc import Iterator

from adalink_jax.data.published import readers
from adalink_jax.data.published.registration import (
    MANY,
    PublishedTask,
    Row,
    Rows,
    TextExample,
    add_mixture,
    add_tasks,
    image_id,
    metric,
)
from adalink_jax.data.published.settings import FILES, PublishedData
from adalink_jax.data.splits import halved
from adalink_jax.errors import UserError

PROMPT = "answer en {}"  # as PaliGemma's
RATES = {"vqav2": 443_757, "okvqa": 9_009, "textvqa": 34_602, "docvqa": 39_463}  # training examples


def register() -> None:
    """Declares the tasks, with the settings of `PublishedData`."""
    data = PublishedData()
    if data.source != FILES:
        raise UserError(
            f"SOURCE is {data.source!r}, but questions about images are read from files; leave it at 'files'."
        )
    readers_of_files = {
        "vqav2": functools.partial(_coco_rows, "vqav2", "v2_"),
        "okvqa": functools.partial(_coco_rows, "okvqa", ""),
        "textvqa": _textvqa_rows,
        "docvqa": _docvqa_rows,
    }
    tasks = [_task(name, functools.partial(rows, data)) for name, rows in readers_of_files.items()]
    add_tasks(tasks, data)
    add_mixture("vqa_mixture", RATES)


def vqa_form(row: Row, train: bool) -> Iterator[TextExample]:
    """Writes a row, which has `image`, `question` and `answers`."""
    answers = [" ".join(answer.split()) for answer in row["answers"]]
    yield TextExample(
        PROMPT.format(" ".join(row["question"].split())), statistics.mode(answers), tuple(answers), image=row["image"]
    )


def _task(name: str, rows: Rows) -> PublishedTask:
    scores = [metric("anls" if name == "docvqa" else "vqa_accuracy")]
    return PublishedTask(name, rows, vqa_form, image_id, halved(validation="val"), scores, MANY, "image_file")


def _coco_rows(name: str, prefix: str, data: PublishedData, split: str, seed: int | None) -> Iterator[Row]:
    folder, part = data.folder(name), f"{split}2014"
    path = folder / f"{prefix}OpenEnded_mscoco_{part}_questions.json"
    asked = readers.json_file(path, "questions")["questions"]
    questions = dict(readers.fields(entry, ("question_id", "question"), path) for entry in asked)
    path = folder / f"{prefix}mscoco_{part}_annotations.json"
    for entry in readers.json_file(path, "annotations")["annotations"]:
        number, image, answers = readers.fields(entry, ("question_id", "image_id", "answers"), path)
        if number not in questions:
            raise UserError(f"{path} answers question {number}, which {folder} does not ask; copy both files again.")
        yield {
            "image": str(folder / part / f"COCO_{part}_{image:012d}.jpg"),
            "image_id": image,
            "question": questions[number],
            "answers": [readers.fields(answer, ["answer"], path)[0] for answer in answers],
        }


def _textvqa_rows(data: PublishedData, split: str, seed: int | None) -> Iterator[Row]:
    folder = data.folder("textvqa")
    path = folder / f"TextVQA_0.5.1_{split}.json"
    for entry in readers.json_file(path, "data")["data"]:
        image, question, answers = readers.fields(entry, ("image_id", "question", "answers"), path)
        file = str(folder / "train_images" / f"{image}.jpg")
        yield {"image": file, "image_id": image, "question": question, "answers": answers}


def _docvqa_rows(data: PublishedData, split: str, seed: int | None) -> Iterator[Row]:
    folder = data.folder("docvqa")
    path = readers.first_existing(folder, f"{split}_v1.0_withQT.json", f"{split}_v1.0.json")
    for entry in readers.json_file(path, "data")["data"]:
        image, question, answers = readers.fields(entry, ("image", "question", "answers"), path)
        document = entry.get("ucsf_document_id", image)
        yield {"image": str(folder / image), "image_id": document, "question": question, "answers": answers}
