"""`adalink adapters`: show an adapter's folder, verify it, fold it into its base, extract one from a run of t5x."""

import argparse
import dataclasses
import json
import math
import sys
from typing import TYPE_CHECKING

from adalink_jax import configuration
from adalink_jax.cli.arguments import bytes_bar, gin_parser, option, parse, plain_parser, register
from adalink_jax.cli.checkpoint_commands import print_facts
from adalink_jax.cli.stored_as import dequantised_row
from adalink_jax.errors import CheckpointError

if TYPE_CHECKING:
    from adalink_jax import checkpoints

_TOLERANCE = 1e-4  # of the spread of the logits, between the adapter and what it was folded into


def adapters(argv: list[str]) -> int:
    """`adalink adapters`: show, verify, fold or extract."""
    parts = {"show": show, "verify": verify, "fold": fold, "extract": extract}
    parser = plain_parser(
        "adapters",
        "Work with adapter folders, which training runs and PEFT write.\n"
        "  show     print what a folder holds\n"
        "  verify   read all of a folder, and compare it with its base\n"
        "  fold     write the base with the adapter folded into it\n"
        "  extract  write the adapter of a run of t5x as a folder",
        "adalink adapters show runs/quickstart/adapter",
        option("part", choices=tuple(parts)),
    )
    options = parser.parse_args(argv[:1])
    return parts[options.part](argv[1:])


def show(argv: list[str]) -> int:
    """`adalink adapters show`."""
    description = "Print what an adapter's folder holds."
    parser = plain_parser(
        "adapters show",
        description,
        "adalink adapters show runs/quickstart/adapter",
        option("path", help="an adapter's folder"),
        option("--json", action="store_true", help="print everything, with every leaf, as one JSON object"),
    )
    options = parser.parse_args(argv)
    register()
    from adalink_jax import checkpoints

    leaves, facts = checkpoints.open_adapter(options.path)
    shapes = {name: list(leaf.shape) for name, leaf in sorted(leaves.items())}
    count = sum(math.prod(leaf.shape) for leaf in leaves.values())
    if options.json:
        print(json.dumps({"parameters": count, "leaves": shapes, **facts.to_json()}))
        return 0
    parameters = ("parameters", f"{count:,} in {len(leaves)} leaves")
    print_facts(("adapter", options.path), *_rows(facts), parameters)
    print_facts(*((name, " x ".join(map(str, shape))) for name, shape in shapes.items()))
    return 0


def verify(argv: list[str]) -> int:
    """`adalink adapters verify`."""
    parser = gin_parser(
        "adapters verify",
        "Read all of an adapter and check that it is what was written, by its digests, that every value is finite, that its\n"
        "method and settings are valid, and, with --base, that it was trained on that base. A failed check is one sentence and exit status 2.\n"
        "Where it was trained on a quantised form of that base, and for each --precision, the logits of random inputs are compared with\n"
        "those on its own precision (docs/quantised.md).",
        "adalink adapters verify runs/quickstart/adapter --base bundled:pali_nano_instruct",
        option("path", help="an adapter's folder"),
        option("--base", metavar="PATH", help="the base that it should have been trained on"),
        option(
            "--precision",
            nargs="+",
            default=[],
            metavar="P",
            help="compare outputs on these forms of the exact base: exact, int8, fp8, int4, nf4, or with a block, int4/32",
        ),
        option("--exact", nargs="*", metavar="RULE", help="QUANTISED_EXACT of these forms, if it is not the default"),
    )
    flags, options = parse(parser, argv)
    if options.precision and options.base is None:
        parser.error("--precision needs --base with the exact base")
    register()
    from adalink_jax import checkpoints
    from adalink_jax.adapters import make_adapter

    leaves, facts = checkpoints.read_adapter(options.path)
    make_adapter(facts.method, facts.settings)
    base = [("base", "not compared; give it with --base")]
    if options.base is not None:
        base = _compare(flags, options, facts)
    values = f"{sum(leaf.size for leaf in leaves.values()):,}, all finite"
    digests = dict(_rows(facts))["digests"]
    print_facts(("adapter", options.path), ("values", values), ("digests", digests), ("method", facts.summary), *base)
    return 0


def fold(argv: list[str]) -> int:
    """`adalink adapters fold`; exits with 1 if the folded base and the adapter have different logits."""
    parser = gin_parser(
        "adapters fold",
        "Fold an adapter into its base and write a native base model that needs no adapter. A text adapter becomes the\n"
        "encoder's own embedding table (any phi), an image adapter goes into the visual projection (phi identity), LoRA and\n"
        "norm tuning into the kernels and scales. The logits of a random batch are compared. The model's gin file gives the\n"
        "settings that shapes do not show.",
        "adalink adapters fold runs/quickstart/adapter bases/folded --base bundled:pali_nano_instruct \\\n"
        "    --gin_file=gin/models/pali_nano.gin",
        option("path", help="an adapter's folder"),
        option("destination", help="a new folder"),
        option("--base", metavar="PATH", required=True, help="the base that the adapter was trained on"),
    )
    flags, options = parse(parser, argv)
    if not flags.files:
        parser.error("add the model's file, such as --gin_file=gin/models/pali_nano.gin")
    register()
    from adalink_jax.serving import shipped
    from adalink_jax.training.fold import fold_base

    backbone = shipped.configured_backbone(flags)
    configuration.check_all_used(flags)
    folded = fold_base(options.path, backbone, options.base, options.destination)
    config = type(backbone.config).__name__
    more = (
        f" --gin.{config}.encoder_embedding=True"
        if folded.encoder_embedding > backbone.config.encoder_embedding
        else ""
    )
    print_facts(
        ("wrote", f"{options.destination}: a native base model"),
        *dequantised_row(folded.precision),
        ("fingerprint", folded.fingerprint),
        (
            "logits",
            f"the adapter changes them by {folded.adapter:.1e} of their spread, folding by {folded.folding:.1e}",
        ),
        ("use", f"""--gin.INITIAL_CHECKPOINT_PATH="'{options.destination}'"{more}"""),
    )
    if folded.folding > _TOLERANCE:
        print(f"The folded base does NOT have the adapter's logits (allowed: {_TOLERANCE:.0e}).", file=sys.stderr)
        return 1
    return 0


