"""Published data sets as tasks: T5's text to the letter, parts that share no example, images from bytes to the batch.

Data sets are miniatures that the tests write, as TFDS prepares them and as their authors publish them; real files are read
where they lie beside the checkout.
"""

import collections
import gzip
import io
import json
import pathlib
import tarfile
import zipfile

import gin
import numpy as np
import pytest
from PIL import Image

seqio = pytest.importorskip("seqio")

from adalink_jax.data import DatasetConfig, FeatureConverter, PublishedData, get_tasks, train_batches  # noqa: E402
from adalink_jax.data.published import glue, span_corruption, splits, superglue  # noqa: E402
from adalink_jax.data.published.settings import SpanCorruption  # noqa: E402
from adalink_jax.errors import UserError  # noqa: E402

SHARED = pathlib.Path(__file__).parents[2] / "shared" / "data"
SHAPE = (8, 12, 3)


def tasks_of(module, name, folder, source="files", vocabulary="bytes", lengths=None):
    """`(task to train on, tasks to score)`, configured as the gin files do."""
    settings = {"data_dir": str(folder), "vocabulary": str(vocabulary), "source": source}
    for key, value in settings.items():
        gin.bind_parameter(f"PublishedData.{key}", value)
    lengths = lengths or {"inputs": 512, "targets": 64}
    return get_tasks(DatasetConfig(name, lengths, 2, f"adalink_jax.data.published.{module}"))


def text(examples, *names):
    """The named fields of examples, as text."""
    coding = lambda name: "latin-1" if name == "image" else "utf-8"
    found = [tuple(example[name].decode(coding(name)) for name in names) for example in examples]
    return [row[0] for row in found] if len(names) == 1 else found


def whole(task, *names):
    """The same of every split: split -> rows."""
    return {split: text(task.examples(split), *names) for split in ("train", "validation", "test")}


def picture(colour, size=(20, 10), kind="PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, (str, bytes)):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_tfds(folder, name, features, rows):
    """A folder as TFDS prepares it; rows: split -> rows."""
    import tensorflow_datasets as tfds

    (folder / name / "1.0.2").mkdir(parents=True)
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=name.split("/")[0], config_name=name.partition("/")[2] or None, version=tfds.core.Version("1.0.2"),
            data_dir=str(folder / name / "1.0.2"), module_name="",
        ),
        features=tfds.features.FeaturesDict(features),
    )  # fmt: skip
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=100)
    writer.initialize_splits(list(rows))
    writer.add_examples(rows)
    writer.close_all()


# --- splits ---


def test_halves_are_about_equal_and_depend_on_the_text_alone():
    texts = [f"example {i}" for i in range(4000)]
    first, second = splits.halved()["validation"], splits.halved()["test"]
    inside = {x for x in texts if first.holds(x)}
    assert 1850 < len(inside) < 2150
    assert inside == {x for x in reversed(texts) if first.holds(x)}
    assert {x for x in texts if second.holds(x)} == set(texts) - inside
    assert (first.holds("example 0"), first.holds("example 1"), first.holds("example 2")) == PINNED


PINNED = (True, False, False)  # on every machine, in every version: results must stay comparable


def test_what_is_carved_out_of_train_is_in_one_part():
    texts = [f"image {i}" for i in range(4000)]
    for carved, sizes in ((splits.carved(0.1), (3600, 400)), (splits.carved(0.02, test=None), (3840, 80, 80))):
        parts = [part for part in carved.values() if part.split == "train"]
        count = collections.Counter(sum(part.holds(x) for part in parts) for x in texts)
        assert count == {1: 4000}
        for part, size in zip(parts, sizes):
            assert sum(map(part.holds, texts)) == pytest.approx(size, rel=0.25)


# --- the form of the text: literal strings, as in appendix D of the T5 paper and in t5's own preprocessors ---

GLUE_FORMS = {
    "cola": ({"sentence": "John made Bill master of himself.", "label": 1}, "cola sentence: John made Bill master of himself.", "acceptable"),
    "sst2": ({"sentence": "it confirms fincher ’s status", "label": 1}, "sst2 sentence: it confirms fincher ’s status", "positive"),
    "mrpc": ({"sentence1": "A.", "sentence2": "B.", "label": 1}, "mrpc sentence1: A. sentence2: B.", "equivalent"),
    "qqp": ({"question1": "A?", "question2": "B?", "label": 0}, "qqp question1: A? question2: B?", "not_duplicate"),
    "stsb": ({"sentence1": "A.", "sentence2": "B.", "label": 3.25}, "stsb sentence1: A. sentence2: B.", "3.2"),
    "mnli_matched": ({"premise": "P.", "hypothesis": "H.", "label": 2}, "mnli hypothesis: H. premise: P.", "contradiction"),
    "mnli_mismatched": ({"premise": "P.", "hypothesis": "H.", "label": 1}, "mnli hypothesis: H. premise: P.", "neutral"),
    "qnli": ({"question": "Q?", "sentence": "S.", "label": 0}, "qnli question: Q? sentence: S.", "entailment"),
    "rte": ({"sentence1": "A.", "sentence2": "B.", "label": 1}, "rte sentence1: A. sentence2: B.", "not_entailment"),
    "wnli": ({"sentence1": "A.", "sentence2": "B.", "label": 1}, "wnli sentence1: A. sentence2: B.", "entailment"),
}  # fmt: skip


