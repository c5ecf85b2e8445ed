"""`adalink infer`: predictions for the rows of a file, a folder of images or a task."""

import argparse
import concurrent.futures
import itertools
import json
import pathlib
import tempfile
import time
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from adalink_jax import configuration
from adalink_jax.cli.arguments import add_seqio, gin_parser, option, parse, register, use_seqio
from adalink_jax.configuration.requirements import MODEL
from adalink_jax.errors import UserError
from adalink_jax.files.places import path_of

if typing.TYPE_CHECKING:
    from adalink_jax.data.task_protocol import Task
    from adalink_jax.serving import Predictor, prediction_file, rows

ID_COLUMNS = {"glue": "idx", "vqav2": "question_id", "docvqa": "questionId", "coco": "image_id"}
TASK = "task:"
BATCHES_PER_WRITE = 8


def infer(argv: list[str]) -> int:
    """`adalink infer`."""
    flags, options = _parse(argv)
    adapters = _adapters(options.adapters)
    register()
    use_seqio(options)
    if not options.run:
        configuration.load(flags, extra_files=("gin/runs/infer.gin",))
        configuration.require(MODEL)
        configuration.check_reachable(flags, "Predictor")
    from adalink_jax.parallel import compiler_settings
    from adalink_jax.serving import Predictor, prediction_file, rows

    compiler_settings.set_environment()

    source = _source(options, flags.trust_modules)
    _check_adapters(source, adapters, options)
    path = options.output if options.format == "table" else f"{options.output}.rows.jsonl"
    convert = _converter(options, source, path)
    where = ("tfds_data_dir", "seqio_additional_cache_dirs")
    identity = {name: value for name, value in vars(options).items() if value and name not in where} | {
        "rows": source.count,
        "gin": [list(flags.files), sorted(map(list, flags.bindings))],
        "files": prediction_file.marks(
            options.input,
            *filter(None, [source.table]),
            *adapters.values(),
            *([f"{options.run}/adapter"] if options.run else []),
        ),
    }  # fmt: skip
    output = prediction_file.Output(path, (*source.columns, rows.PREDICTION), identity)
    if options.run:
        predictor = Predictor(options.run, adapters=adapters or None, trust_modules=flags.trust_modules)
    else:
        predictor = Predictor(adapters=adapters)  # pyright: ignore[reportCallIssue]  # the model is bound by gin
        configuration.check_all_used(flags)
    _predict(predictor, source, output, lists=path.endswith(".jsonl") and options.format == "table")
    answers = convert(path)
    output.finish(keep=options.format == "table")
    print(f"{source.count:,} predictions in {answers}")
    return 0


def _parse(argv: list[str]) -> tuple[configuration.GinFlags, argparse.Namespace]:
    parser = gin_parser(
        "infer",
        "Predict for each row of INPUT: a table as for `adalink init`, a .txt file (one input per line), a folder of images, or\n"
        "task:SPLIT, the examples of a task. The model comes from a run (--run, with its adapter, vocabulary and templates) or from\n"
        "gin files (gin/runs/infer.gin is read first). Writes the rows with a column `prediction` to OUTPUT, .jsonl or .csv, as they\n"
        "are made; if the command is killed, rerun it to resume. Columns of INPUT: `inputs`; for models with images `image`, a file\n"
        "beside the table; optionally `adapter`, the name of the row's adapter (empty: the base model).",
        "adalink infer new.csv predictions.jsonl --run runs/sst2\n"
        "  adalink infer rows.csv predictions.csv --gin_file=gin/models/pali_nano.gin --adapters a=runs/a/adapter,b=runs/b/adapter \\\n"
        "    --gin.INITIAL_CHECKPOINT_PATH=\"'bundled:pali_nano_instruct'\" --gin.VOCABULARY=\"'bytes'\"",
        option("input", metavar="INPUT"),
        option("output", metavar="OUTPUT"),
        option("--run", metavar="DIR", help="a folder of `adalink train`, or of a member of `adalink pack`"),
        option("--inputs", metavar="TEMPLATE", help="'review: {text}', with names of columns in braces"),
        option("--image", metavar="TEMPLATE", help="the file name of each row's image: '{photo}', '{id}.jpg'"),
        option("--images", metavar="PATH", help="where the images are: a folder, .zip or .tar"),
        option(
            "--encoding",
            metavar="NAME",
            help="of INPUT: cp1252, shift_jis, ... (UTF-8, or UTF-16 with its mark; not the run's)",
        ),
        option(
            "--adapters",
            metavar="NAME=PATH,...",
            default="",
            help="names and folders of adapters (or hf://OWNER/NAME), all of one method",
        ),
        option(
            "--format",
            choices=("table", *ID_COLUMNS),
            default="table",
            help="table, by OUTPUT's suffix; or the file for an evaluation server, whose ids are a column of INPUT: "
            + ", ".join(f"{name}: {column}" for name, column in ID_COLUMNS.items()),
        ),
        option("--task", metavar="NAME", help="with glue: which of its tasks; OUTPUT is then a folder"),
        option("--no_label", metavar="LABEL", help="with glue: what to write if a prediction is not a label"),
    )
    add_seqio(parser)
    flags, options = parse(parser, argv)
    if options.run and (flags.files or flags.bindings):
        parser.error("--run and gin flags exclude each other; give one of them")
    return flags, options


