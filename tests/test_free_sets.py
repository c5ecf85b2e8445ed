"""The free data sets, span corruption, images and text in one mixture, and the gin files of all published sets."""

import collections
import gzip
import itertools
import json

import gin
import numpy as np
import pytest

seqio = pytest.importorskip("seqio")

from published import LENGTHS, SHAPE, SHARED, example, tasks_of, whole, write, write_free, write_rte  # noqa: E402

from adalink_jax.data import DatasetConfig, FeatureConverter, PublishedData, get_tasks, train_batches  # noqa: E402
from adalink_jax.data.published import span_corruption  # noqa: E402
from adalink_jax.data.published.settings import SpanCorruption  # noqa: E402
from adalink_jax.errors import UserError  # noqa: E402

# --- from files as published ---


def test_free_sets_of_images_and_their_mixture(tmp_path):
    write_free(tmp_path)
    mixture, scored = tasks_of("free", "free_images", tmp_path)
    assert [task.name for task in scored] == ["caption_openstax", "vqa_daquar", "vqa_easy"]
    captions, daquar, easy = scored
    assert whole(captions, "inputs_pretokenized", "targets_pretokenized")["test"] == [("caption en", "A picture of 3.")]
    by_split = whole(daquar, "inputs_pretokenized", "targets_pretokenized", "image")
    assert found_first(by_split["test"]) == [
        ("answer en what is ?", "book, white lamp"), ("answer en what is behind the table ?", "book, white lamp")
    ]  # fmt: skip
    assert len(by_split["test"]) == 4 and len(by_split["train"]) + len(by_split["validation"]) == 60
    assert by_split["validation"] and not {x[2] for x in by_split["validation"]} & {x[2] for x in by_split["train"]}
    sizes = {split: len(rows) for split, rows in whole(easy, "targets_pretokenized").items()}
    assert sizes["train"] + sizes["validation"] == 30 and sizes["test"] == 4
    config = DatasetConfig("free_images", {"inputs": 32, "targets": 32}, 2)
    batch = next(train_batches(mixture, config, FeatureConverter(config.task_feature_lengths, SHAPE)))
    assert batch["images"].shape == (2, *SHAPE)
    write(tmp_path / "vqa_easy/test_images.zip", b"PK")
    with pytest.raises(UserError, match="test_images.zip is damaged"):
        tasks_of("free", "vqa_easy", tmp_path)


def found_first(rows):
    return [row[:2] for row in rows[:2]]


