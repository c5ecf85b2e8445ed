"""Multi-label tasks: what lists are is asked, targets have one order, scores have none, and predictions are lists."""

import csv
import itertools
import json

import pytest
from own_files_cases import jsonl_text, load, total, written

import adalink_jax
from adalink_jax.cli.main import main
from adalink_jax.data import score_baselines
from adalink_jax.data.label_sets import LabelSets
from adalink_jax.data.metrics import label_sets
from adalink_jax.errors import UserError

NAMES = ("a", "s", "p")
SETS = [list(labels) for count in range(4) for labels in itertools.permutations(NAMES, count)]
ROWS = [{"text": f"{i} {' '.join(f'on {x}' for x in SETS[i % 16])}", "tags": SETS[i % 16]} for i in range(160)]
BASE = "--base=bundled:pali_nano_instruct"
LABELS = {"targets": "{tags}", "lists": "labels", "metrics": ("label_sets",)}


@pytest.fixture
def init(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        status = main(["init", *arguments, "--out=task.gin", "--force", "--quick", BASE])
        said = capsys.readouterr()
        return status, " ".join((said.out + said.err).split())

    return run


def test_init_asks_what_lists_are(init, tmp_path):
    written(tmp_path, "a.jsonl", jsonl_text(ROWS))
    status, said = init("a.jsonl")
    assert status == 2 and not (tmp_path / "task.gin").exists()
    assert "The column tags of a.jsonl holds lists, such as ['a', 's', 'p']; state what they are" in said
    assert "--lists=alternatives" in said and "--lists=labels" in said
    status, said = init("a.jsonl", "--lists=labels")
    settings = (tmp_path / "task.gin").read_text()
    assert status == 0 and "LISTS = 'labels'  # all labels of a list apply" in settings and "sorted by name" in settings
    assert "METRICS = ('label_sets',)" in settings and "METRIC = 'micro_f1'" in settings
    assert "Labels: 4, alone or together" in said and "a, p, s" in said
    status, said = init("a.jsonl", "--lists=alternatives")
    assert status == 1 and "have no input or no target" in said  # of the empty lists
    settings = (tmp_path / "task.gin").read_text()
    assert "LISTS = 'alternatives'" in settings and "METRICS = ('exact_match',)" in settings


def test_lists_that_a_csv_has_as_text_are_asked_for_and_other_text_is_split(init, tmp_path):
    with (tmp_path / "lists.csv").open("w", newline="") as file:  # as pandas writes them
        csv.writer(file).writerows([("text", "tags"), *((row["text"], row["tags"]) for row in ROWS)])
    assert init("lists.csv")[0] == 2
    task = load(tmp_path / "lists.csv", **LABELS)
    assert {row["references"][0] for row in task.examples("train")} >= {"none", "a, p, s"}
    lists = load(
        tmp_path / "lists.csv", targets="{tags}", lists="alternatives", metrics=("exact_match",), limits={"empty": 1.0}
    )
    assert {"s", "a"} in [set(row["references"]) for row in lists.examples("train")]  # fmt: skip
    with (tmp_path / "text.csv").open("w", newline="") as file:
        rows = [(row["text"], "; ".join(row["tags"]) or "none") for row in ROWS]
        csv.writer(file).writerows([("text", "tags"), *rows])
    status, said = init("text.csv", "--lists=labels")
    assert status == 0 and "LABEL_SEPARATOR = ';'" in (tmp_path / "task.gin").read_text() and "Labels: 4" in said
    status, said = init("text.csv", "--lists=alternatives")
    assert status == 2 and "has no lists; leave --lists out" in said


def test_targets_have_one_order_and_no_label_is_a_target(tmp_path):
    task = load(written(tmp_path, "a.jsonl", jsonl_text(ROWS)), **LABELS)
    answers = {row["targets_pretokenized"] for split in task.splits for row in task.examples(split)}
    assert total(task) == 160 and answers == {
        "none", "a", "s", "p", "a, s", "a, p", "p, s", "a, p, s"
    }  # fmt: skip
    examples = list(itertools.islice(task.examples("test"), 9))
    backwards = [", ".join(task.labels.split(row["targets_pretokenized"])[::-1]) for row in examples]
    assert task.score(examples, backwards) == {
        "subset_accuracy": 1.0, "micro_f1": 1.0, "macro_f1": 1.0, "jaccard": 1.0
    }  # fmt: skip


@pytest.mark.parametrize(
    "labels, said",
    [(["a, b", "c"], "its label 'a, b' holds ','"), (["none", "c"], "'none', which stands for no label")],
)
def test_labels_that_could_be_others_do_not_parse(labels, said, tmp_path):
    rows = [*ROWS, *({"text": f"x{i}", "tags": labels} for i in range(9))]
    path = written(tmp_path, "a.jsonl", jsonl_text(rows))
    with pytest.raises(UserError, match=f"do not parse.*{said}"):
        load(path, **LABELS)
    if "a, b" in labels:
        task = load(path, label_separator=";", **LABELS)
        assert "a, b; c" in {row["targets_pretokenized"] for row in task.examples("train")}


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"lists": "labels"}, "METRICS has 'accuracy', and LISTS is 'labels'"),
        ({"metrics": ("label_sets",)}, "METRICS has 'label_sets', and LISTS is None"),
        (LABELS | {"targets": "tags: {tags}"}, r"with LISTS = 'labels' it is one column"),
        (LABELS | {"label_separator": "and"}, "LABEL_SEPARATOR is 'and'; it must be one character"),
    ],
)
def test_settings_that_do_not_fit_labels(settings, said, tmp_path):
    path = written(tmp_path, "a.jsonl", jsonl_text(ROWS))
    with pytest.raises(UserError, match=said):
        load(path, **({"targets": "{tags}"} | settings))


