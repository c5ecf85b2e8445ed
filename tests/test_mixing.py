"""Mixtures of seqio: rates hold, each task repeats for itself with an order of its own per pass, and a stream starts anywhere."""

import collections
import functools
import itertools
import sys
import types

import pytest

pytest.importorskip("seqio")

import seqio  # noqa: E402
import tensorflow as tf  # noqa: E402

from adalink_jax.cli.main import main  # noqa: E402
from adalink_jax.data import (  # noqa: E402
    DatasetConfig,
    FeatureConverter,
    MixtureOf,
    get_tasks,
    mixing,  # noqa: E402
    seqio_features,
    train_batches,
)
from adalink_jax.data.vocabularies import train_sentencepiece  # noqa: E402
from adalink_jax.errors import UserError  # noqa: E402

LENGTHS = {"inputs": 16, "targets": 4}
FEATURES = {name: seqio.Feature(seqio.ByteVocabulary(), add_eos=True) for name in LENGTHS}


def odd_only(dataset):
    """Leaves a number of examples that TensorFlow does not know in advance."""
    return dataset.filter(lambda row: tf.strings.regex_full_match(row["inputs"], ".*[13579]"))


def numbered(name, size, split, shuffle_files, seed=None):
    return tf.data.Dataset.from_tensor_slices({"inputs": [f"{name} {i}" for i in range(size)], "targets": ["x"] * size})


@pytest.fixture
def mixture(monkeypatch):
    """Declares a mixture of tasks `{name: (size, rate, preprocessors)}`; removes all afterwards."""
    monkeypatch.setitem(sys.modules, "my_tasks", types.ModuleType("my_tasks"))
    names = []

    def declare(tasks, **more):
        for name, (size, _, *preprocessors) in tasks.items():
            names.append(name)
            process = [*preprocessors, seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim]
            source = seqio.FunctionDataSource(functools.partial(numbered, name, size), splits=["train"])
            features = {"output_features": FEATURES, "metric_fns": []}
            seqio.TaskRegistry.add(name, source=source, preprocessors=process, **features)
        seqio.MixtureRegistry.add("mine", [(name, rate) for name, (_, rate, *_) in tasks.items()], **more)
        return DatasetConfig("mine", LENGTHS, 8, mixture_or_task_module="my_tasks")

    yield declare
    seqio.MixtureRegistry.remove("mine")
    for name in names:
        seqio.TaskRegistry.remove(name)


def drawn(config, count, seed=5, start=0):
    """The texts of the first `count` examples."""
    task, _ = get_tasks(config)
    return [task.decode(row["inputs"]) for row in itertools.islice(task.examples("train", seed, start), count)]


@pytest.mark.parametrize(
    ("tasks", "count"),
    [
        ({"few": (20, 1), "many": (2000, 1)}, 400),
        ({"few": (15, 0.7), "some": (90, 2.1), "odd": (120, 0.2, odd_only)}, 600),
    ],
)
def test_each_task_repeats_for_itself_and_the_rates_hold(mixture, tasks, count):
    texts = drawn(mixture(tasks), count)
    total, by_task = sum(rate for _, rate, *_ in tasks.values()), collections.defaultdict(list)
    for text in texts:
        by_task[text.split()[0]].append(text)
    for name, (size, rate, *preprocessors) in tasks.items():
        size, share = size // 2 if preprocessors else size, rate / total
        assert abs(len(by_task[name]) - share * count) < 4 * (share * (1 - share) * count) ** 0.5
        passes = [by_task[name][i : i + size] for i in range(0, len(by_task[name]), size)]
        assert all(len(set(texts)) == len(texts) for texts in passes)
        whole = [texts for texts in passes if len(texts) == size]
        assert all(set(texts) == set(whole[0]) for texts in whole)
        assert len(set(map(tuple, whole))) == len(whole)
    assert len(by_task["few"]) > 5 * tasks["few"][0]


def test_a_mixture_starts_anywhere_and_depends_on_the_seed(mixture, monkeypatch):
    monkeypatch.setattr(mixing, "BLOCK", 64)
    config = mixture({"few": (40, 1), "odd": (120, 2, odd_only)})
    texts = drawn(config, 300)
    for start in (1, 128, 290):  # beyond several passes, and beyond a block of draws
        assert drawn(config, 10, start=start) == texts[start : start + 10]
    assert drawn(config, 50, seed=6) != texts[:50]


def test_batches_of_a_mixture_resume_where_they_stopped(mixture):
    task, _ = get_tasks(config := mixture({"few": (20, 1), "some": (60, 2)}))
    batches = train_batches(task, config, FeatureConverter(LENGTHS))
    for _ in range(40):
        next(batches)
    state, following = batches.get_state(), [next(batches)["encoder_input_tokens"].tolist() for _ in range(3)]
    resumed = train_batches(task, config, FeatureConverter(LENGTHS))
    resumed.set_state(state)
    assert [next(resumed)["encoder_input_tokens"].tolist() for _ in range(3)] == following


def test_a_mixture_that_cannot_be_drawn_is_refused(mixture):
    with pytest.raises(UserError, match=r"even has no examples in train; leave it out of the mixture"):
        drawn(mixture({"few": (20, 1), "even": (1, 1, odd_only)}), 40)


