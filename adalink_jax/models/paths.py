"""Names of parameters: `/`-joined paths, and the unscanned names that every file and every expression uses.

In memory a stack of layers may be one array under `layers`; its name in files is one name a layer, `layers_0`, ... .
"""

import jax

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
