"""Commands on base models: inspect, convert, compare with transformers, and export an adapter."""

import argparse
import json
import re
import shlex
from typing import TYPE_CHECKING

from adalink_jax import configuration
from adalink_jax.cli.arguments import bytes_bar, gin_parser, option, parse, plain_parser, register, table, table_console
from adalink_jax.cli.stored_as import dequantised_row, dtype_of, storage_of, stored_as
from adalink_jax.errors import CheckpointError, UserError
from adalink_jax.files.base_formats import FORMATS, QUANTISED
from adalink_jax.files.places import path_of
from adalink_jax.files.whole_file import write_text

if TYPE_CHECKING:
    from adalink_jax import checkpoints
    from adalink_jax.interop import Comparison

WIDTH = 120  # of the output if it is no terminal: enough for the names of leaves


def inspect(argv: list[str]) -> int:
    """`adalink inspect`."""
    parser = plain_parser(
        "inspect",
        "Show a base model's checkpoint: its format, leaves, sizes, dtypes, fingerprint, and the shipped gin file that\n"
        "describes it. Values are read only for the fingerprint.",
        "adalink inspect hf://google/flan-t5-small",
        option("path", help="a folder (native, Hugging Face, t5x), hf://OWNER/NAME[@revision] or bundled:NAME"),
        option("--json", action="store_true", help="print everything, with every leaf, as one JSON object"),
        option("--no_fingerprint", action="store_true", help="do not read values"),
    )
    options = parser.parse_args(argv)
    register()
    from adalink_jax import checkpoints
    from adalink_jax.serving import shipped

    source = checkpoints.open_source(options.path)
    mark = None
    if not options.no_fingerprint:
        with bytes_bar("fingerprint", source.nbytes) as on_bytes:
            mark = checkpoints.fingerprint_of_source(checkpoints.counted(source, on_bytes))
        if source.fingerprint not in (None, mark):
            raise CheckpointError(
                f"{options.path} does not have the fingerprint that it states; copy or write it again."
            )
    facts = {
        "path": options.path,
        "kind": source.kind,
        "name": source.name,
        "parameters": source.parameters,
        "bytes": source.nbytes,
        "dtypes": sorted({dtype_of(leaf) for leaf in source.leaves.values()}),
        "precision": source.precision,
        "parent": source.parent,
        "sizes": checkpoints.config_fields(source),
        "fits": list(shipped.fitting_models(source)),
        "fingerprint": mark,
    }
    if options.json:
        leaves = {
            name: {"shape": leaf.shape, "dtype": dtype_of(leaf), "origin": leaf.origin}
            for name, leaf in source.leaves.items()
        }
        print(json.dumps(facts | {"leaves": leaves}))
        return 0
    from rich import filesize

    _print_leaves(source)
    sizes = ", ".join(f"{key} {value}" for key, value in facts["sizes"].items())
    none = "no shipped model; write the model's sizes into your own gin file"
    print_facts(
        ("kind", source.kind),
        ("name", source.name),
        ("parameters", f"{source.parameters:,}"),
        ("stored as", f"{stored_as(source)}, {filesize.decimal(source.nbytes)}"),
        *([("made from", str(source.parent))] if source.precision else []),
        ("sizes", sizes or "unknown: its leaves keep their own names; CHECKPOINT_RENAMES maps them to this package's"),
        ("fits", ", ".join(facts["fits"]) or none),
        ("fingerprint", mark or "not computed"),
    )
    return 0


