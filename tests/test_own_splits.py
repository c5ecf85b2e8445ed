"""The splits of a user's own files: whole, disjoint, reproducible, and what is shared between them."""

import io
import pathlib

import pytest
from own_files_cases import GOOD, count_of, csv_text, load, picture, total, written
from PIL import Image

from adalink_jax.data.user_files import table_files
from adalink_jax.errors import UserError


def test_splits_are_whole_disjoint_and_the_same_in_any_order_of_the_file(tmp_path):
    forward, back = written(tmp_path, "a.csv", csv_text()), written(tmp_path, "b.csv", csv_text(GOOD[::-1]))
    sets = [
        {split: {row["inputs_pretokenized"] for row in task.examples(split)} for split in task.splits}
        for task in (load(forward), load(back))
    ]
    assert sets[0] == sets[1] and set.union(*sets[0].values()) == {text for text, _ in GOOD}
    assert sum(map(len, sets[0].values())) == len(GOOD)


def test_rows_of_a_group_are_in_one_split(tmp_path):
    path = written(tmp_path, "a.csv", csv_text([(f"t{i}", f"g{i % 20}") for i in range(400)]))
    task = load(path, group="{label}")
    groups = [{row["references"][0] for row in task.examples(split)} for split in task.splits]
    assert sum(map(len, groups)) == 20 and all(groups)


def test_files_by_split_and_a_validation_split_that_is_halved(tmp_path):
    train = written(tmp_path, "train.csv", csv_text())
    dev = written(tmp_path, "dev.csv", csv_text([(f"dev {i}", "no") for i in range(40)]))
    both = load(None, data={"train": str(train), "validation": str(dev)})
    assert len(both.splits["train"]) == 60 and len(both.splits["validation"]) + len(both.splits["test"]) == 40
    unlabelled = written(tmp_path, "test.csv", csv_text([(f"u{i}", "") for i in range(9)]))
    same = load(None, data={"train": str(train), "validation": str(dev), "test": str(unlabelled)})
    assert len(same.splits["test"]) == len(both.splits["test"])


def test_pictures_of_each_split_are_those_beside_its_table(tmp_path):
    data = {}
    for i, split in enumerate(("train", "validation", "test")):
        for j in range(4):
            written(tmp_path, f"{split}/{j}.png", picture(size=(3 + i, 3 + j)))
        data[split] = str(
            written(
                tmp_path, f"{split}/a.csv", csv_text([(f"{split} {j}", f"{j}.png") for j in range(4)], "text,photo")
            )
        )
    task = load(None, data=data, targets="{text}", image="{photo}", limits={"truncated": 1.0})
    for split in data:
        files = [example["image_file"] for example in task.examples(split)]
        assert sorted(files) == [str(tmp_path / split / f"{j}.png") for j in range(4)]


