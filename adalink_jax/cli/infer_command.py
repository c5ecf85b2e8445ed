"""`adalink infer`: predictions for the rows of a file, a folder of images or a task."""

import concurrent.futures
import itertools
import json
import pathlib
import tempfile
import time
from collections.abc import Callable

from adalink_jax import configuration
from adalink_jax.cli.arguments import add_seqio, gin_parser, register, use_seqio
from adalink_jax.configuration.requirements import MODEL
from adalink_jax.errors import UserError

ID_COLUMNS = {"glue": "idx", "vqav2": "question_id", "docvqa": "questionId", "coco": "image_id"}
TASK = "task:"
AT_ONCE = 8  # batches between two writes


def infer(argv: list[str]) -> int:
    """`adalink infer`."""
    parser = gin_parser(
        "infer",
        "Predict for each row of INPUT: a .csv, .tsv, .jsonl, .parquet, .txt (an input a line), a folder of images, or\n"
        "task:SPLIT, the examples of a task. The model is a run's (--run, with its own adapter, vocabulary and templates), or what\n"
        "gin files say (gin/runs/infer.gin is read first). Writes the rows with a column `prediction` into OUTPUT, .jsonl or .csv, as\n"
        "they are made; killed, the same command goes on. Columns: `inputs`, for models that see images `image` (a file, beside the\n"
        "table), `adapter`, the name of the adapter that serves the row (empty: the plain base); without it the only one serves all.",
        "adalink infer new.csv predictions.jsonl --run runs/sst2\n"
        "  adalink infer rows.csv predictions.csv --gin_file=gin/models/pali_nano.gin --adapters a=runs/a/adapter,b=runs/b/adapter \\\n"
        "    --gin.INITIAL_CHECKPOINT_PATH=\"'bundled:pali_nano_instruct'\" --gin.VOCABULARY=\"'bytes'\"",
    )
    parser.add_argument("input", metavar="INPUT")
    parser.add_argument("output", metavar="OUTPUT")
    parser.add_argument("--run", metavar="DIR", help="a folder of `adalink train`, or a member's of `adalink pack`")
    parser.add_argument("--inputs", metavar="TEMPLATE", help="'review: {text}', with names of columns in braces")
    parser.add_argument("--image", metavar="TEMPLATE", help="the name of each row's picture: '{photo}', '{id}.jpg'")
    parser.add_argument("--images", metavar="PATH", help="where pictures lie: a folder, .zip or .tar")
    parser.add_argument(
        "--adapters", metavar="NAME=PATH,...", default="", help="adapters, of one method, and their names"
    )
    parser.add_argument(
        "--format", choices=("table", *ID_COLUMNS), default="table",
        help="table, by OUTPUT's ending; or the file of an evaluation server, whose ids are a column of the input: "
        + ", ".join(f"{name}: {column}" for name, column in ID_COLUMNS.items()),
    )  # fmt: skip
    parser.add_argument("--task", metavar="NAME", help="glue: which of its tasks; output is then a folder")
    parser.add_argument("--no_label", metavar="LABEL", help="glue: what to write for a prediction that is no label")
    add_seqio(parser)
    flags, rest = configuration.parse_flags(argv)
    options = parser.parse_args(rest)
    adapters = _adapters(options.adapters)
    if options.run and (flags.files or flags.bindings):
        parser.error("--run says all that gin files would; give one of them")
    register()
    use_seqio(options)
    if not options.run:
        configuration.load(flags, extra_files=("gin/runs/infer.gin",))
        configuration.require(MODEL)
    from adalink_jax.serving import Predictor, opening, rows

    own, wants_images = {}, None
    if options.run:
        opened = opening.open_model(options.run)
        own, wants_images = opened.rows, opened.setup.image_shape is not None and not opened.without_images
    else:
        from adalink_jax.training.setup import Setup

        wants_images = Setup().image_shape is not None
    if options.input.startswith(TASK):
        source = rows.of_task(_task(options.run), options.input.removeprefix(TASK))
    else:
        given = {name: getattr(options, name) for name in ("inputs", "image", "images")}
        source = rows.of_file(options.input, given, own, wants_images)
    _check_adapters(source, adapters, options)
    convert = _converter(options, source)
    path = options.output if options.format == "table" else f"{options.output}.rows.jsonl"
    where = ("tfds_data_dir", "seqio_additional_cache_dirs")
    identity = {name: value for name, value in vars(options).items() if value and name not in where} | {
        "rows": source.count
    }
    identity["gin"] = [list(flags.files), sorted(map(list, flags.bindings))]
    identity["files"] = rows.marks(
        options.input, *adapters.values(), *([f"{options.run}/adapter"] if options.run else [])
    )
    output = rows.Output(path, (*source.columns, rows.PREDICTION), identity)
    predictor = Predictor(options.run, adapters=adapters or None) if options.run else Predictor(adapters=adapters)
    if not options.run:
        configuration.check_all_used(flags)
    _predict(predictor, source, output)
    output.finish()
    print(f"{source.count:,} predictions in {convert(path)}")
    return 0


