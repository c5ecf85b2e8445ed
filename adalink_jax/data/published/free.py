"""Free data sets to pre-train small models on: images, prose, instructions. `source` is always "files".

`vqa_easy`: `vqa_easy/{train,test}_questions.json`, `{train,test}_images.zip`. A tenth of the training images is `validation`.
`vqa_daquar`: `vqa_daquar/all_qa_pairs.txt`, `train_images_list.txt`, `test_images_list.txt`, `images.zip`. The official split
  by image; a tenth of the training images is `validation`. An answer may be a list ("book, lamp"), which must match exactly.
`caption_openstax`: `caption_openstax/captions.tsv` (image, split, alt, ...) and `images.tar`. One description per image.
`corpus_openstax`: `corpus_openstax/{train,valid}.jsonl.gz` (text), under span corruption. `valid` is halved by document. The
  settings are those of `SpanCorruption`; masks are drawn anew each epoch. Its accuracy requires every dropped token.
`instruct_flan_cot`: `instruct_flan_cot/*_train.tsv.gz` (question, answer, rationale; no header). The answer is the target.
`instruct_t0_short`: `instruct_t0_short/t0_short.jsonl.gz` (template, inputs, targets).
  Of each of these two, 2 % are `validation` and 2 % `test`, by the input; a source example may occur in several templates.

Mixtures: `free_images` (the first three), `free_text` (the last two), in proportion to their training examples. To pre-train an
image-and-text model, in equal parts: `free_raw` (captions, prose), `free_instruct` (captions, `vqa_easy`, prose, both sets of
instructions); tasks without images are in them as `NAME_blank`, with an empty image.
"""

import functools
import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import seqio
import tensorflow as tf
from etils import epath

from adalink_jax.data.published import captioning, readers, span_corruption, vqa
from adalink_jax.data.published.registration import (
    MANY,
    PublishedTask,
    Row,
    TextExample,
    add_mixture,
    add_tasks,
    add_twin_without_image,
    image_id,
    metric,
    output_features,
    replace,
)
from adalink_jax.data.published.settings import FILES, PublishedData, SpanCorruption
from adalink_jax.data.seqio_vocabulary import seqio_vocabulary
from adalink_jax.data.splits import as_published, carved, halved
from adalink_jax.data.vocabularies import EOS, Vocabulary, load_vocabulary
from adalink_jax.errors import UserError

CORPUS = "corpus_openstax"
IMAGES = {"caption_openstax": 2_452, "vqa_easy": 34_540, "vqa_daquar": 6_098}
TEXT = {"instruct_flan_cot": 32_150, "instruct_t0_short": 33_345}
Archive = Callable[[epath.Path], dict[str, bytes]]  # reads all files of an archive
EXACT = [metric("accuracy")]  # with one reference: exact match


def register() -> None:
    """Declares the tasks, with the settings of `PublishedData`."""
    data = PublishedData()
    if data.source != FILES:
        raise UserError(f"SOURCE is {data.source!r}, but the free data sets are read from files; leave it at 'files'.")
    openstax, easy, daquar = (
        functools.partial(rows, data, functools.cache(readers.archive))
        for rows in (_openstax_rows, _easy_rows, _daquar_rows)
    )
    add_tasks(
        [
            PublishedTask(
                "caption_openstax", openstax, captioning.caption_form, image_id,
                as_published("train", "valid", "test"), captioning.METRICS, MANY, "image",
            ),
            PublishedTask("vqa_easy", easy, vqa.vqa_form, image_id, carved(0.1), EXACT, image="image"),
            PublishedTask("vqa_daquar", daquar, vqa.vqa_form, image_id, carved(0.1), EXACT, image="image"),
            *instructions(data),
        ],
        data,
    )  # fmt: skip
    add_corpus(data, SpanCorruption())
    add_mixture("free_images", IMAGES)
    add_mixture("free_text", TEXT)
    blank = {name: add_twin_without_image(name) for name in (CORPUS, *TEXT)}
    add_mixture("free_raw", {"caption_openstax": 1, blank[CORPUS]: 1})
    add_mixture("free_instruct", {"caption_openstax": 1, "vqa_easy": 1, **dict.fromkeys(blank.values(), 1)})


