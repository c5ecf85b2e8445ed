"""`adalink init`: a task file for one's own data, and what the model will see of them."""

import argparse
import collections
import dataclasses
import pathlib
import re
import shlex

from adalink_jax import configuration
from adalink_jax.cli.arguments import plain_parser, register, table_console
from adalink_jax.errors import UserError

BUNDLED = "bundled:pali_nano_instruct"
ROUND = {"inputs": 8, "targets": 4}  # TASK_FEATURE_LENGTHS are multiples of these
SHOWN, MOST_LABELS = 4, 20
LONG_TARGET = 5  # words
LEAST_STEPS, MOST_STEPS, EPOCHS = 100, 2000, 3


def init(argv: list[str]) -> int:
    """`adalink init`; status 1 where a run would be refused."""
    options = _parser().parse_args(argv)
    out = pathlib.Path(options.out or f"{_name(options.data)}.gin")
    for file in (out, _sheet(out)):
        if file.exists():
            raise UserError(f"{file} is there already; delete it, or name another file with --out.")
    if not out.parent.is_dir():
        raise UserError(f"{out} lies in no folder; make it first.")
    register()
    model, takes_images, vocabulary = _base(options)
    from adalink_jax.data import FileTask
    from adalink_jax.data.user_files import task_draft

    given = {name: getattr(options, name) for name in ("inputs", "targets", "image", "images")}
    drafted = task_draft.draft(options.data, given)
    settings = drafted.settings | {"vocabulary": vocabulary}
    if "image" in settings and not takes_images:
        raise UserError(
            f"{options.data} has pictures, and {model} takes none; name a base that does (--base, --model)."
        )
    if takes_images and "image" not in settings:
        settings["blank_image"] = True
    console, macro_name = table_console(), _name(options.data)
    with console.status("reading"):
        unlimited = {"inputs": 2**30, "targets": 2**30}  # lengths are what is to be found
        task = _loaded(FileTask(**settings, metrics=("exact_match",)), unlimited)
    settings |= _metrics(task)
    shared = any(finding.kind == "shared" and finding.count for finding in task.findings)
    if shared:
        settings["drop_shared"] = True
    lengths = {
        side: -(-max(each[side].most for each in task.lengths.values()) // multiple) * multiple
        for side, multiple in ROUND.items()
    }
    with console.status("reading"):
        metric = settings.pop("metric")
        configured = FileTask(**settings)
        task = _loaded(configured, lengths, macro_name)
    batch = min(32, 1 << (len(task.splits["train"]) // 2).bit_length() - 1) if len(task.splits["train"]) > 1 else 1
    remarks = (
        {"DROP_SHARED": "what is in another split too is left out of the one that is trained on"} if shared else {}
    )
    order = [field.name for field in dataclasses.fields(FileTask)]
    macros = {
        "MIXTURE_OR_TASK_NAME": macro_name,
        **{name.upper(): settings[name] for name in sorted(settings, key=order.index)},
        "METRIC": metric,
        "TASK_FEATURE_LENGTHS": lengths,
        "BATCH_SIZE": batch,
    }
    told = ", ".join(f"{side} {max(each[side].most for each in task.lengths.values())}" for side in lengths)
    remarks["TASK_FEATURE_LENGTHS"] = f"99 of 100 have at most: {told} tokens"
    _show(console, task, drafted.doubts, lengths)
    picture = _contact_sheet(task, out) if "image" in settings else None
    _write(out, macros, remarks, options)
    console.print(f"\nWritten: {out}{f', and {picture}, a sheet of pictures' if picture else ''}", soft_wrap=True)
    try:
        configured.refuse(task)
    except UserError as e:
        console.print("It will be refused as it is:", style="bold red")
        console.print(str(e), soft_wrap=True, markup=False)
        return 1
    steps = min(max(EPOCHS * len(task.splits["train"]) // batch, LEAST_STEPS), MOST_STEPS)
    run = f"runs/{out.stem}"
    console.print("\nTo train an AdaLink on it, and to score the adapter again:", style="bold")
    files = [model, "gin/adapters/adalink.gin", str(out), "gin/runs/finetune.gin"]
    bindings = {"INITIAL_CHECKPOINT_PATH": options.base, "MODEL_DIR": run, "TRAIN_STEPS": steps}
    bindings |= {"EVAL_PERIOD": -(-steps // 4)}
    train = ["adalink train", *(f"--gin_file={shlex.quote(file)}" for file in files)]
    train += [f"--gin.{name}={_typed(value)}" for name, value in bindings.items()]
    half = len(train) // 2 + 1
    console.print("  " + " ".join(train[:half]) + " \\\n    " + " ".join(train[half:]), soft_wrap=True, markup=False)
    evaluate = f"adalink eval --gin_file={run}/config.gin --gin.INITIAL_ADAPTER_PATH=\"'{run}/adapter'\""
    console.print(f"  {evaluate}", soft_wrap=True, markup=False)
    return 0


def _typed(value) -> str:
    """A literal as it is typed in a shell, in t5x's manner."""
    text = repr(value)
    return f'"{text}"' if isinstance(value, str) and not set(text) & set('"$`\\\\!') else shlex.quote(text)


def _parser() -> argparse.ArgumentParser:
    parser = plain_parser(
        "init",
        "Look at data of yours and write one readable gin file, a task: columns, templates, splits, lengths, metric. Shows\n"
        "examples as the model will see them, lengths, labels, what is wrong with the rows, and the command to type next.\n"
        "DATA is a .csv, .tsv, .jsonl or .parquet; a folder with such files for train, dev and test; or a folder of images with\n"
        "a subfolder for each class.",
        "adalink init reviews.csv --base hf://google/flan-t5-small",
    )
    parser.add_argument(
        "data", metavar="DATA", help="the file or folder; files beside it for other splits are found by name"
    )
    parser.add_argument(
        "--base", default=BUNDLED, metavar="PATH", help=f"the base model ({BUNDLED}), for its vocabulary"
    )
    parser.add_argument("--model", metavar="FILE", help="the base's gin file, where none of gin/models fits it alone")
    parser.add_argument(
        "--vocabulary", metavar="PATH", help="where the base holds none: 'bytes', or a SentencePiece model"
    )
    parser.add_argument("--inputs", metavar="TEMPLATE", help="'question: {question}', with names of columns in braces")
    parser.add_argument("--targets", metavar="TEMPLATE", help="what is to be predicted: '{answer}'")
    parser.add_argument("--image", metavar="TEMPLATE", help="the name of each row's picture: '{photo}', '{id}.jpg'")
    parser.add_argument("--images", metavar="PATH", help="where pictures lie: a folder, .zip or .tar")
    parser.add_argument("--out", metavar="FILE", help="the gin file (the data's name, in this folder)")
    return parser


def _sheet(out: pathlib.Path) -> pathlib.Path:
    """Where the contact sheet goes."""
    return out.with_name(f"{out.stem}.sheet.png")


def _name(data: str) -> str:
    from adalink_jax.data.user_files.table_files import SUFFIXES, split_of

    path = pathlib.Path(data).absolute()
    stem = path.name.removesuffix(".gz")
    for suffix in SUFFIXES:
        stem = stem.removesuffix(suffix)
    return re.sub(r"\W+", "_", path.parent.name if split_of(stem) else stem).strip("_").lower() or "task"


def _base(options) -> tuple[str, bool, str]:
    """The model's gin file, whether it takes images, and its vocabulary."""
    from adalink_jax.data.vocabularies import find_vocabulary
    from adalink_jax.serving.opening import model_file, vocabulary_of
    from adalink_jax.training.setup import Setup

    model = options.model or model_file(options.base, "name its gin file with --model")
    flags, _ = configuration.parse_flags([f"--gin_file={model}"])
    configuration.load(flags, require_all=False)
    configuration.require({"Setup.model": "a model's file, such as --model=gin/models/pali_nano.gin"})
    takes_images = Setup().image_shape is not None
    vocabulary = options.vocabulary or vocabulary_of(options.base)
    try:
        find_vocabulary(vocabulary)
    except UserError as e:
        raise UserError(f"{e} (--vocabulary)") from e
    return model, takes_images, vocabulary


def _loaded(task, lengths, name: str = "task"):
    from adalink_jax.data.user_files.file_task import LoadedFileTask

    return LoadedFileTask(task, name, lengths)


def _metrics(task) -> dict:
    """`metrics` and `metric`, by what the targets are."""
    from adalink_jax.data.user_files.file_task import sample

    rows = sample(task.splits["train"], 1000)
    words = sorted(len(row["references"][0].split()) for row in rows)
    if words[len(words) // 2] > LONG_TARGET:
        image = rows[0]["image_name"] is not None or rows[0]["image"] is not None
        return (
            {"metrics": ("captions",), "metric": "cider"} if image else {"metrics": ("rouge_l",), "metric": "rouge_l"}
        )
    name = "exact_match" if any(len(row["references"]) > 1 for row in rows) else "accuracy"
    return {"metrics": (name,), "metric": name}


# --- what is shown ---


def _show(console, task, doubts, lengths) -> None:
    from rich.table import Table
    from rich.text import Text

    from adalink_jax.data.user_files.file_task import sample

    table = Table(title="Examples, as the model will see them", title_justify="left")
    for heading in ("input", "tokens", "target", "tokens", "picture"):
        table.add_column(heading, justify="right" if heading == "tokens" else "left", overflow="fold")
    rows = sample(task.splits["train"], SHOWN)
    pictures = any(row["image_name"] or row["image"] for row in rows)
    for row in rows:
        example = task.example(row)
        shown = [
            row["inputs"],
            str(len(example["inputs"])),
            example["targets_pretokenized"],
            str(len(example["targets"])),
        ]
        table.add_row(*map(Text, [*shown, row["image_name"] or ("in the table" if row["image"] else "")]))
    if not pictures:
        table.columns.pop()
    console.print(table)
    table = Table(title="Lengths in tokens, of a sample", title_justify="left")
    for heading in ("split", "examples", "", "smallest", "half up to", "99 of 100 up to", "largest", "cut at"):
        table.add_column(heading, justify="left" if heading in ("split", "") else "right")
    for split, examples in task.splits.items():
        for i, (side, each) in enumerate(task.lengths[split].items()):
            first = (split, f"{len(examples):,}") if i == 0 else ("", "")
            numbers = (each.smallest, each.median, each.most, each.largest, lengths[side])
            table.add_row(*first, side, *map(str, numbers))
    console.print(table)
    _labels(console, task)
    for finding in task.findings:
        if finding.count:
            console.print(str(finding), soft_wrap=True, markup=False)
    for doubt in doubts:
        console.print(f"{doubt}. Say otherwise with --targets or --inputs.", soft_wrap=True, markup=False)


def _labels(console, task) -> None:
    """How often each target is there, where they are few."""
    from rich.table import Table
    from rich.text import Text

    counts = {
        split: collections.Counter(examples[i]["references"][0] for i in range(min(len(examples), 100_000)))
        for split, examples in task.splits.items()
    }
    train = counts["train"]
    if len(train) > max(MOST_LABELS, sum(train.values()) // 10):
        return
    table = Table(title=f"Targets: {len(train)} different ones", title_justify="left")
    for heading in ("target", *counts):
        table.add_column(heading, justify="left" if heading == "target" else "right")
    for label, _ in train.most_common(MOST_LABELS):
        table.add_row(Text(label), *(f"{each[label] / sum(each.values()):.1%}" for each in counts.values()))
    console.print(table)
    for split, each in counts.items():
        if unknown := [label for label in each if label not in train]:
            console.print(
                f"{split} has targets that train has not: {', '.join(map(repr, unknown[:5]))}", soft_wrap=True
            )


def _contact_sheet(task, out: pathlib.Path) -> pathlib.Path:
    from adalink_jax.data.images import decode_image, read_image
    from adalink_jax.data.user_files.file_task import sample
    from adalink_jax.training.contact_sheet import contact_sheet

    samples = []
    for row in sample(task.splits["train"], 12):
        example = task.example(row)
        encoded = example["image"] if "image" in example else read_image(example["image_file"])
        target = example["targets_pretokenized"]
        picture = decode_image(encoded, (224, 224, 3), str(row["image_name"]))
        samples.append({"image": picture, "inputs": row["inputs"], "target": target, "prediction": target})
    path = _sheet(out)
    path.write_bytes(contact_sheet(samples, f"{out.stem}: examples of train, with their targets"))
    return path


def _write(out: pathlib.Path, macros: dict, remarks: dict, options) -> None:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("adalink_jax", "assets"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    note = "Made by: adalink init " + shlex.join(
        [
            options.data,
            *(f"--{name}={value}" for name, value in vars(options).items() if value and name not in ("data", "out")),
        ]
    )
    settings = [(name, repr(value), remarks.get(name)) for name, value in macros.items()]
    out.write_text(environment.get_template("task.gin.jinja").render(note=note, settings=settings))
