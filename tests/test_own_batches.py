"""Batches of your own files: their order, their position when resumed, each host's rows, and that they equal seqio's."""

import json
import os

import numpy as np
import pytest
from own_files_cases import LENGTHS, csv_text, load, written

from adalink_jax.data import DatasetConfig, FeatureConverter, padded_batches, train_batches
from adalink_jax.data.user_files.row_store import Writer


@pytest.fixture
def task(tmp_path):
    return load(written(tmp_path, "a.csv", csv_text([(f"text {i}", str(i)) for i in range(100)])))


def batches_of(task, rows=None, **settings):
    return train_batches(
        task, DatasetConfig("mine", LENGTHS, 8, seed=3, own_files=None, **settings), FeatureConverter(LENGTHS), rows
    )


def targets(batch):
    return [bytes(int(i) - 3 for i in row if i > 2).decode() for row in batch["decoder_target_tokens"]]


def test_an_epoch_has_every_example_once_in_an_order_of_its_seed(task):
    read = lambda seed: [row["targets_pretokenized"] for row in task.examples("train", seed)]
    assert sorted(read(1)) == sorted(read(None)) and read(1) == read(1) != read(2)


def test_resuming_in_the_middle_of_an_epoch_gives_the_same_batches(task):
    whole, cut = batches_of(task), batches_of(task)
    expected = [targets(next(whole)) for _ in range(25)]  # more than two epochs
    for _ in range(13):
        next(cut)
    fresh = batches_of(task)
    fresh.set_state(json.loads(json.dumps(cut.get_state())))
    assert [targets(next(fresh)) for _ in range(12)] == expected[13:]


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_see_each_example_of_an_epoch_once_between_them(task, hosts):
    readers = [batches_of(task, rows=range(host, 8, hosts)) for host in range(hosts)]
    steps = len(task.splits["train"]) // 8
    seen = [target for _ in range(steps) for reader in readers for target in targets(next(reader))]
    assert len(seen) == len(set(seen)) == steps * 8
    whole = batches_of(task)
    assert sorted(seen) == sorted(target for _ in range(steps) for target in targets(next(whole)))


@pytest.mark.parametrize("hosts", [2, 8])
def test_a_host_reads_its_own_rows_only_and_has_them_as_one_host_does(task, hosts, monkeypatch):
    per_epoch = len(task.splits["train"]) // 8
    whole = batches_of(task)
    expected = [next(whole) for _ in range(per_epoch)]
    read, example = [], task.example
    monkeypatch.setattr(task, "example", lambda row, seed=None: read.append(row["line"]) or example(row, seed))
    for host in range(hosts):
        rows = list(range(host, 8, hosts))
        reader, before = batches_of(task, rows), len(read)
        for batch in expected:
            np.testing.assert_equal(next(reader), {name: values[rows] for name, values in batch.items()})
        assert len(read) - before == per_epoch * len(rows)
    assert len(read) == len(set(read)) == per_epoch * 8


def test_a_far_position_is_reached_without_reading_what_is_before(task, monkeypatch):
    per_epoch = len(task.splits["train"]) // 8
    epoch, batch = divmod(10**6, per_epoch)
    far, again = batches_of(task), batches_of(task)
    read, example = [], task.example
    monkeypatch.setattr(task, "example", lambda row, seed=None: read.append(row["line"]) or example(row, seed))
    far.set_state({"epoch": epoch, "batch": batch})
    first = next(far)
    assert len(read) <= 8 * per_epoch
    again.set_state({"epoch": epoch, "batch": 0})
    for _ in range(batch):
        next(again)
    np.testing.assert_equal(next(again), first)


def test_worker_processes_give_the_same_batches_also_when_resumed(tmp_path):
    path = written(tmp_path, "a.csv", csv_text([(f"text {i}", str(i)) for i in range(60)]))
    plain, forked = batches_of(load(path)), batches_of(load(path, workers=2))
    expected = [next(plain) for _ in range(9)]
    for batch in expected[:4]:
        np.testing.assert_equal(next(forked), batch)
    again = batches_of(load(path, workers=1))
    again.set_state(forked.get_state())
    for batch in expected[4:]:
        np.testing.assert_equal(next(again), batch)


def test_rows_beyond_memory_are_mapped_from_a_file_that_is_deleted(tmp_path):
    small, large = Writer(), Writer(in_memory=10_000)
    for writer in (small, large):
        for i in range(2000):
            writer.append({"inputs": f"row {i}", "references": [str(i)], "image_name": None, "image": b"x", "line": i})
    small, large = small.finish(), large.finish()
    assert [small[i] for i in range(2000)] == [large[i] for i in range(2000)]
    import pickle

    assert pickle.loads(pickle.dumps(large))[1999] == small[1999]
    path = large._path
    assert os.path.exists(path)
    del large
    assert not os.path.exists(path)


def test_batches_are_those_that_seqio_makes_of_the_same_rows(tmp_path):
    seqio = pytest.importorskip("seqio")
    import functools

    import tensorflow as tf

    rows = [(f"text {i}" + "x" * i, str(i)) for i in range(30)]
    path = written(tmp_path, "a.csv", csv_text(rows))
    mine = load(path, limits={"truncated": 1.0})
    ordered = [row for row in (mine.splits["train"][i] for i in range(len(mine.splits["train"])))]
    vocabulary = seqio.ByteVocabulary()
    seqio.TaskRegistry.remove("same_rows") if "same_rows" in seqio.TaskRegistry.names() else None
    seqio.TaskRegistry.add(
        "same_rows",
        source=seqio.FunctionDataSource(
            lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices(
                {"inputs": [r["inputs"] for r in ordered], "targets": [r["references"][0] for r in ordered]}
            ),
            splits=["train"],
        ),
        preprocessors=[
            functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=True),
            seqio.preprocessors.append_eos_after_trim,
        ],
        output_features={name: seqio.Feature(vocabulary, add_eos=True) for name in ("inputs", "targets")},
        metric_fns=[],
    )
    from adalink_jax.data.seqio_source import get_tasks

    theirs, _ = get_tasks("same_rows", None, LENGTHS)
    converter = FeatureConverter(LENGTHS)
    pairs = zip(
        padded_batches(mine.examples("train"), converter, 8),
        padded_batches(theirs.examples("train"), converter, 8),
        strict=True,
    )
    for (ours, _), (other, _) in pairs:
        np.testing.assert_equal(ours, other)
