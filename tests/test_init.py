"""`adalink init`: the settings that it guesses from typical tables, and that it writes nothing if it fails."""

import csv
import re
import zipfile

import pytest
from PIL import Image

from adalink_jax import configuration
from adalink_jax.cli.main import main
from adalink_jax.errors import UserError

ROWS = [(f"text number {i}", "good" if i % 2 else "bad") for i in range(60)]


def write(path, rows, header=("text", "label"), delimiter=","):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows] if header else rows)
    return path


def picture(path, size=(6, 5)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)
    return path


@pytest.fixture
def init(tmp_path, monkeypatch, capsys):
    """Runs it in a new folder; returns the status, the output, and the settings that it wrote."""
    monkeypatch.chdir(tmp_path)

    def run(data, *more):
        base = [] if any(x.startswith("--base") for x in more) else ["--base=bundled:pali_nano_instruct"]
        status = main(["init", str(data), "--out=task.gin", *base, "--quick", *more])
        said = capsys.readouterr()
        text = (tmp_path / "task.gin").read_text() if (tmp_path / "task.gin").exists() else ""
        settings = dict(re.findall(r"^(\w+) = (.*?)(?:  # .*)?$", text, re.MULTILINE))
        return status, said.out + said.err, settings

    return run


def test_an_index_column_without_a_name_is_no_missing_header(init, tmp_path):
    path = write(tmp_path / "a.csv", [(i, *row) for i, row in enumerate(ROWS)], ("", "text", "label"))
    status, said, settings = init(path)
    assert status == 0 and settings["INPUTS"] == "'{text}'" and "COLUMNS" not in settings and "as data" not in said


def test_a_table_without_a_header_says_so(init, tmp_path):
    status, said, settings = init(
        write(tmp_path / "a.tsv", [(f"s{i % 9}", i % 2, "", f"words and words {i}") for i in range(60)], None, "\t")
    )
    assert status == 0 and settings["TARGETS"] == "'{column_2}'" and settings["INPUTS"] == "'{column_4}'"
    assert "read as data, not as a header" in said


def test_capitals_in_a_file_s_name_are_no_other_splits(init, tmp_path):
    status, _, settings = init(write(tmp_path / "Train.csv", ROWS))
    assert status == 0 and settings["DATA"] == repr(str(tmp_path / "Train.csv"))


@pytest.mark.parametrize("typed", ["set", "set/train.csv"])
def test_files_beside_it_are_the_other_splits(init, tmp_path, typed):
    for name, rows in (("train", ROWS), ("dev", [("other", "bad")] * 9), ("Test", [("third", "bad")] * 9)):
        write(tmp_path / "set" / f"{name}.csv", [(f"{text} {i}", label) for i, (text, label) in enumerate(rows)])
    status, said, settings = init(typed)
    assert status == 0, said
    assert settings["DATA"] == "{'train': 'set/train.csv', 'validation': 'set/dev.csv', 'test': 'set/Test.csv'}"


def test_shards_are_read_together_and_two_tables_are_refused(init, tmp_path):
    for i in range(2):
        write(tmp_path / "set" / f"train-0000{i}-of-00002.csv", ROWS[i::2])
    status, said, settings = init("set")
    assert status == 0 and "('set/train-00000-of-00002.csv', 'set/train-00001-of-00002.csv')" in settings["DATA"], said
    write(tmp_path / "set" / "train_small.csv", ROWS)
    (tmp_path / "task.gin").unlink()
    status, said, _ = init("set")
    assert status == 2 and "several files for train" in said


@pytest.mark.parametrize("delimiter", [";", "|", "\t"])
def test_another_delimiter_is_found(init, tmp_path, delimiter):
    status, _, settings = init(write(tmp_path / "a.csv", ROWS, delimiter=delimiter))
    assert status == 0 and settings["DELIMITER"] == repr(delimiter) and settings["TARGETS"] == "'{label}'"


