"""Cached tasks: the examples of the task itself, read by number; caches that are cut short, damaged, or of another task."""

import functools
import gc
import os
import pathlib
import signal
import subprocess
import sys
import threading
import types

import gin
import numpy as np
import pytest

pytest.importorskip("seqio")

import seqio  # noqa: E402
import tensorflow as tf  # noqa: E402

import adalink_jax  # noqa: E402
from adalink_jax.cli.main import main  # noqa: E402
from adalink_jax.data import DatasetConfig, FeatureConverter, get_tasks, train_batches  # noqa: E402
from adalink_jax.data.packed_examples import PackedIterator  # noqa: E402
from adalink_jax.data.seqio_source import SeqioTask  # noqa: E402
from adalink_jax.data.seqio_vocabulary import HuggingFaceVocabulary  # noqa: E402
from adalink_jax.data.task_cache import cache_writer, example_bytes  # noqa: E402
from adalink_jax.data.task_protocol import NumberedTask  # noqa: E402
from adalink_jax.errors import UserError  # noqa: E402
from adalink_jax.training import data_agreement  # noqa: E402

ROOT = pathlib.Path(adalink_jax.__file__).parents[1]
LENGTHS = {"inputs": 12, "targets": 4}
FEATURES = {name: seqio.Feature(seqio.ByteVocabulary(), add_eos=True) for name in LENGTHS}
TEXT = [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim]


def numbered(split, shuffle_files, seed=None, size=200, word="text", last=""):
    size = size if split == "train" else 10
    rows = {"inputs": [f"{word} {'x' * (i % 9)} {i}" for i in range(size)], "targets": [str(i) for i in range(size)]}
    rows["targets"][-1] += last
    return tf.data.Dataset.from_tensor_slices(rows | {"parts": [[f"{i}", "é"] for i in range(size)]})


def score(targets, predictions):
    return {"same": np.mean([a == b for a, b in zip(targets, predictions)])}