# --- images ---


def _openstax_rows(data: PublishedData, archive: Archive, split: str, seed: int | None) -> Iterator[Row]:
    folder = data.folder("caption_openstax")
    images = archive(folder / "images.tar")
    path = folder / "captions.tsv"
    for row in readers.table(path, ["image", "split", "alt"]):
        if row["split"] == split:
            [image] = readers.fields(images, [row["image"]], folder / "images.tar")
            yield {"image": image, "image_id": row["image"], "captions": [row["alt"]]}


def _easy_rows(data: PublishedData, archive: Archive, split: str, seed: int | None) -> Iterator[Row]:
    folder = data.folder("vqa_easy")
    path = folder / f"{split}_questions.json"
    images = archive(folder / f"{split}_images.zip")
    for entry in readers.json_value(path):
        if not isinstance(entry, list) or len(entry) != 3:
            raise UserError(f"{path} holds {entry!r} instead of [question, answer, image]; copy it again.")
        question, answer, number = entry
        [image] = readers.fields(images, [f"{number}.png"], folder / f"{split}_images.zip")
        yield {"image": image, "image_id": number, "question": question, "answers": [answer]}


_DAQUAR_QUESTION = re.compile(r"^(.*?)\s*(?:\bin\s+(?:the\s+)?)?\b(image\d+)\b\s*\??\s*$")


def _daquar_rows(data: PublishedData, archive: Archive, split: str, seed: int | None) -> Iterator[Row]:
    folder = data.folder("vqa_daquar")
    images = archive(folder / "images.zip")
    wanted = set(readers.text(folder / f"{split}_images_list.txt").split())
    path = folder / "all_qa_pairs.txt"
    lines = readers.text(path).splitlines()
    for number, (question, answer) in enumerate(zip(lines[::2], lines[1::2])):
        match = _DAQUAR_QUESTION.match(question)
        if match is None:
            raise UserError(f"Line {2 * number + 1} of {path} names no image; copy it again.")
        asked, name = match.groups()
        if name in wanted:
            [image] = readers.fields(images, [f"{name}.jpg"], folder / "images.zip")
            answer = answer.replace("_", " ")
            yield {"image": image, "image_id": name, "question": f"{asked} ?", "answers": [answer]}


# --- instructions ---


def instructions(data: PublishedData) -> list[PublishedTask]:
    """Returns both sets of instructions."""
    form = lambda row, train: [TextExample(row["inputs"], row["targets"])]
    return [
        PublishedTask(
            name, functools.partial(rows, data), form, lambda row: row["inputs"], carved(0.02, test=None), EXACT
        )
        for name, rows in (("instruct_flan_cot", _flan_rows), ("instruct_t0_short", _t0_rows))
    ]


def _flan_rows(data: PublishedData, split: str, seed: int | None) -> Iterator[Row]:
    folder = data.folder("instruct_flan_cot")
    files = sorted(folder.glob("*_train.tsv.gz"))
    if not files:
        raise UserError(f"There is no file *_train.tsv.gz in {folder}; copy the data set again.")
    for path in files:
        for row in readers.table(path, ["question", "answer"], header=False):
            inputs, targets = (row[name].replace("\\n", "\n").strip() for name in ("question", "answer"))
            yield {"inputs": inputs, "targets": targets}


def _t0_rows(data: PublishedData, split: str, seed: int | None) -> Iterator[Row]:
    path = data.folder("instruct_t0_short") / "t0_short.jsonl.gz"
    for row in readers.json_lines(path):
        inputs, targets = readers.fields(row, ("inputs", "targets"), path)
        yield {"inputs": inputs, "targets": targets}


# --- prose ---