def test_pictures_in_a_folder_and_in_an_archive_and_an_archive_of_something_else(init, tmp_path):
    (tmp_path / "backup.zip").write_bytes(b"no archive")
    for i in range(60):
        picture(tmp_path / "photos" / f"{i}.png", (4 + i, 5))
    path = write(tmp_path / "a.csv", [(f"{i}", *row) for i, row in enumerate(ROWS)], ("id", "question", "answer"))
    status, said, settings = init(path)
    assert status == 0 and settings["IMAGE"] == "'{id}.png'" and settings["IMAGES"].endswith("photos'"), said
    assert (tmp_path / "task.sheet.png").exists()
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as file:
        for i in range(60):
            file.write(tmp_path / "photos" / f"{i}.png", f"top/{i}.png")
    for file in ("task.gin", "task.sheet.png"):
        (tmp_path / file).unlink()
    status, said, settings = init(path, "--images=photos.zip")
    assert status == 0 and settings["IMAGES"] == "'photos.zip'", said
    for file in ("task.gin", "task.sheet.png"):
        (tmp_path / file).unlink()
    (tmp_path / "empty").mkdir()
    status, said, _ = init(path, "--images=empty")
    assert status == 2 and "No column of" in said


IMAGE_WORDS = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}


def test_pictures_get_their_places_in_the_texts_of_a_base_that_reads_them_there(init, tmp_path):
    """What `init` writes gives examples that a T5Gemma 2 takes."""
    from gemma_references import make_t5gemma2, make_tokenizer

    from adalink_jax.checkpoints import config_fields, open_source
    from adalink_jax.cli.arguments import register
    from adalink_jax.training.setup import Setup

    make_t5gemma2(vocab_size=272, image=262, end=261).save_pretrained(tmp_path / "base")
    make_tokenizer(tmp_path / "base", **IMAGE_WORDS)
    source = open_source(tmp_path / "base")
    fields = {f"T5Gemma2Config.{name}": value for name, value in config_fields(source).items()}
    sizes = {"image_size": (16, 16), "patch_size": 4, "emb_dim": 24, "num_heads": 2, "mlp_dim": 40, "num_layers": 2}
    fields |= {f"ViTConfig.{name}": value for name, value in sizes.items()}
    lines = "".join(f"{name} = {value!r}\n" for name, value in fields.items())
    (tmp_path / "model.gin").write_text("include 'gin/models/t5gemma2.gin'\n" + lines)
    for i in range(60):
        picture(tmp_path / "photos" / "ab"[i % 2] / f"{i}.png", (4 + i, 5))
    status, said, settings = init("photos", "--base=base", "--model=model.gin")
    assert status == 0 and settings["INPUTS"] == "'<start_of_image>what is this?'", said
    assert "INPUTS begins with <start_of_image>" in said
    register()
    flags, _ = configuration.parse_flags(["--gin_file=model.gin", "--gin_file=task.gin"])
    configuration.load(flags, require_all=False)
    setup = Setup()
    lengths = setup.data.task_feature_lengths
    task = setup.data.own_files.load("photos", lengths)
    batch = setup.converter(lengths)([task.example(row) for row in task.splits["train"]][:4])
    assert batch["images"].shape == (4, 16, 16, 3) and (batch["encoder_input_tokens"] == 262).sum() == 16


def test_a_folder_that_is_named_as_a_table_is_a_folder(init, tmp_path):
    for i in range(60):
        picture(tmp_path / "photos.csv" / "ab"[i % 2] / f"{i}.png", (4 + i, 5))
    status, said, settings = init("photos.csv")
    assert status == 0 and settings["IMAGE"] == "'{image}'", said
    (tmp_path / "photos.csv").rename(tmp_path / "old")
    write(tmp_path / "photos.csv" / "train.csv", ROWS)
    (tmp_path / "photos.csv" / "test.csv").mkdir()
    status, said, settings = init("photos.csv", "--force")
    assert status == 0 and settings["DATA"] == "{'train': 'photos.csv/train.csv'}", said


@pytest.mark.parametrize("data, words", [
    ("cat.png", "cat.png is one picture; give the folder of all pictures"),
    ("empty", "empty is an empty folder; give a table, "),
    ("flat", "flat has pictures, but no subfolders; move each picture to a subfolder named after its class"),
    ("other", "other has no tables and no subfolders; give a table"),
    ("set", "none is called train; name the table itself, such as set/reviews.csv"),
    ("set/revews.csv", "; did you mean set/reviews.csv?"),
    ("st", "; did you mean set?"),
])  # fmt: skip
def test_what_is_not_data_is_refused_with_a_remedy(init, tmp_path, data, words):
    picture(tmp_path / "cat.png"), picture(tmp_path / "flat" / "a.png"), (tmp_path / "empty").mkdir()
    write(tmp_path / "set" / "reviews.csv", ROWS)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.md").write_text("x")
    status, said, settings = init(data)
    assert status == 2 and not settings and words in said and said.count("\n") == 1, said


