"""What the commands share: parsers, t5x's flags, the start of several processes, what gin may name, a bar for long reads."""

import argparse
import contextlib
import logging
import sys
from collections.abc import Callable, Iterator

MODEL = {"Setup.model": "a model's file, such as --gin_file=gin/models/pali_nano.gin"}


def plain_parser(name: str, text: str, example: str) -> argparse.ArgumentParser:
    """A parser with the help that every command has."""
    return argparse.ArgumentParser(
        prog=f"adalink {name}",
        description=text,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def gin_parser(name: str, text: str, example: str) -> argparse.ArgumentParser:
    """A parser whose help shows t5x's flags, which `configuration.parse_flags` takes out of the arguments before."""
    parser = plain_parser(name, text, example)
    gin = parser.add_argument_group("configuration (t5x's flags)")
    gin.add_argument("--gin_file", metavar="FILE", help="a gin file, as typed or as shipped (gin/...); repeatable")
    gin.add_argument(
        "--gin.NAME", metavar="VALUE", help="sets a macro (TRAIN_STEPS) or a parameter (adamw.b2); repeatable"
    )
    gin.add_argument("--gin_search_paths", metavar="DIRS", help="further folders for gin files, comma-separated")
    return parser


def add_processes(parser: argparse.ArgumentParser) -> None:
    """The flags of a job of several processes (t5x's), for `processes`."""
    group = parser.add_argument_group(
        "several processes",
        "Start the same command in each, with the same MODEL_DIR, a folder that all can read and write. A signal to one\n"
        "stops all after the same step; SIGTERM, SIGUSR1 and SIGUSR2 end in exit status 75, and the same command, on any number of devices,\n"
        "goes on. NUM_DEVICES, if set, is compared with the devices of the whole job.",
    )
    group.add_argument(
        "--multiprocess", action="store_true", help="find the others by the cluster: TPU pod, Slurm, GKE"
    )
    group.add_argument(
        "--coordinator_address", metavar="HOST:PORT", help="elsewhere: where process 0 runs, and a free port"
    )
    group.add_argument("--process_count", metavar="N", type=int, help="how many processes there are")
    group.add_argument("--process_index", metavar="I", type=int, help="which this one is, from 0 on")


def add_seqio(parser: argparse.ArgumentParser) -> None:
    """The flags that say where seqio's data lie (t5x's), for `use_seqio`."""
    group = parser.add_argument_group("where seqio's tasks find their data (t5x's flags)")
    group.add_argument(
        "--tfds_data_dir",
        metavar="DIR",
        help="where data sets of TFDS are prepared, for tasks that name no folder (the shipped ones read DATA_DIR)",
    )
    group.add_argument(
        "--seqio_additional_cache_dirs", metavar="DIRS", default="", help="folders of cached tasks, comma-separated"
    )


def use_seqio(options: argparse.Namespace) -> None:
    """Heeds the flags of `add_seqio`; seqio is imported only if one was given."""
    folders = [folder for folder in options.seqio_additional_cache_dirs.split(",") if folder]
    if options.tfds_data_dir or folders:
        from adalink_jax.data import seqio_sources

        seqio_sources().use_folders(options.tfds_data_dir, folders)


@contextlib.contextmanager
def processes(options: argparse.Namespace) -> Iterator[None]:
    """Joins the job's processes, before anything is computed, and leaves it with them at the end, or where all have stopped."""
    from adalink_jax import parallel
    from adalink_jax.errors import Stopped

    parallel.initialize(options.multiprocess, options.coordinator_address, options.process_count, options.process_index)
    try:
        yield
    except Stopped:
        parallel.leave()
        raise
    parallel.leave()


def register() -> None:
    """Imports every module with configurables, so that gin knows them before files are parsed."""
    from absl import logging as absl_logging

    from adalink_jax import adapters, data, launching, models, parallel  # noqa: F401
    from adalink_jax.experiments.sweeps import sweep  # noqa: F401
    from adalink_jax.serving import predictor  # noqa: F401
    from adalink_jax.training.packs import run_pack  # noqa: F401

    absl_logging.set_verbosity(absl_logging.FATAL)  # what Orbax calls an error is raised, and told in one sentence
    logging.getLogger("absl").setLevel(logging.CRITICAL)


def table_console():
    """A console for wide tables: in a file or a pipe no column is folded."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 1000)


@contextlib.contextmanager
def bytes_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar with rate and time left, on stderr, that vanishes; gives the function to call with the bytes done."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda n: bar.advance(task, n)
