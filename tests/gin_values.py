"""Wrong values for gin's settings, and what `adalink train` makes of them, up to its first compilation."""

import contextlib
import io
import pathlib
import traceback
from unittest import mock

import jax
import numpy as np

from adalink_jax import configuration
from adalink_jax.cli import main
from adalink_jax.cli.arguments import register
from adalink_jax.configuration import gin_checks
from adalink_jax.training import run, setup

HUGE, LONG = "1" + "0" * 30, repr("x" * 300)
# Each is a literal that gin can parse, but for a key that cannot be one. 1e999 is infinite.
WRONG_VALUES = (
    "None", "'text'", "''", "3", "0", "-1", "0.5", "-0.5", "1e999", HUGE, "1e300", "True", "False", "()", "[]", "[1]", "(1, 'a')",
    "('a', None)", "({},)", "{}", "{'a': 1}", "{1: 'a'}", "{[]: 1}", "b'a'", "'1e-3'", "'a[b'", "'\\x00'", "'nan'", LONG, "@adamw",
    "@adamw()", "@T5Config()", "@constant()", "%LEARNING_RATE", "(@adamw(),)", "[" * 200 + "]" * 200,
)  # fmt: skip
ADAPTERS = ("adalink", "adept", "dept", "full", "lora", "norm_tuning", "prompt_tuning")


class CompilationReached(Exception):
    """Everything that comes before it was accepted."""


def files(folder: pathlib.Path, adapter: str = "adalink") -> list[str]:
    """The flags of a run that would train: the bundled base, an adapter, and a small table in `folder`."""
    table = folder / "rows.csv"
    if not table.exists():
        table.write_text("text,label\n" + "".join(f"word {i},{i % 3}\n" for i in range(400)))
    settings = {
        "MODEL_DIR": str(folder / "run"), "TRAIN_STEPS": 20, "INITIAL_CHECKPOINT_PATH": "bundled:pali_nano_instruct",
        "DATA": str(table), "INPUTS": "{text}", "TARGETS": "{label}", "VOCABULARY": "bytes", "BLANK_IMAGE": True,
        "MIXTURE_OR_TASK_NAME": "rows", "TASK_FEATURE_LENGTHS": {"inputs": 24, "targets": 8}, "WARMUP_STEPS": 5,
    }  # fmt: skip
    shipped = ("models/pali_nano", f"adapters/{adapter}", "tasks/files", "runs/finetune")
    return [*(f"--gin_file=gin/{name}.gin" for name in shipped), *(f"--gin.{k}={v!r}" for k, v in settings.items())]


def settings(flags: list[str]) -> list[str]:
    """The macros and the parameters that a run with these flags has."""
    register()
    with configuration.isolated():
        configuration.load(configuration.parse_flags(flags)[0])
        return [*gin_checks.macros_set(), *configuration.bindings()]


def outcome(argv: list[str]) -> str:
    """Runs `adalink train` up to its first compilation.

    Returns:
      "reached", "refused: " and the sentence, or the traceback of what no user should see.
    """
    errors = io.StringIO()

    def reached(*_, **__):
        raise CompilationReached

    def without_compiling(_, wanted):
        return {name: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding) for name, leaf in wanted.items()}

    with (
        mock.patch.object(run.Run, "score_before", reached), mock.patch.object(run.Run, "evaluate", reached),
        mock.patch.object(setup, "_initialise", without_compiling), contextlib.redirect_stderr(errors),
        contextlib.redirect_stdout(io.StringIO()), configuration.isolated(),
    ):  # fmt: skip
        try:
            status = main.main(["train", *argv])
        except CompilationReached:
            return "reached"
        except SystemExit as e:
            status = e.code
        except BaseException:
            return traceback.format_exc()
    text = errors.getvalue().strip()
    last = text.split("\n")[-1]
    return f"refused: {last}" if status == 2 and last.startswith("error: ") else f"status {status}: {text}"