def test_metrics_by_what_the_targets_are(init, tmp_path):
    long = [(f"document {i}", "a summary of seven words or more " + "x" * i) for i in range(60)]
    assert init(write(tmp_path / "a.csv", long, ("document", "summary")))[2]["METRIC"] == "'rouge_l'"
    (tmp_path / "task.gin").unlink()
    rows = "".join('{"question": "q%d", "answers": ["a", "b"]}\n' % i for i in range(60))
    (tmp_path / "b.jsonl").write_text(rows)
    settings = init(tmp_path / "b.jsonl", "--lists=alternatives")[2]
    assert settings["METRIC"] == "'exact_match'" and settings["LISTS"] == "'alternatives'"
    (tmp_path / "task.gin").unlink()
    settings = init(write(tmp_path / "c.csv", ROWS))[2]
    assert settings["METRICS"] == "('accuracy', 'macro_f1', 'balanced_accuracy')" and settings["METRIC"] == "'accuracy'"
    (tmp_path / "task.gin").unlink()
    answers = [(f"who is {i}?", f"person {i}") for i in range(60)]
    assert init(write(tmp_path / "d.csv", answers, ("question", "answer")))[2]["METRICS"] == "('accuracy',)"


NUMBERS = [(i, f"house {i}", f"{i % 3}", f"{100 + i * 7 % 61}.5") for i in range(120)]


@pytest.mark.parametrize("name", ["price", "price_in_thousands"])
def test_numbers_are_the_targets_and_scored_as_numbers(init, tmp_path, name):
    """By the name of the column, and because it is the only one of numbers that does not count the rows."""
    rows = [(row[0], row[1], row[3]) for row in NUMBERS]
    status, said, settings = init(write(tmp_path / "a.csv", rows, ("id", "description", name)))
    assert status == 0 and settings["TARGETS"] == f"'{{{name}}}'" and settings["INPUTS"] == "'{description}'", said
    assert settings["METRICS"] == "('pearson', 'spearman', 'rmse', 'mae')" and settings["METRIC"] == "'pearson'"


def test_targets_that_are_not_numbers_are_rows_that_do_not_parse(init, tmp_path):
    rows = [*((row[1], row[3]) for row in NUMBERS), *((f"hut {i}", "n/a") for i in range(9))]
    status, said, settings = init(write(tmp_path / "a.csv", rows, ("text", "price")))
    assert status == 1 and settings["METRIC"] == "'pearson'"
    assert "9 of 129 rows of train do not parse" in said and "a.csv: its target 'n/a' is not a number" in said


def test_an_error_cannot_choose_the_step():
    from adalink_jax.training.evaluation import check_metric

    check_metric("pearson")
    for metric in ("rmse", "houses/mae"):
        with pytest.raises(UserError, match="of which lower is better"):
            check_metric(metric)


@pytest.mark.parametrize("targets", [None, "{notes}"])
def test_the_only_column_that_is_not_an_input_is_the_target(init, tmp_path, targets):
    rows = [(f"text number {i % 30}", f"its note {i}") for i in range(60)]
    path = write(tmp_path / "a.csv", [(i, *row) for i, row in enumerate(rows)], ("id", "text", "notes"))
    status, said, settings = init(path, *([f"--targets={targets}"] if targets else []))
    assert settings["TARGETS"] == "'{notes}'" and settings["INPUTS"] == "'{text}'", said
    assert ("the only one that is not an input" in said) == (targets is None)


def test_the_file_that_it_writes_loads_and_names_what_it_says(init, tmp_path):
    from adalink_jax.cli.arguments import register
    from adalink_jax.training.setup import Setup

    assert init(write(tmp_path / "a.csv", ROWS))[0] == 0
    register()
    flags, _ = configuration.parse_flags(["--gin_file=gin/models/pali_nano.gin", "--gin_file=task.gin"])
    configuration.load(flags, require_all=False)
    assert Setup().dataset.own_files.inputs == "{text}" and Setup().dataset.batch_size == 16


HOSTILE = ("[/INST] no", "[bold red] no", "%QUOTED @x()", "'\"\\\\", "a#b", "a\u2028b", "{")


