"""t5x's flags for the location of seqio's data: the folder of TFDS's data sets, and folders of cached tasks."""

import json
import sys
import types

import pytest

pytest.importorskip("seqio")

import seqio  # noqa: E402
import tensorflow as tf  # noqa: E402

from adalink_jax.cli.arguments import add_seqio, plain_parser, use_seqio  # noqa: E402
from adalink_jax.data import DatasetConfig, get_tasks  # noqa: E402
from adalink_jax.data.user_files import FileTask  # noqa: E402
from adalink_jax.errors import UserError  # noqa: E402

LENGTHS = {"inputs": 16, "targets": 8}
FEATURES = {name: seqio.Feature(seqio.ByteVocabulary(), add_eos=True) for name in LENGTHS}


@pytest.fixture
def declared(monkeypatch):
    """Declares tasks in a module that exists for the test only; removes them and resets folders afterwards."""
    names = []

    def declare(name, source, preprocessors):
        monkeypatch.setitem(sys.modules, "my_tasks", types.ModuleType("my_tasks"))
        names.append(name)
        seqio.TaskRegistry.add(
            name, source=source, preprocessors=preprocessors, output_features=FEATURES, metric_fns=[]
        )
        return lambda **more: DatasetConfig(name, LENGTHS, 4, mixture_or_task_module="my_tasks", **more)

    yield declare
    for name in names:
        seqio.TaskRegistry.remove(name)
    seqio.set_tfds_data_dir_override(None)
    seqio.set_global_cache_dirs([])


def use(*flags):
    parser = plain_parser("x", "", "")
    add_seqio(parser)
    use_seqio(parser.parse_args(flags))


def texts(config):
    task, _ = get_tasks(config)
    return [task.decode(example["inputs"]) for example in task.examples("train")]


def test_a_task_of_tfds_is_read_from_the_folder(tmp_path, declared):
    import tensorflow_datasets as tfds
    from published import write_tfds

    features = {"inputs": tfds.features.Text(), "targets": tfds.features.Text()}
    write_tfds(tmp_path, "mine", features, {"train": [{"inputs": f"row {i}", "targets": "x"} for i in range(3)]})
    process = [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos]
    config = declared("of_tfds", seqio.TfdsDataSource("mine:1.0.2", splits=["train"]), process)
    use("--tfds_data_dir", str(tmp_path))
    assert sorted(texts(config())) == ["row 0", "row 1", "row 2"]


def test_a_cached_task_is_read_from_its_cache_and_nowhere_else(tmp_path, declared):
    def never(split, shuffle_files, seed=None):
        raise AssertionError("the source was read")

    process = [seqio.preprocessors.tokenize, seqio.CacheDatasetPlaceholder(), seqio.preprocessors.append_eos]
    config = declared("cached", seqio.FunctionDataSource(never, splits=["train"]), process)
    with pytest.raises(UserError, match="cached is not cached in any folder; name its folder with --seqio_additional"):
        get_tasks(config(use_cached=True))
    folder = tmp_path / "cached"
    folder.mkdir()
    ids = {"inputs": [107, 108], "targets": [109]}
    ints = lambda value: tf.train.Feature(int64_list=tf.train.Int64List(value=value))
    record = tf.train.Example(features=tf.train.Features(feature={name: ints(value) for name, value in ids.items()}))
    with tf.io.TFRecordWriter(str(folder / "train.tfrecord-00000-of-00001")) as writer:
        writer.write(record.SerializeToString())
    about = {"num_shards": 1, "seqio_version": seqio.__version__,
             "features": {name: {"dtype": "int32", "shape": [None]} for name in ids}}  # fmt: skip
    (folder / "info.train.json").write_text(json.dumps(about))
    (folder / "stats.train.json").write_text(json.dumps({"examples": 1}))
    (folder / "COMPLETED").write_text("")
    use("--seqio_additional_cache_dirs", f"{tmp_path / 'none'},{tmp_path}")
    assert texts(config(use_cached=True)) == ["hi"]


def test_own_files_are_not_cached():
    with pytest.raises(UserError, match="USE_CACHED_TASKS is True, but your own files"):
        DatasetConfig("mine", LENGTHS, 4, own_files=FileTask("a.csv", "{a}", "{b}", "bytes"), use_cached=True)
