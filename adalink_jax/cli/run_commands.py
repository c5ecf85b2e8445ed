"""Commands on configurations: train, evaluate, count. Each parses its flags and gin files, calls one function, prints."""

import ast
import json

from adalink_jax import configuration
from adalink_jax.cli.arguments import MODEL, add_processes, add_seqio, gin_parser, processes, register, use_seqio

DATA = {"Setup.dataset": "a task's file, such as --gin_file=gin/tasks/digits.gin"}
RUN = {"train.setup": "a run's file, such as --gin_file=gin/runs/finetune.gin"}


def train(argv: list[str], name: str = "train", files: tuple[str, ...] = ()) -> int:
    """`adalink train`, and with files of its own `adalink quickstart`."""
    parser = gin_parser(
        name,
        "Train what TRAINABLE names, or go on with the run in MODEL_DIR.\n"
        "Run files (gin/runs/*.gin) say at their head what must be set.",
        "adalink train --gin_file=gin/runs/quickstart.gin --gin.TRAIN_STEPS=300 --gin.MODEL_DIR=\"'runs/short'\"",
    )
    if files:
        parser.add_argument("--model_dir", metavar="DIR", help="folder of the run (runs/quickstart)")
    add_seqio(parser)
    add_processes(parser)
    flags, rest = configuration.parse_flags(argv)
    options = parser.parse_args(rest)
    if not files and not flags.files:
        parser.error("give at least one --gin_file, such as --gin_file=gin/runs/quickstart.gin")
    if getattr(options, "model_dir", None):
        flags = flags.binding("MODEL_DIR", repr(options.model_dir))
    with processes(options):
        register()
        use_seqio(options)
        configuration.load(flags, extra_files=files)
        configuration.require(MODEL | DATA | RUN)
        from adalink_jax.training import run

        def config_text() -> str:
            configuration.check_all_used(flags)
            return configuration.operative_config()

        run.train(settings=configuration.used_settings, config_text=config_text)
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
    )
    parser.add_argument("--split", default="test", choices=("train", "validation", "test"))
    parser.add_argument("--json", action="store_true", help="print the scores as one JSON object")
    parser.add_argument(
        "--output_dir", metavar="DIR", help="write scores (metrics.jsonl, TensorBoard) and a picture of samples there"
    )
    parser.add_argument(
        "--checkpoints",
        metavar="DIR",
        help="score each checkpoint that the run in DIR keeps; with --output_dir those that have no scores there yet",
    )
    add_seqio(parser)
    add_processes(parser)
    flags, rest = configuration.parse_flags(argv)
    options = parser.parse_args(rest)
    with processes(options):
        register()
        use_seqio(options)
        configuration.load(flags, require_all=False)
        configuration.require(MODEL | DATA)
        from adalink_jax import parallel
        from adalink_jax.training import run
        from adalink_jax.training.setup import Setup

        found = run.evaluate(
            Setup(), options.split, options.output_dir, options.checkpoints, settings=configuration.used_settings
        )
        configuration.check_all_used(flags)
        if not parallel.is_first():
            return 0
        if options.json:
            print(json.dumps(found if options.checkpoints else found[0]))
            return 0
        for step, scores in found.items():
            at = f"step {step}: " if options.checkpoints else ""
            for metric, value in scores.items():
                print(f"{at}{metric} on {options.split}: {value:.4f}")
        return 0


def cache_vision(argv: list[str]) -> int:
    """`adalink cache-vision`."""
    parser = gin_parser(
        "cache-vision",
        "Compute what the frozen vision tower makes of every image of a task, once, into the folder VISION_CACHE. Takes the\n"
        "flags of `adalink train`, which then reads it; goes on where it was stopped. CACHE_DTYPE is the dtype of what is stored.",
        "adalink cache-vision --gin_file=gin/runs/quickstart.gin --gin.VISION_CACHE=\"'runs/vision'\"",
    )
    add_seqio(parser)
    add_processes(parser)
    flags, rest = configuration.parse_flags(argv)
    options = parser.parse_args(rest)
    with processes(options):
        register()
        use_seqio(options)
        configuration.load(flags, require_all=False)
        configuration.require(MODEL | DATA)
        from adalink_jax import parallel
        from adalink_jax.training import run
        from adalink_jax.training.setup import Setup

        cache = run.cache_vision(Setup())
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
    )
    parser.add_argument("--json", action="store_true", help="total, trainable, frozen, and every leaf")
    flags, rest = configuration.parse_flags(argv)
    options = parser.parse_args(rest)
    register()
    configuration.load(flags, require_all=False)
    configuration.require(MODEL)
    from rich.console import Console

    from adalink_jax.adapters import AdaptedModel
    from adalink_jax.training import parameter_tables, setup

    expressions = ast.literal_eval(configuration.bindings().get("Setup.trainable", "()"))
    trainable, frozen = setup.split_abstract(AdaptedModel(), expressions)
    if options.json:
        counts = {"trainable": parameter_tables.count(trainable), "frozen": parameter_tables.count(frozen)}
        print(
            json.dumps({"total": sum(counts.values()), **counts, "leaves": parameter_tables.leaves(trainable, frozen)})
        )
    else:
        console = Console()
        console.print(parameter_tables.leaf_table(trainable, frozen))
        console.print(parameter_tables.parameter_table(trainable, frozen))
    return 0
