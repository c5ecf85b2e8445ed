"""`adalink init`: writes a task file for the user's own data, and shows what the model will see of them."""

import argparse
import re
import shlex
from typing import TYPE_CHECKING

from etils import epath

from adalink_jax.cli.arguments import option, plain_parser, register, table, table_console
from adalink_jax.cli.init_examples import MADE_BY
from adalink_jax.errors import UserError
from adalink_jax.files import locks
from adalink_jax.files.places import expanded, path_of

if TYPE_CHECKING:
    from rich.console import Console

    from adalink_jax.cli.base_proposal import Prepared, Request


def init(argv: list[str]) -> int:
    """Runs `adalink init`; returns 1 if a run would refuse the data."""
    options = _parser().parse_args(argv)
    options.data = expanded(options.data)
    name = _name(options.data)
    out = path_of(options.out or f"{name}.gin")
    if not out.parent.is_dir():
        raise UserError(f"The parent folder of {out} does not exist; create it first.")
    with locks.hold_file(out) as was_killed:
        if options.force and out.exists():
            _check_own(out)
        else:
            for file in (out, *_sheets(out)):
                if file.exists() and not (
                    file != out and (was_killed or _is_own_page(file))
                ):  # which writes a sheet first
                    raise UserError(
                        f"{file} exists already; name another file with --out, or overwrite it with --force."
                    )
        try:
            return _write(options, name, out)
        finally:
            if not out.exists():
                for sheet in _sheets(out):
                    sheet.unlink(missing_ok=True)


def _check_own(out: epath.Path) -> None:
    """Raises:
    UserError: if `adalink init` did not write the file.
    """
    if not out.read_bytes().startswith(f"# {MADE_BY} ".encode()):
        raise UserError(
            f"{out} is not a file of adalink init, so --force does not overwrite it; name another with --out."
        )


def _is_own_page(sheet: epath.Path) -> bool:
    return sheet.suffix == ".html" and MADE_BY.encode() in sheet.read_bytes()[:100]


def _sheets(out: epath.Path) -> list[epath.Path]:
    """The files of a sheet of pictures, and of texts."""
    return [out.with_name(f"{out.stem}.sheet.{kind}") for kind in ("png", "html")]


def _write(options: argparse.Namespace, name: str, out: epath.Path) -> int:
    """Writes the files and shows what is in them; returns the exit status."""
    register()
    from adalink_jax import terminal
    from adalink_jax.cli import base_proposal, init_examples
    from adalink_jax.data.user_files import column_guess

    known = {side: getattr(options, side) for side in ("inputs", "targets", "image", "images", "encoding", "lists")}
    guess = column_guess.guess(options.data, known)
    console = table_console()
    machine = None if options.quick else base_proposal.free_machine()
    request = base_proposal.Request(guess, name, out.stem, options.vocabulary, machine)
    if options.model and not options.base:
        raise UserError("--model is the gin file of a base; name the base with --base.")
    with terminal.progress() as show:
        show("reading the data" if options.quick else "reading the data, and planning the run")
        if options.base:
            chosen = base_proposal.typed_base(options.base, options.model, request)
        else:
            chosen = base_proposal.proposed_base(request)
    draft, doubts = chosen.draft, (*guess.doubts, *chosen.doubts)
    init_examples.show(console, draft, doubts)
    sheet = _sheets(out)[0 if request.has_images else 1]
    if request.has_images:
        init_examples.write_pictures(sheet, draft.loaded, chosen.setup, out.stem)
    else:
        init_examples.write_texts(sheet, draft, out.stem)
    typed = {
        key: value for key, value in vars(options).items() if value and key not in ("data", "out", "force", "quick")
    }
    command = shlex.join([options.data, *(f"--{key}={value}" for key, value in typed.items())])
    draft.write(out, f"{MADE_BY} {command}")
    kind = "pictures" if request.has_images else "texts"
    console.print(f"\nWritten: {out}, and {sheet}, a sheet of {kind}", soft_wrap=True)
    try:
        draft.file_task.refuse(draft.loaded)
    except UserError as e:
        console.print("A run will refuse it as it is:", style="bold red")
        console.print(str(e), soft_wrap=True)
        return 1
    _show_base(console, chosen, request, proposed=not options.base)
    _show_commands(console, chosen, out)
    return 0


