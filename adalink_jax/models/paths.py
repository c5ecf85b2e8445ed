"""Names of parameters: `/`-joined paths, and the unscanned names that all files and regular expressions use.

In memory a stack of layers may be one array under `layers`; in files it has one name per layer, `layers_0`, `layers_1`, ...
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from adalink_jax.errors import UserError

SCANNED = "layers"


def flatten(tree: Mapping[str, Any], is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """A dict, nested or flat already, as `{"encoder/encoder_norm/scale": leaf, ...}`, sorted by name.

    Args:
      tree: the dict.
      is_leaf: which dicts are leaves too; None means none. All else is a leaf, even a pytree.
    """
    ends = lambda node: not isinstance(node, Mapping | None) or (is_leaf is not None and is_leaf(node))
    leaves = jax.tree_util.tree_flatten_with_path(tree, ends)[0]
    return dict(sorted(("/".join(str(key.key) for key in path), leaf) for path, leaf in leaves))


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`: a nested dict, as Flax takes it."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def unscanned_names(name: str, shape: Sequence[int]) -> list[str]:
    """The names in files of one leaf in memory: one, or one per layer for a leaf `[layers, ...]` of a scanned stack."""
    parts = name.split("/")
    if SCANNED not in parts:
        return [name]
    at = parts.index(SCANNED)
    return ["/".join([*parts[:at], f"{SCANNED}_{i}", *parts[at + 1 :]]) for i in range(shape[0])]


def unscanned_shapes(leaves: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes by name in files, of `{name in memory: leaf}`."""
    shapes = {}
    for name, leaf in leaves.items():
        names = unscanned_names(name, leaf.shape)
        shapes |= dict.fromkeys(names, tuple(leaf.shape if names == [name] else leaf.shape[1:]))
    return shapes


def unscan(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays by name in files, of `{name in memory: array}`: each scanned leaf is cut into its layers."""
    arrays = {}
    for name, leaf in leaves.items():
        names = unscanned_names(name, leaf.shape)
        arrays |= {name: leaf} if names == [name] else {layer_name: leaf[i] for i, layer_name in enumerate(names)}
    return arrays


def rescan(leaves: Mapping[str, np.ndarray], wanted: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of `unscan`: arrays by name in memory.

    Args:
      leaves: `{name in files: array}`.
      wanted: `{name in memory: leaf}`, for the names and shapes.
    """
    arrays = {}
    for name, leaf in wanted.items():
        names = unscanned_names(name, leaf.shape)
        arrays[name] = leaves[name] if names == [name] else np.stack([leaves[layer_name] for layer_name in names])
    return arrays


def matching(expressions: Sequence[str], names: Mapping[str, Sequence[str]], purpose: str) -> list[set[str]]:
    """The leaves that each regular expression picks, by their names in memory.

    Args:
      expressions: regular expressions for `re.fullmatch`.
      names: name in memory -> its unscanned names (several for a scanned stack).
      purpose: what the expressions are for, for errors.

    Raises:
      UserError: if an expression is malformed, matches nothing, or picks some layers of a scanned stack.
    """
    picked = []
    for expression in expressions:
        try:
            pattern = re.compile(expression)
        except re.error as e:
            raise UserError(f"{purpose}: {expression!r} is not a valid regular expression ({e}).") from e
        matches = set()
        for leaf, unscanned in names.items():
            hits = [name for name in unscanned if pattern.fullmatch(name)]
            if hits and len(hits) < len(unscanned):
                raise UserError(
                    f"{purpose}: {expression!r} picks {len(hits)} of the {len(unscanned)} layers of {leaf}, which is one "
                    f"array while layers are scanned; set SCAN_LAYERS = False to pick single layers."
                )
            if hits:
                matches.add(leaf)
        if not matches:
            tops = sorted({name.split("/")[0] + "/..." for unscanned in names.values() for name in unscanned})
            raise UserError(
                f"{purpose}: {expression!r} matches no parameter; it must match a whole path, and paths here look like "
                f"{', '.join(tops)} (`adalink params` lists them)."
            )
        picked.append(matches)
    return picked


def leaf_names(tree: Mapping[str, Any]) -> dict[str, list[str]]:
    """Name in memory -> unscanned names, of a (possibly abstract) dict of leaves, nested or flat."""
    return {name: unscanned_names(name, leaf.shape) for name, leaf in flatten(tree).items()}