def _predict(predictor, source, output) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from adalink_jax.serving.predictor import ONLY
    from adalink_jax.serving.rows import PREDICTION

    console = Console(stderr=True)
    if output.rows:
        console.print(f"Going on after {output.rows:,} rows.")
    columns = (TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]:,.1f} rows/s"),
               TextColumn("left"), TimeRemainingColumn())  # fmt: skip
    began, first = time.monotonic(), output.rows
    with (
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar,
        concurrent.futures.ThreadPoolExecutor() as threads,
    ):
        shown = bar.add_task("", total=source.count, completed=output.rows, rate=0.0)
        asks = itertools.islice(source.asks(), output.rows, None)
        while chunk := list(itertools.islice(asks, AT_ONCE * predictor.batch_size)):
            images = None
            if any(ask.picture for ask in chunk):
                read = lambda ask: b"" if ask.picture is None else ask.picture(predictor.image_shape)
                images = list(threads.map(read, chunk))
            names = ONLY if chunk[0].adapter is None else [ask.adapter or None for ask in chunk]
            found = predictor([ask.text for ask in chunk], images, names)
            output.append([ask.cells | {PREDICTION: text} for ask, text in zip(chunk, found)])
            bar.update(shown, completed=output.rows, rate=(output.rows - first) / (time.monotonic() - began))


def _task(run: str | None):
    """The one task of the configuration, or of a run's."""
    from adalink_jax.data import get_tasks
    from adalink_jax.training.setup import Setup

    if run:
        configuration.load(configuration.parse_flags([f"--gin_file={run}/config.gin"])[0], require_all=False)
    dataset = Setup().dataset
    if dataset is None:
        raise UserError("There is no task; add a task's file, such as --gin_file=gin/tasks/digits.gin, or --run.")
    _, tasks = get_tasks(dataset)
    if len(tasks) != 1:
        raise UserError(
            f"{dataset.mixture_or_task_name} is a mixture; name one of {', '.join(task.name for task in tasks)}."
        )
    return tasks[0]


def _converter(options, source) -> Callable[[str], object]:
    """What makes the final file of rows with predictions, and gives its path. Refuses now what it would refuse then."""
    if (options.task or options.no_label) and options.format != "glue":
        raise UserError("--task and --no_label go with --format=glue.")
    if options.format == "table":
        return lambda path: path
    from adalink_jax.data import answer_files

    output, settings = pathlib.Path(options.output), {}
    if output.exists() or not output.parent.is_dir():
        why = "is there already; name another file" if output.exists() else "lies in no folder; make it first"
        raise UserError(f"{output} {why}.")
    if options.format == "glue":
        if options.task not in answer_files.GLUE_FILES or options.no_label is None:
            raise UserError(
                f"--format=glue needs --task, one of {', '.join(answer_files.GLUE_FILES)}, and --no_label, a label of it."
            )
        settings = {"task": options.task, "instead_of_no_label": options.no_label}
    column, label = ID_COLUMNS[options.format], options.no_label or ""

    def numbered(rows):
        for row in rows:
            if not str(row.get(column, "")).strip():
                raise UserError(
                    f"{options.input} needs a column `{column}`, filled in every row; it has {', '.join(row)}."
                )
            if not str(row[column]).strip().isdecimal():
                raise UserError(
                    f"{options.input} has {row[column]!r} in its column `{column}`; an id is a whole number."
                )
            yield row | {column: int(row[column])}

    make = answer_files.FORMATS[options.format]
    with tempfile.TemporaryDirectory() as folder:  # ids that repeat, and a label that is none, are told before the work
        rows = [ask.cells | {"prediction": label} for ask in source.asks()]
        make(list(numbered(rows)), pathlib.Path(folder) / "trial", **settings)

    def convert(path: str):
        lines = pathlib.Path(path).read_text().splitlines()
        made = make(list(numbered(map(json.loads, lines))), output, **settings)
        pathlib.Path(path).unlink()
        return made

    return convert


def _adapters(text: str) -> dict[str, str]:
    found = {}
    for part in filter(None, text.split(",")):
        name, equals, path = part.partition("=")
        if not (name and equals and path) or name in found:
            raise UserError(f"--adapters takes NAME=PATH,NAME=PATH with each name once, not {text!r}.")
        found[name] = path
    return found


def _check_adapters(source, adapters: dict[str, str], options) -> None:
    """Refuses names in the rows that --adapters has not."""
    known = adapters or ({"adapter": ""} if options.run else {})
    for ask in source.asks():
        if ask.adapter is None:
            if len(known) > 1:
                raise UserError(
                    f"{options.input} has no column `adapter`, and --adapters names {len(known)}; add the column, or name one."
                )
            return
        if ask.adapter and ask.adapter not in known:
            raise UserError(
                f"{options.input} names the adapter {ask.adapter!r}; --adapters has {', '.join(known) or 'none'}."
            )