def _parser() -> argparse.ArgumentParser:
    return plain_parser(
        "init",
        "Read your own data and write one readable gin file, a task: columns, templates, splits, lengths, metric. Shows examples\n"
        "as the model will see them, lengths, labels, what is wrong with the rows, and the command to type next.\n"
        "DATA is a .csv, .tsv, .jsonl, .json, .parquet, .arrow or .xlsx; a folder with such files for train, dev and test, or that save_to_disk\n"
        "wrote; or a folder of images with a subfolder per class, or with a table metadata.csv or .jsonl.",
        "adalink init reviews.csv --base hf://google/flan-t5-small",
        option("data", metavar="DATA", help="the file or folder; files beside it for other splits are found by name"),
        option("--base", metavar="PATH", help="the base model (one that fits the task, and this machine in an hour)"),
        option("--model", metavar="FILE", help="the base's gin file, if none of gin/models fits it alone"),
        option(
            "--vocabulary",
            metavar="PATH",
            help="'bytes' or a SentencePiece model, if the base holds no vocabulary; 'chat:BASE' for its chat template",
        ),
        option("--inputs", metavar="TEMPLATE", help="'question: {question}', with names of columns in braces"),
        option("--targets", metavar="TEMPLATE", help="what is to be predicted: '{answer}'"),
        option(
            "--lists",
            choices=("alternatives", "labels"),
            help="what lists in the target's column are: any one of the values is right, or all of them apply (multi-label)",
        ),
        option("--image", metavar="TEMPLATE", help="the name of each row's picture: '{photo}', '{id}.jpg'"),
        option("--images", metavar="PATH", help="where the pictures are: a folder, .zip or .tar"),
        option(
            "--encoding",
            metavar="NAME",
            help="of a CSV, TSV or JSON: cp1252, shift_jis, ... (UTF-8, or UTF-16 with its mark)",
        ),
        option("--out", metavar="FILE", help="the gin file (the data's name, in this folder)"),
        option(
            "--quick",
            action="store_true",
            help="leave out the estimate of memory and time, for which the run's programs are compiled; without --base, take the smallest",
        ),
        option(
            "--force",
            action="store_true",
            help="overwrite the gin file, if adalink init wrote it, and its sheet",
        ),
    )


def _name(data: str) -> str:
    """A name for the task: the file's, or its folder's if the file is named after a split."""
    from adalink_jax.data.user_files.table_files import SUFFIXES, split_of

    path = path_of(data).absolute()
    stem = path.name.removesuffix(".gz")
    for suffix in SUFFIXES:
        stem = stem.removesuffix(suffix)
    return re.sub(r"\W+", "_", path.parent.name if split_of(stem) else stem).strip("_").lower() or "task"


# --- output ---


def _show_base(console: "Console", chosen: "Prepared", request: "Request", proposed: bool) -> None:
    """Prints what was proposed, and what its command needs here."""
    from adalink_jax.cli import base_proposal, public_bases

    if proposed:
        others = public_bases.GATED_FOR_TEXT + public_bases.FOR_TEXT
        others = public_bases.FOR_PICTURES if request.has_images else others
        listed = table("base", "parameters", "", right=("parameters",), title="Bases for this task")
        for base in sorted(others, key=lambda base: base.parameters or 0):
            remark = "chosen" if base == chosen.base else ""
            listed.add_row(base.path, f"{(base.parameters or 0) / 1e6:,.0f} M", remark)
        console.print(listed)
        console.print(
            "Take another with --base. The Gemmas are gated: accept their terms on their pages at huggingface.co, then run hf auth login.",
            soft_wrap=True,
        )
    plan = chosen.plan
    if plan is None or request.machine is None or request.machine.accelerator is None:
        return
    minutes = 60 * base_proposal.hours(plan)
    time = "about " + (f"{minutes:,.0f} minutes" if minutes >= 1.5 else "a minute")
    memory = f"{base_proposal.needed_bytes(plan) / 1e9:,.1f} GB of memory"
    console.print(f"\nThe command below takes about {memory} and {time} on {plan.topology}.", soft_wrap=True)
    if not plan.fits:
        console.print(
            "It does not fit into the memory that is free here; take a smaller base, or shorter TASK_FEATURE_LENGTHS.",
            style="bold red",
        )
    elif minutes > 60 * base_proposal.MOST_HOURS:
        console.print("It is quicker with a smaller base (--base), fewer TRAIN_STEPS, or a larger EVAL_PERIOD.")


def _show_commands(console: "Console", chosen: "Prepared", out: epath.Path) -> None:
    """Prints the commands that train an adapter, score it and use it."""
    from adalink_jax.cli.base_proposal import shell_text

    run = f"runs/{out.stem}"
    files = [x for x in chosen.command if x.startswith("--gin_file")]
    files.insert(2, f"--gin_file={out}")
    settings = [x for x in chosen.command if x not in files]
    evaluate = (f"--gin_file={run}/config.gin", f"--gin.INITIAL_ADAPTER_PATH='{run}/adapter'")
    console.print("\nTo train an AdaLink on it, and to score the adapter again:", style="bold")
    console.print("  " + " ".join(["adalink train", *map(shell_text, files)]) + " \\", soft_wrap=True)
    console.print("    " + " ".join(map(shell_text, settings)), soft_wrap=True)
    console.print("  " + " ".join(["adalink eval", *map(shell_text, evaluate)]), soft_wrap=True)
    console.print("Then, for rows without targets, or in Python (docs/predict.md):", style="bold")
    console.print(f"  adalink infer new.csv predictions.jsonl --run {shell_text(run)}", soft_wrap=True)
    console.print(f"  adalink_jax.Predictor({run!r})", soft_wrap=True)