@pytest.mark.parametrize("name", glue.GLUE)
def test_glue_is_written_as_t5_writes_it(name):
    row, inputs, targets = GLUE_FORMS[name]
    example = glue.glue_form(name, row)
    assert (example.inputs, example.targets) == (inputs, targets)


def test_scores_are_rounded_to_a_fifth_for_training_and_kept_for_scoring():
    rounded = {
        score: glue.glue_form("stsb", {"sentence1": "", "sentence2": "", "label": score})
        for score in (0.0, 2.7, 4.75, 5.0)
    }
    assert {score: x.targets for score, x in rounded.items()} == {0.0: "0.0", 2.7: "2.8", 4.75: "4.8", 5.0: "5.0"}
    assert rounded[4.75].references == ("4.75",)


PASSAGE = "He said “no.”\n@highlight\nAda Lovelace wrote it.\n@highlight\nBabbage built it\n@highlight\nIn London"
SUPERGLUE_FORMS = {
    "boolq": (
        {"question": "is it", "passage": "It is.", "label": 1},
        [("boolq passage: It is. question: is it", "True")],
    ),
    "cb": ({"premise": "P.", "hypothesis": "H.", "label": 1}, [("cb hypothesis: H. premise: P.", "contradiction")]),
    "copa": (
        {"premise": "P.", "choice1": "One.", "choice2": "Two.", "question": "cause", "label": 1},
        [("copa choice1: One. choice2: Two. premise: P. question: cause", "choice2")],
    ),
    "multirc": (
        {
            "paragraph": "<b>Sent 1: </b>One.<br><b>Sent 2: </b>Two.", "question": "Q?", "answer": "A", "label": 0,
            "idx": {"paragraph": 3, "question": 5},
        },
        [("multirc question: Q? answer: A paragraph: Sent 1: One. Sent 2: Two.", "False")],
    ),
    "record": (
        {
            "passage": PASSAGE, "query": "@placeholder wrote it", "entities": ["Ada Lovelace", "Babbage"],
            "answers": ["Ada", "Ada Lovelace"], "idx": {"passage": 1, "query": 2},
        },
        [
            (
                "record query: @placeholder wrote it entities: Ada Lovelace, Babbage passage: "
                "He said “no.”. Ada Lovelace wrote it. Babbage built it. In London",
                answer,
            )
            for answer in ("Ada", "Ada Lovelace")
        ],
    ),
    "rte": ({"premise": "P.", "hypothesis": "H.", "label": 0}, [("rte hypothesis: H. premise: P.", "entailment")]),
    "wic": (
        {"word": "bed", "sentence1": "A bed.", "sentence2": "A river bed.", "label": 0},
        [("wic sentence1: A bed. sentence2: A river bed. word: bed", "False")],
    ),
    "wsc": (
        {
            "text": "Mitchell asked Tom if he could lend some money.", "span1_text": "Tom", "span2_text": "he",
            "span2_index": 4, "label": 1,
        },
        [("wsc: Mitchell asked Tom if *he* could lend some money.", "Tom")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", superglue.SUPERGLUE)
def test_superglue_is_written_as_t5_writes_it(name):
    row, expected = SUPERGLUE_FORMS[name]
    form = superglue.SUPERGLUE[name].form
    assert [(x.inputs, x.targets) for x in form(row, True)] == expected
    assert [(x.inputs, x.targets) for x in form(row, False)] == expected[:1]


def test_the_wrong_noun_of_wsc_is_scored_and_not_trained_on():
    row = SUPERGLUE_FORMS["wsc"][0] | {"span1_text": "Mitchell's brother", "label": 0}
    assert list(superglue.wsc_form(row, True)) == []
    assert [x.references for x in superglue.wsc_form(row, False)] == [("False",)]
    named = {"the Mitchell": "False", "Mitchell's": "True", "Tom": "False", "": "False"}
    assert {text: superglue.wsc_label(text, "Mitchell's brother") for text in named} == named


# --- from files as published ---


def write_rte(folder):
    row = lambda i: f"{i}\tThe {i}.\tA {i}.\t{'entailment' if i % 2 else 'not_entailment'}\n"
    head = "index\tsentence1\tsentence2\tlabel\n"
    write(folder / "RTE" / "train.tsv", head + "".join(map(row, range(4))))
    write(folder / "RTE" / "dev.tsv", head + "".join(map(row, range(10, 30))))


def test_glue_from_its_archive_s_files(tmp_path):
    write_rte(tmp_path)
    task, [scored] = tasks_of("glue", "glue_rte", tmp_path)
    found = whole(task, "inputs_pretokenized", "targets_pretokenized")
    assert found["train"][:2] == [
        ("rte sentence1: The 0. sentence2: A 0.", "not_entailment"), ("rte sentence1: The 1. sentence2: A 1.", "entailment")
    ]  # fmt: skip
    assert len(found["train"]) == 4 and len(found["validation"]) + len(found["test"]) == 20
    assert not set(found["validation"]) & set(found["test"])
    examples = list(scored.examples("test"))
    right = text(examples, "targets_pretokenized")
    assert scored.score(examples, right) == {"accuracy": 1.0}
    assert scored.score(examples, ["maybe", *right[1:]])["accuracy"] == pytest.approx(1 - 1 / len(right))
    assert list(task.examples("train", seed=1))[0]["inputs"][-1] == 1  # EOS


ARCHIVE = {  # folder: (header, a row of number i, files), as in GLUE's archives
    "CoLA": (None, "gj04\t{label}\t\tSentence {i}.", "train dev"),
    "SST-2": ("sentence\tlabel", "sentence {i} \t{label}", "train dev"),
    "MRPC": ("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", '{label}\t1\t2\tA "{i}.\tB.', "train dev"),
    "QQP": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "1\t2\t3\tA {i}?\tB?\t{label}", "train dev"),
    "STS-B": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        "0\tg\tf\ty\t1\ts\ts\tA {i}.\tB.\t{label}.250", "train dev",
    ),
    "MNLI": (
        "index\tsentence1\tsentence2\tlabel1\tgold_label", "0\tP {i}.\tH.\tneutral\tcontradiction",
        "train dev_matched dev_mismatched",
    ),
    "QNLI": ("index\tquestion\tsentence\tlabel", "0\tQ {i}?\tS.\tentailment", "train dev"),
    "RTE": ("index\tsentence1\tsentence2\tlabel", "0\tA {i}.\tB.\tnot_entailment", "train dev"),
}  # fmt: skip


def test_the_whole_archive_as_one_mixture(tmp_path):
    for folder, (header, row, files) in ARCHIVE.items():
        for file in files.split():
            count = 1200 if (folder, file) == ("MNLI", "train") else 12
            rows = [row.format(i=i, label=i % 2) for i in range(count)]
            write(tmp_path / folder / f"{file}.tsv", "\n".join([header, *rows] if header else rows) + "\n")
    with (tmp_path / "QQP" / "train.tsv").open("a") as file:
        file.write("7\t8\t9\tcut short\n")  # as published
    mixture, scored = tasks_of("glue", "glue_mixture", tmp_path)
    assert [task.name for task in scored] == sorted(f"glue_{name}" for name in glue.RATES)
    two = lambda task: (row for row, _ in zip(task.examples("train"), range(2)))
    first = {task.name: text(two(task), "inputs_pretokenized", "targets_pretokenized") for task in scored}
    assert len(list(next(task for task in scored if task.name == "glue_qqp").examples("train"))) == 12
    assert {name: rows[1] for name, rows in first.items()} == {
        "glue_cola": ("cola sentence: Sentence 1.", "acceptable"),
        "glue_sst2": ("sst2 sentence: sentence 1 ", "positive"),
        "glue_mrpc": ('mrpc sentence1: A "1. sentence2: B.', "equivalent"),
        "glue_qqp": ("qqp question1: A 1? question2: B?", "duplicate"),
        "glue_stsb": ("stsb sentence1: A 1. sentence2: B.", "1.2"),
        "glue_mnli_matched": ("mnli hypothesis: H. premise: P 1.", "contradiction"),
        "glue_mnli_mismatched": ("mnli hypothesis: H. premise: P 1.", "contradiction"),
        "glue_qnli": ("qnli question: Q 1? sentence: S.", "entailment"),
        "glue_rte": ("rte sentence1: A 1. sentence2: B.", "not_entailment"),
    }
    drawn = [bytes(x for x in row["inputs"][:5]) for row, _ in zip(mixture.examples("train", seed=0), range(20))]
    assert len(set(drawn)) > 1
    mnli = next(task for task in scored if task.name == "glue_mnli_matched")
    early = [int(row["inputs_pretokenized"].split()[-1][:-1]) for row, _ in zip(mnli.examples("train", 3), range(60))]
    assert max(early) > 1100  # beyond seqio's buffer of 1,000: the whole split is shuffled


def test_the_order_depends_on_the_seed_and_can_be_entered_anywhere(tmp_path):
    write_rte(tmp_path)
    task, _ = tasks_of("glue", "glue_rte", tmp_path)
    order = lambda seed, start=0: text(task.examples("validation", seed, start), "inputs_pretokenized")
    assert order(1)[3:] == order(1, 3)
    assert order(1) != order(2) and sorted(order(1)) == sorted(order(2))


def test_what_is_missing_or_of_another_form_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"no folder .*/RTE; set DATA_DIR"):
        tasks_of("glue", "glue_rte", tmp_path)
    write_rte(tmp_path)
    write(tmp_path / "RTE" / "dev.tsv", "index\tpremise\thypothesis\tlabel\n0\ta\tb\tentailment\n")
    with pytest.raises(UserError, match=r"dev.tsv has the header .*without sentence1, sentence2"):
        tasks_of("glue", "glue_rte", tmp_path)
    write(tmp_path / "RTE" / "dev.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tyes\n")
    with pytest.raises(UserError, match=r"Example 1 of .*dev.tsv has the label 'yes'"):
        tasks_of("glue", "glue_rte", tmp_path)
    (tmp_path / "RTE" / "dev.tsv").unlink()
    with pytest.raises(UserError, match=r"There is no .*dev.tsv"):
        tasks_of("glue", "glue_rte", tmp_path)
    with pytest.raises(UserError, match="nearest: glue_rte"):
        tasks_of("glue", "glue_rtee", tmp_path)
    with pytest.raises(UserError, match="no TFDS data set in .*glue/rte; prepare it"):
        tasks_of("glue", "glue_rte", tmp_path, "tfds")
    gin.clear_config()
    with pytest.raises(UserError, match="DATA_DIR is not set"):
        get_tasks(DatasetConfig("glue_rte", {}, 2, "adalink_jax.data.published.glue"))
    with pytest.raises(UserError, match="SOURCE is 'web'"):
        PublishedData("here", "bytes", "web")


