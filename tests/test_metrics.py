"""Metrics equal the evaluations that they are named after: those programs' recorded output, or scipy's own."""

import functools
import inspect
import json
import operator
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from adalink_jax import moved
from adalink_jax.data import metrics
from adalink_jax.data.metrics import glue_scores, labels, ptb_tokenizer
from adalink_jax.data.metrics.levenshtein import similarity
from adalink_jax.errors import UserError

DATA = pathlib.Path(__file__).parent / "data" / "metrics"
TEN = ["yes"] * 10


@functools.cache
def recorded(name):
    return json.loads((DATA / f"{name}.json").read_text())


def close(scores):
    return pytest.approx(scores, abs=1e-9)


def are_floats(scores):
    """Whether all are Python's floats; NumPy's are not written as JSON."""
    return all(type(value) is float for value in scores.values())


# Captions


@pytest.mark.parametrize("source", ["own", "openstax"])
def test_tokens_are_those_of_the_java_program(source):
    rows = recorded("ptb_tokens")[source]
    assert len(rows) > 50
    assert [[text, ptb_tokenizer.tokenize(text)] for text, _ in rows] == rows


def test_where_tokens_differ_is_known():
    for text, tokens in recorded("ptb_tokens")["known_differences"]:
        assert ptb_tokenizer.tokenize(text) != tokens, f"{text!r} is alike now: let it stand with the others"


def test_a_line_end_is_a_blank():
    assert ptb_tokenizer.tokenize("1\n1/2 cups") == ptb_tokenizer.tokenize("1 1/2 cups") == "1\xa01/2 cups"
    assert ptb_tokenizer.tokenize("a dog\nand\r\na\u2028cat.\n") == "a dog and a cat"


@pytest.mark.parametrize("which", recorded("caption_scores")["sets"], ids=lambda s: f"{s['first']}-{s['after']}")
def test_cider_bleu_and_rouge_are_coco_s(which):
    cases = recorded("caption_scores")["cases"][which["first"] : which["after"]]
    references, candidates = [case[0] for case in cases], [case[1] for case in cases]
    together = metrics.captions(references, candidates)
    assert together == close(which["scores"]) and are_floats(together)
    if len(cases) < 20:
        parts = [metric(references, candidates) for metric in (metrics.cider, metrics.bleu, metrics.rouge_l)]
        assert functools.reduce(dict.__or__, parts) == together


def test_a_caption_that_is_its_only_reference_has_ten_and_one_image_alone_has_nothing():
    captions = ["a red bus on a street", "two dogs run after one ball"]
    assert metrics.cider(captions, captions)["cider"] == pytest.approx(10.0)
    assert metrics.cider(captions[:1], captions[:1])["cider"] == 0.0
    assert metrics.rouge_l(captions, captions)["rouge_l"] == 1.0
    assert metrics.bleu(captions, captions[::-1])["bleu_1"] < 0.2


def test_a_string_is_one_reference():
    one = metrics.captions(["A red bus.", "Two dogs."], ["a bus", "dogs"])
    assert one == metrics.captions([["A red bus."], ["Two dogs."]], ["a bus", "dogs"])


# Questions


def test_vqa_accuracy_is_the_challenge_s():
    rows = recorded("vqa_accuracy")["rows"]
    answers = [[texts[int(i)] for i in which] for texts, which, _, _ in rows]
    for ten, (_, _, prediction, expected) in zip(answers, rows):
        assert metrics.vqa_accuracy([ten], [prediction])["vqa_accuracy"] == pytest.approx(expected, abs=1e-8), ten
    overall = metrics.vqa_accuracy(answers, [row[2] for row in rows])["vqa_accuracy"]
    assert overall == pytest.approx(np.mean([row[3] for row in rows]), abs=1e-8)
    assert 0.3 < overall < 0.9 and len(rows) > 400


