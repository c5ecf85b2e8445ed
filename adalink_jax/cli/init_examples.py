"""What `adalink init` shows of the data: tables on the console, and a sheet of examples, as the model will see them."""

import collections
from collections.abc import Iterable
from typing import TYPE_CHECKING

from etils import epath

from adalink_jax.cli.arguments import table
from adalink_jax.files.whole_file import write_bytes, write_text

if TYPE_CHECKING:
    from rich.console import Console

    from adalink_jax.data.user_files.file_task import LoadedFileTask
    from adalink_jax.data.user_files.row_store import StoredRow
    from adalink_jax.data.user_files.task_draft import Draft
    from adalink_jax.training.setup import Setup

SHOWN, MOST_LABELS = 4, 20
MADE_BY = "Made by: adalink init"  # stands in the files that it wrote
LETTERS = 160  # of a text on the console
LABEL_LETTERS = 40
PICTURES, TEXTS = 12, 40  # examples of a sheet, and more if there are more classes
MOST_PICTURES, MOST_TEXTS = 24, 100


def show(console: "Console", draft: "Draft", doubts: Iterable[str]) -> None:
    """Prints examples, lengths, labels, and what is wrong with the rows."""
    task = draft.loaded
    _show_examples(console, task)
    _show_lengths(console, draft)
    _show_labels(console, task)
    for remark in task.remarks:
        console.print(f"{remark[0].upper()}{remark[1:]}.", soft_wrap=True)
    for finding in task.findings:
        if finding.count:
            console.print(str(finding), soft_wrap=True)
    for doubt in doubts:
        console.print(f"{doubt}.", soft_wrap=True)


def _show_examples(console: "Console", task: "LoadedFileTask") -> None:
    from rich.text import Text

    from adalink_jax.data.user_files.shown_rows import of_each_target

    rows = of_each_target(task.splits["train"], SHOWN)
    has_pictures = any(row["image_name"] or row["image"] for row in rows)
    headings = ("input", "tokens", "target", "tokens", *(("picture",) if has_pictures else ()))
    examples_table = table(*headings, right=("tokens",), title="Examples, as the model will see them")
    for row in rows:
        example = task.example(row)
        cells = [
            _short(row["inputs"]),
            len(example["inputs"]),
            _short(example["targets_pretokenized"]),
            len(example["targets"]),
        ]
        picture = (row["image_name"] or ("in the table" if row["image"] else ""),) if has_pictures else ()
        examples_table.add_row(*(Text(str(cell)) for cell in (*cells, *picture)))
    console.print(examples_table)


def _show_lengths(console: "Console", draft: "Draft") -> None:
    from rich import box

    numeric = ("min", "median", "99 %", "max", "cut at")
    look = {"title": "Lengths in tokens, of a sample", "box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0)}
    lengths_table = table("split", "rows", "", *numeric, right=("rows", *numeric), **look)
    for split, examples in draft.loaded.splits.items():
        for i, (side, lengths) in enumerate(draft.loaded.lengths[split].items()):
            first = (split, f"{len(examples):,}") if i == 0 else ("", "")
            numbers = (lengths.smallest, lengths.median, lengths.most, lengths.largest, draft.lengths[side])
            lengths_table.add_row(*first, side, *map(str, numbers))
    console.print(lengths_table)


def _show_labels(console: "Console", task: "LoadedFileTask") -> None:
    """Prints how often each target occurs, if there are few."""
    from rich.text import Text

    from adalink_jax.data.label_sets import NO_LABEL

    counts, rows = {}, {}
    for split, examples in task.splits.items():
        rows[split] = min(len(examples), 100_000)
        texts = (examples[i]["references"][0] for i in range(rows[split]))
        names = texts if task.labels is None else (x for text in texts for x in task.labels.split(text) or [NO_LABEL])
        counts[split] = collections.Counter(names)
    train = counts["train"]
    if len(train) > max(MOST_LABELS, sum(train.values()) // 10):
        return
    many = f", of which the {MOST_LABELS} commonest are" if len(train) > MOST_LABELS else ""
    title = (
        f"Targets: {len(train)} different ones{many}"
        if task.labels is None
        else f"Labels: {len(train)}, alone or together{many}"
    )
    shares = table("target" if task.labels is None else "label", *counts, right=counts, title=title)
    for label, _ in train.most_common(MOST_LABELS):
        cells = (f"{count[label] / rows[split]:.1%}" for split, count in counts.items())
        shares.add_row(Text(_short(label, LABEL_LETTERS)), *cells)
    console.print(shares)
    for split, count in counts.items():
        if unknown := [label for label in count if label not in train]:
            console.print(
                f"{split} has targets that train does not have: {', '.join(map(repr, unknown[:5]))}", soft_wrap=True
            )


def _short(text: str, letters: int = LETTERS) -> str:
    return text if len(text) <= letters else f"{text[: letters - 4]} ..."


# --- the sheet ---


def write_pictures(path: epath.Path, task: "LoadedFileTask", setup: "Setup", name: str) -> None:
    """Draws pictures of train with their texts, in the model's own size and colors."""
    from adalink_jax.data.images import decode_image
    from adalink_jax.training.contact_sheet import contact_sheet

    shape = setup.image_shape
    assert shape is not None  # checked with the base
    samples = []
    for row in _of_sheet(task, PICTURES, MOST_PICTURES):
        target, preparation = task.example(row)["targets_pretokenized"], setup.preparation.for_text(row["inputs"])
        encoded, name_of_image = task.encoded_image(row), row["image_name"] or f"The picture in line {row['line']}"
        picture = preparation.shown(decode_image(encoded, shape, name_of_image, preparation))
        samples.append({"image": picture, "inputs": row["inputs"], "target": target, "prediction": target})
    sizes = {sample["image"].shape[:2] for sample in samples}
    height, width = min(sizes)
    size = f"in {width} x {height} pixels, " if len(sizes) == 1 else ""
    title = f"{name}: examples of train with their targets, {size}as the model sees them"
    write_bytes(path, contact_sheet(samples, title))


def write_texts(path: epath.Path, draft: "Draft", name: str) -> None:
    """Writes a page with a table of texts of train: what the model reads of them, and what is cut."""
    import jinja2

    task, lines = draft.loaded, []
    for row in _of_sheet(task, TEXTS, MOST_TEXTS):
        sides = [_read(task, text, side, draft.lengths[side]) for side, text in
                 (("inputs", row["inputs"]), ("targets", row["references"][0]))]  # fmt: skip
        lines.append({"line": row["line"], "sides": sides, "others": row["references"][1:]})
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("adalink_jax", "assets"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("sheet.html.jinja").render(
        name=name, note=MADE_BY, lengths=draft.lengths, lines=lines
    )
    write_text(path, page)


def _read(task: "LoadedFileTask", text: str, side: str, longest: int) -> dict[str, str | int]:
    """What is read of a text, what is cut, the text itself if the vocabulary writes it otherwise, and the number of tokens."""
    read, tokens = task.read(text, side)
    if text.startswith(read):
        return {"read": read, "cut": text[len(read) :], "text": "", "tokens": tokens}
    return {"read": read, "cut": " ..." if tokens > longest else "", "text": text, "tokens": tokens}


def _of_sheet(task: "LoadedFileTask", count: int, most: int) -> "list[StoredRow]":
    from adalink_jax.data.user_files.shown_rows import of_each_target, targets_of

    return of_each_target(task.splits["train"], min(max(count, len(targets_of(task.splits["train"]))), most))
