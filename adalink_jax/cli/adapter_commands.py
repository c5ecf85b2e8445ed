"""`adalink adapters`: look at an adapter's files, check them, fold them into their base, take them out of a run of t5x."""

import argparse
import dataclasses
import json
import math
import sys

from adalink_jax import checkpoints, configuration
from adalink_jax.cli.arguments import bytes_bar, gin_parser, plain_parser, register
from adalink_jax.cli.checkpoint_commands import print_facts
from adalink_jax.errors import UserError
from adalink_jax.serving import shipped

_TOLERANCE = 1e-4  # of the spread of the logits, between the adapter and what it was folded into


def adapters(argv: list[str]) -> int:
    """`adalink adapters`: show, verify, fold or extract."""
    parts = {"show": show, "verify": verify, "fold": fold, "extract": extract}
    parser = argparse.ArgumentParser(
        prog="adalink adapters",
        description="Adapter folders, as a run or PEFT writes them.\n"
        "  show     what one holds\n"
        "  verify   read all of it, and compare it with its base\n"
        "  fold     write its base with the adapter in it\n"
        "  extract  write the adapter of a run of t5x as such a folder",
        epilog="example:\n  adalink adapters show runs/quickstart/adapter",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=tuple(parts))
    options = parser.parse_args(argv[:1])
    return parts[options.part](argv[1:])


def show(argv: list[str]) -> int:
    """`adalink adapters show`."""
    parser = plain_parser("adapters show", "What an adapter's folder holds. No value is read.",
                          "adalink adapters show runs/quickstart/adapter")  # fmt: skip
    parser.add_argument("path", help="an adapter's folder")
    parser.add_argument("--json", action="store_true", help="print all of it, with every leaf, as one JSON object")
    options = parser.parse_args(argv)
    register()
    leaves, about = checkpoints.open_adapter(options.path)
    shapes = {name: list(leaf.shape) for name, leaf in sorted(leaves.items())}
    count = sum(math.prod(leaf.shape) for leaf in leaves.values())
    if options.json:
        print(json.dumps({"parameters": count, "leaves": shapes, **about}))
        return 0
    facts = _facts(about) | {"parameters": f"{count:,} in {len(leaves)} leaves"}
    print_facts(("adapter", options.path), *facts.items())
    print_facts(*((name, " x ".join(map(str, shape))) for name, shape in shapes.items()))
    return 0


def verify(argv: list[str]) -> int:
    """`adalink adapters verify`."""
    parser = plain_parser(
        "adapters verify",
        "Read all of an adapter: every value is finite, its method can be made again, and, with --base, it was trained on\n"
        "that base. What is wrong is one sentence and exit status 2.",
        "adalink adapters verify runs/quickstart/adapter --base bundled:pali_nano_instruct",
    )
    parser.add_argument("path", help="an adapter's folder")
    parser.add_argument("--base", metavar="PATH", help="the base that it should be for")
    options = parser.parse_args(argv)
    register()
    from adalink_jax.adapters import make_adapter

    leaves, about = checkpoints.read_adapter(options.path)
    make_adapter(about["method"], about["settings"])
    rows = [("values", f"{sum(leaf.size for leaf in leaves.values()):,}, all finite"), ("method", _method(about))]
    if options.base is None:
        rows.append(("base", "not compared; name it with --base"))
    else:
        rows.append(("base", _compared(options.path, about, options.base)))
    print_facts(("adapter", options.path), *rows)
    return 0