def test_the_same_picture_under_another_name_is_in_one_split_and_known_in_two(tmp_path):
    for i in range(40):
        written(tmp_path, f"photos/{i}.png", picture(size=(3 + i // 2, 3)))  # each twice
    rows = [(f"t{i}", name) for i in range(40) for name in (f"{i}.png", f"./{i}.png")]
    path = written(tmp_path, "a.csv", csv_text(rows, "text,photo"))
    task = load(path, targets="{text}", image="{photo}", images=str(tmp_path / "photos"))
    size = lambda row: Image.open(io.BytesIO(pathlib.Path(row["image_file"]).read_bytes())).size
    sizes = [{size(row) for row in task.examples(split)} for split in task.splits]
    assert sum(map(len, sizes)) == 20 and sum(len(split) for split in task.splits.values()) == 80
    for split, size in (("train", 4), ("val", 5), ("test", 4)):
        written(tmp_path, f"classes/{split}/cat/{split}.png", picture(size=(size, 4)))
    settings = {"inputs": "what is this?", "targets": "{label}", "image": "{image}", "split": "split"}
    with pytest.raises(UserError, match="1 of 1 examples of train are in validation or test too"):
        load(tmp_path / "classes", **settings)


def test_a_group_in_two_files_is_refused(tmp_path):
    data = {
        split: str(written(tmp_path, f"{split}.csv", csv_text([(f"{split} {i}", f"g{i + start}") for i in range(9)])))
        for split, start in (("train", 0), ("validation", 8), ("test", 20))
    }
    assert load(None, data=data, limits={"truncated": 1.0})
    with pytest.raises(UserError, match=r"1 of 9 examples of train, or others of their group, are in validation"):
        load(None, data=data, group="{label}", limits={"truncated": 1.0})


def test_pictures_in_deeper_folders_and_other_files_are_reported(tmp_path):
    for i in range(30):
        written(tmp_path, f"plain/cat/{i}.png", picture(size=(3 + i, 4)))
    written(tmp_path, "plain/cat/more/1.png", picture(size=(99, 4)))
    written(tmp_path, "plain/cat/1.heic", b"")
    settings = {"inputs": "?", "targets": "{label}", "image": "{image}"}
    with pytest.raises(
        UserError,
        match="2 of 32 rows .* cat/1.heic does not end in one of .*cat/more/1.png is not directly in the folder",
    ):
        load(tmp_path / "plain", **settings)


def test_several_files_of_one_split_and_a_test_file_without_targets(tmp_path):
    shards = [str(written(tmp_path, f"{i}.csv", csv_text(GOOD[i::3]))) for i in range(3)]
    assert total(load(None, data=shards)) == len(GOOD)
    dev = str(written(tmp_path, "dev.csv", csv_text([(f"dev {i}", "no") for i in range(40)])))
    test = str(written(tmp_path, "test.csv", "text\nunknown\n"))
    task = load(None, data={"train": shards, "validation": dev, "test": test})
    assert len(task.splits["test"]) + len(task.splits["validation"]) == 40
    assert any("the test split has no targets" in note for note in task.notes)
    empty = str(written(tmp_path, "e.csv", csv_text([("a", "")] * 9)))
    with pytest.raises(UserError, match="no examples in validation"):
        load(None, data={"train": shards, "validation": empty})


def test_a_split_column(tmp_path):
    rows = [(f"t{i}", ("train", "valid", "TEST")[i % 3]) for i in range(60)]
    task = load(written(tmp_path, "a.csv", csv_text(rows, "text,part")), targets="{text}", split="part")
    assert [len(task.splits[name]) for name in ("train", "validation", "test")] == [20, 20, 20]


def test_what_is_in_two_splits_is_refused_or_left_out_of_training(tmp_path):
    train = written(tmp_path, "train.csv", csv_text())
    test = written(tmp_path, "test.csv", csv_text([*[(f"t{i}", "no") for i in range(30)], GOOD[5], GOOD[6]]))
    data = {"train": str(train), "test": str(test)}
    with pytest.raises(UserError, match=r"are in validation or test too \(.*'text \d'.*DROP_SHARED"):
        load(None, data=data)
    task = load(None, data=data, drop_shared=True)
    texts = {split: {row["inputs_pretokenized"] for row in task.examples(split)} for split in task.splits}
    assert len(texts["test"]) == 32 and not texts["test"] & (texts["train"] | texts["validation"])


# --- lengths in tokens ---


def test_what_will_be_cut_and_what_cannot_be_written(tmp_path, request):
    vocabulary = request.config.rootpath / "../shared/data/t5_vocab"
    rows = [*GOOD, ("x" * 40, "a {b}"), ("y", "no\\nline <c>")]
    path = written(tmp_path, "a.csv", csv_text(rows))
    with pytest.raises(UserError, match=r"1 of \d+ (inputs|targets) of \w+ are longer than \d+ tokens and will be cut"):
        load(path, limits={"truncated": 0.0})
    if not vocabulary.exists():
        pytest.skip("T5's vocabulary is not here")
    with pytest.raises(UserError, match=r"targets of \w+ cannot be written with the vocabulary .* it lacks '[{<]'"):
        load(path, vocabulary=str(vocabulary), limits={"truncated": 1.0, "unproducible": 0.0})
    task = load(path, vocabulary=str(vocabulary), limits={"truncated": 1.0, "unproducible": 1.0})
    assert count_of(task, "unproducible") == 2


def test_a_folder_of_a_file_is_found_for_bare_names():
    assert table_files.folder_of("a.csv") == "." and table_files.folder_of("x/a.csv") == "x"
