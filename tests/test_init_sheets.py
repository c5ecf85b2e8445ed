"""What `adalink init` shows: examples of every target, the sheet of what the model sees, doubts with their remedies, narrow terminals."""

import csv
import io
import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from adalink_jax.cli import init_examples
from adalink_jax.cli.main import main
from adalink_jax.data import FileTask
from adalink_jax.data.user_files.file_task import LoadedFileTask
from adalink_jax.data.user_files.shown_rows import of_each_target

BASE = "--base=bundled:pali_nano_instruct"


@pytest.fixture
def init(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        status = main(["init", *arguments, "--out=task.gin", "--quick", BASE])
        said = capsys.readouterr()
        return status, said.out + said.err

    return run


def write(path, rows, header=("text", "label"), encoding="utf-8"):
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows([header, *rows])
    return path


def task_of(path, **settings):
    lengths = {"inputs": settings.pop("longest", 24), "targets": 16}
    file_task = FileTask(data=str(path), inputs="{text}", targets="{label}", vocabulary="bytes", **settings)
    return LoadedFileTask(file_task, "mine", lengths)


RARE = [(f"t{i}", "common" if i % 40 else f"rare {i}") for i in range(400)]


def test_every_target_is_shown_in_turn(tmp_path):
    train = task_of(write(tmp_path / "a.csv", RARE)).splits["train"]
    targets = {row["references"][0] for row in (train[i] for i in range(len(train)))}
    shown = [row["references"][0] for row in of_each_target(train, 20)]
    assert 5 < len(targets) == len(set(shown)) and len(set(shown[: len(targets)])) == len(targets)
    many = task_of(write(tmp_path / "b.csv", [(f"t{i}", f"answer {i}") for i in range(400)])).splits["train"]
    lines = [row["line"] for row in of_each_target(many, 5)]
    assert len(lines) == 5 and min(lines) < 10 and max(lines) > 390 and lines == sorted(lines)
    assert len(of_each_target(many, 1000)) == len(many)


def test_the_sheet_of_a_text_task_marks_what_is_cut(init, tmp_path):
    rows = [(f"{i} <b>film</b> & " + "word " * (i == 7) * 60, "good" if i % 2 else "bad") for i in range(900)]
    status, said = init(str(write(tmp_path / "a.csv", rows)))
    page = (tmp_path / "task.sheet.html").read_text()
    assert status == 0 and "task.sheet.html, a sheet of texts" in " ".join(said.split())
    assert "&lt;b&gt;film&lt;/b&gt; &amp;" in page and "<b>film" not in page  # cells are text
    assert page.count("<td>good") == page.count("<td>bad") == 20
    status, said = init(str(tmp_path / "a.csv"))  # only the gin file stands in the way
    assert status == 2 and "task.gin exists already" in said
    (tmp_path / "task.gin").unlink()
    assert init(str(tmp_path / "a.csv"))[0] == 0
    (tmp_path / "task.gin").unlink()
    (tmp_path / "task.sheet.html").write_text("mine")
    status, said = init(str(tmp_path / "a.csv"))
    assert status == 2 and "task.sheet.html exists already" in said


def test_what_the_model_reads_ends_where_the_tokens_do(tmp_path):
    rows = [("a text of thirty letters and a few", "yes"), *((f"t{i}", "no") for i in range(60))]
    task = task_of(write(tmp_path / "a.csv", rows), longest=8)
    draft = SimpleNamespace(loaded=task, lengths={"inputs": 8, "targets": 16})
    assert task.read(rows[0][0], "inputs") == ("a text ", 35)  # with the end, a token of its own
    task.splits["train"] = [{"line": 2, "inputs": rows[0][0], "references": ["yes", "yeah"]}]
    init_examples.write_texts(tmp_path / "a.html", draft, "a")
    page = (tmp_path / "a.html").read_text()
    assert "<td>a text <del>of thirty letters and a few</del></td>" in page and "or: yeah" in page
    assert re.search(r'<td class="number">35</td>\s*<td>yes', page)


def test_pictures_are_drawn_as_the_model_gets_them(init, tmp_path, monkeypatch):
    from adalink_jax.data.images import decode_image
    from adalink_jax.training import contact_sheet

    drawn = []
    monkeypatch.setattr(contact_sheet, "contact_sheet", lambda samples, title: drawn.append((samples, title)) or b"png")
    rng = np.random.default_rng(0)
    for i in range(60):
        path = tmp_path / "pics" / ("rare" if i % 20 == 0 else "common") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(256, size=(20, 30, 3), dtype=np.uint8)).save(path)
    status, said = init("pics")
    samples, title = drawn[0]
    assert status == 0 and "task.sheet.png, a sheet of pictures" in " ".join(said.split())
    assert "in 16 x 8 pixels, as the model sees them" in title
    assert {sample["image"].shape for sample in samples} == {(8, 16, 1)}
    assert [sample["target"] for sample in samples[:2]] == ["common", "rare"]
    first = (tmp_path / "pics" / "common").iterdir()
    candidates = [decode_image(path.read_bytes(), (8, 16, 1), path.name) for path in first]
    assert any(np.array_equal(samples[0]["image"], picture) for picture in candidates)


