"""Names of parameters: `/`-joined paths, and the unscanned names that every file and every expression uses.

In memory a stack of layers may be one array under `layers`; its name in files is one name a layer, `layers_0`, ... .
"""

import re
from collections.abc import Sequence

import jax
import numpy as np

from adalink_jax.errors import UserError

SCANNED = "layers"


def flatten(tree) -> dict[str, jax.Array]:
    """A nested dict as `{"encoder/encoder_norm/scale": leaf, ...}`, sorted by name."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return dict(sorted(("/".join(str(key.key) for key in path), leaf) for path, leaf in leaves))


def unflatten(leaves: dict) -> dict:
    """The inverse of `flatten`."""
    tree = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def unscanned_names(name: str, shape: tuple[int, ...]) -> list[str]:
    """The names that one leaf in memory has in files: one, or one a layer for a leaf `[layers, ...]` of a scanned stack."""
    parts = name.split("/")
    if SCANNED not in parts:
        return [name]
    at = parts.index(SCANNED)
    return ["/".join([*parts[:at], f"{SCANNED}_{i}", *parts[at + 1 :]]) for i in range(shape[0])]


def unscanned_shapes(leaves: dict) -> dict[str, tuple[int, ...]]:
    """Shapes under the names that files use, of `{name: leaf}` in memory."""
    out = {}
    for name, leaf in leaves.items():
        names = unscanned_names(name, leaf.shape)
        out |= dict.fromkeys(names, tuple(leaf.shape if names == [name] else leaf.shape[1:]))
    return out


def unscan(leaves: dict) -> dict:
    """`{name: array}` with each scanned leaf cut into its layers, under the names that files use."""
    out = {}
    for name, leaf in leaves.items():
        names = unscanned_names(name, leaf.shape)
        if names == [name]:
            out[name] = leaf
        else:
            out.update({each: leaf[i] for i, each in enumerate(names)})
    return out


def rescan(leaves: dict, wanted: dict) -> dict[str, np.ndarray]:
    """The inverse of `unscan`: NumPy arrays under the names in memory, for `wanted`, `{name in memory: leaf}`."""
    names = {name: unscanned_names(name, leaf.shape) for name, leaf in wanted.items()}
    whole = lambda name: leaves[name] if names[name] == [name] else np.stack([leaves[each] for each in names[name]])
    return {name: whole(name) for name in wanted}


def matching(expressions: Sequence[str], names: dict[str, list[str]], purpose: str) -> list[set[str]]:
    """For each expression the leaves it picks, by their names in memory.

    Args:
      expressions: regular expressions for `re.fullmatch`.
      names: leaf in memory -> its unscanned names (several for a scanned stack).
      purpose: what the expressions are for, for the error.

    Raises:
      UserError: if an expression is malformed, matches nothing, or picks some layers of a scanned stack.
    """
    picked = []
    for expression in expressions:
        try:
            pattern = re.compile(expression)
        except re.error as e:
            raise UserError(f"{purpose}: {expression!r} is not a regular expression ({e}).") from e
        mine = set()
        for leaf, unscanned in names.items():
            hits = [name for name in unscanned if pattern.fullmatch(name)]
            if hits and len(hits) < len(unscanned):
                raise UserError(
                    f"{purpose}: {expression!r} picks {len(hits)} of the {len(unscanned)} layers of {leaf}, which is one "
                    f"array while layers are scanned; set SCAN_LAYERS = False to pick single layers."
                )
            if hits:
                mine.add(leaf)
        if not mine:
            tops = sorted({name.split("/")[0] + "/..." for each in names.values() for name in each})
            raise UserError(
                f"{purpose}: {expression!r} matches no parameter; it must match a whole path, and paths here look like "
                f"{', '.join(tops)} (`adalink params` lists them)."
            )
        picked.append(mine)
    return picked


def leaf_names(tree) -> dict[str, list[str]]:
    """Names in memory -> unscanned names, for a (possibly abstract) nested dict."""
    return {name: unscanned_names(name, leaf.shape) for name, leaf in flatten(tree).items()}