@pytest.mark.parametrize("matches, expected", [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_accuracy_by_hand(matches, expected):
    answers = ["red"] * matches + ["blue"] * (10 - matches)
    assert metrics.vqa_accuracy([answers], ["The red"] if 0 < matches < 10 else ["red"]) == {
        "vqa_accuracy": pytest.approx(expected)
    }


def test_anls_is_that_of_the_evaluation_script():
    rows = recorded("anls")["rows"]
    for answers, prediction, expected in rows:
        assert metrics.anls([answers], [prediction])["anls"] == pytest.approx(expected, abs=1e-9), (answers, prediction)
    together = metrics.anls([row[0] for row in rows], [row[1] for row in rows])["anls"]
    assert together == pytest.approx(np.mean([row[2] for row in rows]), abs=1e-9)


@pytest.mark.parametrize(
    "a, b, expected", [("", "", 1), ("abc", "", 0), ("Kitten", "sitting", 4 / 7), ("ab", "ba", 0), ("ab", "ac", 0.5)]
)
def test_similarity_is_one_minus_the_edit_distance_over_the_longer_length(a, b, expected):
    assert similarity(a, b) == similarity(b, a) == pytest.approx(expected)


def test_exact_match_and_accuracy():
    assert metrics.accuracy(["a", "b"], ["a", "B"]) == {"accuracy": 0.5}
    assert metrics.exact_match([["a", "A"], "b", ["c"]], ["A", "b", "c "]) == {"exact_match": pytest.approx(2 / 3)}


# GLUE and SuperGLUE


def metrics_of(task):
    """What the task's declaration runs."""
    pytest.importorskip("seqio")
    from adalink_jax.data.published import glue, superglue

    return {"squad": [metrics.squad], **{name: it.metrics for name, it in (superglue.SUPERGLUE | glue.GLUE).items()}}[
        task
    ]


@pytest.mark.parametrize("task", sorted({case["task"] for case in recorded("t5_scores")["sets"]}))
def test_glue_superglue_and_squad_are_t5_s(task):
    cases = [case for case in recorded("t5_scores")["sets"] if case["task"] == task]
    assert len(cases) >= 20
    for case in cases:
        targets = case["targets"]
        if task == "record":
            targets = [{"group": tuple(target["group"]), "value": target["value"]} for target in targets]
        scores = {}
        for metric in metrics_of(task):
            scores |= metric(targets, case["predictions"])
        if task == "cola":
            del scores["accuracy"]  # this package's addition
        assert scores == close(case["scores"]) and are_floats(scores)


def test_matthews_and_f1_by_their_formulas():
    random, words = np.random.default_rng(0), labels.GLUE["cola"]
    for _ in range(200):
        expected, predicted = random.integers(0, 2, (2, random.integers(4, 40)))
        tp, fp = np.sum(expected & predicted), np.sum((1 - expected) & predicted)
        fn, tn = np.sum(expected & (1 - predicted)), np.sum((1 - expected) & (1 - predicted))
        below = float(tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
        targets, predictions = [words[i] for i in expected], [words[i] for i in predicted]
        scores = glue_scores.matthews(targets, predictions, label_words=words)
        scores |= glue_scores.f1(targets, predictions, label_words=words)
        correlation = (tp * tn - fp * fn) / np.sqrt(below) if below else 0.0
        f1 = 2 * tp / (2 * tp + fp + fn) if tp else 0.0
        assert scores == close({"matthews_corrcoef": correlation, "f1": f1}) and are_floats(scores)


def test_a_prediction_that_is_not_a_label_is_wrong():
    targets = ["True", "False", "True", "False"]
    words, right = labels.SUPERGLUE["boolq"], ["True", "False", "True", "False"]
    for junk in ("", "true", "True ", "1"):
        for i, opposite in enumerate(("False", "True", "False", "True")):
            wrong, opposed = right[:i] + [junk] + right[i + 1 :], right[:i] + [opposite] + right[i + 1 :]
            assert glue_scores.f1(targets, wrong, label_words=words) == glue_scores.f1(
                targets, opposed, label_words=words
            )
            assert metrics.accuracy(targets, wrong) == {"accuracy": 0.75}
            assert glue_scores.matthews(targets, wrong, label_words=words)["matthews_corrcoef"] < 1.0


@pytest.mark.parametrize("junk", ["", "five", "nan", "inf", "-inf", "1e999"])
def test_a_prediction_that_is_not_a_number_counts_as_minus_one(junk):
    targets = ["0.0", "2.5", "5.0"]
    assert glue_scores.correlations(targets, ["0.2", junk, "4.8"]) == glue_scores.correlations(
        targets, ["0.2", "-1", "4.8"]
    )


def test_a_constant_has_no_correlation():
    scores = glue_scores.correlations([1.0, 2.0], ["?", "?"])
    assert scores == {"pearson_corrcoef": 0.0, "spearman_corrcoef": 0.0}


def test_multirc_counts_questions_whose_answers_are_all_right():
    targets = [{"group": (i // 2, 0), "value": value} for i, value in enumerate(["True", "False", "True", "True"])]
    assert glue_scores.multirc(targets, ["True", "False", "True", "False"])["exact_match"] == 0.5
    assert glue_scores.multirc(targets, [{"value": "True"}, {"value": "False"}, "True", "no"])["exact_match"] == 0.5
    shuffled = [targets[i] for i in (2, 0, 3, 1)]
    assert glue_scores.multirc(shuffled, ["True", "True", "False", "False"])["exact_match"] == 0.5


def test_record_scores_a_query_once():
    twice = [{"group": (1, 1), "value": ["the cat", "a dog"]}] * 2
    assert glue_scores.record(twice, ["Dog!", "wrong"]) == {"exact_match": 1.0, "f1": 1.0}
    assert glue_scores.record(twice, ["wrong", "Dog!"]) == {"exact_match": 0.0, "f1": 0.0}


@pytest.mark.parametrize(
    "task", [*sorted(labels.GLUE.keys() - {"mnli", "ax"}), "stsb", *labels.SUPERGLUE, "record", "wsc"]
)
def test_seqio_can_call_every_metric_of_a_task(task):
    assert metrics_of(task)
    for metric in metrics_of(task):  # by the names of parameters seqio distinguishes these metrics from others
        assert list(inspect.signature(metric).parameters) == ["targets", "predictions"]
        declared = inspect.getclosurevars(metric).nonlocals
        if "name" in declared:  # it takes the declared settings
            inspect.signature(operator.attrgetter(declared["name"])(metrics)).bind([], [], **declared["settings"])


@pytest.mark.parametrize("name", ["glue", "vqa"])
def test_old_names_of_modules_are_attributes_with_a_warning(name):
    old = f"adalink_jax.data.metrics.{name}"
    sys.modules.pop(old, None)
    vars(metrics).pop(name, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is now"):
        assert getattr(metrics, name).__name__ == moved.MODULES[old]


# Classes and numbers of the user's own files


def test_macro_f1_and_balanced_accuracy_are_scikit_learn_s():
    from sklearn.metrics import balanced_accuracy_score, f1_score

    random, words = np.random.default_rng(0), np.array(["a", "b", "c", "d"])
    for size in (20, 50, 200):
        targets = [*words, *words[random.choice(4, size, p=[0.7, 0.2, 0.08, 0.02])]]
        predictions = [str(word) if random.random() < 0.6 else str(random.choice(words)) for word in targets]
        scores = metrics.macro_f1(targets, predictions) | metrics.balanced_accuracy(targets, predictions)
        expected = {
            "macro_f1": f1_score(targets, predictions, average="macro"),
            "balanced_accuracy": balanced_accuracy_score(targets, predictions),
        }
        assert scores == close(expected) and are_floats(scores)


def test_each_class_counts_alike_and_other_words_are_misses():
    targets = ["yes"] * 9 + ["no"]
    assert metrics.balanced_accuracy(targets, ["yes"] * 10) == {"balanced_accuracy": 0.5}
    assert metrics.macro_f1(targets, ["yes"] * 10)["macro_f1"] == pytest.approx(18 / 19 / 2)
    assert metrics.macro_f1(targets, [*targets[:-1], "Nein"])["macro_f1"] == 0.5  # no third class


def test_scores_of_numbers_are_scipy_s_and_numpy_s():
    import scipy.stats

    random = np.random.default_rng(0)
    targets = random.normal(50, 20, 80).round(2)
    predictions = (targets + random.normal(0, 9, 80)).round(2)
    texts = [[str(x) for x in values] for values in (targets, predictions)]
    scores = metrics.pearson(*texts) | metrics.spearman(*texts) | metrics.rmse(*texts) | metrics.mae(*texts)
    expected = {
        "pearson": scipy.stats.pearsonr(targets, predictions)[0],
        "spearman": scipy.stats.spearmanr(targets, predictions)[0],
        "rmse": np.linalg.norm(targets - predictions) / 80**0.5,
        "mae": np.abs(targets - predictions).mean(),
    }
    assert scores == close(expected) and are_floats(scores)


@pytest.mark.parametrize("junk", ["", "five", "nan", "-inf", "1e999"])
def test_a_prediction_that_is_no_number_is_the_target_that_is_farthest(junk):
    targets = ["100", "900", "1000"]
    for metric in (metrics.pearson, metrics.spearman, metrics.rmse, metrics.mae):
        assert metric(targets, ["100", junk, "1000"]) == metric(targets, ["100", "100", "1000"])
    assert metrics.mae(targets, [junk] * 3)["mae"] == pytest.approx((900 + 800 + 900) / 3)


def test_equal_numbers_have_no_correlation():
    for targets, predictions in ((["1", "2"], ["3", "3"]), (["1", "1"], ["1", "2"]), (["1"], ["1"])):
        assert metrics.pearson(targets, predictions) == {"pearson": 0.0}
        assert metrics.spearman(targets, predictions) == {"spearman": 0.0}


# Bad input

COLA = functools.partial(glue_scores.matthews, label_words=labels.GLUE["cola"])
GOOD = {
    metrics.accuracy: (["a"], ["a"]),
    metrics.exact_match: (["a"], ["a"]),
    metrics.anls: ([["a", "b"]], ["a"]),
    metrics.squad: ([["a", "b"]], ["a"]),
    metrics.vqa_accuracy: ([TEN], ["yes"]),
    metrics.cider: ([["a", "b"]], ["a"]),
    metrics.bleu: ([["a", "b"]], ["a"]),
    metrics.rouge_l: ([["a", "b"]], ["a"]),
    metrics.captions: ([["a", "b"]], ["a"]),
    functools.partial(glue_scores.f1, label_words=("a", "b")): (["a"], ["a"]),
    functools.partial(glue_scores.mean_f1, label_words=("a", "b")): (["a"], ["a"]),
    functools.partial(glue_scores.matthews, label_words=("a", "b")): (["a"], ["a"]),
    glue_scores.correlations: (["1", "2"], ["1", "2"]),
    metrics.macro_f1: (["a"], ["a"]),
    metrics.balanced_accuracy: (["a"], ["a"]),
    **{metric: (["1"], ["1"]) for metric in (metrics.pearson, metrics.spearman, metrics.rmse, metrics.mae)},
    glue_scores.multirc: ([{"group": 1, "value": "True"}], ["True"]),
    glue_scores.record: ([{"group": 1, "value": ["a"]}], ["a"]),
}


@pytest.mark.parametrize("metric", GOOD, ids=lambda metric: getattr(metric, "func", metric).__name__)
def test_bad_input_is_one_sentence(metric):
    targets, predictions = GOOD[metric]
    name = getattr(metric, "func", metric).__name__
    assert metric(targets, predictions)
    for bad in (([], []), (targets, []), (targets, predictions * 2), ([], predictions)):
        with pytest.raises(UserError, match=f"^{name} needs one prediction per target; it got [0-9]+ for [0-9]+\\.$"):
            metric(*bad)


@pytest.mark.parametrize(
    "metric, targets, predictions, message",
    [
        (metrics.exact_match, ["a", []], ["a", "b"], r"exact_match: target 1 is \[\]"),
        (metrics.anls, [["a"], [None]], ["a", "b"], r"anls: target 1 is \[None\]"),
        (metrics.cider, [["a"], [3]], ["a", "b"], r"cider: target 1 is \[3\]"),
        (metrics.bleu, ["a", "b"], ["a", None], "bleu: prediction 1 is None"),
        (metrics.squad, [["a"], []], ["a", "b"], r"squad: target 1 is \[\]"),
        (metrics.vqa_accuracy, [TEN, TEN[1:]], ["yes", "yes"], "10 annotators; target 1 has 9"),
        (metrics.vqa_accuracy, ["yes"], ["yes"], "10 annotators; target 0 has 1"),
        (COLA, ["acceptable", "ok"], ["ok", "ok"], "matthews: target 1 is 'ok', which is not one of the labels"),
        (glue_scores.correlations, ["1", "x"], ["1", "2"], "target 1 is 'x', which is not a finite number"),
        (glue_scores.correlations, ["1", "1"], ["1", "2"], "needs targets that differ"),
        (glue_scores.correlations, ["1"], ["1"], "needs targets that differ"),
        (metrics.rmse, ["1", "x"], ["1", "2"], "rmse: target 1 is 'x', which is not a finite number"),
        (metrics.macro_f1, ["a"], [3], "macro_f1: prediction 0 is 3"),
        (glue_scores.multirc, ["True"], ["True"], "must be a dict with `group` and `value`"),
        (glue_scores.record, [{"group": 1, "value": []}], ["a"], "squad: target 0"),
        (glue_scores.record, [{"group": 1, "value": ["a"]}], [3], "record: prediction 0 is 3"),
    ],
)  # fmt: skip
def test_bad_targets_and_predictions_are_named(metric, targets, predictions, message):
    with pytest.raises(UserError, match=message):
        metric(targets, predictions)


def test_neither_tensorflow_nor_seqio_is_needed():
    program = """
import sys
sys.modules |= dict.fromkeys(["tensorflow", "seqio", "t5", "sacrebleu", "rouge_score"])
from adalink_jax.data import answer_files, metrics
metrics.captions([["a b"]], ["a b"])
metrics.glue_scores.correlations([1, 2], ["1", "2"])
"""
    subprocess.run([sys.executable, "-c", program], check=True)