def fold(argv: list[str]) -> int:
    """`adalink adapters fold`; status 1 where the folded base has other logits than the adapter."""
    parser = gin_parser(
        "adapters fold",
        "Write a base with an adapter in it, as a native base model that needs no adapter: the text's in a table of the\n"
        "encoder's own (any phi), the images' in the visual projection (phi identity), LoRA and norm tuning in the kernels and\n"
        "scales. Compares the logits of a random batch. The model's gin file tells what shapes do not.",
        "adalink adapters fold runs/quickstart/adapter bases/folded --base bundled:pali_nano_instruct \\\n"
        "    --gin_file=gin/models/pali_nano.gin",
    )
    parser.add_argument("path", help="an adapter's folder")
    parser.add_argument("destination", help="a new folder")
    parser.add_argument("--base", metavar="PATH", required=True, help="the base that the adapter was trained on")
    flags, rest = configuration.parse_flags(argv)
    options = parser.parse_args(rest)
    if not flags.files:
        parser.error("give the model's file, such as --gin_file=gin/models/pali_nano.gin")
    register()
    from adalink_jax.training.fold import fold_base

    backbone = shipped.configured_backbone(flags)
    if backbone.config.encoder_embedding:
        raise UserError("The base has a folded table already (T5Config.encoder_embedding); fold into the base itself.")
    configuration.check_all_used(flags)
    found = fold_base(options.path, backbone, options.base, options.destination)
    more = " --gin.T5Config.encoder_embedding=True" if found.encoder_embedding else ""
    print_facts(
        ("wrote", f"{options.destination}: a native base model"),
        ("fingerprint", found.fingerprint),
        ("logits", f"the adapter changes them by {found.adapter:.1e} of their spread, folding by {found.folding:.1e}"),
        ("use", f"""--gin.INITIAL_CHECKPOINT_PATH="'{options.destination}'"{more}"""),
    )
    if found.folding > _TOLERANCE:
        print(f"The folded base does NOT have the adapter's logits (allowed: {_TOLERANCE:.0e}).", file=sys.stderr)
        return 1
    return 0


def extract(argv: list[str]) -> int:
    """`adalink adapters extract`."""
    parser = plain_parser(
        "adapters extract",
        "Write the adapter of a run of t5x (gin/t5x/finetune.gin) as an adapter's folder. The base is read once, for its\n"
        "fingerprint.",
        "adalink adapters extract gs://bucket/run adapters/mine",
    )
    parser.add_argument("path", help="MODEL_DIR, for its last checkpoint, or MODEL_DIR/checkpoint_N")
    parser.add_argument("destination", help="a new folder")
    options = parser.parse_args(argv)
    register()
    run = checkpoints.open_t5x_run(options.path)
    with bytes_bar("fingerprint", run.base.nbytes) as on_bytes:
        run = dataclasses.replace(run, base=checkpoints.counted(run.base, on_bytes))
        about = checkpoints.extract_adapter(run, options.destination)
    print_facts(("wrote", f"{options.destination}, from {run.path}"), *_facts(about).items())
    print_facts(("use", f"""--gin.INITIAL_ADAPTER_PATH="'{options.destination}'\""""))
    return 0


def _method(about: dict) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in about["settings"].items())
    return f"{about['method']} ({settings})"


def _facts(about: dict) -> dict[str, str]:
    """What people ask of an adapter."""
    mark = about["base"]["fingerprint"]
    base = f"{about['base']['name']}, " + (f"fingerprint {mark[:12]}" if mark else "which weights, it does not say")
    facts = {"method": _method(about), "base": base}
    for key in ("task", "step"):
        if key in about:
            facts[key] = str(about[key])
    if about.get("metrics"):
        facts["metrics"] = ", ".join(f"{name} {value:g}" for name, value in about["metrics"].items())
    if about.get("versions"):
        facts["versions"] = ", ".join(f"{name} {value}" for name, value in about["versions"].items())
    return facts


def _compared(path: str, about: dict, base: str) -> str:
    source = checkpoints.open_source(base)
    with bytes_bar("fingerprint", source.nbytes) as on_bytes:
        mark = checkpoints.fingerprint_of_source(checkpoints.counted(source, on_bytes))
    checkpoints.check_base(path, about, mark, "it cannot be used here")
    return (
        f"{base}, fingerprint {mark[:12]}" if about["base"]["fingerprint"] else "the file does not say which it is for"
    )
