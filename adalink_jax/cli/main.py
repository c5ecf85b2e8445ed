"""The `adalink` command: finds the subcommand, imports what it needs, and prints errors in one sentence."""

import contextlib
import difflib
import importlib
import os
import sys

COMMANDS = {
    "quickstart": "adapt the bundled frozen model to a task it cannot do; needs nothing but this package",
    "init": "look at data of yours, a table or a folder of images, and write a task file for them",
    "train": "train an adapter (or a model), or go on with a run: --gin_file=... --gin.NAME=value",
    "pack": "train several adapters in one program: every combination of learning rates, seeds and ranks",
    "tune": "choose a method's learning rate on validation, by one pack",
    "compare": "compare methods on one task: each tuned, over the same seeds, in one table",
    "sweep": "show, plan and run the runs of a sweep: products, zips and lists of settings, each a run of its own",
    "study": "model size by method by base by task: bases, tuning, all runs, fits against size",
    "results": "collect all runs below a folder into one table: settings, scores, counts, times",
    "report": "write what a study or a folder of runs found as one HTML page, Markdown, LaTeX, vector figures",
    "vocabulary": "make a SentencePiece vocabulary from text, for models that are trained from random weights",
    "cache-vision": "compute a frozen vision tower's outputs once for all images of a task, for VISION_CACHE",
    "eval": "score a base model, with an adapter or without",
    "infer": "predict for the rows of a file, a folder of images or a task, each row by the adapter that it names",
    "plan": "say before a launch whether a job fits, on hardware that is not here, and how fast it can be",
    "launch": "write a job for several processes, Slurm, Cloud TPU VMs or GKE, and submit it, ask for it, stop it",
    "params": "count trainable and frozen parameters of any configuration, without allocating them",
    "inspect": "say what a base model's checkpoint is: leaves, sizes, fingerprint, which shipped model fits",
    "convert": "write a base model in another format: native, Hugging Face, t5x",
    "verify-base": "compare a base model's logits and outputs with those of transformers",
    "adapters": "show an adapter's files, verify them, or fold them into their base",
    "check-method": "see whether a method, yours or one of this package, does all that every method must do",
    "export": "write an adapter for transformers: folded into a Hugging Face folder, or hooked in by a few lines of torch",
}
_MODULES = {
    "run_commands": ("quickstart", "train", "cache-vision", "eval", "params"),
    "infer_command": ("infer",),
    "init_command": ("init",),
    "plan_command": ("plan",),
    "launch_command": ("launch",),
    "comparison_commands": ("pack", "tune", "compare"),
    "sweep_command": ("sweep",),
    "study_command": ("study",),
    "results_command": ("results",),
    "report_command": ("report",),
    "vocabulary_command": ("vocabulary",),
    "adapter_commands": ("adapters",),
    "method_commands": ("check-method",),
    "checkpoint_commands": ("inspect", "convert", "verify-base", "export"),
}

USAGE = """usage: adalink COMMAND [--gin_file=FILE ...] [--gin.NAME=VALUE ...] [options]

Adapt frozen T5- and PaLI-style encoder-decoders through their input embeddings.

commands:
{commands}

`adalink COMMAND --help` tells more of one. Strings in --gin flags carry quotes of their own: --gin.MODEL_DIR="'runs/x'"
"""

USER_ERROR, STOPPED, PIPE_CLOSED = 2, 130, 141
_TRAINING = ("quickstart", "train", "pack", "tune", "compare")
_SEVERAL = ("--multiprocess", "--coordinator_address")


def usage() -> str:
    """The text of `adalink --help`."""
    width = max(map(len, COMMANDS))
    return USAGE.format(commands="\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()))


def main(argv: list[str] | None = None) -> int:
    """Runs one command.

    Returns:
      The exit status: 0; 1 for numbers that differ (verify-base, adapters fold), a method that fails (check-method), a job that
      does not fit (plan), and a sweep of which a run failed; 2 for bad input; 4 for a run of a sweep that another process
      trains; 130 for a run that was stopped and saved, 75 if by a notice (see `notices`); the job's own (launch --submit, of
      a job that it waits for).
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        from adalink_jax.version import __version__

        print(f"adalink-jax {__version__}")
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"; did you mean `adalink {near[0]}`?" if near else f"; there are: {', '.join(COMMANDS)}."
        print(f"error: there is no command {name!r}{hint}", file=sys.stderr)
        return USER_ERROR
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # gin files may import modules from where the command is given
    # TensorFlow only reads data here, and has much to say while it is imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

    from adalink_jax import preemption
    from adalink_jax.configuration import original_message
    from adalink_jax.errors import Stopped, UserError, disk_error

    home = next(module for module, names in _MODULES.items() if name in names)
    several = any(text.startswith(_SEVERAL) for text in rest)
    listening = preemption.ending_at_once(several) if name in _TRAINING else contextlib.nullcontext()
    try:
        with listening:
            command = getattr(importlib.import_module(f"adalink_jax.cli.{home}"), name.replace("-", "_"))
            status = command(rest)
            sys.stdout.flush()
            return status
    except UserError as e:
        print(f"error: {original_message(e)}", file=sys.stderr)
        return USER_ERROR
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except OSError as e:
        told = disk_error(e)
        if told is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        return USER_ERROR
    except Stopped as e:
        print(original_message(e), file=sys.stderr)
        return e.status
    except KeyboardInterrupt:
        print("Stopped at once.", file=sys.stderr)
        return STOPPED


if __name__ == "__main__":
    sys.exit(main())