def test_labels_and_names_of_any_form_are_shown_and_written_as_they_are(init, tmp_path):
    write(tmp_path / "train.csv", ROWS)
    write(tmp_path / "dev.csv", [(f"film {i}", HOSTILE[0]) for i in range(9)])
    status, said, _ = init("train.csv", "--vocabulary=bytes")
    assert status == 0 and "validation has targets that train does not have: '[/INST] no'" in said
    (tmp_path / "task.gin").unlink()
    names = HOSTILE[:-1]
    name = "reviews\nimport evil_h5\n#.csv"
    rows = [(f"t{i}", *(f"x{column}" for column in names[1:-1]), HOSTILE[i % 2]) for i in range(60)]
    write(tmp_path / name, rows, ("text", *names[1:-1], "label"))
    template = " ".join(f"{{{column}}}" for column in names[1:-1])
    status, said, _ = init(name, f"--inputs={{text}} {template}")
    assert status == 0, said
    text = (tmp_path / "task.gin").read_text()
    assert text.startswith("# Made by: adalink init 'reviews\\nimport evil_h5") and "\nimport evil" not in text
    configuration.load(configuration.parse_flags(["--gin_file=task.gin"])[0], require_all=False)
    assert configuration.bindings()["FileTask.inputs"] == repr(f"{{text}} {template}")
    assert configuration.bindings()["FileTask.data"] == repr(name)


def test_excel_s_line_and_quoted_tabs_are_recognised(init, tmp_path):
    path = write(tmp_path / "sep.csv", ROWS, delimiter=";")
    path.write_text("sep=;\n" + path.read_text())
    status, _, settings = init(path)
    assert status == 0 and (settings["INPUTS"], settings["TARGETS"]) == ("'{text}'", "'{label}'")
    for name, text in (("q.tsv", 'he said "hi" {}'), ("qn.tsv", "line one\nline two {}")):
        (tmp_path / "task.gin").unlink()
        rows = [(text.format(i), label) for i, (_, label) in enumerate(ROWS)]
        status, said, settings = init(write(tmp_path / name, rows, delimiter="\t"))
        assert status == 0 and settings["QUOTED"] == "True" and "delete QUOTED" in said, said
    (tmp_path / "task.gin").unlink()
    (tmp_path / "glue.tsv").write_text(
        "text\tlabel\n" + "".join(f'"a" or "b" {i}\t{label}\n' for i, (_, label) in enumerate(ROWS))
    )
    assert "QUOTED" not in init(tmp_path / "glue.tsv")[2]


def test_a_tsv_whose_cells_are_all_in_quotation_marks_is_recognised(init, tmp_path):
    (tmp_path / "a.tsv").write_text('"text"\t"label"\n' + "".join(f'"{text}"\t"{label}"\n' for text, label in ROWS))
    status, said, settings = init("a.tsv")
    assert status == 0 and settings["QUOTED"] == "True" and settings["TARGETS"] == "'{label}'", said


def test_pictures_that_are_not_there_are_no_text(init, tmp_path):
    rows = [(f"what is in {i}?", f"train2014/p{i}.jpg", label) for i, (_, label) in enumerate(ROWS)]
    path = write(tmp_path / "vqa.csv", rows, ("question", "photo", "answer"))
    status, said, settings = init(path)
    assert status == 2 and not settings and said.count("\n") == 1
    assert (
        "The column photo names pictures, and 50 of its first 50 cannot be used: there is no picture train2014/p0.jpg"
        in said
    )
    status, said, settings = init(path, "--inputs={question}")
    assert status == 0 and "The column photo names pictures" in said and settings["INPUTS"] == "'{question}'"


def test_the_reason_why_no_row_is_read_is_named(init, tmp_path):
    path = tmp_path / "backslash.csv"
    path.write_text("text,label\n" + "".join(f'"he said \\"hi\\" {i}",no\n' for i in range(60)))
    assert "below its header: line 2: its quotation marks do not fit" in init(path)[1]
    nested = tmp_path / "nest.jsonl"
    nested.write_text("".join('{"text": "t%d", "label": [{"name": "a"}]}\n' % i for i in range(60)))
    assert "no examples in train: line 1 of" in (said := init(nested)[1]) and "a cell holds dict" in said