def convert(argv: list[str]) -> int:
    """`adalink convert`."""
    parser = gin_parser(
        "convert",
        "Write a base model in another format, leaf by leaf, and check that it reads back with the same values.\n"
        + "\n".join(f"  {name:<7} {text}" for name, text in FORMATS.items())
        + "\nint8, fp8, int4 and nf4 quantise the kernels (native alone; docs/quantised.md).",
        "adalink convert hf://google/flan-t5-small bases/flan_t5_small --to native --dtype bfloat16",
        option("source", help="a folder (native, Hugging Face, t5x), hf://OWNER/NAME or bundled:NAME"),
        option("destination", help="a new folder; for t5x name it checkpoint_N, N being the step"),
        option("--to", required=True, choices=tuple(FORMATS)),
        option(
            "--dtype",
            choices=("float32", "bfloat16", *QUANTISED),
            help="how the values are stored; by default as the source's (of a quantised base, float32)",
        ),
        option("--block", type=int, metavar="N", help="how many inputs of a kernel share a scale, as QUANTISED_BLOCK"),
        option(
            "--exact",
            nargs="*",
            metavar="RULE",
            help="what is not quantised, as QUANTISED_EXACT: parts of paths such as decoder/logits_dense; by default token_embedder",
        ),
    )
    flags, options = _parse(parser, argv)
    storage = storage_of(options.to, options.dtype, options.block, options.exact)
    register()
    from adalink_jax import checkpoints
    from adalink_jax.serving import shipped

    source = checkpoints.open_source(options.source)
    if flags.files or options.to == "hf":
        source = shipped.completed_source(source, flags)
        configuration.check_all_used(flags)
    passes = checkpoints.PASSES + (storage is not None)
    dtype = options.dtype if storage is None else None
    with bytes_bar(f"to {options.to}", passes * source.nbytes) as on_bytes:
        mark = checkpoints.convert(source, options.destination, options.to, dtype, on_bytes, storage)
    stored = [] if storage is None else [("stored as", stored_as(checkpoints.open_source(options.destination)))]
    print_facts(
        ("wrote", f"{options.destination}: {FORMATS[options.to]}"),
        ("from", f"{options.source}: {source.kind}"),
        ("parameters", f"{source.parameters:,}"),
        *stored,
        *dequantised_row(source.precision),
        ("fingerprint", mark),
        ("read back", "the same fingerprint"),
    )
    return 0


def verify_base(argv: list[str]) -> int:
    """`adalink verify-base`; exits with 1 if the numbers differ."""
    parser = gin_parser(
        "verify-base",
        "Compare a base model with transformers in float32, on 20 prompts: tokens, pixels, logits, likelihoods, greedy and\n"
        "beam outputs. transformers uses the folder's own tokenizer, image processor, ids and generation settings. Needs\n"
        "memory for one float32 copy.",
        "adalink verify-base hf://google/flan-t5-small --report report.html",
        option("path", help="a folder (native, Hugging Face, t5x) or hf://OWNER/NAME[@revision]"),
        option(
            "--reference", metavar="HF", help="Hugging Face folder of the same model; by default PATH, if it is one"
        ),
        option(
            "--vocabulary", metavar="PATH", help="a spiece.model, 'bytes', or 'chat:FOLDER'; by default the reference's"
        ),
        option(
            "--report",
            metavar="FILE.html",
            help="also compare bfloat16, train an adapter for 20 steps, export it both ways, and write one page with every\n"
            "difference, versions and fingerprints, to be sent to the project",
        ),
    )
    flags, options = _parse(parser, argv)
    if options.report is not None and not options.report.endswith(".html"):
        raise UserError(f"{options.report!r} must end in .html.")
    register()
    from adalink_jax import checkpoints, interop
    from adalink_jax.data import load_vocabulary
    from adalink_jax.serving import shipped

    if options.report is not None:
        # Now, rather than after the comparison.
        path_of(options.report).parent.mkdir(parents=True, exist_ok=True)
    source = checkpoints.open_source(options.path)
    if not checkpoints.sizes_of(source.shapes):
        raise CheckpointError(f"{options.path} is not a known language model ({source.kind}); give a T5.")
    if options.reference is None and not source.config:
        raise CheckpointError(
            f"{options.path} is a {source.kind}; give the Hugging Face folder of the same model with --reference."
        )
    source = shipped.completed_source(source, flags)
    configuration.check_all_used(flags)
    reference = options.reference or options.path
    checkpoints.folder_of(reference, must_exist=True)
    vocabulary = load_vocabulary(options.vocabulary or reference)
    verification = interop.verify_base(source, reference, vocabulary, bfloat16=options.report is not None)
    checks, agrees = verification.checks, verification.agrees
    if options.report is not None:
        from adalink_jax.interop import verify_report

        adaptation = None
        if not any(name.startswith("projection/") for name in source.leaves):  # reads text alone
            adaptation = verify_report.adapt(source, reference, vocabulary)
            checks, agrees = [*checks, *adaptation.checks], agrees and all(x.passed for x in adaptation.checks)
        command = shlex.join(["adalink", "verify-base", *argv])
        page = verify_report.make(source, reference, verification, adaptation, command)
        write_text(path_of(options.report), page.html())
    _print_comparison(verification.rows)
    marks = {True: "", False: "DIFFERENT: ", None: ""}
    print_facts(
        *((check.name, marks[check.passed] + check.finding) for check in checks),
        (
            "result",
            f"{options.path} {'gives' if agrees else 'does NOT give'} the numbers of transformers with {reference}",
        ),
        *([("page", f"{options.report}; please send it to the project")] if options.report else []),
    )
    return 0 if agrees else 1


