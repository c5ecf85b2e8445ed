"""Commands on configurations: train, evaluate, count. Each parses its flags and gin files, calls one function, prints."""

import argparse
import ast
import contextlib
import json
from collections.abc import Iterator, Mapping

from adalink_jax import configuration
from adalink_jax.cli.arguments import (
    SAME_BITS,
    add_processes,
    add_seqio,
    gin_parser,
    option,
    parse,
    processes,
    register,
    use_seqio,
)
from adalink_jax.configuration import GinFlags
from adalink_jax.configuration.requirements import DATA, MODEL, RUN


def _parse(parser: argparse.ArgumentParser, argv: list[str]) -> tuple[GinFlags, argparse.Namespace]:
    """gin's flags, and the command's own with those of seqio and of jobs of several processes."""
    add_seqio(parser)
    add_processes(parser)
    return parse(parser, argv)


@contextlib.contextmanager
def _configured(
    flags: GinFlags, options: argparse.Namespace, needed: Mapping[str, str], files: tuple[str, ...] = (), **how: bool
) -> Iterator[None]:
    """Joins the job's processes and loads the configuration, which must bind the `needed` parameters."""
    with processes(options):
        from adalink_jax.parallel import compiler_settings

        register()
        use_seqio(options)
        configuration.load(flags, extra_files=files, **how)
        configuration.require(dict(needed))
        configuration.check_working_folder(flags)
        configuration.check_reachable(flags, *(["train"] if needed.keys() >= RUN.keys() else []))
        compiler_settings.set_environment()
        yield


def train(argv: list[str], name: str = "train", files: tuple[str, ...] = ()) -> int:
    """`adalink train`; with `files` of its own, `adalink quickstart`."""
    parser = gin_parser(
        name,
        "Train the parameters that TRAINABLE matches, or resume the run in MODEL_DIR.\n"
        "Run files (gin/runs/*.gin) list at their head what must be set.",
        "adalink train --gin_file=gin/runs/quickstart.gin --gin.TRAIN_STEPS=300 --gin.MODEL_DIR=\"'runs/short'\"",
        SAME_BITS,
        option(
            "--overfit",
            type=int,
            metavar="N",
            help="train and score on the same N examples, to see whether a set-up can learn at all",
        ),
        *([option("--model_dir", metavar="DIR", help="folder of the run (runs/quickstart)")] if files else []),
    )
    flags, options = _parse(parser, argv)
    if not files and not flags.files:
        parser.error("give at least one --gin_file, such as --gin_file=gin/runs/quickstart.gin")
    if options.overfit is not None:
        flags = flags.binding("DatasetConfig.overfit", repr(options.overfit))
    if getattr(options, "model_dir", None):
        flags = flags.binding("MODEL_DIR", repr(options.model_dir))

    with _configured(flags, options, MODEL | DATA | RUN, files):
        from adalink_jax.training import run

        run.train(**configuration.train_options(flags))  # gin gives the other arguments
    return 0


def quickstart(argv: list[str]) -> int:
    """`adalink train` with the shipped `gin/runs/quickstart.gin`."""
    return train(argv, "quickstart", ("gin/runs/quickstart.gin",))


def eval(argv: list[str]) -> int:
    """`adalink eval`."""
    parser = gin_parser(
        "eval",
        "Score a base model, with an adapter (INITIAL_ADAPTER_PATH) or without. A run's config.gin is a good start.",
        "adalink eval --gin_file=runs/quickstart/config.gin --gin.INITIAL_ADAPTER_PATH=\"'runs/quickstart/adapter'\"\n"
        "  adalink eval --gin_file=runs/quickstart/config.gin --checkpoints runs/quickstart --split validation",
        option("--split", default="test", choices=("train", "validation", "test")),
        option("--json", action="store_true", help="print the scores as one JSON object"),
        option(
            "--output_dir", metavar="DIR", help="write the scores (metrics.jsonl, TensorBoard) and sample images there"
        ),
        option(
            "--checkpoints",
            metavar="DIR",
            help="score each checkpoint that the run in DIR keeps; with --output_dir, those without scores there",
        ),
    )
    flags, options = _parse(parser, argv)
    with _configured(flags, options, MODEL | DATA, require_all=False):
        from adalink_jax import parallel
        from adalink_jax.training.setup import Setup
        from adalink_jax.training.without_training import evaluate

        setup = Setup()  # pyright: ignore[reportCallIssue]  gin passes the arguments
        settings = configuration.used_settings
        scores_of = evaluate(setup, options.split, options.output_dir, options.checkpoints, settings=settings)
        configuration.check_all_used(flags)
        if not parallel.is_first():
            return 0
        if options.json:
            print(json.dumps(scores_of if options.checkpoints else scores_of[0]))
            return 0
        for step, scores in scores_of.items():
            prefix = f"step {step}: " if options.checkpoints else ""
            for metric, value in scores.items():
                print(f"{prefix}{metric} on {options.split}: {value:.4f}")
    return 0


def cache_vision(argv: list[str]) -> int:
    """`adalink cache-vision`."""
    parser = gin_parser(
        "cache-vision",
        "Compute the frozen vision tower's outputs once for every image of a task, in the folder VISION_CACHE. Takes the flags\n"
        "of `adalink train`, which then reads the cache; rerun to resume. CACHE_DTYPE is the dtype of the stored values.",
        "adalink cache-vision --gin_file=gin/runs/quickstart.gin --gin.VISION_CACHE=\"'runs/vision'\"",
    )
    flags, options = _parse(parser, argv)
    with _configured(flags, options, MODEL | DATA, require_all=False):
        from adalink_jax import parallel
        from adalink_jax.training import without_training
        from adalink_jax.training.setup import Setup

        cache = without_training.cache_vision(Setup())  # pyright: ignore[reportCallIssue]  gin's
        if parallel.is_first():
            (rows, width), dtype = cache.tower.shape, cache.tower.dtype
            print(f"{len(cache):,} images in {cache.folder}: {rows} x {width} values of {dtype} each")
    return 0


def params(argv: list[str]) -> int:
    """`adalink params`."""
    parser = gin_parser(
        "params",
        "Count parameters, trainable and frozen. Nothing is allocated: 11 B parameters take seconds.",
        "adalink params --gin_file=gin/models/t5_1_1_xxl.gin --gin_file=gin/adapters/adalink.gin --json",
        option("--json", action="store_true", help="print the counts and every leaf as one JSON object"),
    )
    flags, options = parse(parser, argv)
    register()
    configuration.load(flags, require_all=False)
    configuration.require(MODEL)
    from adalink_jax import terminal
    from adalink_jax.adapters import AdaptedModel
    from adalink_jax.training import parameter_tables, setup

    expressions = ast.literal_eval(configuration.bindings().get("Setup.trainable", "()"))
    trainable, frozen = setup.split_abstract(AdaptedModel(), expressions)  # pyright: ignore[reportCallIssue]  gin's
    if options.json:
        counts = {"trainable": parameter_tables.count(trainable), "frozen": parameter_tables.count(frozen)}
        leaves = parameter_tables.leaves(trainable, frozen)
        print(json.dumps({"total": sum(counts.values()), **counts, "leaves": leaves}))
    else:
        console = terminal.console()
        console.print(parameter_tables.leaf_table(trainable, frozen))
        console.print(parameter_tables.parameter_table(trainable, frozen))
    return 0