def test_nothing_that_is_there_is_overwritten(init, tmp_path):
    path = write(tmp_path / "a.csv", ROWS)
    (tmp_path / "task.gin").write_text("mine")
    assert init(path)[:2][0] == 2 and (tmp_path / "task.gin").read_text() == "mine"
    (tmp_path / "task.gin").unlink()
    (tmp_path / "task.sheet.png").write_text("mine")
    status, said, _ = init(path)
    assert status == 2 and "task.sheet.png exists already" in said and not (tmp_path / "task.gin").exists()


def test_force_overwrites_what_init_wrote_and_nothing_else(init, tmp_path):
    path = write(tmp_path / "a.csv", ROWS)
    assert init(path)[0] == 0
    assert init(path, "--inputs=a: {text}")[0] == 2
    status, _, settings = init(path, "--inputs=a: {text}", "--force")
    assert status == 0 and settings["INPUTS"] == "'a: {text}'" and "--force" not in (tmp_path / "task.gin").read_text()
    (tmp_path / "task.gin").write_text("# mine\n")
    status, said, _ = init(path, "--force")
    assert status == 2 and "is not a file of adalink init" in said and (tmp_path / "task.gin").read_text() == "# mine\n"


def test_a_dev_file_that_is_halved_is_reported(init, tmp_path):
    write(tmp_path / "train.csv", ROWS)
    write(tmp_path / "dev.csv", [(f"film {i}", "bad") for i in range(40)])
    status, said, _ = init("train.csv")
    halves = re.search(
        r"the validation split is halved: (\d+) examples for validation and (\d+) examples for test", said
    )
    assert status == 0 and halves and int(halves[1]) + int(halves[2]) == 40
    write(tmp_path / "test.csv", [(f"other {i}", "bad") for i in range(40)])
    assert "halved" not in init("train.csv", "--force")[1]


def test_what_a_kill_left_does_not_stand_in_the_way(init, tmp_path, monkeypatch):
    """The sheet is written before the gin file."""
    from adalink_jax.data.user_files.task_draft import Draft

    path = write(tmp_path / "a.csv", ROWS)

    def interrupted(*_):
        (tmp_path / "task.sheet.png").write_text("a sheet")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Draft, "write", interrupted)
        assert init(path)[0] == 130
    assert not (tmp_path / "task.sheet.png").exists() and not (tmp_path / ".task.gin.lock").exists()
    for name in ("task.sheet.png", ".task.gin.lock"):  # what SIGKILL leaves
        (tmp_path / name).write_text("")
    assert init(path)[0] == 0 and not (tmp_path / ".task.gin.lock").exists()


def test_data_that_a_run_would_refuse_give_status_1(init, tmp_path):
    path = write(tmp_path / "a.csv", [*ROWS, *[("alone",)] * 9])
    status, said, settings = init(path)
    assert status == 1 and settings and "A run will refuse it as it is" in said and "9 of 69 rows" in said


BAD = {
    "empty": (b"", "is empty"),
    "binary": (bytes(range(256)) * 9, "is not text"),
    "cut_utf_16": ("text,label\na,b\n".encode("utf-16")[:-1], "UTF-16"),
    "header_alone": (b"text,label\n", "no rows that can be read"),
    "open_quote": (b'text,label\n"a,b\nc,d\n', "is not closed"),
    "one_class": (b"text,other\n" + b"".join(b"t%d,x\n" % i for i in range(60)), "not clear which column"),
    "one_row": (b"text,label\nonly,one\n", "no examples"),
    "damaged_gz": (b"\x1f\x8b\x08nothing", "cannot be read"),
}


USABLE_BY_INFER = ("one_class", "one_row")


@pytest.mark.parametrize(
    "command, name",
    [*(("init", name) for name in BAD), *(("infer", name) for name in BAD if name not in USABLE_BY_INFER)],
)
def test_unusable_files_give_one_sentence_and_nothing_is_written(name, command, tmp_path, monkeypatch, capsys):
    content, message = BAD[name]
    monkeypatch.chdir(tmp_path)
    file = tmp_path / ("a.csv.gz" if name == "damaged_gz" else "a.csv")
    file.write_bytes(content)
    more = ["--out=task.gin", "--base=bundled:pali_nano_instruct"]
    if command == "infer":
        more = [
            "out.csv",
            "--gin_file=gin/models/t5_1_1_small.gin",
            "--gin.INITIAL_CHECKPOINT_PATH='none'",
            "--gin.VOCABULARY='bytes'",
            "--inputs={text}",
        ]
    status = main([command, file.name, *more])
    said = capsys.readouterr().err
    assert status == 2 and said.startswith("error: ") and said.count("\n") == 1
    assert message in said or (command == "infer" and name == "header_alone" and "no rows" in said), said
    assert sorted(path.name for path in tmp_path.iterdir()) == [file.name]