def write_superglue(folder):
    entry = lambda i, **more: {"idx": i, "label": bool(i % 2)} | more
    passages = [
        {
            "idx": i,
            "passage": {
                "text": f"Text {i}.",
                "questions": [
                    {"question": "Q?", "idx": 7, "answers": [{"text": t, "label": 1, "idx": 0} for t in "ab"]}
                ],
            },
        }
        for i in range(8)
    ]
    queries = [
        {
            "idx": i,
            "passage": {"text": f"Bo met Al {i}", "entities": [{"start": 7, "end": 8}, {"start": 0, "end": 1}]},
            "qas": [{"query": "@placeholder", "idx": 9, "answers": [{"text": "Bo", "start": 0, "end": 1}]}],
        }
        for i in range(8)
    ]
    wic = [entry(i, word="w", sentence1=f"a {i}", sentence2="b") for i in range(8)]
    for name, rows in (("MultiRC", passages), ("ReCoRD", queries), ("WiC", wic)):
        for file in ("train", "val"):
            write(folder / name / f"{file}.jsonl", "\n".join(map(json.dumps, rows)) + "\n")


def test_superglue_from_its_archive_s_files(tmp_path):
    write_superglue(tmp_path)
    multirc = whole(tasks_of("superglue", "superglue_multirc", tmp_path)[0], "inputs_pretokenized", "group")
    assert multirc["train"][0] == ("multirc question: Q? answer: a paragraph: Text 0.", "0-7")
    for split in ("validation", "test"):  # all answers to a question are in one half
        assert set(collections.Counter(group for _, group in multirc[split]).values()) == {2}
    record = next(iter(tasks_of("superglue", "superglue_record", tmp_path)[0].examples("train")))
    assert record["inputs_pretokenized"] == b"record query: @placeholder entities: Al, Bo passage: Bo met Al 0"
    assert whole(tasks_of("superglue", "superglue_wic", tmp_path)[0], "targets_pretokenized")["train"][:2] == [
        "False",
        "True",
    ]
    write(tmp_path / "WiC" / "val.jsonl", '{"word": "w", "label": true}\n')
    with pytest.raises(UserError, match="val.jsonl has no 'sentence1'"):
        tasks_of("superglue", "superglue_wic", tmp_path)


