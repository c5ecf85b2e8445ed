"""What tasks score without a model, and the sentence of a run that did not beat it."""

import dataclasses
import itertools
import json
import re

import numpy as np
import pytest
from own_files_cases import csv_text, written
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from adalink_jax.cli.main import main
from adalink_jax.data import DatasetConfig, FileTask, score_baselines
from adalink_jax.errors import UserError
from adalink_jax.training.verdict import Training, baselines_of, nothing_learned

LENGTHS = {"inputs": 64, "targets": 16}


def task_of(data, name="mine", **settings):
    defaults = {"inputs": "{text}", "targets": "{label}", "vocabulary": "bytes"}
    return FileTask(data=str(data), **(defaults | settings)).load(name, LENGTHS)


def reviews(folder, count=120):
    """Two thirds are good; the word tells, but for its place in the text."""
    words = itertools.cycle(("a", "the", "that", "this", "one"))
    rows = [
        (f"{next(words)} film {i} is {'fine' if i % 3 else 'dull'}", "good" if i % 3 else "bad") for i in range(count)
    ]
    return written(folder, "reviews.csv", csv_text(rows))


def test_classes_of_texts_are_told_by_their_words(tmp_path):
    task = task_of(reviews(tmp_path))
    share = np.mean([row["references"][0] == "good" for row in task.splits["test"]])
    commonest, classifier = score_baselines(task)
    assert (commonest.name, commonest.scores) == ("the commonest answer", {"accuracy": pytest.approx(share)})
    assert (classifier.name, classifier.scores) == ("TF-IDF with logistic regression", {"accuracy": 1.0})
    assert score_baselines(task, "validation")[1].scores == {"accuracy": 1.0}


def test_free_answers_are_those_of_the_nearest_example(tmp_path):
    rows = [(f"{i} what is number{i % 70} called", f"the name {i % 70}") for i in range(700)]
    _, nearest = score_baselines(task_of(written(tmp_path, "a.csv", csv_text(rows))))
    assert nearest.name == "TF-IDF with the nearest training example's answer" and nearest.scores["accuracy"] > 0.95
    few = written(tmp_path, "few.csv", csv_text([(f"number {i}", f"name {i}") for i in range(40)]))
    assert score_baselines(task_of(few))[1].name == nearest.name  # no two examples have the same answer


def test_numbers_are_answered_by_their_mean(tmp_path):
    rng = np.random.default_rng(0)
    rows = [(f"size {'large' if large else 'small'} w{i % 10} v{i // 10}", f"{(5 if large else 1) + rng.uniform():.2f}")
            for i, large in enumerate(rng.integers(2, size=300))]  # fmt: skip
    task = task_of(written(tmp_path, "a.csv", csv_text(rows)))
    asked = {}

    def score(examples, predictions):
        truth = np.array([float(example["targets_pretokenized"]) for example in examples])
        asked[predictions[0]] = np.abs(truth - np.array(predictions, float)).mean()
        return {"error": asked[predictions[0]]}

    task.score = score
    mean, ridge = score_baselines(task)
    assert (mean.name, ridge.name) == ("the mean answer", "TF-IDF with ridge regression")
    trained = np.mean([float(row["references"][0]) for row in task.splits["train"]])
    assert f"{trained:.2f}" in asked and mean.scores["error"] > 1.5 and ridge.scores["error"] < 0.8