def test_a_headerless_table_and_lines_are_predicted_by_a_run_s_own_settings(tmp_path):
    from adalink_jax.serving import rows

    run = {"inputs": "judge: {column_2}", "columns": ("column_1", "column_2"), "delimiter": ";"}
    typed = dict.fromkeys(("inputs", "image", "images"))
    path = write(tmp_path / "a.csv", [(1, "first"), (2, "second")], None, ";")
    assert [ask.text for ask in rows.of_file(str(path), typed, run, False).asks()] == ["judge: first", "judge: second"]
    (tmp_path / "a.txt").write_text("third\n\nfourth\n")
    source = rows.of_file(str(tmp_path / "a.txt"), typed, run, False)
    assert [ask.text for ask in source.asks()] == ["judge: third", "judge: fourth"]
    assert source.note.startswith("1 of the 3 lines of ") and source.note.endswith("are empty, and left out.")
    with pytest.raises(UserError, match=r"Line 3 of .* has no input \('\{text\}' is empty there\); fill it"):
        rows.of_file(str(write(tmp_path / "e.csv", [("a", 1), ("", 2)])), typed | {"inputs": "{text}"}, {}, False)


def test_rows_of_json_with_other_keys_stay_under_their_columns_in_a_csv(tmp_path):
    from adalink_jax.serving import prediction_file, rows

    (tmp_path / "a.jsonl").write_text('{"inputs": "x", "a": 1}\n{"b": 2, "inputs": "y"}\n')
    source = rows.of_file(str(tmp_path / "a.jsonl"), dict.fromkeys(("inputs", "image", "images")), {}, False)
    output = prediction_file.Output(str(tmp_path / "out.csv"), (*source.columns, "prediction"), {})
    for ask in source.asks():
        output.append([ask.cells | {"prediction": "p"}])
    assert (tmp_path / "out.csv").read_text() == "inputs,a,b,prediction\nx,1,,p\ny,,2,p\n"


def test_an_adapter_column_with_gaps_names_the_base_there(tmp_path):
    from adalink_jax.serving import rows

    (tmp_path / "a.jsonl").write_text('{"inputs": "x"}\n{"inputs": "y", "adapter": "b"}\n')
    source = rows.of_file(str(tmp_path / "a.jsonl"), dict.fromkeys(("inputs", "image", "images")), {}, False)
    assert [ask.adapter for ask in source.asks()] == ["", "b"]


def test_a_template_without_braces_is_no_column(init, tmp_path):
    path = write(tmp_path / "a.csv", ROWS)
    status, said, _ = init(path, "--targets=label")
    assert (
        status == 2
        and "--targets 'label' is the same text in every row; for a column write --targets '{label}'" in said
    )


def test_columns_that_nothing_reads_are_reported(init, tmp_path):
    rows = [(i, f"flat {i}", i % 5 + 1, 100.0 * i) for i in range(60)]
    status, said, settings = init(write(tmp_path / "a.csv", rows, ("id", "title", "rooms", "price")))
    assert status == 0 and settings["INPUTS"] == "'{title}'"
    assert "Not used: rooms; to give the model some, use --inputs, such as '{title} {rooms}'" in " ".join(said.split())


def test_the_gin_file_of_another_model_is_refused(init, tmp_path):
    status, said, settings = init(
        write(tmp_path / "a.csv", ROWS), "--base=bundled:pali_nano_instruct", "--model=gin/models/t5_1_1_base.gin"
    )
    assert status == 2 and not settings
    assert "gin/models/t5_1_1_base.gin (--model) is not the model of bundled:pali_nano_instruct" in said


@pytest.mark.parametrize(
    "typed, meant",
    [("pali_nano_instruct", "bundled:pali_nano_instruct"), ("google/flan-t5-small", "hf://google/flan-t5-small")],
)
def test_a_base_without_its_beginning_is_asked_about(init, tmp_path, typed, meant):
    status, said, _ = init(write(tmp_path / "a.csv", ROWS), f"--base={typed}")
    assert status == 2 and f"There is no folder {typed}; did you mean {meant}? Else give" in said
