"""Splits the parameters into trainable and frozen leaves, once per run.

Invariant: every leaf is in exactly one of the two mappings, and nothing after the split differentiates, updates or saves a
frozen leaf. Parameters are flat mappings `{name in memory: array}` (`backbone/encoder/layers_0/mlp/wi_0/kernel`); only
`merge`, whose result Flax reads, nests them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from adalink_jax.models import paths
from adalink_jax.models.quantised import Quantised

Leaves = Mapping[str, jax.Array]  # name in memory -> array; frozen ones may be `Quantised`
Shapes = Mapping[str, jax.ShapeDtypeStruct | Quantised]


def split(tree: Mapping[str, Any], expressions: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Flat mappings of the trainable and of the frozen leaves of `tree`, which may be flat or nested.

    Raises:
      UserError: for an expression that is malformed or matches nothing (see `paths.matching`).
    """
    trainable_names = set().union(*paths.matching(expressions, paths.leaf_names(tree), "TRAINABLE"))
    leaves = paths.flatten(tree)
    return select(leaves, trainable_names), select(leaves, leaves.keys() - trainable_names)


def select(leaves: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The leaves called `names`, in the order of `leaves`."""
    names = set(names)
    return {name: leaf for name, leaf in leaves.items() if name in names}


def below(leaves: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """The leaves under `folder` (`backbone`, `adapter`), without that first part of their names."""
    prefix = f"{folder}/"
    return {name.removeprefix(prefix): leaf for name, leaf in leaves.items() if name.startswith(prefix)}


def merge(trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, Any]:
    """All leaves as the nested dict that Flax reads: `{"backbone": ..., "adapter": ...}`."""
    return paths.unflatten({**trainable, **frozen})
