"""What commands share: parsers, t5x's flags, joining several processes, registering configurables, consoles and progress bars."""

import argparse
import contextlib
import functools
import logging
import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

from adalink_jax import timings

if TYPE_CHECKING:
    from rich.console import Console, OverflowMethod
    from rich.table import Table

    from adalink_jax.configuration import GinFlags


Option = tuple[tuple[str, ...], dict[str, Any]]


def option(*names: str, **how: Any) -> Option:
    """One argument of a command: the arguments of argparse's `add_argument`."""
    return names, how


def add_options(place: "argparse._ActionsContainer", *options: Option) -> None:
    """Adds options to a parser or to one of its groups."""
    for names, how in options:
        place.add_argument(*names, **how)


def plain_parser(name: str, text: str, example: str, *options: Option) -> argparse.ArgumentParser:
    """A parser with the help layout of every command, and the command's options."""
    parser = argparse.ArgumentParser(
        prog=f"adalink {name}",
        description=text,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    # `main` takes it from the arguments before they are parsed.
    phases = option(
        "--timings",
        action="store_true",
        help="print the seconds of each phase; --timings=FILE also writes them as JSON",
    )
    add_options(parser, phases, *options)
    return parser


# Of the commands that resume runs.
SAME_BITS = option(
    "--same_bits", action="store_true", help="resume a run only with its own versions and kind of device"
)


def gin_parser(name: str, text: str, example: str, *options: Option) -> argparse.ArgumentParser:
    """A parser whose help shows t5x's flags, which `configuration.parse_flags` removes from the arguments first."""
    parser = plain_parser(name, text, example)
    add_options(
        parser.add_argument_group("configuration (t5x's flags)"),
        option("--gin_file", metavar="FILE", help="a gin file, yours or a shipped one (gin/...); repeatable"),
        option("--gin.NAME", metavar="VALUE", help="set a macro (TRAIN_STEPS) or a parameter (adamw.b2); repeatable"),
        option("--gin_search_paths", metavar="DIRS", help="more folders with gin files, comma-separated"),
        option(
            "--trust_modules",
            action="store_true",
            help="import the modules that a run's config.gin names: they are code",
        ),
    )
    add_options(parser, *options)
    return parser


def parse(parser: argparse.ArgumentParser, argv: list[str]) -> "tuple[GinFlags, argparse.Namespace]":
    """Parses a command's arguments: t5x's flags, and the options of `parser`."""
    from adalink_jax import configuration

    flags, rest = configuration.parse_flags(argv)
    options = parser.parse_args(rest)
    if getattr(options, "same_bits", False):
        flags = flags.binding("check_environment.same_bits", "True")
    return flags, options


def parse_gin(
    parser: argparse.ArgumentParser, argv: list[str], example: str = ""
) -> "tuple[GinFlags, argparse.Namespace]":
    """Parses a command's arguments; exits with a usage error if there is no --gin_file.

    Args:
      parser: of `gin_parser`.
      argv: the arguments.
      example: a gin file to suggest.
    """
    flags, options = parse(parser, argv)
    if not flags.files:
        parser.error("give at least one --gin_file" + (f", such as --gin_file={example}" if example else ""))
    return flags, options


def add_processes(parser: argparse.ArgumentParser) -> None:
    """The flags of a job of several processes (t5x's), for `processes`."""
    group = parser.add_argument_group(
        "several processes",
        "Start the same command in each process, with the same MODEL_DIR, a folder that all can read and write. A signal to\n"
        "one process stops all of them after the same step; SIGTERM, SIGUSR1 and SIGUSR2 give exit status 75. Rerun the same\n"
        "command, on any number of devices, to resume. NUM_DEVICES, if set, is checked against the devices of the whole job.",
    )
    add_options(
        group,
        option(
            "--multiprocess",
            action="store_true",
            help="detect the other processes from the cluster: TPU pod, Slurm, GKE",
        ),
        option(
            "--coordinator_address",
            metavar="HOST:PORT",
            help="without a cluster: the host of process 0, and a free port",
        ),
        option("--process_count", metavar="N", type=int, help="number of processes"),
        option("--process_index", metavar="I", type=int, help="index of this process, from 0"),
        option(
            "--initialization_timeout",
            metavar="SECONDS",
            type=int,
            default=300,
            help="end with status 75 if the processes have not met after this time (default: 300)",
        ),
        option(
            "--heartbeat_timeout",
            metavar="SECONDS",
            type=int,
            default=100,
            help="end with status 75 if another process was silent for this time; a long compilation is not silent (default: 100)",
        ),
    )


def add_seqio(parser: argparse.ArgumentParser) -> None:
    """The flags for the location of seqio's data (t5x's), for `use_seqio`."""
    add_options(
        parser.add_argument_group("location of seqio's data (t5x's flags)"),
        option(
            "--tfds_data_dir",
            metavar="DIR",
            help="folder of prepared TFDS data sets, for tasks that name no folder (the shipped ones read DATA_DIR)",
        ),
        option(
            "--seqio_additional_cache_dirs", metavar="DIRS", default="", help="folders of cached tasks, comma-separated"
        ),
    )


def use_seqio(options: argparse.Namespace) -> None:
    """Applies the flags of `add_seqio`; imports seqio only if one was given."""
    folders = [folder for folder in options.seqio_additional_cache_dirs.split(",") if folder]
    if options.tfds_data_dir or folders:
        from adalink_jax.data import seqio_sources

        seqio_sources().use_folders(options.tfds_data_dir, folders)


@contextlib.contextmanager
def processes(options: argparse.Namespace) -> Iterator[None]:
    """Joins the job's other processes before anything is computed; leaves them at the end, or when all have stopped."""
    from adalink_jax import parallel
    from adalink_jax.errors import Stopped

    parallel.initialize(
        options.multiprocess,
        options.coordinator_address,
        options.process_count,
        options.process_index,
        options.initialization_timeout,
        options.heartbeat_timeout,
    )
    with parallel.ending_without_peer():
        try:
            yield
        except Stopped:
            parallel.leave()
            raise
        parallel.leave()


def register() -> None:
    """Imports every module with configurables, so that gin knows them before it parses files."""
    with timings.phase("imports"):
        _register()
        _listen()


@functools.cache
def _listen() -> None:
    import jax.monitoring

    jax.monitoring.register_event_duration_secs_listener(timings.compilation_listener())


def _register() -> None:
    from absl import logging as absl_logging

    from adalink_jax import adapters, data, launching, models, parallel  # noqa: F401
    from adalink_jax.experiments.comparisons import compare, cost  # noqa: F401
    from adalink_jax.experiments.scaling import study  # noqa: F401
    from adalink_jax.experiments.sweeps import sweep  # noqa: F401
    from adalink_jax.serving import predictor  # noqa: F401
    from adalink_jax.training import run  # noqa: F401
    from adalink_jax.training.packs import run_pack  # noqa: F401

    absl_logging.set_verbosity(absl_logging.FATAL)  # Orbax logs errors that it also raises, which the command prints
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "Image size .* decompression bomb")  # `data.images` refuses these pictures