def _source(options: argparse.Namespace, trust_modules: bool) -> "rows.Source":
    from adalink_jax.serving import opening, rows
    from adalink_jax.training.setup import Setup

    templates = {name: getattr(options, name) for name in ("inputs", "image", "images", "encoding")}
    if options.input.startswith(TASK):
        if typed := [f"--{name}" for name, value in templates.items() if value is not None]:
            raise UserError(
                f"{' and '.join(typed)}: {options.input} has the task's own rows, as its file reads them; leave out {'it' if len(typed) == 1 else 'them'}."
            )
        return rows.of_task(_task(options.run, trust_modules), options.input.removeprefix(TASK))
    if not options.run:
        setup = Setup()  # pyright: ignore[reportCallIssue]  # bound by gin
        return rows.of_file(options.input, templates, {}, setup.image_shape is not None, setup.needs_images)
    opened = opening.open_model(options.run, trust_modules=trust_modules)
    wants_images = opened.setup.image_shape is not None and not opened.without_images
    return rows.of_file(options.input, templates, opened.rows, wants_images, opened.setup.needs_images)


def _predict(predictor: "Predictor", source: "rows.Source", output: "prediction_file.Output", lists: bool) -> None:
    """Predicts for all rows; sets of labels are written as lists, or as their texts."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from adalink_jax import terminal
    from adalink_jax.data.images import counting_transparent, transparency_note
    from adalink_jax.serving.predictor import ONLY
    from adalink_jax.serving.rows import PREDICTION

    console = terminal.console(stderr=True)
    if output.rows:
        console.print(f"Resuming after {output.rows:,} rows.")
        predictor.rows_sampled = output.rows
    text = terminal.text_column
    columns = (text("predicting"), BarColumn(), MofNCompleteColumn(), text("{task.fields[rate]:,.1f} rows/s"),
               text("left"), TimeRemainingColumn())  # fmt: skip
    began, first = time.monotonic(), output.rows
    shape, preparation = predictor.image_shape, predictor.preparation
    with (
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar,
        concurrent.futures.ThreadPoolExecutor() as threads,
        counting_transparent() as transparent,
    ):
        progress = bar.add_task("", total=source.count, completed=output.rows, rate=0.0)
        asks = itertools.islice(source.asks(), output.rows, None)
        while chunk := list(itertools.islice(asks, BATCHES_PER_WRITE * predictor.batch_size)):
            images = None
            if any(ask.picture for ask in chunk):
                read = lambda ask: b"" if ask.picture is None else ask.picture(shape, preparation.for_text(ask.text))
                images = list(threads.map(read, chunk))
            names = ONLY if chunk[0].adapter is None else [ask.adapter or None for ask in chunk]
            predictions = predictor([ask.text for ask in chunk], images, names)
            if predictor.labels is not None and not lists:
                predictions = map(predictor.labels.text, predictions)
            output.append([ask.cells | {PREDICTION: text} for ask, text in zip(chunk, predictions)])
            bar.update(progress, completed=output.rows, rate=(output.rows - first) / (time.monotonic() - began))
    cut = ""
    if predictor.inputs_cut:
        longest = predictor.task_feature_lengths["inputs"]
        cut = f"{predictor.inputs_cut:,} of {source.count:,} inputs are longer than {longest} tokens, and were cut (TASK_FEATURE_LENGTHS)."
    for note in filter(None, (source.note, cut, transparency_note(transparent, preparation))):
        console.print(note, soft_wrap=True)


def _task(run: str | None, trust_modules: bool) -> "Task":
    """The only task of the configuration, or of a run's configuration."""
    from adalink_jax.data import get_tasks
    from adalink_jax.serving import opening
    from adalink_jax.training.setup import Setup

    if run:
        opening.load_run(run, trust_modules)
    dataset = Setup().dataset  # pyright: ignore[reportCallIssue]  # the model is bound by gin
    if dataset is None:
        raise UserError("There is no task; add a task's file, such as --gin_file=gin/tasks/digits.gin, or --run.")
    _, tasks = get_tasks(dataset)
    if len(tasks) != 1:
        raise UserError(
            f"{dataset.mixture_or_task_name} is a mixture; name one of {', '.join(task.name for task in tasks)}."
        )
    return tasks[0]


