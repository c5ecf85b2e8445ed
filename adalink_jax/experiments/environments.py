"""Whether runs were made in one environment: bit-identical results are claimed only for equal versions and hardware."""

from collections.abc import Iterable, Mapping
from typing import Any

from adalink_jax.training.segments import describe, differences, environments


def note(summaries: Iterable[Mapping[str, Any]], plural: str) -> str | None:
    """One sentence if runs were made with different versions or hardware; else None.

    Args:
      summaries: of the runs, or their result files.
      plural: what they are called.
    """
    differing = differences(environment for summary in summaries for environment in environments(summary))
    if not differing:
        return None
    return f"These {plural} were made in different environments ({describe(differing)}); compare them with care."
