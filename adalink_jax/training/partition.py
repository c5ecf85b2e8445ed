"""One tree of parameters, split once into what is trained and what is frozen.

Invariant: every leaf is in exactly one of the two trees, and nothing downstream of the split ever differentiates, steps
or saves a frozen one. Expressions match whole unscanned paths (`backbone/encoder/layers_0/mlp/wi_0/kernel`).
"""

from collections.abc import Iterable, Sequence

from adalink_jax.models import paths


def split(tree, expressions: Sequence[str]):
    """`(trainable, frozen)`: two nested dicts without a common leaf.

    Raises:
      UserError: see `paths.matching`.
    """
    chosen = set().union(*paths.matching(expressions, paths.leaf_names(tree), "TRAINABLE"))
    leaves = paths.flatten(tree)
    return select(leaves, chosen), select(leaves, leaves.keys() - chosen)


def select(leaves: dict, names: Iterable[str]) -> dict:
    """The nested dict of the leaves called `names`."""
    names = set(names)
    return paths.unflatten({name: leaf for name, leaf in leaves.items() if name in names})


def merge(trainable: dict, frozen: dict) -> dict:
    """The whole tree again."""
    return paths.unflatten({**paths.flatten(trainable), **paths.flatten(frozen)})