# --- from TFDS ---


def test_glue_and_super_glue_as_tfds_prepares_them(tmp_path):
    import tensorflow_datasets as tfds

    words = lambda *names: {name: tfds.features.Text() for name in names}
    idx, classes = {"idx": np.int32}, lambda n: {"label": tfds.features.ClassLabel(num_classes=n)}
    mnli = lambda n, tag: [{"premise": f"P {tag} {i}.", "hypothesis": "H.", "label": i % 3, "idx": i} for i in range(n)]
    write_tfds(
        tmp_path, "glue/mnli", words("premise", "hypothesis") | classes(3) | idx,
        {"train": mnli(6, "t"), "validation_matched": mnli(12, "m"), "validation_mismatched": mnli(12, "n")},
    )  # fmt: skip
    task, _ = tasks_of("glue", "glue_mnli_mismatched", tmp_path, "tfds")
    found = whole(task, "inputs_pretokenized", "targets_pretokenized")
    assert found["train"][2] == ("mnli hypothesis: H. premise: P t 2.", "contradiction")
    assert len(found["validation"]) + len(found["test"]) == 12 and all("P n" in x for x, _ in found["test"])
    ids = {"paragraph": np.int32, "question": np.int32, "answer": np.int32}
    row = lambda i: {
        "paragraph": f"T {i // 2}.", "question": "Q?", "answer": f"{i}", "label": 1,
        "idx": {"paragraph": i // 2, "question": 4, "answer": i},
    }  # fmt: skip
    write_tfds(
        tmp_path, "super_glue/multirc", words("paragraph", "question", "answer") | classes(2) | {"idx": ids},
        {"train": [row(0)], "validation": [row(i) for i in range(12)]},
    )  # fmt: skip
    task, _ = tasks_of("superglue", "superglue_multirc", tmp_path, "tfds")
    assert whole(task, "inputs_pretokenized", "group", "targets_pretokenized")["train"] == [
        ("multirc question: Q? answer: 0 paragraph: T 0.", "0-4", "True")
    ]


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
    found = whole(task, "inputs_pretokenized", "targets_pretokenized")
    assert found["train"] == [("caption en", f"a red thing {x}") for x in ("1 0", "1 1", "2 0")]  # a row a caption
    assert len(found["test"]) == 2  # a row an image
    examples = list(task.examples("test"))
    assert examples[0]["references"].decode().count("red") == 5 and isinstance(examples[0]["image"], bytes)
    config = DatasetConfig("coco_captions", {"inputs": 16, "targets": 32}, 2)
    batch = next(train_batches(task, config, FeatureConverter(config.task_feature_lengths, SHAPE)))
    assert {name: x.shape for name, x in batch.items()} == {
        "encoder_input_tokens": (2, 16), "decoder_target_tokens": (2, 32), "decoder_input_tokens": (2, 32),
        "decoder_loss_weights": (2, 32), "images": (2, *SHAPE), "image_present": (2,),
    }  # fmt: skip
    np.testing.assert_array_equal(batch["images"], np.broadcast_to(np.float32([1, -1, -1]), (2, *SHAPE)))


# --- images, from files as published ---


def test_captions_from_json_and_a_folder_of_images(tmp_path):
    for part, ids in (("train", (1, 2)), ("val", range(10, 22))):
        entries = [{"id": i, "file_name": f"{i:012d}.jpg"} for i in ids]
        captions = [{"image_id": i, "caption": f"picture {i} {x}"} for i in ids for x in "ab"]
        write(tmp_path / f"coco/annotations/captions_{part}2017.json", {"images": entries, "annotations": captions})
    task, _ = tasks_of("captioning", "coco_captions", tmp_path)
    found = whole(task, "targets_pretokenized", "image_file")
    assert found["train"][0] == ("picture 1 a", str(tmp_path / "coco/train2017/000000000001.jpg"))
    assert len(found["train"]) == 4 and len(found["validation"]) + len(found["test"]) == 12
    rows = [{"image_id": f"x{i // 2}", "caption_str": f"says {i}"} for i in range(16)]
    for part in ("train", "val"):
        write(tmp_path / f"textcaps/TextCaps_0.1_{part}.json", {"data": rows})
    found = whole(tasks_of("captioning", "textcaps", tmp_path)[0], "references", "image_file")
    assert len(found["train"]) == 16
    assert sorted(found["validation"] + found["test"])[0] == (
        "says 0\x1fsays 1",
        str(tmp_path / "textcaps/train_images/x0.jpg"),
    )


def write_vqa(folder, prefix=""):
    for part, images in (("train2014", (1, 2)), ("val2014", range(10, 22))):
        ask = [{"question_id": 10 * i + j, "image_id": i, "question": f"what  is {i}?"} for i in images for j in (0, 1)]
        people = ["no", "yes", "yes", *["maybe"] * 7]
        said = [{"answer": "yes" if i < 2 else x, "answer_id": i} for i, x in enumerate(people)]
        answer = [{"question_id": q["question_id"], "image_id": q["image_id"], "answers": said} for q in ask]
        write(folder / f"{prefix}OpenEnded_mscoco_{part}_questions.json", {"questions": ask})
        write(folder / f"{prefix}mscoco_{part}_annotations.json", {"annotations": answer})
        for i in images:
            write(folder / part / f"COCO_{part}_{i:012d}.jpg", picture((i, i, i), kind="JPEG"))


@pytest.mark.parametrize("name, folder, prefix", [("vqav2", "vqav2", "v2_"), ("okvqa", "okvqa", "")])
def test_questions_about_coco_images(tmp_path, name, folder, prefix):
    write_vqa(tmp_path / folder, prefix)
    task, _ = tasks_of("vqa", name, tmp_path)
    found = whole(task, "inputs_pretokenized", "targets_pretokenized", "image_file")
    assert found["train"][0][:2] == ("answer en what is 1?", "maybe")  # the most frequent answer
    assert len(found["validation"]) + len(found["test"]) == 24
    images = {split: {file for *_, file in rows} for split, rows in found.items()}
    assert images["validation"] and images["test"] and not images["validation"] & images["test"]
    assert next(iter(task.examples("test")))["references"].decode().split("\x1f") == ["yes"] * 3 + ["maybe"] * 7
    config = DatasetConfig(name, {"inputs": 32, "targets": 8}, 4)
    batch = next(train_batches(task, config, FeatureConverter(config.task_feature_lengths, SHAPE)))
    assert sorted(np.round((batch["images"][:, 0, 0, 0] + 1) * 127.5)) == [1, 1, 2, 2]
    next(pathlib.Path(tmp_path / folder / "train2014").iterdir()).write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"train2014/COCO_train2014_0000\d+.jpg is damaged, or no picture"):
        next(train_batches(task, config, FeatureConverter(config.task_feature_lengths, SHAPE)))