def extract(argv: list[str]) -> int:
    """`adalink adapters extract`."""
    parser = plain_parser(
        "adapters extract",
        "Write the adapter of a run of t5x (gin/t5x/finetune.gin) as an adapter's folder. The base is read once, to compute\n"
        "its fingerprint.",
        "adalink adapters extract gs://bucket/run adapters/mine",
        option("path", help="MODEL_DIR, for its last checkpoint, or MODEL_DIR/checkpoint_N"),
        option("destination", help="a new folder"),
    )
    options = parser.parse_args(argv)
    register()
    from adalink_jax import checkpoints

    run = checkpoints.open_t5x_run(options.path)
    with bytes_bar("fingerprint", run.base.nbytes) as on_bytes:
        run = dataclasses.replace(run, base=checkpoints.counted(run.base, on_bytes))
        facts = checkpoints.extract_adapter(run, options.destination)
    print_facts(("wrote", f"{options.destination}, from {run.path}"), *_rows(facts))
    print_facts(("use", f"""--gin.INITIAL_ADAPTER_PATH="'{options.destination}'\""""))
    return 0


def _rows(facts: "checkpoints.AdapterFacts") -> list[tuple[str, str]]:
    """The facts that people look for, as `print_facts` takes them."""
    from adalink_jax import checkpoints

    mark = facts.base.fingerprint
    form = f" in {facts.base.precision}" if facts.base.precision else ""
    rows = {
        "method": facts.summary,
        "base": f"{facts.base.name}{form}, "
        + (f"fingerprint {mark[:12]}" if mark else "its fingerprint is not stated"),
        "task": facts.task,
        "step": facts.step,
        "metrics": ", ".join(f"{name} {value:g}" for name, value in (facts.metrics or {}).items()) or None,
        "versions": ", ".join(f"{name} {version}" for name, version in (facts.versions or {}).items()) or None,
        "digests": "of all tensors, equal to those stated" if facts.verified else f"none, {checkpoints.UNVERIFIED}",
    }
    return [(label, str(value)) for label, value in rows.items() if value is not None]


def _compare(
    flags: configuration.GinFlags, options: argparse.Namespace, facts: "checkpoints.AdapterFacts"
) -> list[tuple[str, str]]:
    """Refuses another base than the adapter's; returns the rows that `verify` prints, with outputs on other precisions of the base."""
    from adalink_jax import checkpoints

    source = checkpoints.open_source(options.base)
    with bytes_bar("fingerprint", source.nbytes) as on_bytes:
        reference = checkpoints.reference_of_source(checkpoints.counted(source, on_bytes))
    remedy = "it cannot be used with this base, so give its own with --base"
    checkpoints.check_base(options.path, facts, reference, remedy, allow_other_precision=True)
    is_own = facts.base.fingerprint in (None, reference.fingerprint)
    form = f", in {source.precision}" if source.precision else ""
    trained_on = f"it in {facts.base.precision}" if facts.base.precision else "the exact base"
    trained = "" if is_own else f"; the adapter was trained on {trained_on}"
    compared = f"{options.base}{form}, fingerprint {str(reference.fingerprint)[:12]}{trained}"
    rows = [("base", compared if facts.base.fingerprint else "not compared: the file does not state its base")]
    if is_own and not options.precision:
        return rows
    if source.precision is not None:
        wanted = " ".join(options.precision or [source.precision])
        raise CheckpointError(
            f"{options.base} is stored in {source.precision}, from which no other precision can be made; to compare outputs give the exact "
            f"base, whose fingerprint is {str(source.parent)[:12]}, with --base, and --precision {wanted}."
        )
    return rows + _effects(flags, options, () if is_own else ("exact",))


def _effects(
    flags: configuration.GinFlags, options: argparse.Namespace, precisions: tuple[str, ...]
) -> list[tuple[str, str]]:
    """Rows that say how far outputs are on each precision, beside those requested."""
    from adalink_jax.models.quantised import TABLE
    from adalink_jax.serving import shipped
    from adalink_jax.serving.opening import model_file
    from adalink_jax.training.precision_effect import precision_effects

    if not flags.files:
        file = model_file(options.base, "add the model's file with --gin_file")
        flags = configuration.GinFlags((file,))
    backbone = shipped.configured_backbone(flags)
    configuration.check_all_used(flags)
    rules = TABLE if options.exact is None else tuple(options.exact)
    wanted = (*precisions, *options.precision)
    own_precision, effects = precision_effects(options.path, backbone, options.base, wanted, rules)
    return [
        ("outputs", f"on random inputs, compared with those on the adapter's own precision, {own_precision}"),
        *(
            (
                f"on {effect.precision}",
                f"logits differ by {effect.difference:.2g} of their spread; the most likely token is the same at {effect.agreement:.1%} of "
                f"the positions",
            )
            for effect in effects
        ),
    ]