def test_pictures_are_told_by_thumbnails_even_without_a_text_that_differs(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(60):
        name, bright = ("day", 150) if i % 2 else ("night", 0)
        (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
        pixels = (bright + rng.integers(100, size=(20, 24, 3))).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    task = task_of(tmp_path / "photos", inputs="what is this?", targets="{label}", image="{image}")
    assert len(score_baselines(task)) == 2
    classifier = score_baselines(task)[1]
    assert (classifier.name, classifier.scores) == ("thumbnails with logistic regression", {"accuracy": 1.0})


def test_of_equal_inputs_there_is_no_classifier_and_of_several_tasks_the_mean(tmp_path):
    rows = [("what?", "yes" if i % 4 else "no", ("train", "validation", "test")[i % 3]) for i in range(80)]
    data = written(tmp_path, "same.csv", csv_text(rows, "text,label,part"))
    same = task_of(data, split="part", limits={"shared": 1.0})
    assert [baseline.name for baseline in score_baselines(same)] == ["the commonest answer"]
    classes, free = (task_of(reviews(tmp_path), "classes"), task_of(reviews(tmp_path), "again"))
    scored = baselines_of([classes, free], DatasetConfig("two", LENGTHS, 8))
    assert set(scored) == {"the commonest answer", "TF-IDF with logistic regression"}
    assert scored["TF-IDF with logistic regression"] == {
        "accuracy": 1.0,
        "classes/accuracy": 1.0,
        "again/accuracy": 1.0,
    }


BASELINES = {"the commonest answer": {"accuracy": 0.5}, "TF-IDF with logistic regression": {"accuracy": 0.8, "f1": 0.1}}


@pytest.mark.parametrize(
    "step, score, message",
    [
        (0, 0.9, r"Nothing was learned: no step .* untrained model, whose accuracy on test is 0\.9000\. Try another LEARNING_RATE"),
        (40, 0.8, r"Little was learned: accuracy on test is 0\.8000, and TF-IDF with logistic regression alone has 0\.8000"),
        (40, 0.5, r"Little was learned: .*0\.5000, and TF-IDF"),
        (40, 0.81, None),
    ],
)  # fmt: skip
def test_the_verdict(step, score, message):
    verdict = nothing_learned("accuracy", step, score, 0.9 if step == 0 else 0.1, BASELINES, Training([]))
    if message is None:
        assert verdict is None
    else:
        assert re.search(message, verdict)


def test_of_a_base_without_mistakes_there_is_nothing_to_learn():
    verdict = nothing_learned("accuracy", 0, 1.0, 1.0, BASELINES, Training([], "bundled:pali_nano_raw"))
    assert verdict is not None and verdict.startswith(
        "There was nothing to learn: accuracy on test is 1 before any step."
    )
    assert "another base" not in verdict


FALLING, FLAT = [4.0, 3.0, 2.0, 1.0], [4.0, 3.0, 2.0, 2.0]


@pytest.mark.parametrize("training, remedies", [
    (Training(FLAT, "hf://google/flan-t5-small"), "Try another LEARNING_RATE, more TRAIN_STEPS, a base that knows such data, or longer"),
    (Training(FALLING, "hf://google/flan-t5-small"), "Try first more TRAIN_STEPS, for the loss was still falling; then another LEARNING_RATE, a base"),
    (Training(FLAT, "bundled:pali_nano_raw"), "Try first another base (INITIAL_CHECKPOINT_PATH), for the bundled ones know digits alone; then"),
    (Training(FALLING, "bundled:pali_nano_raw"), "digits alone; then more TRAIN_STEPS, for the loss was still falling; then another LEARNING_RATE, or"),
    (Training([9.0, 8.0, 7.0], None), "Try another LEARNING_RATE, more TRAIN_STEPS"),  # too few to say
])  # fmt: skip
def test_what_to_try_first(training, remedies):
    assert remedies in nothing_learned("accuracy", 0, 0.1, 0.1, {}, training)
    by_heart = dataclasses.replace(training, overfit=16)
    message = nothing_learned("accuracy", 40, 0.5, 0.1, {}, by_heart)
    assert "Not learned by heart: accuracy is 0.5000 on the 16 examples" in message and remedies in message
    assert nothing_learned("accuracy", 40, 0.95, 0.1, {}, by_heart) is None


def test_a_run_that_learns_nothing_says_so_wherever_it_is_looked_at(tmp_path, capsys):
    """The console, the summary, `results`, the report, and the console again once it is finished."""
    (tmp_path / "task.gin").write_text(
        f"include 'gin/tasks/files.gin'\nMIXTURE_OR_TASK_NAME = 'reviews'\nDATA = {str(reviews(tmp_path))!r}\n"
        "INPUTS = '{text}'\nTARGETS = '{label}'\nVOCABULARY = 'bytes'\nBLANK_IMAGE = True\nMETRIC = 'accuracy'\n"
        "TASK_FEATURE_LENGTHS = {'inputs': 32, 'targets': 8}\nBATCH_SIZE = 8\n"
    )
    files = (
        "gin/models/pali_nano.gin",
        "gin/adapters/adalink.gin",
        str(tmp_path / "task.gin"),
        "gin/runs/finetune.gin",
    )
    settings = {"INITIAL_CHECKPOINT_PATH": "bundled:pali_nano_raw", "MODEL_DIR": str(tmp_path / "run"), "TRAIN_STEPS": 2,
                "WARMUP_STEPS": 1, "LEARNING_RATE": 1e-9}  # fmt: skip
    command = ["train", *(f"--gin_file={file}" for file in files), *(f"--gin.{k}={v!r}" for k, v in settings.items())]
    assert main(command) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "without a model test: accuracy 1.0000 (TF-IDF with logistic regression)" in shown
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["baselines"]["TF-IDF with logistic regression"] == {"accuracy": 1.0}
    assert summary["nothing_learned"].startswith("Nothing was learned: no step was better on validation")
    assert summary["nothing_learned"] in shown and "the bundled ones know digits alone" in shown
    assert summary["scores_are_of"] == "the frozen base" and "adapted accuracy" not in shown
    assert "frozen accuracy on test" in shown and "the adapter before training, of step 0" in shown
    assert re.search(r"\d+ of \d+ answers name no class \(`other`\), such as '", shown)
    assert "confusion.png" in shown and "which class was predicted for which" in shown
    assert {path.name for path in (tmp_path / "run").rglob("*confusion.png")} == {
        "confusion.png", "step_000000_validation_confusion.png", "step_000002_validation_confusion.png"
    }  # fmt: skip
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    assert "validation/confusion" in events.Reload().Tags()["images"]
    assert main(["results", str(tmp_path / "run")]) == 0
    table = capsys.readouterr().out
    assert (
        "baseline/accuracy" in table
        and "1 run learned nothing, or less" in table
        and summary["nothing_learned"] in table
    )
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "report.html")]) == 0
    untrained = "No step was better than step 0, so the scores of run are those of the frozen base."
    assert untrained in table and untrained in (tmp_path / "report.html").read_text()
    assert "1 run learned nothing" in (page := (tmp_path / "report.html").read_text())
    assert "`other` counts answers that are not the name of a class" in page
    assert "samples.png" not in page and not (tmp_path / "run" / "samples.png").exists()  # the pictures are blank
    assert "<h2>Sample predictions" in page and "film" in page
    assert "<h2>Confusion matrix" in page and "run: confusion.png" in page
    capsys.readouterr()
    assert main(command) == 0
    assert "Nothing was learned" in capsys.readouterr().out