def test_free_instructions(tmp_path):
    rows = [f"Is {i} odd?\\nOptions:\\n- yes\\n- no\tyes\tBecause." for i in range(200)]
    write(tmp_path / "instruct_flan_cot/creak_train.tsv.gz", gzip.compress("\n".join(rows).encode()))
    task, _ = tasks_of("free", "instruct_flan_cot", tmp_path)
    by_split = whole(task, "inputs_pretokenized", "targets_pretokenized")
    assert ("Is 7 odd?\nOptions:\n- yes\n- no", "yes") in sum(by_split.values(), [])
    assert sum(map(len, by_split.values())) == 200 and 180 < len(by_split["train"]) < 200
    rows = [{"template": "t", "inputs": f"Say {i}.", "targets": str(i)} for i in range(200)]
    write(tmp_path / "instruct_t0_short/t0_short.jsonl.gz", gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    mixture, scored = tasks_of("free", "free_text", tmp_path)
    assert len(scored) == 2
    drawn = {row["inputs_pretokenized"] for row in itertools.islice(mixture.examples("train", seed=0), 1000)}
    assert len(drawn) > 350


# --- span corruption ---


def test_lengths_are_those_of_t5():
    assert span_corruption.lengths(512, SpanCorruption()) == (568, 114)  # t5's random_spans_helper, as published
    with pytest.raises(UserError, match="raise SpanCorruption.mean_span_length"):
        span_corruption.lengths(4096, SpanCorruption())


@pytest.mark.parametrize("length", [1, 2, 3, 17, 568])
@pytest.mark.parametrize("settings", [SpanCorruption(), SpanCorruption(0.5, 1.0), SpanCorruption(0.15, 20.0)])
def test_inputs_and_targets_together_are_the_text(length, settings):
    ids, first = np.arange(3, 3 + length, dtype=np.int32), 32_099
    inputs, targets = span_corruption.corrupt(ids, np.random.default_rng(length), first, settings)
    cut = lambda row: np.split(row, np.flatnonzero(row > 10_000))
    lost = {int(piece[0]): piece[1:] for piece in cut(targets)[1:]}
    back = [cut(inputs)[0]]
    for piece in cut(inputs)[1:]:
        back += [lost[int(piece[0])], piece[1:]]
    np.testing.assert_array_equal(np.concatenate(back), ids)
    assert list(lost) == list(range(first, first - len(lost), -1))
    if length == 568 and settings == SpanCorruption():
        assert (len(inputs) + 1, len(targets) + 1, len(lost)) == (512, 114, 28)


def test_every_division_is_equally_likely():
    rng = np.random.default_rng(0)
    counts = collections.Counter(tuple(span_corruption._division(5, 3, rng).tolist()) for _ in range(6000))
    assert set(counts) == {(a, b, 5 - a - b) for a in range(1, 4) for b in range(1, 5 - a)}
    assert max(counts.values()) - min(counts.values()) < 250


def write_corpus(folder):
    for part, n in (("train", 3), ("valid", 12)):
        rows = [
            {"book": "b", "module": f"m{i}", "title": "", "text": f"{i} " + "some prose here. " * 20} for i in range(n)
        ]
        write(folder / f"corpus_openstax/{part}.jsonl.gz", gzip.compress("\n".join(map(json.dumps, rows)).encode()))


def test_text_and_images_in_one_mixture(tmp_path):
    write_free(tmp_path)
    write_corpus(tmp_path)
    lengths = {"inputs": 64, "targets": 32}
    mixture, _ = tasks_of("free", "free_raw", tmp_path, lengths=lengths)
    batches = train_batches(mixture, DatasetConfig("free_raw", lengths, 1), FeatureConverter(lengths, SHAPE))
    first = [next(batches) for _ in range(6)]
    present = [bool(batch["image_present"][0]) for batch in first]
    assert {True, False} == set(present)
    assert present == [bool(batch["images"].any()) for batch in first]


def test_the_corpus_is_corrupted_anew_each_epoch_and_fills_its_lengths(tmp_path):
    write_corpus(tmp_path)
    task, _ = tasks_of("free", "corpus_openstax", tmp_path, lengths={"inputs": 64, "targets": 32})
    epoch = lambda seed, start=0: [x["inputs"].tolist() for x in task.examples("train", seed, start)]
    assert epoch(1) == epoch(1) and epoch(1)[4:] == epoch(1, 4) and epoch(1) != epoch(2)
    assert collections.Counter(map(len, epoch(1)))[64] >= len(epoch(1)) - 1 and all(row[-1] == 1 for row in epoch(1))
    assert len(list(task.examples("validation"))) > 0 and len(list(task.examples("test"))) > 0
    task, _ = tasks_of("free", "corpus_openstax", tmp_path, lengths={"inputs": 64, "targets": 8})
    with pytest.raises(UserError, match="TASK_FEATURE_LENGTHS gives 8"):
        list(task.examples("train"))


# --- settings of runs ---


@pytest.mark.parametrize("module", ["glue", "superglue", "captioning", "vqa", "free"])
def test_the_gin_file_of_each_module_sets_all_but_what_its_head_names(module):
    from adalink_jax import configuration
    from adalink_jax.cli.arguments import register
    from adalink_jax.training.setup import Setup

    files = ["models/pali_nano", "adapters/adalink", f"tasks/{module}", "runs/finetune"]
    named = ["MODEL_DIR='m'", "TRAIN_STEPS=1", "INITIAL_CHECKPOINT_PATH='bundled:pali_nano_raw'"]
    named += ["DATA_DIR='d'", "VOCABULARY='bytes'", "MIXTURE_OR_TASK_NAME='t'"]
    flags, _ = configuration.parse_flags([*(f"--gin_file=gin/{x}.gin" for x in files), *(f"--gin.{x}" for x in named)])
    register()
    configuration.load(flags)
    head = (configuration.gin_root() / "tasks" / f"{module}.gin").read_text()
    dataset = Setup().dataset
    assert PublishedData() == PublishedData("d", "bytes")
    declared = __import__(dataset.mixture_or_task_module, fromlist=["register"])
    declared.register()  # reads no file
    import_name = {"glue": "glue_", "superglue": "superglue_"}.get(module, "")
    known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
    tasks = {word.strip(",()") for word in head.replace("#", " ").split()} & set(known)
    assert len(tasks) >= 2 and all(name.startswith(import_name) for name in tasks)
    with pytest.raises(UserError, match="There is no folder d/"):
        get_tasks(DatasetConfig(min(tasks), {"inputs": 8, "targets": 8}, 2, dataset.mixture_or_task_module))


def test_a_task_and_a_model_that_do_not_see_alike_are_refused_before_anything_is_read(tmp_path):
    from adalink_jax import parallel
    from adalink_jax.adapters import AdaLinkAdapter, AdaptedModel
    from adalink_jax.contract.tiny import tiny_pali, tiny_t5
    from adalink_jax.models import T5
    from adalink_jax.training.session import check_data
    from adalink_jax.training.setup import Setup

    write_free(tmp_path)
    write_rte(tmp_path)
    for key in ("data_dir", "vocabulary"):
        gin.bind_parameter(f"PublishedData.{key}", {"data_dir": str(tmp_path), "vocabulary": "bytes"}[key])

    def check(backbone, name, module):
        dataset = DatasetConfig(name, {"inputs": 24, "targets": 4}, 4, f"adalink_jax.data.published.{module}")
        setup = Setup(AdaptedModel(backbone, AdaLinkAdapter(rank=2)), ("adapter/.*",), dataset)
        return check_data(setup, 1, parallel.make_mesh())

    with pytest.raises(
        UserError, match="^vqa_easy has images, and the model takes none; use a model with a vision tower"
    ):
        check(T5(tiny_t5(vocab_size=300)), "vqa_easy", "free")
    with pytest.raises(UserError, match="^glue_rte has no images, and the model takes them; use"):
        check(tiny_pali(vocab_size=300), "glue_rte", "glue")
    assert check(tiny_pali(vocab_size=300), "vqa_easy", "free")[0].name == "vqa_easy"


# --- real files, where they are ---

FREE = {  # as the sets' own notes say: train with validation, and test
    "caption_openstax": (2_605, 139), "vqa_easy": (38_575, 9_673), "vqa_daquar": (6_795, 5_673)
}  # fmt: skip


@pytest.mark.parametrize("name", FREE)
def test_the_real_files_of_the_free_sets(name):
    if not (SHARED / name).is_dir():
        pytest.skip(f"{name} is not beside this checkout")
    tasks_of("free", name, SHARED)
    source = seqio.TaskRegistry.get(name).source
    parts = {split: [x.image for x in source._examples(split, None)] for split in ("train", "validation", "test")}
    assert (len(parts["train"]) + len(parts["validation"]), len(parts["test"])) == FREE[name]
    converter = FeatureConverter(LENGTHS, SHAPE)
    assert all(np.abs(converter.image(example(image))).max() <= 1 for image in parts["validation"][:20])