def test_questions_about_texts_and_documents(tmp_path):
    said = {"question": "what?", "answers": ["a b", "c"]}
    for part, n in (("train", 1), ("val", 12)):
        rows = [said | {"image_id": f"t{i}"} for i in range(n)]
        write(tmp_path / f"textvqa/TextVQA_0.5.1_{part}.json", {"data": rows})
        rows = [
            said | {"image": f"documents/{i}_{j}.png", "ucsf_document_id": f"d{i}"} for i in range(n) for j in (0, 1)
        ]
        write(tmp_path / f"docvqa/{part}_v1.0_withQT.json", {"data": rows})
    found = whole(tasks_of("vqa", "textvqa", tmp_path)[0], "targets_pretokenized", "image_file")
    assert found["train"] == [("a b", str(tmp_path / "textvqa/train_images/t0.jpg"))]
    found = whole(tasks_of("vqa", "docvqa", tmp_path)[0], "image_file")
    assert found["train"][0] == str(tmp_path / "docvqa/documents/0_0.png")
    pages = {split: [file.rpartition("_")[0] for file in files] for split, files in found.items()}
    assert set(collections.Counter(pages["test"]).values()) == {2} and not set(pages["test"]) & set(pages["validation"])
    write(tmp_path / "docvqa/val_v1.0_withQT.json", {"dataset": []})
    with pytest.raises(UserError, match="val_v1.0_withQT.json has no data; is it the published file?"):
        tasks_of("vqa", "docvqa", tmp_path)