@pytest.mark.parametrize(
    "header, remedy",
    [
        (("text", "label", "category"), "it could be category; override with --targets."),
        (("text", "first", "second"), "no column has the name of a target; override with --targets."),
        (("first", "label", "second"), "no column has the name of an input; override with --inputs."),
    ],
)
def test_a_doubt_names_its_own_remedy(init, header, remedy, tmp_path):
    rows = [(f"the text number {i}", "yes" if i % 2 else "no", "abc"[i % 3]) for i in range(60)]
    said = " ".join(init(str(write(tmp_path / "a.csv", rows, header)))[1].split())
    assert remedy in said and "--targets or --inputs" not in said


def test_a_doubt_about_the_encoding_names_encoding_alone(init, tmp_path):
    rows = [(f"caf\u00e9 {i}", "yes" if i % 2 else "no") for i in range(60)]
    said = " ".join(init(str(write(tmp_path / "a.csv", rows, encoding="cp1252")))[1].split())
    assert "if that is wrong, name the --encoding." in said and "--targets" not in said and "--inputs" not in said


@pytest.mark.parametrize("width", [60, 80])
def test_tables_fit_a_narrow_terminal(width, tmp_path):
    rows = [
        (f"{i} " + "many long words " * (i % 30), f"the long name of the category number {i % 19}") for i in range(600)
    ]
    task = task_of(write(tmp_path / "a.csv", rows), longest=512)
    draft = SimpleNamespace(loaded=task, lengths={"inputs": 512, "targets": 48})
    task.findings, task.remarks, out = [], [], io.StringIO()  # sentences, which the terminal folds
    init_examples.show(Console(file=out, width=width, markup=False), draft, ())
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width and "\u2026" not in text  # nothing is left out
    assert "validation" in text and "category number 18" in " ".join(text.replace("\u2502", " ").split())


def test_the_delimiter_is_reported(init, tmp_path):
    rows = "".join(f"the text {i};{'yes' if i % 2 else 'no'}\n" for i in range(60))
    (tmp_path / "sep.csv").write_text(f"sep=;\ntext;label\n{rows}")
    said = " ".join(init("sep.csv")[1].split())
    assert "The first line of sep.csv names the delimiter, ';', and is not read as a row." in said
    (tmp_path / "task.gin").unlink()
    (tmp_path / "semicolons.csv").write_text(f"text;label\n{rows}")
    said = " ".join(init("semicolons.csv")[1].split())
    assert "semicolons.csv is separated by ';'; if it is not, change DELIMITER in the file." in said


@pytest.mark.parametrize(
    "name", ["remark", "text"]
)  # also of the inputs' names, as in Hugging Face's folders of captions
def test_the_only_column_beside_a_picture_is_the_target(init, tmp_path, name):
    for i in range(60):
        Image.new("RGB", (9, 9), (i, 2 * i, 9)).save(tmp_path / f"{i}.png")
    rows = [(f"{i}.png", f"a picture of {i}") for i in range(60)]
    status, said = init(str(write(tmp_path / "a.csv", rows, ("file", name))))
    assert status == 0 and f"TARGETS = '{{{name}}}'" in (tmp_path / "task.gin").read_text(), said


def test_numbers_that_pictures_happen_to_have_are_no_pictures(init, tmp_path):
    for i in range(60):
        Image.new("RGB", (9, 9), (i, 2 * i, 9)).save(tmp_path / f"{i}.png")
    rows = [(i, f"the text {i}", i % 9) for i in range(300)]
    status, said = init(str(write(tmp_path / "a.csv", rows, ("id", "text", "score"))))
    assert status == 0 and "\nIMAGE =" not in (tmp_path / "task.gin").read_text(), said
