"""The job that gin's configuration describes, for planning."""

import gin

from adalink_jax.planning.plan import Job
from adalink_jax.training import run
from adalink_jax.training.packs import members, run_pack
from adalink_jax.training.step import CrossEntropy


def configured_job() -> Job:
    """The job that `train` would run with gin's configuration, or `train_pack` if that is configured."""
    settings, pack = gin.get_bindings(run.train), gin.get_bindings(run_pack.train_pack)
    if "setup" in pack:
        pack["members"] = members.grid(pack["learning_rates"], pack["seeds"], pack.get("ranks"))
        settings = pack
    return Job(
        settings["setup"], settings["optimizer"], settings.get("loss") or CrossEntropy(), settings["total_steps"],
        settings.get("eval_period", 0), settings.get("microbatches", 1), settings.get("members", ()),
        settings.get("at_once"),
    )  # fmt: skip
