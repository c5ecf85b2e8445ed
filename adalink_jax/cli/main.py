"""The `adalink` command: finds the subcommand, imports its module, and prints errors in one sentence."""

import importlib
import io
import os
import signal
import sys
from typing import NamedTuple

from adalink_jax.near_names import did_you_mean, near


class Command(NamedTuple):
    """A subcommand.

    Attributes:
      module: the module of `adalink_jax.cli` that has its function.
      help: its line in `adalink --help`.
      computes: whether it runs a model over data, again and again.
    """

    module: str
    help: str
    computes: bool = False


COMMANDS = {
    "quickstart": Command("run_commands", "adapt the bundled frozen model to a task that it cannot do; needs only this package", computes=True),
    "init": Command("init_command", "inspect your own data, a table or a folder of images, and write a task file for it"),
    "list": Command("list_command", "list what can be named in a command: models, bases, adapters, tasks, metrics, ...; runs"),
    "train": Command("run_commands", "train an adapter (or a model), or resume a run: --gin_file=... --gin.NAME=value", computes=True),
    "pack": Command("comparison_commands", "train several adapters in one program: all learning rates x seeds x ranks", computes=True),
    "tune": Command("comparison_commands", "choose a method's learning rate on validation, with one pack", computes=True),
    "compare": Command("comparison_commands", "compare methods on one task: each tuned, over the same seeds, in one table", computes=True),
    "sweep": Command("sweep_command", "show, plan and run a sweep: products, zips and lists of settings"),
    "study": Command("study_command", "scaling study, size x base x task x method: bases, tuning, runs"),
    "results": Command("results_command", "collect all runs below a folder into one table: settings, scores, counts, times"),
    "report": Command("report_command", "report on a study or a folder of runs as one HTML page, Markdown, LaTeX, figures"),
    "vocabulary": Command("vocabulary_command", "train a SentencePiece vocabulary on text, for models trained from scratch"),
    "cache-task": Command("cache_command", "tokenise a seqio task once, so that each host reads its own rows by number (TASK_CACHE)"),
    "cache-vision": Command("run_commands", "compute a frozen vision tower's outputs once per image of a task (VISION_CACHE)", computes=True),
    "eval": Command("run_commands", "score a base model, with or without an adapter", computes=True),
    "infer": Command("infer_command", "predict for a file, a folder of images or a task; each row may name its adapter", computes=True),
    "plan": Command("plan_command", "check whether a job fits hardware that is not here, and how fast it can be"),
    "launch": Command("launch_command", "write a job for Slurm, Cloud TPU, GKE or local processes; submit, query or stop it"),
    "profile": Command("profile_command", "trace a few steps of a run in progress: the dearest operations, the share of collectives"),
    "params": Command("run_commands", "count trainable and frozen parameters of any configuration, without allocating them"),
    "inspect": Command("checkpoint_commands", "describe a base checkpoint: leaves, sizes, fingerprint, matching shipped model"),
    "convert": Command("checkpoint_commands", "write a base model in another format: native, Hugging Face, t5x"),
    "quantise-check": Command("quantise_command", "measure what a base in eight bits or four changes: layers, logits, greedy outputs", computes=True),
    "verify-base": Command("checkpoint_commands", "compare a base model's logits and outputs with those of transformers"),
    "adapters": Command("adapter_commands", "show an adapter's files, verify them, or fold them into their base"),
    "check-method": Command("method_commands", "check that a method, yours or built-in, does everything that a method must do"),
    "export": Command("checkpoint_commands", "export an adapter for transformers: folded into its model, or as a torch hook"),
    "push": Command("push_command", "push an adapter to the Hugging Face Hub, with a model card whose snippet was run"),
}  # fmt: skip

