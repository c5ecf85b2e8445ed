"""gin's configuration of one run among many: what `adalink train`, or a command that trains a pack, would load."""

import ast
from collections.abc import Mapping

from adalink_jax import configuration
from adalink_jax.configuration import GinFlags
from adalink_jax.configuration.requirements import DATA, MODEL, PACK, RUN
from adalink_jax.errors import UserError, sentence

PEAK = "warmup_cosine.peak"


def load_pack(flags: GinFlags, name: str) -> GinFlags:
    """Loads `gin/runs/NAME.gin`, the file of a command that trains a pack, and then what the flags say.

    Returns:
      The flags with the schedule's peak set to 1, even if a file (gin/runs/finetune.gin) sets another: the peak is multiplied by
      each member's learning rate.

    Raises:
      UserError: if the configuration is not valid for a pack, or the flags set the peak.
    """
    files = (f"gin/runs/{name}.gin",)
    if PEAK in dict(flags.bindings):
        raise UserError(f"{PEAK} is set, but the members of a pack have LEARNING_RATES; leave it out.")
    configuration.load(flags, extra_files=files)
    configuration.require(MODEL | DATA | PACK)
    if configuration.bindings().get(PEAK, "1.0") != "1.0":
        flags = flags.binding(PEAK, "1.0")
        configuration.load(flags, extra_files=files)
    configuration.check_reachable(flags, "train_pack")
    from adalink_jax.parallel import compiler_settings  # imports JAX

    compiler_settings.set_environment()
    return flags


def load_settings(flags: GinFlags, command: str, name: str) -> dict[str, str]:
    """Loads and checks the configuration of one run.

    Args:
      flags: of the command that makes it.
      command: "train", "pack" or "tune".
      name: the run's, for errors.

    Returns:
      The settings, as `configuration.bindings` gives them.

    Raises:
      UserError: if the configuration is not valid; the message begins with `name`.
    """
    try:
        if command == "train":
            configuration.load(flags)
            configuration.require(MODEL | DATA | RUN)
        else:
            load_pack(flags, command)
    except UserError as e:
        raise UserError(f"{name}: {sentence(e)}") from e
    return configuration.bindings()


def total_steps(settings: Mapping[str, str], command: str) -> int:
    """The number of training steps in the settings of a run that `command` makes."""
    return ast.literal_eval(settings[f"{'train' if command == 'train' else 'train_pack'}.total_steps"])


def bound_model_dir(parameter: str) -> str:
    """The folder that `parameter` is bound to, without a slash at its end.

    Raises:
      UserError: if MODEL_DIR, which it stands for, is not set.
    """
    try:
        folder = ast.literal_eval(configuration.bindings()[parameter])
    except (KeyError, ValueError, SyntaxError):  # not bound, or to a macro that is not set
        folder = None
    if not isinstance(folder, str) or not folder:
        raise UserError("MODEL_DIR is not set; add --gin.MODEL_DIR=\"'runs/NAME'\".")
    return folder.rstrip("/")