def test_rates_must_be_positive(mixture):
    with pytest.raises(UserError, match=r"A mixture needs rates .* it has few 0"):
        drawn(mixture({"few": (20, 0)}), 1)


def test_a_mixture_with_a_function_that_samples_is_refused(mixture):
    with pytest.raises(UserError, match="mine has a sample_fn"):
        drawn(mixture({"few": (20, 1)}, sample_fn=lambda datasets, rates, seed: datasets[0]), 1)


BYTES, OTHERS = seqio.ByteVocabulary(), seqio.ByteVocabulary(100)
TEXT = {name: seqio.Feature(BYTES, add_eos=True) for name in LENGTHS}
IMAGE = seqio.Feature(seqio.PassThroughVocabulary(0), add_eos=False, dtype=tf.float32, rank=3)


def declare(monkeypatch, **tasks):
    """Registers tasks with these features, whose data cannot be read."""
    for name, features in tasks.items():
        source = seqio.FunctionDataSource(lambda split, shuffle_files, seed=None: 1 / 0, splits=["train"])
        task = seqio.Task(name, source=source, preprocessors=[], output_features=features, metric_fns=[])
        monkeypatch.setitem(seqio.TaskRegistry._REGISTRY, name, task)


@pytest.mark.parametrize("features, message", [
    (TEXT | {"image": IMAGE}, "the same features: plain has inputs, targets, and strange image, inputs, targets; leave one"),
    (TEXT | {"targets": seqio.Feature(OTHERS)}, r"the targets of plain have ByteVocabulary \(259 ids\), and those of strange ByteVocabulary \(359 ids\)"),
    (TEXT | {"inputs": seqio.Feature(BYTES, dtype=tf.int64)}, "the inputs of plain are int32 of rank 1, and those of strange int64 of rank 1"),
])  # fmt: skip
def test_tasks_that_cannot_be_mixed_are_named_before_anything_is_read_or_written(
    mixture, tmp_path, monkeypatch, capsys, features, message
):
    mixture({"few": (2, 1)})
    declare(monkeypatch, plain=TEXT, strange=features)
    named = DatasetConfig("any", LENGTHS, 8, "my_tasks", mixture=MixtureOf(("plain", "strange")))
    with pytest.raises(UserError, match=message):
        get_tasks(named)
    if "image" in features:
        return  # seqio refuses to register it
    monkeypatch.setitem(seqio.MixtureRegistry._REGISTRY, "both", seqio.Mixture("both", [("plain", 1), ("strange", 1)]))
    with pytest.raises(UserError, match=message):
        get_tasks(DatasetConfig("both", LENGTHS, 8, "my_tasks"))
    macros = {"MIXTURE_OR_TASK_MODULE": "my_tasks", "TASK_FEATURE_LENGTHS": LENGTHS}
    flags = [
        "--gin_file=gin/tasks/seqio.gin",
        *(f"--gin.{name}={x!r}" for name, x in macros.items()),
        "--trust_modules",
    ]
    assert main(["cache-task", "both", str(tmp_path / "cache"), *flags]) == 2
    assert "the tasks of a mixture need" in (err := capsys.readouterr().err).lower() and err.count("\n") == 1
    assert not (tmp_path / "cache").exists()


def test_two_vocabularies_that_look_the_same_are_named(monkeypatch, mixture):
    """A class without `__eq__`."""
    mixture({"few": (2, 1)})
    for name in ("one", "other"):
        declare(monkeypatch, **{name: dict.fromkeys(LENGTHS, seqio.Feature(seqio.UnigramVocabulary(["a"])))})
    message = r"the inputs of one have UnigramVocabulary \(.* ids\), and those of other another that is not equal to it; .* the same object"
    with pytest.raises(UserError, match=message):
        get_tasks(DatasetConfig("any", LENGTHS, 8, "my_tasks", mixture=MixtureOf(("one", "other"))))


def test_a_vocabulary_in_two_places_is_one(monkeypatch, mixture, tmp_path):
    mixture({"few": (2, 1)})
    for number, name in enumerate(("one", "other", "third")):
        (folder := tmp_path / name).mkdir()
        path = train_sentencepiece(["the quick brown fox jumps over the lazy dog"] * 50, 287 - number // 2, str(folder))
        declare(monkeypatch, **{name: dict.fromkeys(LENGTHS, seqio.Feature(seqio.SentencePieceVocabulary(str(path))))})
    of = lambda *names: DatasetConfig("any", LENGTHS, 8, "my_tasks", mixture=MixtureOf({name: 1.0 for name in names}))
    get_tasks(of("one", "other"))
    with pytest.raises(
        UserError, match=r"the inputs of other have .*spiece.model \(.* ids\), and those of third .*spiece"
    ):
        get_tasks(of("one", "other", "third"))
    both = seqio.Mixture("both", [("one", 1), ("other", 1)])
    monkeypatch.setitem(seqio.MixtureRegistry._REGISTRY, "both", both)
    with pytest.raises(UserError, match=r"of one have .*one/spiece.model .*, and those of other .*other/spiece.model"):
        seqio_features.check_task("both", takes_images=False)  # seqio's comparison, which t5x needs
    with pytest.raises(ValueError, match="must use the same vocabulary"):
        both.get_dataset(LENGTHS, split="train")
