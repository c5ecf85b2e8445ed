"""Evaluation of a frozen base with solved examples in its prompt."""

import pytest

from adalink_jax.data import DatasetConfig, get_tasks
from adalink_jax.data.user_files import FileTask
from adalink_jax.errors import UserError

ROWS = [(f"word {i}", "odd" if i % 2 else "even") for i in range(40)]


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in ROWS))
    files = FileTask(str(file), "{text}", "{label}", "bytes")
    return lambda shots, inputs, **more: DatasetConfig(
        "rows", {"inputs": inputs, "targets": 8}, 4, own_files=files, in_context_examples=shots, **more
    )


def prompts(config, split="test"):
    _, (task,) = get_tasks(config)
    examples = list(task.examples(split))
    return task, examples, [task.decode(example["inputs"]) for example in examples]


def test_solved_examples_of_the_training_split_stand_before_each_input(config):
    train, _ = get_tasks(config(0, 64))
    texts = {example["inputs_pretokenized"]: example["targets_pretokenized"] for example in train.examples("train")}
    task, examples, said = prompts(config(2, 64))
    for example, prompt in zip(examples, said, strict=True):
        shots, query = prompt.removesuffix(example["inputs_pretokenized"]).split(), example["inputs_pretokenized"]
        assert prompt.endswith(f" {query}") and len(shots) == 6
        for i in (0, 3):
            assert texts[" ".join(shots[i : i + 2])] == shots[i + 2]
        assert example["inputs"][-1] == 1 and example["shots"] == 2
    assert len({prompt.rsplit(" word", 1)[0] for prompt in said}) == 1  # the same for all
    assert prompts(config(2, 64))[2] == said != prompts(config(2, 64, seed=1))[2]
    right = [example["targets_pretokenized"] for example in examples]
    assert task.score(examples, right) == {"accuracy": 1.0, "shots": 2.0}


def test_what_does_not_fit_is_left_out_from_the_front_and_counted(config):
    long = prompts(config(2, 64))[2]
    task, examples, said = prompts(config(2, 28))
    assert [example["shots"] for example in examples] == [1] * len(examples)
    assert all(whole.endswith(prompt) for whole, prompt in zip(long, said, strict=True))
    assert task.score(examples, ["odd"] * len(examples))["shots"] == 1


@pytest.mark.parametrize("shots, inputs, words", [
    (50, 4096, "in_context_examples is 50, and rows has"),
    (16, 64, "take .* tokens, and TASK_FEATURE_LENGTHS has 64 for inputs; raise it"),
])  # fmt: skip
def test_more_than_there_are_or_fit_is_refused(config, shots, inputs, words):
    with pytest.raises(UserError, match=words):
        get_tasks(config(shots, inputs))


def test_nothing_is_trained_with_them_and_images_have_none(tmp_path, capsys):
    pytest.importorskip("seqio")
    from adalink_jax.cli.main import main

    shots = "--gin.DatasetConfig.in_context_examples=2"
    assert main(["quickstart", shots, f"--model_dir={tmp_path / 'run'}"]) == 2
    assert "in_context_examples" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert main(["eval", "--gin_file=gin/runs/quickstart.gin", shots]) == 2
    assert "digits_reverse has images; in_context_examples are for tasks of text" in capsys.readouterr().err
