"""Commands of many runs: packs, tuning, comparisons."""

import ast

from adalink_jax import configuration
from adalink_jax.cli.arguments import MODEL, gin_parser, register
from adalink_jax.cli.run_commands import DATA
from adalink_jax.errors import UserError

PACK = {"train_pack.setup": "a pack's file, such as --gin_file=gin/runs/pack.gin"}
EXAMPLE = (
    "--gin_file=gin/models/pali_nano.gin --gin_file=gin/adapters/adalink.gin --gin_file=gin/tasks/digits.gin \\\n"
    "    --gin.INITIAL_CHECKPOINT_PATH=\"'bundled:pali_nano_instruct'\" --gin.MIXTURE_OR_TASK_NAME=\"'digits_reverse'\" \\\n"
    "    --gin.TRAIN_STEPS=300 --gin.MODEL_DIR=\"'runs/{name}'\""
)


def _configured(name: str, argv: list[str], text: str):
    """gin as `gin/runs/NAME.gin` and the flags say."""
    parser = gin_parser(name, text, f"adalink {name} " + EXAMPLE.format(name=name))
    flags, rest = configuration.parse_flags(argv)
    parser.parse_args(rest)
    if not flags.files:
        parser.error("give at least one --gin_file")
    register()
    return load_pack(flags, name)


def load_pack(flags: configuration.GinFlags, name: str) -> configuration.GinFlags:
    """Loads `gin/runs/NAME.gin`, of packs, and over it what the flags say.

    Returns:
      The flags, in which the schedule's peak is 1 also where a file (gin/runs/finetune.gin) set it: it is multiplied by each
      member's learning rate.

    Raises:
      UserError: for a configuration that is none of a pack, or one that sets the peak itself.
    """
    files, peak = (f"gin/runs/{name}.gin",), "warmup_cosine.peak"
    if peak in dict(flags.bindings):
        raise UserError(f"{peak} is set, but a pack's members have LEARNING_RATES; leave it out.")
    configuration.load(flags, extra_files=files)
    configuration.require(MODEL | DATA | PACK)
    if configuration.bindings().get(peak, "1.0") != "1.0":
        flags = flags.binding(peak, "1.0")
        configuration.load(flags, extra_files=files)
    return flags


def _options(flags) -> dict:
    def config_text() -> str:
        configuration.check_all_used(flags)
        return configuration.operative_config()

    return {"settings": configuration.used_settings, "config_text": config_text}


def _model_dir() -> str:
    return ast.literal_eval(configuration.bindings()["train_pack.model_dir"])


def pack(argv: list[str]) -> int:
    """`adalink pack`."""
    flags = _configured(
        "pack",
        argv,
        "Train every combination of LEARNING_RATES, SEEDS and RANKS in one program over one frozen base, each as it would be\n"
        "alone, or go on with it. gin/runs/pack.gin is read first; gin/runs/plateau.gin trains each to its plateau.",
    )
    from adalink_jax.training.packs.run_pack import train_pack

    train_pack(**_options(flags))
    return 0


def tune(argv: list[str]) -> int:
    """`adalink tune`."""
    flags = _configured(
        "tune",
        argv,
        "Choose the learning rate of one method on validation: a pack of LEARNING_RATES (by default five around the method's\n"
        "own) and SEEDS. Prints the curve; writes tuned.gin, to be given after the method's file, curve.csv and curve.png.\n"
        "gin/runs/tune.gin is read first.",
    )
    from rich.console import Console
    from rich.table import Table

    from adalink_jax.experiments.comparisons import tune as study

    folder = _model_dir()
    tuned = study.tune(folder, **_options(flags))
    table = Table(title=f"{tuned.metric} on validation", title_justify="left")
    for heading in ("learning rate", "mean", "seeds", ""):
        table.add_column(heading, justify="right" if heading != "" else "left")
    top = max(trial.mean for trial in tuned.trials) or 1.0
    for trial in tuned.trials:
        chosen = trial.learning_rate == tuned.learning_rate
        scores = " ".join(f"{score:.4f}" for score in trial.scores)
        bar = "\u2588" * round(24 * trial.mean / top)
        table.add_row(f"{trial.learning_rate:g}", f"{trial.mean:.4f}", scores, bar, style="bold" if chosen else None)
    console = Console(highlight=False)
    console.print(table)
    console.print(f"Chosen: {tuned.learning_rate:g}; --gin_file={folder}/{study.TUNED} sets it.", soft_wrap=True)
    if tuned.edge:
        console.print(f"It is the {tuned.edge} that was tried; a better one may lie beyond: set LEARNING_RATE to it.")
    return 0


def compare(argv: list[str]) -> int:
    """`adalink compare`."""
    parser = gin_parser(
        "compare",
        "Compare methods on one task and base: each tuned with as many trials on validation, trained over the same seeds at an\n"
        "equal budget and to its own plateau, and scored once on test. Goes on where it was stopped. Comparison.methods names\n"
        "the methods; writes comparison.md, comparison.csv and comparison.png into MODEL_DIR.",
        "adalink compare --gin_file=gin/comparisons/digits.gin --gin.MIXTURE_OR_TASK_NAME=\"'digits_reverse'\" \\\n"
        "    --gin.MODEL_DIR=\"'runs/compare'\"",
    )
    flags, rest = configuration.parse_flags(argv)
    parser.parse_args(rest)
    if not flags.files:
        parser.error("give at least one --gin_file, such as --gin_file=gin/comparisons/digits.gin")
    register()
    from etils import epath
    from rich.console import Console

    from adalink_jax.experiments.comparisons import compare as study
    from adalink_jax.reports import comparison_report

    def configure(files, macros: dict[str, str], require_all: bool = True) -> None:
        current = flags
        for name, text in macros.items():
            current = current.binding(name, text)
        configuration.load(current, extra_files=files, require_all=require_all)

    configure((study.PACK,), {}, require_all=False)
    configuration.require(
        MODEL | DATA | {"Comparison.methods": "a comparison's file, such as --gin_file=gin/comparisons/digits.gin"}
    )
    comparison = study.Comparison()
    console, done = Console(highlight=False), []

    def on_part(method: str, part: str) -> None:
        if method not in done:
            done.append(method)
        console.rule(f"{method} ({len(done)} of {len(comparison.methods)}): {part}", align="left")

    found = study.compare(comparison, configure, configuration.used_settings, configuration.operative_config, on_part)
    written = comparison_report.write(epath.Path(comparison.model_dir), found)
    console.rule(comparison_report.title(found), align="left")
    console.print(comparison_report.markdown(found), soft_wrap=True, markup=False)
    console.print(f"Written to {comparison.model_dir}: {', '.join(written)}", soft_wrap=True)
    return 0
