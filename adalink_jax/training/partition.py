"""One tree of parameters, split once into what is trained and what is frozen.

Invariant: every leaf is in exactly one of the two trees, and nothing downstream of the split ever differentiates, steps
or saves a frozen one. Expressions match whole unscanned paths (`backbone/encoder/layers_0/mlp/wi_0/kernel`).
"""

import re
from collections.abc import Iterable, Sequence

from adalink_jax.errors import UserError
from adalink_jax.models import paths


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
    return {name: paths.unscanned_names(name, leaf.shape) for name, leaf in paths.flatten(tree).items()}


def split(tree, expressions: Sequence[str]):
    """`(trainable, frozen)`: two nested dicts without a common leaf.

    Raises:
      UserError: see `matching`.
    """
    chosen = set().union(*matching(expressions, leaf_names(tree), "TRAINABLE"))
    leaves = paths.flatten(tree)
    return select(leaves, chosen), select(leaves, leaves.keys() - chosen)


def select(leaves: dict, names: Iterable[str]) -> dict:
    """The nested dict of the leaves called `names`."""
    names = set(names)
    return paths.unflatten({name: leaf for name, leaf in leaves.items() if name in names})


def merge(trainable: dict, frozen: dict) -> dict:
    """The whole tree again."""
    return paths.unflatten({**paths.flatten(trainable), **paths.flatten(frozen)})
