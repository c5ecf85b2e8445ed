"""A cache of the vision tower's outputs changes no result; a stale, partial, damaged or non-constant one is refused."""

import functools
import itertools
import json
import signal

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

pytest.importorskip("seqio")

from helpers import init, random_batch, tiny_pali  # noqa: E402

from adalink_jax import AdaLinkAdapter, AdaptedModel  # noqa: E402
from adalink_jax.cli.main import main  # noqa: E402
from adalink_jax.data import FeatureConverter, Tower, VisionCache  # noqa: E402
from adalink_jax.data.vision_cache import image_key  # noqa: E402
from adalink_jax.errors import Taken, UserError  # noqa: E402
from adalink_jax.training import fill_vision_cache  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
TOWER = Tower("abc", "{}", (2, 3), "float32")
FILES = ("gin/models/pali_nano.gin", "gin/adapters/adalink.gin", "gin/tasks/digits.gin", "gin/runs/finetune.gin")


def command(name, *extra, adapter=FILES[1], **macros):
    """Runs a command on the small task; paths and strings are quoted for gin."""
    macros = {
        "MIXTURE_OR_TASK_NAME": "few_scenes", "DatasetConfig.mixture_or_task_module": "small_scenes",
        "INITIAL_CHECKPOINT_PATH": "bundled:pali_nano_instruct", "BATCH_SIZE": 20,
    } | macros  # fmt: skip
    files = [f"--gin_file={file}" for file in (FILES[0], adapter, *FILES[2:])]
    return main([name, *files, *(f"--gin.{key}={value!r}" for key, value in macros.items()), *extra])


def train(folder, **macros):
    settings = {"TRAIN_STEPS": 8, "EVAL_PERIOD": 4, "WARMUP_STEPS": 2, "RANK": 4, "LEARNING_RATE": 0.01}
    status = command("train", MODEL_DIR=str(folder), **settings | macros)
    if status:
        return status
    metrics = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    scores = [{k: v for k, v in row.items() if k.startswith(("validation", "test"))} for row in metrics]
    return load_file(folder / "adapter_last" / "adapter_model.safetensors"), scores