# --- images in the converter ---

LENGTHS = {"inputs": 4, "targets": 4}


def example(image, **more):
    return {"inputs": [5, 1], "targets": [6, 1], "inputs_pretokenized": "what is it", "image": image} | more


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
    "image, told",
    [
        (np.zeros((4, 4, 3), np.float32), r"'what is it' of things is \(4, 4, 3\) and the model takes \(8, 12, 3\)"),
        (picture((1, 2, 3))[:45], "image of the example 'what is it' of things is damaged"),
        (None, "no image in the example 'what is it' of things, and the model takes images"),
    ],
    ids=["another size", "cut short", "missing"],
)
def test_an_image_that_cannot_be_used_names_its_example(image, told):
    row = example(image)
    if image is None:
        del row["image"]
    with pytest.raises(UserError, match=told):
        FeatureConverter(LENGTHS, SHAPE, "things")([row])


def test_an_encoded_image_needs_the_model_s_shape():
    with pytest.raises(UserError, match="give FeatureConverter the model's image_shape"):
        FeatureConverter(LENGTHS)([example(picture((1, 2, 3)))])


# --- free data sets ---


def write_free(folder):
    zipped = lambda names: _zip({name: picture((i, 0, 0), (6, 6)) for i, name in enumerate(names)})
    for part, n in (("train", 30), ("test", 4)):
        write(folder / f"vqa_easy/{part}_questions.json", [["what colour?", "red", i] for i in range(n)])
        write(folder / f"vqa_easy/{part}_images.zip", zipped([f"{i}.png" for i in range(n)]))
    names = [f"image{i}" for i in range(1, 33)]
    asked = [f"what is {x} the {name} ?\nbook, white_lamp" for name in names for x in ("in", "behind the table in")]
    write(folder / "vqa_daquar/all_qa_pairs.txt", "\n".join(asked) + "\n")
    write(folder / "vqa_daquar/train_images_list.txt", "\n".join(names[:30]))
    write(folder / "vqa_daquar/test_images_list.txt", "\n".join(names[30:]))
    write(folder / "vqa_daquar/images.zip", zipped([f"{name}.jpg" for name in names]))
    rows = [
        f"{i}.jpg\t{part}\tb\tA picture of {i}.\tmore" for i, part in enumerate(["train", "train", "valid", "test"])
    ]
    write(folder / "caption_openstax/captions.tsv", "\n".join(["image\tsplit\tbook\talt\tfigure_caption", *rows]))
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as file:
        for i in range(4):
            content = picture((i, 0, 0), kind="JPEG")
            member = tarfile.TarInfo(f"{i}.jpg")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    write(folder / "caption_openstax/images.tar", packed.getvalue())


def _zip(files):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return packed.getvalue()


def test_free_sets_of_images_and_their_mixture(tmp_path):
    write_free(tmp_path)
    mixture, scored = tasks_of("free", "free_images", tmp_path)
    assert [task.name for task in scored] == ["caption_openstax", "vqa_daquar", "vqa_easy"]
    captions, daquar, easy = scored
    assert whole(captions, "inputs_pretokenized", "targets_pretokenized")["test"] == [("caption en", "A picture of 3.")]
    found = whole(daquar, "inputs_pretokenized", "targets_pretokenized", "image")
    assert found_first(found["test"]) == [
        ("answer en what is ?", "book, white lamp"), ("answer en what is behind the table ?", "book, white lamp")
    ]  # fmt: skip
    assert len(found["test"]) == 4 and len(found["train"]) + len(found["validation"]) == 60
    assert found["validation"] and not {x[2] for x in found["validation"]} & {x[2] for x in found["train"]}
    sizes = {split: len(rows) for split, rows in whole(easy, "targets_pretokenized").items()}
    assert sizes["train"] + sizes["validation"] == 30 and sizes["test"] == 4
    config = DatasetConfig("free_images", {"inputs": 32, "targets": 32}, 2)
    assert next(train_batches(mixture, config, FeatureConverter(config.task_feature_lengths, SHAPE)))["images"].shape == (2, *SHAPE)
    write(tmp_path / "vqa_easy/test_images.zip", b"PK")
    with pytest.raises(UserError, match="test_images.zip is damaged"):
        tasks_of("free", "vqa_easy", tmp_path)


def found_first(rows):
    return [row[:2] for row in rows[:2]]


