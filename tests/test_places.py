"""Paths as users type them: `~` means the home folder everywhere, and a folder that a run cannot use is refused first."""

import os
import pathlib
import re

import pytest

import adalink_jax
from adalink_jax.cli.main import main
from adalink_jax.data.user_files.image_files import Pictures
from adalink_jax.errors import UserError
from adalink_jax.files.places import check_run_folder, path_of, regular_file

PACKAGE = pathlib.Path(adalink_jax.__file__).parent


def test_every_path_is_made_by_path_of():
    """`places.path_of` expands `~`; `epath.Path` would make a folder of that name."""
    made = re.compile(r"\bepath\.Path\((?!__file__)|\.expanduser\(")
    places = [
        f"{file.relative_to(PACKAGE)}:{number}"
        for file in sorted(PACKAGE.rglob("*.py"))
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if made.search(line)
        and file.relative_to(PACKAGE).parts[0] not in ("files", "configuration", "launching", "near_names.py")
    ]
    assert places == []


def test_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "pictures").mkdir()
    assert os.fspath(path_of("~/runs/x")) == str(tmp_path / "runs" / "x")
    assert os.fspath(path_of("runs/~x")) == "runs/~x"
    assert Pictures("~/pictures").root == str(tmp_path / "pictures")
    check_run_folder("~/runs/x")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("folder", ["runs/exp[1]", "runs/back\\slash", "runs/star*", "what?/x", "line\nbreak", "[a]/b"])
def test_a_folder_that_checkpoints_cannot_use_is_refused_when_the_configuration_is_read(
    folder, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    flags = ["--gin_file=gin/runs/quickstart.gin", f"--gin.MODEL_DIR={folder!r}"]
    assert main(["train", *flags]) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert "MODEL_DIR" in error and "without" in error
    assert os.listdir(tmp_path) == []


def test_so_is_one_below_such_a_folder(tmp_path, monkeypatch):
    (tmp_path / "[data]").mkdir()
    monkeypatch.chdir(tmp_path / "[data]")
    with pytest.raises(UserError, match=r"MODEL_DIR is 'runs/x'; it must be a path without '\['"):
        check_run_folder("runs/x")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "closed").mkdir()
    for folder in (tmp_path / "file", tmp_path / "file" / "x", tmp_path / "loop"):
        with pytest.raises(UserError, match=f"MODEL_DIR cannot be {folder}: .* is not a folder"):
            check_run_folder(str(folder))
    with pytest.raises(UserError, match="MODEL_DIR has a part of 300 bytes"):
        check_run_folder(str(tmp_path / ("x" * 300) / "y"))
    with pytest.raises(UserError, match="MODEL_DIR cannot be /proc/x: /proc cannot be written to"):
        check_run_folder("/proc/x")  # where root has all permissions
    check_run_folder("gs://bucket/x")
    check_run_folder(str(tmp_path / "closed" / "x"))
    assert os.listdir(tmp_path / "closed") == []


@pytest.mark.parametrize("command", [
    ["sweep", "--gin_file=gin/sweeps/digits_small.gin", "--run"], ["sweep", "--gin_file=gin/sweeps/digits_small.gin", "--element=0"],
    ["compare", "--gin_file=gin/comparisons/digits.gin"], ["quickstart"],
    ["study", "--gin_file=gin/studies/miniature.gin", "--gin.DATA_DIR='x'", "--gin.VOCABULARY='bytes'", "--run"],
])  # fmt: skip
def test_every_command_that_trains_refuses_such_a_folder_first(command, tmp_path, capfd):
    (tmp_path / "file").write_text("")
    for folder, why in ((tmp_path / "file", "is not a folder"), ("/proc/x", "/proc cannot be written to")):
        assert main([*command, f"--gin.MODEL_DIR={str(folder)!r}"]) == 2
        error = capfd.readouterr().err
        assert error.startswith(f"error: MODEL_DIR cannot be {folder}: ") and why in error and error.count("\n") == 1


@pytest.mark.parametrize("typed, near", [
    ("revews.csv", "reviews.csv"), ("reviews", "reviews.csv"), ("reviews.txt", "reviews.csv"), ("Reviews.CSV", "reviews.csv"),
    ("~/revews.csv", "~/reviews.csv"), ("dta/train.csv.gz", "data/train.csv.gz"), ("data/trian.csv", "data/train.csv.gz"),
    ("rows.csv", None), ("none/revews.csv", None), ("revews/x.csv", None),
])  # fmt: skip
def test_a_misspelt_path_is_reported_with_the_near_ones(typed, near, tmp_path, monkeypatch):
    """Those of the same kind alone; and by the names of the files, since suffixes make all alike."""
    (tmp_path / "data").mkdir()
    for name in ("reviews.csv", "reviews.gin", "x.csv", "data/train.csv.gz", ".review.csv"):
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError) as error:
        regular_file(typed, endings=(".csv",))
    message = str(error.value)
    assert message.endswith(f"; did you mean {near}?" if near else ".") and ("mean" in message) == bool(near)