def assert_same(one, other):
    for name, leaf in one[0].items():
        np.testing.assert_allclose(other[0][name], leaf, rtol=0, atol=1e-6)
    assert one[1] == other[1]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same run without a cache, and with a cache that it fills."""
    folder = tmp_path_factory.mktemp("runs")
    plain = train(folder / "plain")
    cached = train(folder / "cached", VISION_CACHE=str(folder / "vision"))
    return folder, plain, cached


@pytest.mark.slow
def test_a_run_with_a_cache_ends_with_the_same_adapter(runs):
    _, plain, cached = runs
    assert_same(plain, cached)
    assert any(np.abs(leaf).max() > 1e-3 for name, leaf in plain[0].items() if "up" in name)


@pytest.mark.slow
def test_the_cache_of_a_run_is_read_by_others(runs, capsys):
    folder, plain, _ = runs
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "vision").iterdir()}
    assert json.loads((folder / "vision" / "cache.json").read_text())["images"] == 110
    assert_same(plain, train(folder / "again", VISION_CACHE=str(folder / "vision")))
    assert before == {path.name: path.stat().st_mtime_ns for path in (folder / "vision").iterdir()}
    capsys.readouterr()
    scores, adapter = [], str(folder / "plain" / "adapter")
    for cache in (None, str(folder / "vision")):
        assert command("eval", "--json", VISION_CACHE=cache, RANK=4, INITIAL_ADAPTER_PATH=adapter) == 0
        scores.append(json.loads(capsys.readouterr().out))
    assert scores[0] == scores[1]
    assert command("cache-vision", VISION_CACHE=str(folder / "vision")) == 0
    assert "110 images" in capsys.readouterr().out


@pytest.mark.slow
def test_a_pack_reads_it_too(runs, tmp_path):
    folder, _, _ = runs
    members = []
    for name, cache in (("plain", None), ("cached", str(folder / "vision"))):
        settings = {
            "TRAIN_STEPS": 4,
            "EVAL_PERIOD": 4,
            "WARMUP_STEPS": 2,
            "RANK": 4,
            "LEARNING_RATE": 0.01,
            "SEEDS": (0, 1),
        }
        files = ["--gin_file=gin/runs/pack.gin"]
        assert command("pack", *files, MODEL_DIR=str(tmp_path / name), VISION_CACHE=cache, **settings) == 0
        folders = sorted((tmp_path / name / "members").iterdir())
        members.append([load_file(member / "adapter_last" / "adapter_model.safetensors") for member in folders])
    for one, other in zip(*members):
        for leaf in one:
            np.testing.assert_allclose(other[leaf], one[leaf], rtol=0, atol=1e-6)
    assert len(members[0]) == 2


@pytest.mark.slow
def test_another_dtype_rounds_both_paths(tmp_path):
    bf16 = {"CACHE_DTYPE": "bfloat16"}
    cached = train(tmp_path / "cached", VISION_CACHE=str(tmp_path / "vision"), **bf16)
    assert_same(train(tmp_path / "plain", **bf16), cached)
    tower = json.loads((tmp_path / "vision" / "cache.json").read_text())["tower"]
    assert tower["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("macros", "named"),
    [
        ({"INITIAL_CHECKPOINT_PATH": "bundled:pali_nano_raw"}, "another tower (fingerprint"),
        ({"CACHE_DTYPE": "bfloat16"}, "dtype: float32 there, bfloat16 here"),
        ({"FROZEN_DTYPE": "bfloat16"}, "another tower (settings"),
        ({"DROPOUT_RATE": 0.1}, "ViTConfig.dropout_rate is 0.1"),
        ({"adapter": "gin/adapters/full.gin"}, "is trained"),
    ],
)  # fmt: skip
def test_features_of_another_tower_or_not_constant_are_refused(runs, tmp_path, capsys, macros, named):
    folder, _, _ = runs
    rank = {} if "adapter" in macros else {"RANK": 4}
    settings = {
        "TRAIN_STEPS": 8,
        "WARMUP_STEPS": 2,
        "MODEL_DIR": str(tmp_path / "run"),
        "VISION_CACHE": str(folder / "vision"),
    }
    assert command("train", **settings, **rank, **macros) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_process_that_waits_for_another_one_s_cache_can_be_stopped(tmp_path, monkeypatch, capsys):
    tries = itertools.count()

    def taken(*_):
        if next(tries):
            signal.raise_signal(signal.SIGINT)
        raise Taken("held")

    monkeypatch.setattr(fill_vision_cache.locks, "hold_folder", taken)
    assert command("cache-vision", VISION_CACHE=str(tmp_path / "vision")) == 130
    said = capsys.readouterr()
    assert "Another process fills" in said.out + said.err and "Stopped " in said.err


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds files that are not a cache"):
        VisionCache(tmp_path, TOWER)


def test_what_a_kill_at_the_first_write_left_is_no_stranger(tmp_path):
    for name in (".cache.json.0123abcd", "lock"):
        (tmp_path / name).write_text("half")
    filled(tmp_path)
    assert len(VisionCache(tmp_path, TOWER)) == 4


def filled(folder, rows=4):
    cache = VisionCache(folder, TOWER)
    cache.begin()
    values = np.arange(rows * 6, dtype=np.float32).reshape(rows, 2, 3)
    cache.add([image_key(bytes([i])) for i in range(rows)], values)
    return cache, values


def test_a_pass_that_was_stopped_keeps_whole_parts(tmp_path):
    cache, values = filled(tmp_path)
    (tmp_path / "part-00001.safetensors").write_bytes(b"cut short")  # killed while it was written
    again = VisionCache(tmp_path, TOWER)
    assert len(again) == 4 and not again.covers("task", "train")
    np.testing.assert_array_equal(again.read(image_key(bytes([2])), "it"), values[2])
    again.add([image_key(b"more")], values[:1])
    again.finish("task", "train")
    last = VisionCache(tmp_path, TOWER)
    assert len(last) == 5 and last.covers("task", "train") and not last.covers("task", "test")


def test_a_cache_that_lost_a_part_is_refused(tmp_path):
    cache, _ = filled(tmp_path)
    cache.finish("task", "train")
    (tmp_path / "part-00000.json").unlink()
    with pytest.raises(UserError, match="lacks 4 of its 4 images"):
        VisionCache(tmp_path, TOWER)


def test_a_flipped_bit_is_seen(tmp_path):
    cache, _ = filled(tmp_path)
    file = tmp_path / "part-00000.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    again = VisionCache(tmp_path, TOWER)
    again.read(image_key(bytes([0])), "it")
    with pytest.raises(UserError, match="Row 3 of part-00000.safetensors .* is damaged"):
        again.read(image_key(bytes([3])), "it")


def test_an_image_that_changed_is_named_with_the_reason(tmp_path):
    cache, _ = filled(tmp_path)
    converter = FeatureConverter({"inputs": 3, "targets": 3}, (4, 4, 3), "things", cache=cache)
    example = {"inputs": [5, 1], "targets": [6, 1], "image": b"\x07", "inputs_pretokenized": b"what is it"}
    with pytest.raises(UserError, match="'what is it' of things is not in the cache .* at random"):
        converter([example])


def test_an_image_is_known_by_its_content_and_the_instruction():
    image = np.ones((2, 2, 1), np.float32)
    assert image_key(image) == image_key(image.copy()) != image_key(image * 0.5)
    assert image_key(b"file") != image_key(b"file", [3, 4]) != image_key(b"file", [4, 3])


def test_features_stand_for_the_images_that_they_are_made_of():
    backbone = tiny_pali()
    model = AdaptedModel(backbone, AdaLinkAdapter(rank=2))
    batch = random_batch(backbone, 3, 5, 4, seed=0)
    params = init(model, batch)
    apply = jax.jit(lambda params, batch: model.apply({"params": params}, batch))
    tower = jax.jit(functools.partial(backbone.apply, method="image_features"))
    features = tower({"params": params["backbone"]}, batch)
    cached = {name: x for name, x in batch.items() if name != "images"} | {"image_features": features}
    np.testing.assert_allclose(apply(params, cached), apply(params, batch), rtol=0, atol=1e-5)
    assert np.abs(apply(params, cached | {"image_features": features * 0.5}) - apply(params, batch)).max() > 1e-3


def test_a_row_without_an_image_is_the_text_alone():
    backbone = tiny_pali()
    model = AdaptedModel(backbone)
    batch = random_batch(backbone, 2, 5, 4, seed=0)
    params = init(model, batch)
    apply = jax.jit(lambda params, batch: model.apply({"params": params}, batch))
    other = batch | {"images": batch["images"] * np.array([1, 0.3], np.float32)[:, None, None, None]}
    present = {"image_present": np.array([True, False])}
    one, two = apply(params, batch | present), apply(params, other | present)
    np.testing.assert_array_equal(one, two)
    assert np.abs(apply(params, batch)[1] - one[1]).max() > 1e-3
    converter = FeatureConverter({"inputs": 5, "targets": 4}, (8, 16, 1))
    features = converter([{"inputs": [3], "targets": [4], "image": b""}])
    assert not features["image_present"].any() and not features["images"].any()


def test_the_words_that_a_q_former_reads(tmp_path):
    pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    from adalink_jax.data import WordPieceVocabulary

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "what", "is", "it", "##s", "?"]
    tokenizer = tokenizers.BertWordPieceTokenizer(vocab={word: i for i, word in enumerate(words)})
    (tmp_path / "qformer_tokenizer").mkdir()
    tokenizer.save(str(tmp_path / "qformer_tokenizer" / "tokenizer.json"))
    vocabulary = WordPieceVocabulary(str(tmp_path))
    assert vocabulary.encode("What is its?") == [2, 4, 5, 6, 7, 8, 3]
    with pytest.raises(UserError, match="holds no qformer_tokenizer/tokenizer.json"):
        WordPieceVocabulary(str(tmp_path / "qformer_tokenizer"))
    converter = FeatureConverter({"inputs": 4, "targets": 3}, instructions=vocabulary)
    example = {"inputs": [5, 1], "targets": [6, 1], "inputs_pretokenized": b"what is it"}
    np.testing.assert_array_equal(converter([example], 2)["qformer_input_tokens"], [[2, 4, 5, 3], [0, 0, 0, 0]])


@pytest.mark.parametrize(
    ("about", "named"),
    [
        ({"format_version": 2, "tower": "new"}, "written by a newer version"),
        ({"format_version": 1, "tower": "cut"}, "cache.json is damaged"),
        ({"format_version": 1, "tower": TOWER.to_json() | {"settings": '{"a": {"b": 1}, "c": 2}'}},
         r"another tower \(settings a.b: 1 there, None here; settings c: 2 there, None here\)"),
    ],
)  # fmt: skip
def test_what_differs_from_a_cache_is_named(about, named, tmp_path):
    (tmp_path / "cache.json").write_text(json.dumps(about | {"whole": [], "images": 0}))
    with pytest.raises(UserError, match=named):
        VisionCache(tmp_path, TOWER)