def shortened(dataset, sequence_length):
    """Another example for each length, as span corruption makes."""
    return dataset.map(lambda row: row | {"inputs": row["inputs"][:: max(1, 20 // sequence_length["inputs"])]})


@pytest.fixture
def declare(monkeypatch):
    """Declares a task; removes all afterwards."""
    monkeypatch.setitem(sys.modules, "my_tasks", types.ModuleType("my_tasks"))
    names = []

    def add(name, preprocessors=TEXT, known=None, source=None, **rows):
        seqio.TaskRegistry.remove(name) if name in seqio.TaskRegistry.names() else names.append(name)
        sizes = {"train": known, "validation": 10} if known else None
        source = source or seqio.FunctionDataSource(
            functools.partial(numbered, **rows), splits=["train", "validation"], num_input_examples=sizes
        )
        seqio.TaskRegistry.add(
            name, source=source, preprocessors=list(preprocessors), output_features=FEATURES, metric_fns=[score],
            postprocess_fn=lambda text, example, is_target: text + example["parts"][0].decode(),
        )  # fmt: skip

    yield add
    for name in names:
        seqio.TaskRegistry.remove(name)


def config(name, cache=None, **more):
    lengths = more.pop("lengths", LENGTHS)
    return DatasetConfig(name, lengths, 8, mixture_or_task_module="my_tasks", task_cache=cache, **more)


def cache_command(name, folder, *arguments):
    flags = ["MIXTURE_OR_TASK_MODULE='my_tasks'", f"TASK_FEATURE_LENGTHS={LENGTHS!r}"]
    files = ["--gin_file=gin/tasks/seqio.gin", *(f"--gin.{flag}" for flag in flags), "--trust_modules"]
    return ["cache-task", name, str(folder), *files, *arguments]


def cached(name, folder):
    assert main(cache_command(name, folder)) == 0
    return str(folder)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(cache_writer, "SHARD_BYTES", 4000)


@pytest.mark.parametrize("cut_last", [False, True])
def test_the_examples_are_those_of_the_task_at_any_lengths(declare, tmp_path, small_shards, cut_last):
    declare("words", [TEXT[0], seqio.preprocessors.append_eos] if cut_last else TEXT)
    folder = cached("words", tmp_path)
    for inputs, targets, split in ((12, 4, "train"), (5, 1, "train"), (99, 99, "validation")):
        lengths = {"inputs": inputs, "targets": targets}
        one, other = (get_tasks(config("words", x, lengths=lengths))[0].examples(split) for x in (None, folder))
        for uncached, read in zip(one, other, strict=True):
            assert list(uncached) == list(read)
            for name, value in uncached.items():
                assert type(read[name]) is type(value), name
                np.testing.assert_array_equal(read[name], value)
                assert np.asarray(read[name]).dtype == np.asarray(value).dtype


def test_metrics_and_postprocessing_are_those_of_the_task(declare, tmp_path):
    declare("words")
    uncached, _ = get_tasks(config("words"))
    task, scored = get_tasks(config("words", cached("words", tmp_path)))
    assert isinstance(task, NumberedTask) and list(scored) == [task] and not isinstance(uncached, NumberedTask)
    examples, predictions = list(task.examples("validation")), ["0", "1", "5"]
    assert task.score(examples[:3], predictions) == uncached.score(examples[:3], predictions) == {"same": 2 / 3}
    assert task.decode(examples[3]["targets"]) == "3" and task.encode("ab") == uncached.encode("ab")


def targets(batch):
    return [bytes(int(i) - 3 for i in row if i > 2).decode() for row in batch["decoder_target_tokens"]]


def test_each_host_reads_its_own_rows_and_a_far_step_needs_no_others(declare, tmp_path, small_shards, monkeypatch):
    declare("words")
    dataset = config("words", cached("words", tmp_path), seed=3)
    task, _ = get_tasks(dataset)
    read, from_bytes = [], example_bytes.from_bytes
    monkeypatch.setattr(example_bytes, "from_bytes", lambda record: read.append(1) or from_bytes(record))
    batches = lambda rows=None: train_batches(task, dataset, FeatureConverter(LENGTHS), rows)
    whole = batches()
    expected = [next(whole) for _ in range(50)]  # two epochs of 25 batches
    epochs = [[target for batch in expected[i : i + 25] for target in targets(batch)] for i in (0, 25)]
    assert all(sorted(map(int, epoch)) == list(range(200)) for epoch in epochs) and epochs[0] != epochs[1]
    for hosts in (2, 4, 8):
        for host in range(hosts):
            rows = list(range(host, 8, hosts))
            reader, before = batches(rows), len(read)
            for batch in expected[:25]:
                np.testing.assert_equal(next(reader), {name: values[rows] for name, values in batch.items()})
            assert len(read) - before == 25 * len(rows)
    far = batches()
    before = len(read)
    far.set_state({"epoch": 10**6, "batch": 24})
    next(far)
    assert len(read) - before == 8


@pytest.mark.parametrize("lengths", [{"inputs": 40, "targets": 16}, {"inputs": 9, "targets": 2}])
def test_packed_rows_need_only_a_host_s_own_examples(declare, tmp_path, small_shards, monkeypatch, lengths):
    """Which examples a row has follows from the numbers of their tokens; at the second lengths, texts are cut."""
    declare("words")
    dataset = config("words", cached("words", tmp_path), seed=3, pack=True, lengths=lengths)
    task, _ = get_tasks(dataset)
    converter = FeatureConverter(lengths)
    in_turn = lambda seed, start: (task.dataset("train", seed)[i] for i in range(start, 200))  # nothing is read ahead
    whole = PackedIterator(in_turn, converter, 8, 3)
    states, expected = [], []
    for _ in range(30):
        states.append(whole.get_state())
        expected.append(next(whole))
    assert states[-1]["epoch"] > 0
    read, from_bytes = [], example_bytes.from_bytes
    monkeypatch.setattr(example_bytes, "from_bytes", lambda record: read.append(1) or from_bytes(record))
    for rows in (list(range(8)), [1, 5], [7]):
        own = train_batches(task, dataset, converter, rows)
        for first in (0, 17):
            own.set_state(states[first])
            for batch in expected[first:]:
                before = len(read)
                np.testing.assert_equal(next(own), {name: values[rows] for name, values in batch.items()})
                assert len(read) - before == int(batch["encoder_segment_ids"][rows].max(axis=1).sum())
        assert own.get_state() == whole.get_state()
    del own
    gc.collect()
    [thread.join(10) for thread in threading.enumerate() if thread.name.startswith("packed")]
    assert not any(thread.name.startswith("packed") for thread in threading.enumerate())


def test_what_is_finished_is_kept_and_what_is_damaged_is_written_again(declare, tmp_path, small_shards, monkeypatch):
    declare("words")
    written, write = [], cache_writer._write_records
    monkeypatch.setattr(cache_writer, "_write_records", lambda *args: written.append(1) or write(*args))
    folder = tmp_path / "words"
    cached("words", tmp_path)
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    shards = sorted(name for name in content if name.startswith("train-") and name.endswith(".array_record"))
    assert len(shards) > 3 and len(written) == len(shards) + 1
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    cached("words", tmp_path)
    assert len(written) == len(shards) + 1  # nothing again
    assert all(times[name] == (folder / name).stat().st_mtime_ns for name in shards)
    # Killed while it wrote the last shard but one.
    for name in (
        "train.json",
        shards[-1],
        shards[-1].replace("array_record", "json"),
        shards[-2].replace("array_record", "json"),
    ):
        (folder / name).unlink()
    with pytest.raises(UserError, match=r"has written \d+ files of train and not all; rerun `adalink cache-task`"):
        get_tasks(config("words", str(tmp_path)))[0].size("train")
    cached("words", tmp_path)
    assert len(written) == len(shards) + 3
    flipped = bytearray(content[shards[1]])
    flipped[len(flipped) // 3] ^= 4
    (folder / shards[1]).write_bytes(flipped)
    cached("words", tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == content


def test_damage_gives_one_sentence(declare, tmp_path, small_shards):
    declare("words")
    folder, half = cached("words", tmp_path), lambda data: data[: len(data) // 2]
    for name, damage, message in [
        ("task.json", lambda data: data.replace(b'"words"', b'"other"'), "task.json is damaged: its digest"),
        ("train.json", half, "train.json is damaged or cut short"),
        ("train-00001.array_record", half, "array_record is damaged .it has .* bytes"),
        ("train-00001.array_record", lambda data: bytes(len(data)), "array_record is damaged .it has 0 examples"),
        ("train-00001.counts", lambda data: data[:-8] + bytes(8), "train-00001.counts is damaged .its digest is not"),
        ("train-00001.counts", None, r"There is no .*train-00001.counts; rerun `adalink cache-task`"),
        ("train-00001.array_record", None, r"There is no .*train-00001.array_record; rerun `adalink cache-task`"),
        ("task.json", None, r"holds no cache of words; write it: adalink cache-task words"),
    ]:
        path = tmp_path / "words" / name
        data = path.read_bytes()
        path.unlink() if damage is None else path.write_bytes(damage(data))
        with pytest.raises(UserError, match=message):
            task, _ = get_tasks(config("words", folder))
            list(task.examples("train")), [task.token_counts("train", 0)[number] for number in range(200)]
        path.write_bytes(data)


def test_no_flipped_bit_passes_for_other_data(declare, tmp_path, small_shards):
    """ArrayRecord checks each chunk, and the number of examples is stated."""
    declare("words")
    task, _ = get_tasks(config("words", cached("words", tmp_path)))
    expected, path = (
        [row["targets"].tolist() for row in task.examples("train")],
        tmp_path / "words" / "train-00000.array_record",
    )
    data, random, found = path.read_bytes(), np.random.default_rng(0), 0
    used = np.flatnonzero(np.frombuffer(data, np.uint8))  # most of a small file is filling
    for _ in range(40):
        flipped = bytearray(data)
        flipped[random.choice(used)] ^= 1 << random.integers(8)
        path.write_bytes(flipped)
        try:
            read = [row["targets"].tolist() for row in get_tasks(config("words", str(tmp_path)))[0].examples("train")]
        except UserError as e:
            assert "train-00000.array_record is damaged" in str(e)
            found += 1
        else:
            assert read == expected
    assert found > 20


def test_a_folder_of_another_task_or_other_data_is_refused(declare, tmp_path, capsys):
    declare("words")
    cached("words", tmp_path)
    capsys.readouterr()
    for change in ({"word": "other"}, {"preprocessors": [TEXT[0], seqio.preprocessors.append_eos]}):
        declare("words", **change)
        assert main(cache_command("words", tmp_path)) == 2
        assert "holds another task or other data" in (err := capsys.readouterr().err) and err.count("\n") == 1
    (tmp_path / "mine" / "words").mkdir(parents=True)
    (tmp_path / "mine" / "words" / "thesis.txt").write_text("years of work")
    assert main(cache_command("words", tmp_path / "mine")) == 2
    assert "holds files that are not a cache, such as thesis.txt" in capsys.readouterr().err
    assert os.listdir(tmp_path / "mine" / "words") == ["thesis.txt"]
    assert main(cache_command("words", tmp_path / "new", "--split", "tset")) == 2
    assert "words has no split tset (--split); it has train, validation." in capsys.readouterr().err


def test_what_a_run_checks_of_a_task_is_checked_before_it_is_cached(declare, tmp_path, monkeypatch, capsys):
    """A source that misses files, and inputs that end with an EOS which is not their vocabulary's."""
    declare("words")
    task = seqio.TaskRegistry.get("words")

    def missing():
        raise UserError("The data of words have no rows in train; copy them again.")

    monkeypatch.setattr(task.source, "check", missing, raising=False)
    sentences = ["The data of words have no rows in train; copy them again."]
    vocabulary = HuggingFaceVocabulary(types.SimpleNamespace(chat=False, before=(2,), after=(), eos=1), "base")
    features = {"inputs": seqio.Feature(vocabulary, add_eos=True), "targets": FEATURES["targets"]}
    for change in (lambda: None, lambda: monkeypatch.setattr(task, "_output_features", features)):
        change()
        with pytest.raises(UserError) as of_run:
            get_tasks(config("words"))
        assert main(cache_command("words", tmp_path / "cache")) == 2
        assert str(of_run.value) in capsys.readouterr().err and not (tmp_path / "cache").exists()
        sentences.append(str(of_run.value))
    assert sentences[0] == sentences[1] and "puts them between [2] and []" in sentences[2]


def test_a_task_that_depends_on_the_lengths_is_cached_at_them(declare, tmp_path, capsys):
    declare("spans", [TEXT[0], shortened, TEXT[1]])
    folder = cached("spans", tmp_path)
    assert f"a run must have TASK_FEATURE_LENGTHS = {LENGTHS}" in capsys.readouterr().out
    one, other = (get_tasks(config("spans", x))[0].examples("train") for x in (None, folder))
    for uncached, read in zip(one, other, strict=True):
        np.testing.assert_array_equal(read["inputs"], uncached["inputs"])
    with pytest.raises(UserError, match="at the lengths .*, and other lengths make other examples"):
        get_tasks(config("spans", folder, lengths={"inputs": 10, "targets": 4}))


def last_ids(dataset, sequence_length):
    """Cuts inputs at their beginning, which is not how a cache cuts them."""
    if sequence_length is None:
        return dataset
    return dataset.map(lambda row: row | {"inputs": row["inputs"][-sequence_length["inputs"] :]})


def test_a_task_that_cuts_the_beginning_is_cached_at_its_lengths(declare, tmp_path, capsys):
    declare("ends", [TEXT[0], last_ids])
    folder = cached("ends", tmp_path)
    assert f"a run must have TASK_FEATURE_LENGTHS = {LENGTHS}" in capsys.readouterr().out
    one, other = (get_tasks(config("ends", x))[0].examples("train") for x in (None, folder))
    for uncached, read in zip(one, other, strict=True):
        np.testing.assert_array_equal(read["inputs"], uncached["inputs"])


def test_settings_that_make_other_examples_are_refused(declare, tmp_path):
    declare("words")
    folder = cached("words", tmp_path)
    with gin.unlock_config():
        gin.bind_parameter("SpanCorruption.mean_span_length", 20.0)
    with pytest.raises(UserError, match=r"words made with .*'mean_span_length': '3.0'.*, and the run has .*'20.0'"):
        get_tasks(config("words", folder))


def test_data_that_grew_are_refused(declare, tmp_path, capsys):
    declare("words", known=200)
    cached("words", tmp_path)
    declare("words", size=230, known=230)
    assert main(cache_command("words", tmp_path)) == 2
    assert (
        "of train that were made of other data: it holds 200 of them, and there are 230 now" in capsys.readouterr().err
    )


def test_kept_examples_that_the_task_makes_otherwise_now_are_refused(declare, tmp_path, small_shards, capsys):
    """As many, and the first ones the same: the last example of a split that was written, but not finished."""
    declare("words")
    command = cache_command("words", tmp_path, "--split", "train")
    assert main(command) == 0
    (tmp_path / "words" / "train.json").unlink()
    content = {path.name: path.read_bytes() for path in (tmp_path / "words").iterdir()}
    declare("words", last="!")
    assert main(command) == 2
    err = capsys.readouterr().err
    assert "of train that were made of other data: the task makes other examples now; delete it" in err
    assert {path.name: path.read_bytes() for path in (tmp_path / "words").iterdir()} == content


def test_files_that_changed_in_place_are_refused(declare, tmp_path, small_shards, monkeypatch, capsys):
    rows, as_row = tmp_path / "rows.txt", lambda lines: lines.map(lambda line: {"inputs": line, "targets": line})
    declare("lines", [as_row, *TEXT], source=seqio.TextLineDataSource({"train": str(rows)}))
    rows.write_text("".join(f"line {i:4}\n" for i in range(300)))
    cached("lines", tmp_path / "cache")
    rows.write_text(rows.read_text().replace("line  250", "lime  250"))
    os.utime(rows, (1, 1))
    assert main(cache_command("lines", tmp_path / "cache")) == 2
    assert "other data: the files that they were made of have other names, sizes or times;" in capsys.readouterr().err
    for unknown in ((), (str(tmp_path / "not_there.txt"),)):
        monkeypatch.setattr(SeqioTask, "source_files", lambda task, split, files=unknown: files)
        cached("lines", tmp_path / "cache")


def test_the_contents_of_source_files_are_not_read_to_compare_them(declare, tmp_path):
    rows, as_row = tmp_path / "rows.txt", lambda lines: lines.map(lambda line: {"inputs": line, "targets": line})
    declare("lines", [as_row, *TEXT], source=seqio.TextLineDataSource({"train": str(rows)}))
    for last in "ab":  # the same size and time
        rows.write_text("".join(f"line {i:4}\n" for i in range(300)) + last)
        os.utime(rows, (1, 1))
        assert main(cache_command("lines", tmp_path / "cache")) == 0


def test_the_digests_of_two_caches_differ_if_any_example_does(declare, tmp_path):
    tasks, folders = [], (tmp_path / "one", tmp_path / "other")
    for folder, last in zip(folders, ("", "!")):  # they differ in an example that nobody compares
        declare("words", last=last)
        tasks.append(get_tasks(config("words", cached("words", folder)))[0])
    again, _ = get_tasks(config("words", str(folders[0])))
    position = {"epoch": 0, "batch": 0}
    one, same, other = (
        data_agreement._digest(task, config("words", "x"), FeatureConverter(LENGTHS), 0, position)
        for task in (tasks[0], again, tasks[1])
    )
    assert (one == same).all() and (one != other).any() and tasks[0].digest == again.digest != tasks[1].digest


@pytest.mark.slow
def test_a_killed_command_resumes_with_the_same_bytes(declare, tmp_path):
    (tmp_path / "my_words.py").write_text(
        "import time, seqio, tensorflow as tf\nfrom adalink_jax.data.task_cache import cache_writer\n"
        "cache_writer.SHARD_BYTES = 4000\nwrite = cache_writer.example_bytes.to_bytes\n"
        "cache_writer.example_bytes.to_bytes = lambda row: time.sleep(0.002) or write(row)\n"
        "rows = lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices(\n"
        "    {'inputs': [f'text {i}' for i in range(900)], 'targets': ['1'] * 900})\n"
        "seqio.TaskRegistry.add('my_words', source=seqio.FunctionDataSource(rows, splits=['train']), preprocessors=[\n"
        "    seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim], metric_fns=[], output_features={\n"
        "    name: seqio.Feature(seqio.ByteVocabulary()) for name in ('inputs', 'targets')})\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    how = {"env": env, "cwd": tmp_path, "stderr": subprocess.DEVNULL}
    command = lambda folder: [sys.executable, "-m", "adalink_jax", *(
        text.replace("my_tasks", "my_words") for text in cache_command("my_words", folder)
    )]  # fmt: skip
    process = subprocess.Popen(command(tmp_path / "killed"), **how)
    third = tmp_path / "killed" / "my_words" / "train-00002.json"
    while not third.exists():
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "my_words" / "train.json").exists()
    kept = third.stat().st_mtime_ns
    for folder in ("killed", "whole"):
        subprocess.run(command(tmp_path / folder), check=True, **how)
    assert third.stat().st_mtime_ns == kept
    contents = [
        {path.name: path.read_bytes() for path in (tmp_path / folder / "my_words").iterdir() if path.name[0] != "."}
        for folder in ("killed", "whole")
    ]
    assert contents[0] == contents[1]


@pytest.mark.parametrize("value", [
    np.int32(7), np.float32(1.5), np.arange(6, dtype=np.int64).reshape(2, 3), np.zeros((0, 4), np.uint8), b"\x00\xff", "é", 3, 2.5,
    np.array([b"a", b"bc"], object), np.array([[True], [False]]), None, [1, "x", np.int16(3)], {"a": {"b": np.ones(2, np.float16)}},
])  # fmt: skip
def test_a_value_comes_back_with_its_type(value):
    read = example_bytes.from_bytes(example_bytes.to_bytes({"x": value}))["x"]
    assert type(read) is type(value)
    np.testing.assert_equal(read, value)
    assert np.asarray(read).dtype == np.asarray(value).dtype and np.shape(read) == np.shape(value)


def test_a_value_that_no_record_can_hold_is_refused():
    with pytest.raises(UserError, match="An example has object .* which a cache cannot hold"):
        example_bytes.to_bytes({"x": object()})


def test_lengths_that_are_not_set_are_asked_for(declare, tmp_path, capsys):
    declare("words")
    command = [text for text in cache_command("words", tmp_path) if "TASK_FEATURE_LENGTHS" not in text]
    assert main(command) == 2
    assert "TASK_FEATURE_LENGTHS must be set: add --gin.TASK_FEATURE_LENGTHS=VALUE" in capsys.readouterr().err


def test_settings_that_would_be_ignored_are_refused(tmp_path):
    with pytest.raises(UserError, match="TASK_CACHE and USE_CACHED_TASKS .* are both set"):
        config("words", str(tmp_path), use_cached=True)