def table_console(width: int = 1000) -> "Console":
    """A console for wide tables, `width` characters wide in a file or a pipe; by default no column is folded there."""
    from adalink_jax import terminal

    return terminal.console(width=None if sys.stdout.isatty() else width)


def table(*headings: str, right: Collection[str] = (), overflow: "OverflowMethod" = "fold", **look: Any) -> "Table":
    """An empty table.

    Args:
      *headings: of the columns.
      right: the headings of the columns that are aligned to the right.
      overflow: what happens to cells that are too wide.
      **look: arguments of `rich.table.Table`.
    """
    from rich.table import Column, Table

    columns = [Column(x, justify="right" if x in right else "left", overflow=overflow) for x in headings]
    return Table(*columns, title_justify="left", **look)


@contextlib.contextmanager
def bytes_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A transient progress bar on stderr, with rate and time left, or `terminal.progress`; yields a function to call with the number of
    new bytes."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    from adalink_jax import terminal

    out = terminal.console(stderr=True)
    if not out.is_terminal:
        done = 0

        def advance(n: int) -> None:
            nonlocal done
            done += n
            show(title, min(1.0, done / total) if total else 0.0)

        with terminal.progress() as show:
            yield advance
        return
    title_column = terminal.title_column(title)
    columns = (title_column, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda n: bar.advance(task, n)
