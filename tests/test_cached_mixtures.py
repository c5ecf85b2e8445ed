"""Mixtures by settings, with seqio's rates; and mixtures of cached tasks, read by number: each host its own rows, from any step."""

import collections
import dataclasses
import functools
import itertools
import shutil
import sys
import time
import types

import numpy as np
import pytest

pytest.importorskip("seqio")

import seqio  # noqa: E402
import tensorflow as tf  # noqa: E402

from adalink_jax.data import (  # noqa: E402
    DatasetConfig,
    FeatureConverter,
    MixtureOf,
    get_tasks,
    mixing,
    seqio_source,
    train_batches,
)  # fmt: skip
from adalink_jax.data.packed_examples import PackedIterator  # noqa: E402
from adalink_jax.data.seqio_source import SeqioTask  # noqa: E402
from adalink_jax.data.task_cache import example_bytes  # noqa: E402
from adalink_jax.data.task_cache.cache_writer import CacheWriter  # noqa: E402
from adalink_jax.data.task_protocol import NumberedTask  # noqa: E402
from adalink_jax.errors import UserError  # noqa: E402

LENGTHS = {"inputs": 16, "targets": 4}
SIZES = {"few": 30, "some": 90, "many": 2000}


def numbered(name, split, shuffle_files, seed=None):
    size = SIZES[name]
    return tf.data.Dataset.from_tensor_slices({"inputs": [f"{name} {i}" for i in range(size)], "targets": ["x"] * size})


@pytest.fixture(scope="module", autouse=True)
def tasks():
    """Declares a task of each size."""
    sys.modules["my_sizes"] = types.ModuleType("my_sizes")
    for name, size in SIZES.items():
        source = seqio.FunctionDataSource(
            functools.partial(numbered, name), splits=["train"], num_input_examples={"train": size}
        )
        seqio.TaskRegistry.add(
            name, source=source, preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim],
            output_features={name: seqio.Feature(seqio.ByteVocabulary()) for name in LENGTHS}, metric_fns=[],
        )  # fmt: skip
    yield
    del sys.modules["my_sizes"]
    for name in SIZES:
        seqio.TaskRegistry.remove(name)


@pytest.fixture(scope="module")
def cache(tasks, tmp_path_factory):
    """The tasks' cache."""
    folder = str(tmp_path_factory.mktemp("cache"))
    for name in SIZES:
        task_at = lambda lengths, name=name: SeqioTask(seqio.TaskRegistry.get(name), lengths or {})
        CacheWriter(task_at, LENGTHS, folder, ["train"]).write(lambda *_: None)
    return folder


def test_a_mixture_with_a_task_that_is_not_finished_is_refused(cache, tmp_path):
    folder = tmp_path / "cache"
    shutil.copytree(cache, folder)
    (folder / "some" / "train.json").unlink()
    task, _ = get_tasks(config(("few", "some"), str(folder)))
    with pytest.raises(UserError, match="some has written 1 files of train and not all; rerun `adalink cache-task`"):
        next(iter(task.examples("train", 0)))


def config(names, folder=None, seed=3, **rates):
    mixture = MixtureOf(names, **rates)
    return DatasetConfig(
        "mine", LENGTHS, 8, mixture_or_task_module="my_sizes", seed=seed, mixture=mixture, task_cache=folder
    )


@pytest.mark.parametrize("how", [
    {}, {"temperature": 2.0}, {"maximum": 100}, {"maximum": 500, "temperature": 3.5}, {"scale": 0.01, "maximum": 2, "temperature": 0.5},
])  # fmt: skip
def test_rates_by_size_are_seqio_s(cache, how):
    for folder in (None, cache):
        task, _ = get_tasks(config(tuple(SIZES), folder, **how))
        tasks, rates = task.with_split("train")
        registered = [seqio.TaskRegistry.get(one.name) for one in tasks]
        assert rates == pytest.approx([seqio.mixing_rate_num_examples(one, **how) for one in registered], rel=1e-12)


def test_the_rates_hold_and_the_mixture_reads_as_its_stream(cache):
    stated = {"few": 0.6, "some": 0.3, "many": 0.1}
    task, scored = get_tasks(config(stated, cache))
    assert isinstance(task, NumberedTask) and [one.name for one in scored] == sorted(SIZES)
    texts = [task.decode(row["inputs"]) for row in itertools.islice(task.examples("train", 5), 5000)]
    counts = collections.Counter(text.split()[0] for text in texts[:4096])
    assert all(abs(counts[name] - rate * 4096) < 1 for name, rate in stated.items())
    numbers = [0, 1, 4095, 4096, 4999, 17]
    assert [task.decode(row["inputs"]) for row in task.examples_at("train", 5, numbers)] == [texts[i] for i in numbers]
    for name, size in (("few", 30), ("some", 90)):
        mine = [text for text in texts if text.startswith(name)]
        passes = [mine[i : i + size] for i in range(0, len(mine) - size, size)]
        assert all(len(set(one)) == size for one in passes) and len(set(map(tuple, passes))) == len(passes)