def test_a_few_examples_are_learned_by_heart(tmp_path, capsys):
    """`--overfit`: training, validation and test are the same examples, and no baseline is scored on them."""
    (tmp_path / "task.gin").write_text(
        f"include 'gin/tasks/files.gin'\nMIXTURE_OR_TASK_NAME = 'reviews'\nDATA = {str(reviews(tmp_path))!r}\n"
        "INPUTS = '{text}'\nTARGETS = '{label}'\nVOCABULARY = 'bytes'\nBLANK_IMAGE = True\nMETRIC = 'accuracy'\n"
        "TASK_FEATURE_LENGTHS = {'inputs': 32, 'targets': 8}\nBATCH_SIZE = 8\n"
    )
    files = ("gin/models/pali_nano.gin", "gin/adapters/full.gin", str(tmp_path / "task.gin"), "gin/runs/finetune.gin")
    settings = {"INITIAL_CHECKPOINT_PATH": "bundled:pali_nano_raw", "MODEL_DIR": str(tmp_path / "run"), "TRAIN_STEPS": 30,
                "LEARNING_RATE": 3e-3}  # fmt: skip
    command = ["train", *(f"--gin_file={file}" for file in files), *(f"--gin.{k}={v!r}" for k, v in settings.items())]
    assert main([*command, "--overfit", "3"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "trained and scored on the same 3 examples" in shown and "adapted accuracy on test: 1.0000" in shown
    assert "Learned by heart: accuracy is 1.0000 on the 3 examples" in shown
    assert "Next, train on all examples: the same command without --overfit" in shown
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["adapted_accuracy"] == summary["validation"] == 1.0 > summary["frozen_accuracy"]
    assert summary["scores_are_of"] == "the trained model"
    assert summary["baselines"] == {} and summary["nothing_learned"] is None
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(1, 31))  # so that a short run has a curve
    assert main([*command, "--overfit", "3", "--gin.TRAIN_EXAMPLES=16"]) == 2
    assert "--overfit and TRAIN_EXAMPLES both choose" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(UserError, match="in_context_examples are for frozen models, and --overfit trains one"):
        DatasetConfig("mine", LENGTHS, 8, train_examples=None, overfit=3, in_context_examples=1)
