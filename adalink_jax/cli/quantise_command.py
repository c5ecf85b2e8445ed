"""`adalink quantise-check`: what a base in eight bits or four changes, on given inputs."""

import json
from typing import TYPE_CHECKING

from adalink_jax.cli.arguments import option, plain_parser, register, table, table_console
from adalink_jax.errors import UserError
from adalink_jax.files.base_formats import QUANTISED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adalink_jax.serving.quantise_check import QuantiseCheck

ROWS, BATCH = 64, 8


def quantise_check(argv: list[str]) -> int:
    """`adalink quantise-check`."""
    parser = plain_parser(
        "quantise-check",
        "Measure, before anything is trained, what a base in eight bits or four changes: the error of each layer's outputs and\n"
        "of the logits (relative to their spread), the share of output tokens and of whole greedy outputs that stay the same.\n"
        "INPUT is a table as for `adalink infer`, or a .txt file with one input per line.",
        "adalink quantise-check hf://google/flan-t5-small reviews.txt --dtypes int8 int4",
        option("base", metavar="BASE", help="a folder (native, Hugging Face, t5x), hf://OWNER/NAME or bundled:NAME"),
        option("input", metavar="INPUT"),
        option("--inputs", metavar="TEMPLATE", help="'review: {text}', with names of columns in braces"),
        option("--image", metavar="TEMPLATE", help="the file name of each row's image: '{photo}', '{id}.jpg'"),
        option("--images", metavar="PATH", help="where the images are: a folder, .zip or .tar"),
        option("--model", metavar="FILE", help="the base's file of gin/models, if none or several fit; or your own"),
        option("--vocabulary", metavar="PATH", help="the base's vocabulary, if it has none"),
        option("--dtypes", nargs="+", choices=tuple(QUANTISED), default=tuple(QUANTISED), metavar="DTYPE",
               help=f"of {', '.join(QUANTISED)}; by default all"),
        option("--block", type=int, metavar="N", help="how many inputs of a kernel share a scale, as QUANTISED_BLOCK"),
        option("--exact", nargs="*", metavar="RULE", help="what is not quantised, as QUANTISED_EXACT; by default token_embedder"),
        option("--rows", type=int, default=ROWS, metavar="N", help=f"the first N rows of INPUT (default {ROWS})"),
        option("--json", action="store_true", help="print one JSON object"),
    )  # fmt: skip
    options = parser.parse_args(argv)
    for name in ("rows", "block"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise UserError(f"--{name} is {value}; give 1 or more.")
    register()
    from adalink_jax import terminal
    from adalink_jax.models.quantised import TABLE, Storage
    from adalink_jax.serving import quantise_check as checks
    from adalink_jax.serving import rows
    from adalink_jax.serving.opening import open_base

    exact_parts = TABLE if options.exact is None else tuple(options.exact)
    with terminal.progress() as show:
        show("reading the base")
        unrolled = (("SCAN_LAYERS", "False"),)
        _, base = open_base(options.base, options.model, options.vocabulary, unrolled, "--model gin/models/...")
        setup = base.setup
        templates = {name: getattr(options, name) for name in ("inputs", "image", "images")} | {"encoding": None}
        source = rows.of_file(options.input, templates, {}, setup.image_shape is not None, setup.needs_images)
        asks = [ask for ask, _ in zip(source.asks(), range(options.rows))]
        activations = setup.model.backbone.config.dtype
        forms = [Storage(dtype, options.block, exact_parts, activations=activations) for dtype in options.dtypes]
        results = checks.quantise_check(base, asks, forms, BATCH, show)
    if options.json:
        print(json.dumps([vars(result) for result in results]))
    else:
        assert base.loaded is not None
        nbytes = sum(leaf.nbytes for leaf in base.loaded.parameters.frozen.values())
        _print(results, len(asks), options.base, nbytes)
    return 0


def _print(results: "Sequence[QuantiseCheck]", count: int, base: str, nbytes: int) -> None:
    from rich import filesize

    from adalink_jax.serving.quantise_check import LOGITS

    precisions = [result.precision for result in results]
    shown = table("error of the outputs", *precisions, right=precisions)
    add = lambda name, cell: shown.add_row(name, *map(cell, results))
    for name in results[0].errors:
        if name != LOGITS:
            add(name, lambda result, name=name: f"{result.errors[name]:.2%}")
    shown.add_section()
    add(LOGITS, lambda result: f"{result.errors[LOGITS]:.2%}")
    add("same tokens", lambda result: f"{result.tokens:.1%}")
    add("same outputs", lambda result: f"{result.outputs:.1%}")
    add("bytes", lambda result: filesize.decimal(result.nbytes))
    table_console().print(shown)
    print(
        f"{count} inputs. {base} as it is takes {filesize.decimal(nbytes)}. An error is the root mean square of the difference divided "
        f"by the spread of the values; a layer's includes those of the layers before it."
    )