def test_each_host_reads_its_own_rows_only(cache, monkeypatch):
    dataset = config(tuple(SIZES), cache, temperature=2.0)
    task, _ = get_tasks(dataset)
    read, from_bytes = [], example_bytes.from_bytes
    monkeypatch.setattr(example_bytes, "from_bytes", lambda record: read.append(1) or from_bytes(record))
    in_turn = lambda examples, numbers: (examples[number] for number in numbers)
    monkeypatch.setattr(seqio_source, "read_ahead", in_turn)
    batches = lambda rows=None: train_batches(task, dataset, FeatureConverter(LENGTHS), rows)
    whole = batches()
    expected = [next(whole) for _ in range(20)]
    for hosts in (2, 4, 8):
        for host in range(hosts):
            rows = list(range(host, 8, hosts))
            reader, before = batches(rows), len(read)
            for batch in expected:
                np.testing.assert_equal(next(reader), {name: values[rows] for name, values in batch.items()})
            assert len(read) - before == 20 * len(rows)
    resumed = batches()
    resumed.set_state({"epoch": 0, "batch": 15})
    np.testing.assert_equal(next(resumed), expected[15])


def test_packed_rows_of_a_mixture_need_only_a_host_s_own_examples(cache, monkeypatch):
    dataset = dataclasses.replace(config(tuple(SIZES), cache, temperature=2.0), pack=True)
    task, _ = get_tasks(dataset)
    converter = FeatureConverter({"inputs": 64, "targets": 16})
    in_turn = lambda seed, start: (task.dataset("train", seed)[i] for i in itertools.count(start))
    whole = PackedIterator(in_turn, converter, 8, dataset.seed)
    expected = [next(whole) for _ in range(6)]
    examples = sum(int(batch["encoder_segment_ids"][[0, 5]].max(axis=1).sum()) for batch in expected)
    read, from_bytes = [], example_bytes.from_bytes
    monkeypatch.setattr(example_bytes, "from_bytes", lambda record: read.append(1) or from_bytes(record))
    own = train_batches(task, dataset, converter, [0, 5])
    for batch in expected:
        np.testing.assert_equal(next(own), {name: values[[0, 5]] for name, values in batch.items()})
    assert len(read) == examples and own.get_state() == whole.get_state()


def test_counting_agrees_with_a_walk_over_the_draws(monkeypatch):
    monkeypatch.setattr(mixing, "_AT_ONCE", 14)
    shares = np.array([1, 7]) / 8
    walked = [np.zeros(2, int)]
    for block in range(40):
        walked.append(walked[-1] + np.bincount(mixing._draws(shares, 9, block), minlength=2))
    for start, stop in ((0, 0), (0, 1), (0, 40), (3, 3), (3, 29), (39, 40)):
        np.testing.assert_array_equal(mixing._counts(shares, 9, start, stop), walked[stop] - walked[start])


def test_a_far_position_is_counted_and_not_read(cache):
    """2,048,000,000 examples."""
    dataset = DatasetConfig(
        "mine", LENGTHS, 2048, "my_sizes", mixture=MixtureOf({"few": 1, "many": 7}), task_cache=cache
    )
    task, _ = get_tasks(dataset)
    started = time.monotonic()
    batches = train_batches(task, dataset, FeatureConverter(LENGTHS), range(8))
    batches.set_state({"epoch": 0, "batch": 10**6})
    next(batches)
    assert time.monotonic() - started < 10
    far = task.dataset("train", 3)
    order = (10**9, 5, 10**9 + 4096, 10**9 - 4096, 4096, 10**9)
    fresh = lambda: mixing.MixedNumbers(*task.with_split("train"), "train", 3, lambda one, *which: one.dataset(*which))
    again = [fresh()[number]["inputs"] for number in order]
    np.testing.assert_equal([far[number]["inputs"] for number in order], again)


@pytest.mark.parametrize("names, how, message", [
    ("few", {}, "MIXTURE is 'few'; give names of tasks"),
    ((), {}, r"MIXTURE is \(\); give names"),
    (("few", "few"), {}, "MIXTURE names a task twice"),
    ({"few": 1.0}, {"temperature": 2.0}, "MIXTURE states rates, and MIXTURE_TEMPERATURE"),
    (("few", "manny"), {}, "There is no task or mixture 'manny'"),
    ({"few": -1.0, "many": 1.0}, {}, "A mixture needs rates that are not negative"),
])  # fmt: skip
def test_a_mixture_that_cannot_be_is_refused(cache, names, how, message):
    with pytest.raises(UserError, match=message):
        next(iter(get_tasks(config(names, cache, **how))[0].examples("train", 0)))
