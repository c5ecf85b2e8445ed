"""`adalink infer`: predictions for the rows of a CSV file."""

import csv
import pathlib
import tempfile
from collections.abc import Callable

from adalink_jax import configuration
from adalink_jax.cli.arguments import MODEL, gin_parser, register
from adalink_jax.errors import UserError

ID_COLUMNS = {"glue": "idx", "vqav2": "question_id", "docvqa": "questionId", "coco": "image_id"}


def infer(argv: list[str]) -> int:
    """`adalink infer`."""
    parser = gin_parser(
        "infer",
        "Predict for each row of a CSV file: its column `inputs`, for models that see images `image` (a file, beside the CSV),\n"
        "and `adapter`, the name of the adapter that serves the row (empty: the plain base). Without that column the only\n"
        "adapter serves all rows. Writes the same rows with a column `prediction`. gin/runs/infer.gin is read first.",
        "adalink infer rows.csv predictions.csv --gin_file=gin/models/pali_nano.gin --adapters a=runs/a/adapter,b=runs/b/adapter \\\n"
        "    --gin.INITIAL_CHECKPOINT_PATH=\"'bundled:pali_nano_instruct'\" --gin.VOCABULARY=\"'bytes'\"",
    )
    parser.add_argument("input", help="a CSV file with a header")
    parser.add_argument("output", help="a new file")
    parser.add_argument(
        "--adapters", metavar="NAME=PATH,...", default="", help="adapters, of one method, and their names"
    )
    parser.add_argument(
        "--format", choices=("csv", *ID_COLUMNS), default="csv",
        help="csv, or the file of an evaluation server, whose ids are a column of the input: "
        + ", ".join(f"{name}: {column}" for name, column in ID_COLUMNS.items()),
    )  # fmt: skip
    parser.add_argument("--task", metavar="NAME", help="glue: which of its tasks; output is then a folder")
    parser.add_argument("--no_label", metavar="LABEL", help="glue: what to write for a prediction that is no label")
    flags, rest = configuration.parse_flags(argv)
    options = parser.parse_args(rest)
    adapters = _adapters(options.adapters)
    rows = _read(options.input, adapters)
    write = _writer(options, rows)
    output = pathlib.Path(options.output)
    if output.exists() or not output.parent.is_dir():
        why = "is there already; name another file" if output.exists() else "lies in no folder; make it first"
        raise UserError(f"{output} {why}.")
    register()
    configuration.load(flags, extra_files=("gin/runs/infer.gin",))
    configuration.require(MODEL)
    from rich.console import Console
    from rich.progress import track

    from adalink_jax.data.images import load_image
    from adalink_jax.training.predictor import Predictor
    from adalink_jax.training.setup import Setup

    shape = Setup().image_shape
    images = None
    if shape is not None:
        folder = pathlib.Path(options.input).parent
        images = [load_image(folder / _cell(row, "image", options.input), shape) for row in rows]
    predictor = Predictor(adapters=adapters)
    configuration.check_all_used(flags)
    only = next(iter(adapters), None)
    names = [row["adapter"] or None if "adapter" in row else only for row in rows]
    texts = predictor.stream([row["inputs"] for row in rows], images, names)
    console = Console(stderr=True)
    found = list(
        track(texts, "predicting", total=len(rows), console=console, transient=True, disable=not console.is_terminal)
    )
    print(f"{len(rows)} predictions in {write([row | {'prediction': text} for row, text in zip(rows, found)])}")
    return 0


def _writer(options, rows: list[dict]) -> Callable[[list[dict]], object]:
    """What writes rows with their predictions and gives the file. Refuses now what it would refuse then."""
    path = pathlib.Path(options.output)
    if (options.task or options.no_label) and options.format != "glue":
        raise UserError("--task and --no_label go with --format=glue.")
    if options.format == "csv":
        return lambda answered: _write_table(path, answered)
    from adalink_jax.data import answer_files

    settings = {}
    if options.format == "glue":
        if options.task not in answer_files.GLUE_FILES or options.no_label is None:
            raise UserError(
                f"--format=glue needs --task, one of {', '.join(answer_files.GLUE_FILES)}, and --no_label, a label of it."
            )
        settings = {"task": options.task, "instead_of_no_label": options.no_label}
    column = ID_COLUMNS[options.format]
    for row in rows:
        _cell(row, column, options.input)
        if not row[column].strip().isdecimal():
            raise UserError(f"{options.input} has {row[column]!r} in its column `{column}`; an id is a whole number.")
        row[column] = int(row[column])
    make = answer_files.FORMATS[options.format]
    with tempfile.TemporaryDirectory() as folder:  # ids that repeat, and a label that is none, are told before the work
        label = options.no_label or ""
        make([row | {"prediction": label} for row in rows], pathlib.Path(folder) / "trial", **settings)
    return lambda answered: make(answered, path, **settings)


def _write_table(path: pathlib.Path, rows: list[dict]) -> pathlib.Path:
    with path.open("x", newline="") as file:
        table = csv.DictWriter(file, [*rows[0]])
        table.writeheader()
        table.writerows(rows)
    return path


def _adapters(text: str) -> dict[str, str]:
    found = {}
    for part in filter(None, text.split(",")):
        name, equals, path = part.partition("=")
        if not (name and equals and path) or name in found:
            raise UserError(f"--adapters takes NAME=PATH,NAME=PATH with each name once, not {text!r}.")
        found[name] = path
    return found


def _read(path: str, adapters: dict[str, str]) -> list[dict]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise UserError(f"{path} cannot be read as a CSV file ({e}).") from e
    if not rows:
        raise UserError(f"{path} has no rows below its header.")
    for row in rows:
        _cell(row, "inputs", path)
    if "prediction" in rows[0]:
        raise UserError(f"{path} has a column `prediction` already; rename it.")
    unknown = next((row["adapter"] for row in rows if row.get("adapter") and row["adapter"] not in adapters), None)
    if unknown is not None:
        raise UserError(f"{path} names the adapter {unknown!r}; --adapters has {', '.join(adapters) or 'none'}.")
    if "adapter" not in rows[0] and len(adapters) > 1:
        raise UserError(
            f"{path} has no column `adapter`, and --adapters names {len(adapters)}; add the column, or name one."
        )
    return rows


def _cell(row: dict, column: str, path: str) -> str:
    if row.get(column) is None:
        raise UserError(
            f"{path} needs a column `{column}`, filled in every row; it has {', '.join(filter(None, row))}."
        )
    return row[column]
