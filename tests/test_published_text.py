"""Published text as tasks: exactly T5's text, from files and from TFDS, in splits that share no example."""

import collections

import gin
import numpy as np
import pytest

seqio = pytest.importorskip("seqio")

from published import SHARED, tasks_of, text, whole, write, write_rte, write_superglue, write_tfds, write_vqa  # noqa: E402

from adalink_jax.data import DatasetConfig, PublishedData, get_tasks, splits  # noqa: E402
from adalink_jax.data.published import glue, superglue  # noqa: E402
from adalink_jax.errors import UserError  # noqa: E402

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


def test_glue_from_its_archive_s_files(tmp_path):
    write_rte(tmp_path)
    task, [scored] = tasks_of("glue", "glue_rte", tmp_path)
    by_split = whole(task, "inputs_pretokenized", "targets_pretokenized")
    assert by_split["train"][:2] == [
        ("rte sentence1: The 0. sentence2: A 0.", "not_entailment"), ("rte sentence1: The 1. sentence2: A 1.", "entailment")
    ]  # fmt: skip
    assert len(by_split["train"]) == 4 and len(by_split["validation"]) + len(by_split["test"]) == 20
    assert not set(by_split["validation"]) & set(by_split["test"])
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


def test_the_order_depends_on_the_seed_and_starts_anywhere(tmp_path):
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
        get_tasks(DatasetConfig("glue_rte", {"inputs": 8, "targets": 4}, 2, "adalink_jax.data.published.glue"))
    with pytest.raises(UserError, match="SOURCE is 'web'"):
        PublishedData("here", "bytes", "web")


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
    by_split = whole(task, "inputs_pretokenized", "targets_pretokenized")
    assert by_split["train"][2] == ("mnli hypothesis: H. premise: P t 2.", "contradiction")
    assert len(by_split["validation"]) + len(by_split["test"]) == 12 and all("P n" in x for x, _ in by_split["test"])
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


# --- scores ---


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
    pytest.importorskip("adalink_jax.data.metrics.glue_scores")
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