def export(argv: list[str]) -> int:
    """`adalink export`."""
    parser = gin_parser(
        "export",
        "Write a text adapter for transformers.\n"
        "  hf     the base as a Hugging Face folder with the adapter folded into the encoder's embedding table; computes\n"
        "         the logits of one input for its self-check, and needs memory for one copy of the base\n"
        "  torch  the adapter, and a PyTorch module that hooks it into the base and switches between adapters",
        "adalink export runs/mine/adapter exports/mine --to hf --base hf://google/flan-t5-small",
        option("adapter", help="an adapter's folder"),
        option("destination", help="a new folder"),
        option("--to", required=True, choices=("hf", "torch")),
        option("--base", metavar="PATH", help="hf: the base that the adapter was trained on"),
        option("--dtype", choices=("float32", "bfloat16"), help="hf: dtype of all values; by default the base's"),
    )
    flags, options = _parse(parser, argv)
    if (options.to == "hf") != (options.base is not None) or (options.to == "torch" and (options.dtype or flags.files)):
        parser.error("--to hf needs --base; --to torch takes neither --base nor --dtype nor gin files")
    register()
    from adalink_jax import checkpoints, interop
    from adalink_jax.serving import shipped

    if options.to == "torch":
        interop.export_hook(options.adapter, options.destination)
        print_facts(
            ("wrote", options.destination),
            ("use", f"see README.md there; {interop.HOOK_MODULE} is the module to import"),
        )
        return 0
    source = checkpoints.open_source(options.base)
    source = shipped.completed_source(source, flags)
    configuration.check_all_used(flags)
    with bytes_bar("to hf", 2 * source.nbytes) as on_bytes:
        changes = interop.export_folded(options.adapter, source, options.destination, options.dtype, on_bytes)
    print_facts(
        ("wrote", f"{options.destination}: the base with the folded adapter, for transformers 5"),
        *dequantised_row(source.precision),
        ("logits", f"the adapter changes them by {changes['adapter']:.1e} of their spread, rounding the stored table by "
                   f"{changes['rounding']:.1e}"),
        ("check", f"python {options.destination}/self_check.py (with the transformers that serves it)"),
    )  # fmt: skip
    return 0


def _print_comparison(rows: "list[Comparison]") -> None:
    """One row per prompt."""
    from rich import box

    headings = ("prompt", "transformers", "adalink-jax", "difference")
    compared = table(*headings, right=("difference",), box=box.SIMPLE_HEAD)
    for row in rows:
        output = "the same" if row.same else row.output
        compared.add_row(row.prompt, row.reference, output, f"{row.difference:.1e}")
    table_console(WIDTH).print(compared)


def _parse(parser: argparse.ArgumentParser, argv: list[str]) -> tuple[configuration.GinFlags, argparse.Namespace]:
    """gin's flags and the command's options; refuses bindings without the model's file that they belong to."""
    flags, options = parse(parser, argv)
    if flags.bindings and not flags.files:
        parser.error(f"--gin.{flags.bindings[0][0]} needs --gin_file with the model's file")
    return flags, options


def print_facts(*rows: tuple[str, str]) -> None:
    """Prints two columns: a label, and its value."""
    from rich.table import Table

    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True, style="bold")
    facts.add_column(overflow="fold")
    for row in rows:
        facts.add_row(*row)
    table_console(WIDTH).print(facts)


def _print_leaves(source: "checkpoints.Source") -> None:
    """Prints every leaf; equal leaves of several layers share a line."""
    from rich import box

    grouped: dict[tuple[str, str, str], int] = {}
    for name, leaf in source.leaves.items():
        key = (re.sub(r"layers_\d+", "layers_*", name), " x ".join(map(str, leaf.shape)), dtype_of(leaf))
        grouped[key] = grouped.get(key, 0) + 1
    headings = ("name", "shape", "stored as", "count")
    leaves = table(*headings, right=("count",), title=source.path, box=box.SIMPLE_HEAD)
    for (name, shape, dtype), count in grouped.items():
        leaves.add_row(name, shape, dtype, str(count))
    table_console(WIDTH).print(leaves)