USAGE = """usage: adalink COMMAND [--gin_file=FILE ...] [--gin.NAME=VALUE ...] [options]

Adapt frozen T5- and PaLI-style encoder-decoders through their input embeddings.

commands:
{commands}

exit statuses: 0 done, 1 a check failed, 2 bad input, 3 a loss that is NaN or infinite, 4 another process works in the folder, 130 stopped
by Ctrl-C, 75 stopped by SIGTERM, SIGUSR1 or SIGUSR2; after the last two rerun the same command: it resumes, or starts clean

`adalink COMMAND --help` describes a command. Strings in --gin flags need their own quotes: --gin.MODEL_DIR="'runs/x'"
"""

USER_ERROR, PIPE_CLOSED = 2, 141
_SEVERAL_PROCESSES = ("--multiprocess", "--coordinator_address")


def usage() -> str:
    """The text of `adalink --help`."""
    width = max(map(len, COMMANDS))
    return USAGE.format(commands="\n".join(f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()))


def main(argv: list[str] | None = None) -> int:
    """Runs one command.

    Returns:
      The exit status: 0; 1 for numbers that differ (verify-base, adapters fold), a method that fails (check-method), a job that
      does not fit (plan), and a sweep or study with failed runs; 2 for bad input; 3 for a loss that is NaN or infinite; 4
      for a folder in which another process works; 130 for a command that Ctrl-C stopped, 75 if it was a preemption notice (see `preemption`); the job's own status for
      launch --submit, if it waits for the job.
    """
    if sys.stderr is None:  # closed; a file that is opened later would take its number, and what libraries print
        sys.stderr = open(os.devnull, "w", encoding="utf-8")
    if sys.stdout is None:
        print("error: The standard output is closed; redirect it to a file, or to /dev/null.", file=sys.stderr)
        return USER_ERROR
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what the locale's encoding lacks
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except BrokenPipeError:  # the reader, such as `| head`, has closed the pipe
        _drop_output()
        return PIPE_CLOSED
    finally:
        try:
            sys.stdout.flush()
        except OSError:  # reported already
            _drop_output()


def _drop_output() -> None:
    """Sends the rest of the output nowhere: Python would try to write it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(argv: list[str]) -> int:
    """See `main`."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        from adalink_jax.version import __version__

        print(f"adalink-jax {__version__}")
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        commands = [f"`adalink {command}`" for command in near(name, COMMANDS)[:1]]
        hint = did_you_mean(commands, f"; there are: {', '.join(COMMANDS)}.")
        print(f"error: there is no command {name!r}{hint}", file=sys.stderr)
        return USER_ERROR
    try:
        here = os.getcwd()
    except FileNotFoundError:
        print("error: The current folder no longer exists; change to another one (cd).", file=sys.stderr)
        return USER_ERROR
    if here not in sys.path:
        sys.path.append(here)  # gin files may import modules from the current folder
    # TensorFlow is used only to read data, and is noisy when imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

    from adalink_jax import preemption, stack_traces, timings
    from adalink_jax.cli import host_memory, phases
    from adalink_jax.errors import Stopped, UserError, disk_error, sentence

    if COMMANDS[name].computes:
        host_memory.keep_freed_pages()
        stack_traces.start()
    several = any(text.startswith(_SEVERAL_PROCESSES) for text in rest)
    try:
        timings_file, rest = phases.split(rest)
        with preemption.exiting_on_notice(several), phases.reporting(timings_file):
            with timings.phase("imports"):
                module = importlib.import_module(f"adalink_jax.cli.{COMMANDS[name].module}")
            status = getattr(module, name.replace("-", "_"))(rest)
            sys.stdout.flush()  # a full disk is reported below
            return status
    except UserError as e:
        print(f"error: {sentence(e)}", file=sys.stderr)
        return USER_ERROR
    except OSError as e:
        error = disk_error(e)
        if error is None:  # such as a closed pipe
            raise
        print(f"error: {sentence(error)}", file=sys.stderr)
        return USER_ERROR
    except Stopped as e:
        print(sentence(e), file=sys.stderr)
        return e.status
    except KeyboardInterrupt:
        print(preemption.stopped(signal.SIGINT), file=sys.stderr)
        return Stopped.status


if __name__ == "__main__":
    sys.exit(main())