def test_free_instructions(tmp_path):
    rows = [f"Is {i} odd?\\nOptions:\\n- yes\\n- no\tyes\tBecause." for i in range(200)]
    write(tmp_path / "instruct_flan_cot/creak_train.tsv.gz", gzip.compress("\n".join(rows).encode()))
    task, _ = tasks_of("free", "instruct_flan_cot", tmp_path)
    found = whole(task, "inputs_pretokenized", "targets_pretokenized")
    assert ("Is 7 odd?\nOptions:\n- yes\n- no", "yes") in sum(found.values(), [])
    assert sum(map(len, found.values())) == 200 and 180 < len(found["train"]) < 200
    rows = [{"template": "t", "inputs": f"Say {i}.", "targets": str(i)} for i in range(200)]
    write(tmp_path / "instruct_t0_short/t0_short.jsonl.gz", gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    mixture, scored = tasks_of("free", "free_text", tmp_path)
    assert len(scored) == 2
    assert len(list(mixture.examples("train", seed=0))) > 100


# --- span corruption ---


def test_lengths_are_those_of_t5():
    assert span_corruption.lengths(512, SpanCorruption()) == (568, 114)  # t5's random_spans_helper, as published
    with pytest.raises(UserError, match="raise SpanCorruption.mean_span_length"):
        span_corruption.lengths(4096, SpanCorruption())


@pytest.mark.parametrize("length", [1, 2, 3, 17, 568])
@pytest.mark.parametrize("settings", [SpanCorruption(), SpanCorruption(0.5, 1.0), SpanCorruption(0.15, 20.0)])
def test_inputs_and_targets_together_are_the_text(length, settings):
    ids, first = np.arange(3, 3 + length, dtype=np.int32), 32_099
    inputs, targets = span_corruption.corrupt(ids, np.random.default_rng(length), first, settings)
    cut = lambda row: np.split(row, np.flatnonzero(row > 10_000))
    lost = {int(piece[0]): piece[1:] for piece in cut(targets)[1:]}
    back = [cut(inputs)[0]]
    for piece in cut(inputs)[1:]:
        back += [lost[int(piece[0])], piece[1:]]
    np.testing.assert_array_equal(np.concatenate(back), ids)
    assert list(lost) == list(range(first, first - len(lost), -1))
    if length == 568 and settings == SpanCorruption():
        assert (len(inputs) + 1, len(targets) + 1, len(lost)) == (512, 114, 28)


def test_every_division_is_equally_likely():
    rng = np.random.default_rng(0)
    found = collections.Counter(tuple(span_corruption._division(5, 3, rng).tolist()) for _ in range(6000))
    assert set(found) == {(a, b, 5 - a - b) for a in range(1, 4) for b in range(1, 5 - a)}
    assert max(found.values()) - min(found.values()) < 250


def write_corpus(folder):
    for part, n in (("train", 3), ("valid", 12)):
        rows = [
            {"book": "b", "module": f"m{i}", "title": "", "text": f"{i} " + "some prose here. " * 20} for i in range(n)
        ]
        write(folder / f"corpus_openstax/{part}.jsonl.gz", gzip.compress("\n".join(map(json.dumps, rows)).encode()))


def test_text_and_images_in_one_mixture(tmp_path):
    write_free(tmp_path)
    write_corpus(tmp_path)
    lengths = {"inputs": 64, "targets": 32}
    mixture, _ = tasks_of("free", "free_raw", tmp_path, lengths=lengths)
    batches = train_batches(mixture, DatasetConfig("free_raw", lengths, 1), FeatureConverter(lengths, SHAPE))
    found = [next(batches) for _ in range(6)]
    present = [bool(batch["image_present"][0]) for batch in found]
    assert {True, False} == set(present)
    assert present == [bool(batch["images"].any()) for batch in found]


def test_the_corpus_is_corrupted_anew_each_epoch_and_fills_its_lengths(tmp_path):
    write_corpus(tmp_path)
    task, _ = tasks_of("free", "corpus_openstax", tmp_path, lengths={"inputs": 64, "targets": 32})
    epoch = lambda seed, start=0: [x["inputs"].tolist() for x in task.examples("train", seed, start)]
    assert epoch(1) == epoch(1) and epoch(1)[4:] == epoch(1, 4) and epoch(1) != epoch(2)
    assert collections.Counter(map(len, epoch(1)))[64] >= len(epoch(1)) - 1 and all(row[-1] == 1 for row in epoch(1))
    assert len(list(task.examples("validation"))) > 0 and len(list(task.examples("test"))) > 0
    task, _ = tasks_of("free", "corpus_openstax", tmp_path, lengths={"inputs": 64, "targets": 8})
    with pytest.raises(UserError, match="TASK_FEATURE_LENGTHS gives 8"):
        list(task.examples("train"))


# --- runs ---


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


@pytest.mark.parametrize("module", ["glue", "superglue", "captioning", "vqa", "free"])
def test_the_gin_file_of_each_module_sets_all_but_what_its_head_names(module):
    from adalink_jax import configuration
    from adalink_jax.cli.arguments import register
    from adalink_jax.training.setup import Setup

    files = ["models/pali_nano", "adapters/adalink", f"tasks/{module}", "runs/finetune"]
    named = ["MODEL_DIR='m'", "TRAIN_STEPS=1", "INITIAL_CHECKPOINT_PATH='bundled:pali_nano_raw'"]
    named += ["DATA_DIR='d'", "VOCABULARY='bytes'", "MIXTURE_OR_TASK_NAME='t'"]
    flags, _ = configuration.parse_flags([*(f"--gin_file=gin/{x}.gin" for x in files), *(f"--gin.{x}" for x in named)])
    register()
    configuration.load(flags)
    head = (configuration.gin_root() / "tasks" / f"{module}.gin").read_text()
    dataset = Setup().dataset
    assert PublishedData() == PublishedData("d", "bytes")
    declared = __import__(dataset.mixture_or_task_module, fromlist=["register"])
    declared.register()  # reads no file
    import_name = {"glue": "glue_", "superglue": "superglue_"}.get(module, "")
    known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
    mine = {word.strip(",()") for word in head.replace("#", " ").split()} & set(known)
    assert len(mine) >= 2 and all(name.startswith(import_name) for name in mine)
    with pytest.raises(UserError, match="There is no folder d/"):
        get_tasks(DatasetConfig(min(mine), {"inputs": 8, "targets": 8}, 2, dataset.mixture_or_task_module))


def test_a_task_and_a_model_that_do_not_see_alike_are_refused_before_anything_is_read(tmp_path):
    from adalink_jax import parallel
    from adalink_jax.adapters import AdaLinkAdapter, AdaptedModel
    from adalink_jax.models import T5
    from adalink_jax.studies.tiny import tiny_pali, tiny_t5
    from adalink_jax.training.run import check_setup
    from adalink_jax.training.setup import Setup

    write_free(tmp_path)
    write_rte(tmp_path)
    for key in ("data_dir", "vocabulary"):
        gin.bind_parameter(f"PublishedData.{key}", {"data_dir": str(tmp_path), "vocabulary": "bytes"}[key])

    def check(backbone, name, module):
        dataset = DatasetConfig(name, {"inputs": 24, "targets": 4}, 4, f"adalink_jax.data.published.{module}")
        setup = Setup(AdaptedModel(backbone, AdaLinkAdapter(rank=2)), ("adapter/.*",), dataset)
        return check_setup(setup, 1, parallel.make_mesh())

    with pytest.raises(
        UserError, match="^vqa_easy has images, and the model takes none; use a model with a vision tower"
    ):
        check(T5(tiny_t5(vocab_size=300)), "vqa_easy", "free")
    with pytest.raises(UserError, match="^glue_rte has no images, and the model takes them; use"):
        check(tiny_pali(vocab_size=300), "glue_rte", "glue")
    assert check(tiny_pali(vocab_size=300), "vqa_easy", "free")[0].name == "vqa_easy"


@pytest.mark.parametrize(
    "module, name, best",
    [
        ("vqa", "vqav2", {"vqa_accuracy": 1.0}),
        ("captioning", "textcaps", {"rouge_l": 1.0, "bleu_4": 1.0}),
        ("glue", "glue_stsb", {"pearson_corrcoef": 1.0, "spearman_corrcoef": 1.0}),
        ("superglue", "superglue_multirc", {"f1": 1.0, "exact_match": 1.0}),
        ("superglue", "superglue_record", {"f1": 1.0, "exact_match": 1.0}),
    ],
)
def test_right_answers_have_the_best_scores_and_wrong_ones_less(tmp_path, module, name, best):
    pytest.importorskip("adalink_jax.data.metrics.glue")
    write_vqa(tmp_path / "vqav2", "v2_")
    caption = lambda i: {"image_id": f"x{i}", "caption_str": f"a picture number {i} of many"}
    write(tmp_path / "textcaps/TextCaps_0.1_train.json", {"data": [caption(0)]})
    write(tmp_path / "textcaps/TextCaps_0.1_val.json", {"data": [caption(i) for i in range(12)]})
    pair = lambda i: f"g\tf\ty\t{i}\t{i % 6}.000\tOne {i}.\tTwo.\n"
    for part in ("train", "dev"):
        write(tmp_path / f"STS-B/sts-{part}.csv", "".join(map(pair, range(30))))
    write_superglue(tmp_path)
    _, [task] = tasks_of(module, name, tmp_path)
    examples = list(task.examples("test"))
    right = text(examples, "targets_pretokenized")
    if name == "vqav2":
        right = ["maybe"] * len(right)
    scores = task.score(examples, right)
    assert {key: round(scores[key], 6) for key in best} == best
    wrong = task.score(examples, ["nothing"] * len(right))
    assert all(wrong[key] < 0.5 for key in best)


# --- real files, where they are ---

REAL = {  # published counts: train, validation and test together
    "glue_cola": (8_551, 1_043), "glue_sst2": (67_349, 872), "glue_rte": (2_490, 277), "glue_stsb": (5_749, 1_500)
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_the_real_files_of_glue(name):
    if not (SHARED / "nlu").is_dir():
        pytest.skip("the real files of GLUE are not beside this checkout")
    tasks_of("glue", name, SHARED / "nlu")  # reads a row of each
    source = seqio.TaskRegistry.get(name).source
    parts = {split: [x.inputs for x in source._examples(split, None)] for split in ("train", "validation", "test")}
    counts = len(parts["train"]), len(parts["validation"]) + len(parts["test"])
    assert counts == REAL[name]
    assert not set(parts["validation"]) & set(parts["test"])
    assert 0.4 < len(parts["test"]) / counts[1] < 0.6


FREE = {  # as the sets' own notes say: train with validation, and test
    "caption_openstax": (2_605, 139), "vqa_easy": (38_575, 9_673), "vqa_daquar": (6_795, 5_673)
}  # fmt: skip


@pytest.mark.parametrize("name", FREE)
def test_the_real_files_of_the_free_sets(name):
    if not (SHARED / name).is_dir():
        pytest.skip(f"{name} is not beside this checkout")
    tasks_of("free", name, SHARED)
    source = seqio.TaskRegistry.get(name).source
    parts = {split: [x.image for x in source._examples(split, None)] for split in ("train", "validation", "test")}
    assert (len(parts["train"]) + len(parts["validation"]), len(parts["test"])) == FREE[name]
    converter = FeatureConverter(LENGTHS, SHAPE)
    assert all(np.abs(converter.image(example(image))).max() <= 1 for image in parts["validation"][:20])
