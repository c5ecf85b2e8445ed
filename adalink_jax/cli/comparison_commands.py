"""Commands of many runs: packs, tuning, comparisons."""

from adalink_jax import configuration
from adalink_jax.cli.arguments import SAME_BITS, gin_parser, parse_gin, register, table
from adalink_jax.configuration import GinFlags
from adalink_jax.experiments.run_configuration import bound_model_dir, load_pack
from adalink_jax.files import locks
from adalink_jax.files.places import check_run_folder, path_of

EXAMPLE = (
    "--gin_file=gin/models/pali_nano.gin --gin_file=gin/adapters/adalink.gin --gin_file=gin/tasks/digits.gin \\\n"
    "    --gin.INITIAL_CHECKPOINT_PATH=\"'bundled:pali_nano_instruct'\" --gin.MIXTURE_OR_TASK_NAME=\"'digits_reverse'\" \\\n"
    "    --gin.TRAIN_STEPS=300 --gin.MODEL_DIR=\"'runs/{name}'\""
)


def _load(name: str, argv: list[str], text: str) -> GinFlags:
    """Parses the arguments, and loads `gin/runs/NAME.gin` and the flags."""
    flags, _ = parse_gin(gin_parser(name, text, f"adalink {name} " + EXAMPLE.format(name=name), SAME_BITS), argv)
    register()
    flags = load_pack(flags, name)
    configuration.check_working_folder(flags)
    return flags


def pack(argv: list[str]) -> int:
    """`adalink pack`."""
    flags = _load(
        "pack",
        argv,
        "Train every combination of LEARNING_RATES, SEEDS and RANKS in one program over one frozen base, each as if trained\n"
        "alone; or resume it. gin/runs/pack.gin is read first; gin/runs/plateau.gin trains each member to its plateau.",
    )
    from adalink_jax.training.packs.run_pack import train_pack

    train_pack(**configuration.train_options(flags))
    return 0


def tune(argv: list[str]) -> int:
    """`adalink tune`."""
    flags = _load(
        "tune",
        argv,
        "Choose the learning rate of one method on validation, with a pack of LEARNING_RATES (by default five around the\n"
        "method's own) and SEEDS. Prints the curve; writes tuned.gin, to be given after the method's file, curve.csv and\n"
        "curve.png. gin/runs/tune.gin is read first.",
    )
    from adalink_jax import terminal
    from adalink_jax.experiments.comparisons.tune import TUNED
    from adalink_jax.experiments.comparisons.tune import tune as run_tuning

    folder = bound_model_dir("train_pack.model_dir")
    tuned, metric = run_tuning(folder, **configuration.train_options(flags))
    columns = ("learning rate", "mean", "seeds")
    curve = table(*columns, "", right=columns, overflow="ellipsis", title=f"{metric} on validation")
    top = max(trial.mean for trial in tuned.trials) or 1.0
    for trial in tuned.trials:
        chosen = trial.learning_rate == tuned.learning_rate
        scores = " ".join(f"{score:.4f}" for score in trial.scores)
        bar = "\u2588" * round(24 * trial.mean / top)
        curve.add_row(f"{trial.learning_rate:g}", f"{trial.mean:.4f}", scores, bar, style="bold" if chosen else None)
    console = terminal.console()
    console.print(curve)
    console.print(f"Chosen: {tuned.learning_rate:g}; --gin_file={folder}/{TUNED} sets it.", soft_wrap=True)
    if tuned.edge:
        console.print(
            f"It is the {tuned.edge} rate tried; a better one may be outside: set LEARNING_RATE to it, and rerun."
        )
    return 0


def compare(argv: list[str]) -> int:
    """`adalink compare`."""
    parser = gin_parser(
        "compare",
        "Compare methods on one task and base: each tuned with equally many trials on validation, trained over the same seeds\n"
        "with an equal budget and to its own plateau, and scored once on test. Resumes where it was stopped.\n"
        "Comparison.methods names the methods; writes comparison.md, comparison.csv and comparison.png into MODEL_DIR.",
        "adalink compare --gin_file=gin/comparisons/digits.gin --gin.MIXTURE_OR_TASK_NAME=\"'digits_reverse'\" \\\n"
        "    --gin.MODEL_DIR=\"'runs/compare'\"",
        SAME_BITS,
    )
    flags, _ = parse_gin(parser, argv, "gin/comparisons/digits.gin")
    register()
    from adalink_jax import terminal
    from adalink_jax.experiments.comparisons import compare as comparisons
    from adalink_jax.reports import comparison_report

    comparison = comparisons.read_comparison(flags)
    console, names = terminal.console(), list(comparison.methods)

    def on_part(method: str, part: str) -> None:
        console.rule(f"{method} ({names.index(method) + 1} of {len(names)}): {part}", align="left")

    check_run_folder(comparison.model_dir)
    folder = path_of(comparison.model_dir)
    with locks.hold_folder(folder):
        compared = comparisons.compare(comparison, flags, on_part)
        files = comparison_report.write(folder, compared)
    console.rule(comparison_report.title(compared), align="left")
    console.print(comparison_report.markdown(compared), soft_wrap=True)
    console.print(f"Written to {comparison.model_dir}: {', '.join(files)}", soft_wrap=True)
    return 0