def _converter(options: argparse.Namespace, source: "rows.Source", path: str) -> Callable[[str], object]:
    """A function that converts the rows with predictions, in the file `path`, to the final file and returns its path; checks the ids
    and labels first."""
    if (options.task or options.no_label) and options.format != "glue":
        raise UserError("--task and --no_label need --format=glue; add it, or leave them out.")
    if options.format == "table":
        return lambda path: path
    from adalink_jax.data import answer_files
    from adalink_jax.serving import prediction_file

    output, settings = path_of(options.output), {}
    if output.exists() and not prediction_file.is_unfinished(
        path
    ):  # of a process that was killed while it wrote the output
        raise UserError(f"{output} exists already; name another file.")
    if not output.parent.is_dir():
        raise UserError(f"The parent folder of {output} does not exist; create it first.")
    if options.format == "glue":
        if options.task not in answer_files.GLUE_FILES or options.no_label is None:
            raise UserError(
                f"--format=glue needs --task, one of {', '.join(answer_files.GLUE_FILES)}, and --no_label, one of its labels."
            )
        settings = {"task": options.task, "instead_of_no_label": options.no_label}
    column, label = ID_COLUMNS[options.format], options.no_label or ""

    def numbered(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
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

    write: Callable = answer_files.FORMATS[options.format]
    # A trial reports repeated ids and an invalid label before the predictions are made.
    with tempfile.TemporaryDirectory() as folder:
        trial = [ask.cells | {"prediction": label} for ask in source.asks()]
        write(list(numbered(trial)), pathlib.Path(folder) / "trial", **settings)

    def convert(path: str) -> object:
        with path_of(path).open("rb") as file:
            return write(list(numbered(map(json.loads, file))), output, **settings)

    return convert


def _adapters(text: str) -> dict[str, str]:
    adapters = {}
    for part in filter(None, text.split(",")):
        name, equals, path = part.partition("=")
        if not (name and equals and path) or name in adapters:
            raise UserError(f"--adapters takes NAME=PATH,NAME=PATH with each name once, not {text!r}.")
        adapters[name] = path
    return adapters


def _check_adapters(source: "rows.Source", adapters: dict[str, str], options: argparse.Namespace) -> None:
    """Checks that --adapters has every adapter that a row names."""
    known = adapters or ({"adapter": ""} if options.run else {})
    for ask in source.asks():
        if ask.adapter is None:
            if len(known) > 1:
                raise UserError(
                    f"{options.input} has no column `adapter`, and --adapters names {len(known)}; add the column, or give one adapter."
                )
            return
        if ask.adapter and ask.adapter not in known:
            raise UserError(
                f"{options.input} names the adapter {ask.adapter!r}; --adapters has {', '.join(known) or 'none'}."
            )
