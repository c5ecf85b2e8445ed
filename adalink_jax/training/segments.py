"""Segments of a run: which versions, on which hardware, made which of its steps.

Every process start that trains adds a segment to the run's checkpoints and to `summary.json`. Results are bit-reproducible only
between equal environments, so resuming in another one warns, or is refused under `--same_bits`. JAX is imported only to describe
this process, so that reports can compare runs without it.
"""

import dataclasses
import importlib.metadata
import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gin

from adalink_jax.errors import UserError
from adalink_jax.version import __version__


@dataclasses.dataclass(frozen=True)
class Segment:
    """The steps that one process start made.

    Attributes:
      versions: of Python, this package and those that the numbers may depend on.
      platform: JAX's name of the backend: "cpu", "gpu" or "tpu".
      device_kind: the kind of device, such as "NVIDIA H100 80GB HBM3".
      first_step, last_step: numbers of the first and of the last step.
    """

    versions: Mapping[str, str]
    platform: str
    device_kind: str
    first_step: int
    last_step: int

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Segment":
        """From a file; fields of later versions are ignored."""
        return cls(**{field.name: fields[field.name] for field in dataclasses.fields(cls)})

    @classmethod
    def here(cls, first_step: int, last_step: int) -> "Segment":
        """A segment that this process makes."""
        import jax

        device = jax.devices()[0]
        installed = versions("jax", "jaxlib", "flax", "optax", "numpy") | {"python": platform.python_version()}
        return cls(installed, device.platform, device.device_kind, first_step, last_step)

    @property
    def environment(self) -> dict[str, str]:
        """Everything that the bits depend on, by name."""
        return {**self.versions, "platform": self.platform, "device_kind": self.device_kind}


def versions(*packages: str) -> dict[str, str]:
    """Versions of this package and of the installed `packages`."""
    return {"adalink-jax": __version__} | {name: importlib.metadata.version(name) for name in packages}


def environments(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """The environment of each segment of a run's `summary.json`; its `versions` alone if it was written before there were any."""
    segments = [Segment.from_json(fields) for fields in summary.get("segments", ())]
    return [segment.environment for segment in segments] or [summary.get("versions", {})]


def differences(environments: Iterable[Mapping[str, str]]) -> dict[str, list[str]]:
    """What differs between environments: name -> its values in order of appearance; {} if all are alike.

    A name that an environment does not record is not compared there.
    """
    values: dict[str, dict[str, None]] = {}
    for environment in environments:
        for name, value in environment.items():
            values.setdefault(name, {})[value] = None
    return {name: list(distinct) for name, distinct in values.items() if len(distinct) > 1}


def describe(differing: Mapping[str, Sequence[str]]) -> str:
    """The result of `differences` as text: `jax 0.10.2, 0.12.0; device_kind cpu, NVIDIA H100`."""
    return "; ".join(f"{name} {', '.join(distinct)}" for name, distinct in differing.items())


def environment_note(summaries: Iterable[Mapping[str, Any]], plural: str) -> str | None:
    """One sentence if runs were made with different versions or hardware; else None.

    Args:
      summaries: of the runs, or their result files.
      plural: what they are called.
    """
    differing = differences(environment for summary in summaries for environment in environments(summary))
    if not differing:
        return None
    return f"These {plural} were made in different environments ({describe(differing)}); compare them with care."


@gin.configurable
def check_environment(earlier: Sequence[Segment], resumed_at: int, same_bits: bool = False) -> str | None:
    """Compares this process with the earlier segments of the run that it resumes.

    Args:
      earlier: the run's segments so far.
      resumed_at: the step that it resumes from; 0 for a fresh run.
      same_bits: refuse to resume in another environment (`--same_bits`).

    Returns:
      A warning; None if the environments are alike.

    Raises:
      UserError: if they are not, under `same_bits`.
    """
    recorded = [segment.environment for segment in earlier]
    if differing := differences([*recorded, Segment.here(resumed_at, resumed_at).environment]):
        changed = f"This run was begun in another environment ({describe(differing)})"
    elif resumed_at and (not earlier or earlier[0].first_step > 1):
        changed = "This run was begun by a version of adalink-jax that did not record its environment"
    else:
        return None
    if same_bits:
        raise UserError(f"{changed}; resume it in the same environment, or leave out --same_bits.")
    return f"{changed}; its results may differ from those of an uninterrupted run."