class _Documents(seqio.FunctionDataSource):
    """The ids of the corpus, one document per element, with the seed of their masks."""

    def __init__(self, data: PublishedData):
        self._data, self._vocabulary = data, load_vocabulary(data.vocabulary)
        self._parts = halved(validation="valid")
        self._ids: dict[str, list[np.ndarray]] = {}
        super().__init__(self._dataset, splits=list(self._parts))

    def check(self) -> None:
        """Reads a document of each split."""
        for part in self._parts.values():
            next(self._rows(part.split))

    def _rows(self, split: str) -> Iterator[Row]:
        path = self._data.folder(CORPUS) / f"{split}.jsonl.gz"
        for row in readers.json_lines(path):
            book, module, text = readers.fields(row, ("book", "module", "text"), path)
            yield {"identity": f"{book}/{module}", "text": text}

    def _dataset(self, split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        if split not in self._ids:
            part = self._parts[split]
            rows = (row for row in self._rows(part.split) if part.holds(row["identity"]))
            self._ids[split] = [np.array(self._vocabulary.encode(row["text"]), np.int32) for row in rows]
        ids = self._ids[split]
        order = np.random.default_rng(seed).permutation(len(ids)) if shuffle_files else range(len(ids))
        signature = {"ids": tf.TensorSpec([None], tf.int32), "seed": tf.TensorSpec([], tf.int64)}
        documents = lambda: ({"ids": ids[i], "seed": (seed or 0) if shuffle_files else 0} for i in order)
        return tf.data.Dataset.from_generator(documents, output_signature=signature)


def add_corpus(data: PublishedData, settings: SpanCorruption) -> None:
    """Declares the corpus, under span corruption."""
    vocabulary = load_vocabulary(data.vocabulary)
    replace(seqio.TaskRegistry, CORPUS)
    seqio.TaskRegistry.add(
        CORPUS,
        source=_Documents(data),  # pyright: ignore[reportArgumentType]  # seqio's classes do not match its protocol
        preprocessors=[
            functools.partial(_corrupted, vocabulary=vocabulary, settings=settings),
            seqio.preprocessors.append_eos_after_trim,
        ],
        output_features=output_features(seqio_vocabulary(data.vocabulary), None),
        metric_fns=[metric("accuracy")],
    )


def _corrupted(
    dataset: tf.data.Dataset, sequence_length: Mapping[str, int], *, vocabulary: Vocabulary, settings: SpanCorruption
) -> tf.data.Dataset:
    """The joined documents, cut into pieces that fill `sequence_length`, each with spans dropped."""
    length, targets = span_corruption.lengths(sequence_length["inputs"], settings)
    if targets > sequence_length["targets"]:
        raise UserError(
            f"Span corruption of {sequence_length['inputs']} input tokens needs {targets} target tokens, and "
            f"TASK_FEATURE_LENGTHS gives {sequence_length['targets']}; raise it, or lower SpanCorruption.noise_density."
        )
    if (vocabulary.before, vocabulary.after) != ((), (EOS,)):
        raise UserError(
            "Span corruption is T5's, whose inputs end with EOS alone, and this vocabulary's do not; use T5's."
        )
    sentinel = vocabulary.first_sentinel

    def examples() -> Iterator[Row]:
        documents = list(dataset.as_numpy_iterator())
        ids = np.concatenate([document["ids"] for document in documents])
        rng = np.random.default_rng(documents[0]["seed"])
        starts = np.arange(0, len(ids), length)
        for start in rng.permutation(starts) if documents[0]["seed"] else starts:
            pieces = span_corruption.corrupt(ids[start : start + length], rng, sentinel, settings)
            features = dict(zip(("inputs", "targets"), pieces))
            yield features | {f"{name}_pretokenized": vocabulary.decode(piece) for name, piece in features.items()}

    ids, text = tf.TensorSpec([None], tf.int32), tf.TensorSpec([], tf.string)
    signature = {"inputs": ids, "targets": ids, "inputs_pretokenized": text, "targets_pretokenized": text}
    return tf.data.Dataset.from_generator(examples, output_signature=signature)