def test_scores_of_sets_by_hand():
    targets, predictions = [["a", "b"], ["b"], [], ["c"]], [["b", "a"], ["a", "x"], [], []]
    scores = label_sets(targets, predictions)
    assert scores["subset_accuracy"] == 0.5  # the first and the third
    assert scores["micro_f1"] == pytest.approx(2 * 2 / (2 * 2 + 2 + 2))  # a, b right; a, x too many; b, c missing
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)  # of a, b, c; no target has x
    assert scores["jaccard"] == pytest.approx((1 + 0 + 1 + 0) / 4)
    assert set(label_sets([[], []], [[], []]).values()) == {1.0}
    assert set(label_sets([["a"]], [[]]).values()) == {0.0} and set(label_sets([[]], [["a"]]).values()) == {0.0}
    with pytest.raises(UserError, match="is a string"):
        label_sets(["a"], [["a"]])


def test_baselines_of_sets(tmp_path):
    commonest, classifier = score_baselines(load(written(tmp_path, "a.jsonl", jsonl_text(ROWS)), **LABELS))
    assert commonest.name == "the commonest answer" and commonest.scores["subset_accuracy"] < 0.6
    assert classifier.name == "TF-IDF with logistic regression of each label"
    assert classifier.scores["micro_f1"] > commonest.scores["micro_f1"]


def test_splitting_text_is_the_inverse_of_writing_it():
    sets = LabelSets("|")
    for labels in SETS:
        assert sets.split(sets.text(labels)) == sorted(labels)
    assert sets.text([" a ", "", "a"]) == "a" and sets.split("b|a |b||") == ["a", "b"] and sets.split("none") == []


@pytest.mark.slow
def test_a_run_learns_sets_and_predicts_lists(tmp_path, monkeypatch, capsys):
    """From `init` to `infer`: JSON lines have lists, a CSV their text; choices are whole sets."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "a.jsonl", jsonl_text([{"text": row["text"][:8], "tags": row["tags"]} for row in ROWS]))
    assert main(["init", "a.jsonl", "--lists=labels", "--quick", BASE]) == 0
    files = ("gin/models/pali_nano.gin", "gin/adapters/full.gin", "a.gin", "gin/runs/finetune.gin")
    settings = {"INITIAL_CHECKPOINT_PATH": "bundled:pali_nano_raw", "MODEL_DIR": "run", "TRAIN_STEPS": 40, "LEARNING_RATE": 3e-3}  # fmt: skip
    command = ["train", *(f"--gin_file={file}" for file in files), *(f"--gin.{k}={v!r}" for k, v in settings.items())]
    assert main([*command, "--overfit", "4"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["metric"] == "micro_f1" and summary["scores"]["subset_accuracy"] == 1.0
    samples = json.loads((tmp_path / "run" / "samples.json").read_text())["samples"]
    written(tmp_path, "new.jsonl", jsonl_text([{"text": sample["inputs"]} for sample in samples]))
    expected = [sample["target"] for sample in samples]
    assert main(["infer", "new.jsonl", "out.jsonl", "--run", "run"]) == 0
    answers = [json.loads(line)["prediction"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert answers == [[] if text == "none" else text.split(", ") for text in expected]
    assert main(["infer", "new.jsonl", "out.csv", "--run", "run"]) == 0
    with (tmp_path / "out.csv").open() as file:
        assert [row["prediction"] for row in csv.DictReader(file)] == expected
    predict = adalink_jax.Predictor("run")
    assert predict({"text": samples[0]["inputs"]}) == answers[0]
    choices = [["s", "a"], [], *filter(None, [answers[0]])]
    assert predict({"text": samples[0]["inputs"]}, choices=choices) == answers[0]
    scored = predict({"text": samples[0]["inputs"]}, choices=choices, scores=True)
    assert set(scored) == {"a, s", "none", expected[0]}
