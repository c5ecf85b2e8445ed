"""Flags of XLA's compilers: one table, from which plans compile and commands start JAX.

Invariant: a plan and the job that it is for take the same flags, by `compiler_flags`, and a flag that the environment sets
wins over the table's. `tests/test_compiler_settings.py` gives every flag to the compilers, which refuse unknown ones.
"""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Annotated

import gin
import jax

from adalink_jax.errors import UserError
from adalink_jax.typed_values import one_of

AUTO, NONE = "auto", "none"
# Platform -> the environment variable from which its compiler reads flags when JAX starts.
VARIABLES = {"tpu": "LIBTPU_INIT_ARGS", "gpu": "XLA_FLAGS"}
_PLUGINS = {"tpu": ("libtpu",), "gpu": ("jax_cuda12_plugin", "jax_cuda13_plugin")}
_JAX_PLATFORMS = {"tpu": {"tpu"}, "gpu": {"gpu", "cuda"}}
_LARGE = str(2**28)  # bytes


@dataclasses.dataclass(frozen=True)
class FlagSet:
    """Flags that belong together.

    Attributes:
      name: value of COMPILER_FLAGS.
      platform: "tpu" or "gpu".
      flags: flag, without `--` -> value. Flags that have this value by default are left out.
      why: what they do, for which jobs, and what that brought.
    """

    name: str
    platform: str
    flags: Mapping[str, str]
    why: str


# The first set of a platform is what "auto" takes.
FLAG_SETS = (
    FlagSet(
        "gathered",
        "tpu",
        {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"},
        "For sharded parameters (FSDP): each layer's weights are gathered whole. By default, the compiler multiplies by one shard "
        "after the other (a windowed einsum), and reads and writes the sum in memory for each. T5 XL, AdaLink, v5e:4x8, 512 "
        "tokens: 0.114 s per step at best instead of 0.381. Without FSDP it changes nothing.",
    ),
    FlagSet(
        "overlapped",
        "gpu",
        {
            "xla_gpu_enable_latency_hiding_scheduler": "true",
            "xla_gpu_enable_pipelined_all_gather": "true",
            "xla_gpu_enable_pipelined_all_reduce": "true",
            "xla_gpu_all_gather_combine_threshold_bytes": _LARGE,
            "xla_gpu_all_reduce_combine_threshold_bytes": _LARGE,
            "xla_gpu_reduce_scatter_combine_threshold_bytes": _LARGE,
        },
        "For several GPUs: parameters of the next layer are sent while this one computes, in few large messages. As NVIDIA's "
        "JAX-Toolbox recommends for FSDP. Plans do not count overlap, and it was not measured.",
    ),
    FlagSet(
        "without_graphs",
        "gpu",
        {"xla_gpu_enable_command_buffer": ""},
        "Kernels are launched one by one instead of in CUDA graphs, which are the default: a remedy where graphs fail or need "
        "too much memory. Not measured.",
    ),
)
KINDS = (AUTO, NONE, *(flag_set.name for flag_set in FLAG_SETS))
FlagSetName = Annotated[str, one_of(*KINDS)]


def sets_of(platform: str) -> tuple[FlagSet, ...]:
    """The sets of a platform, the one that "auto" takes first; the last is "none", the compiler's own settings."""
    chosen = tuple(flag_set for flag_set in FLAG_SETS if flag_set.platform == platform)
    return (*chosen, FlagSet(NONE, platform, {}, "The compiler's own settings."))


@gin.configurable(denylist=["platforms"])  # pyright: ignore[reportCallIssue]  # gin has no type hints
def compiler_flags(platforms: Sequence[str], name: FlagSetName = AUTO) -> list[FlagSet]:
    """The flags with which programs are compiled, by COMPILER_FLAGS.

    Args:
      platforms: those that the programs may be for: "tpu", "gpu" or "cpu".
      name: a set of the table, "auto" for the first of each platform, or "none".

    Returns:
      One set for each platform that has one of this name.

    Raises:
      UserError: for a set of other platforms.
    """
    sets = [flag_set for platform in platforms for flag_set in sets_of(platform)]
    if name == AUTO:
        return [sets_of(platform)[0] for platform in platforms]
    chosen = [flag_set for flag_set in sets if flag_set.name == name]
    if not chosen:
        known = ", ".join(dict.fromkeys(repr(known) for known in (AUTO, *(flag_set.name for flag_set in sets))))
        raise UserError(
            f"COMPILER_FLAGS is {name!r}, which is not for {' or '.join(platforms)} devices; there are {known}."
        )
    return chosen


def effective(flag_set: FlagSet, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The flags of a set without those that the environment sets, which win."""
    text = environment.get(VARIABLES.get(flag_set.platform, ""), "")
    if _is_file(text):
        return {}
    return {name: value for name, value in flag_set.flags.items() if name not in _names(text)}


def set_environment(environment: MutableMapping[str, str] = os.environ) -> None:
    """Adds the flags of each platform that JAX may use here to the environment. Call it before JAX starts its devices.

    Raises:
      UserError: for a set of a platform that JAX cannot use here.
    """
    for flag_set in compiler_flags([platform for platform in VARIABLES if _may_start(platform)] or ["cpu"]):
        words = [f"--{name}={value}" for name, value in effective(flag_set, environment).items()]
        if words:
            variable = VARIABLES[flag_set.platform]
            environment[variable] = " ".join([*filter(None, [environment.get(variable)]), *words])


def _is_file(text: str) -> bool:
    """Whether XLA would read its flags from a file of this name."""
    return bool(text.strip()) and not text.lstrip().startswith("-")


def _names(text: str) -> set[str]:
    return set(re.findall(r"(?:^|\s)--?(\w+)", text))


def _may_start(platform: str) -> bool:
    allowed = jax.config.values["jax_platforms"]
    if allowed and not _JAX_PLATFORMS[platform] & set(allowed.split(",")):
        return False
    return any(importlib.util.find_spec(plugin) is not None for plugin in _PLUGINS[platform])
