"""Tables of trainable and frozen parameters, for display and for `model-info.txt`."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, cast

import jax
from clu import parameter_overview
from jax.sharding import NamedSharding
from rich.table import Column, Table

from adalink_jax.models import paths
from adalink_jax.models.quantised import Quantised
from adalink_jax.training.partition import Leaves, Shapes


def count(tree: Any) -> int:
    """Number of parameters of a (possibly abstract) tree; scales are no parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, Quantised)))


def leaves(trainable: Leaves | Shapes, frozen: Leaves | Shapes) -> list[dict]:
    """Every unscanned leaf: `{"name", "shape", "dtype", "size", "trainable"}`, sorted by name."""
    rows = []
    for tree, is_trainable in ((trainable, True), (frozen, False)):
        for name, leaf in tree.items():
            for n, shape in paths.unscanned_shapes({name: leaf}).items():
                row = {"shape": list(shape), "dtype": str(leaf.dtype), "size": math.prod(shape)}
                rows.append({"name": n, **row, "trainable": is_trainable})
    return sorted(rows, key=lambda row: row["name"])


def parameter_table(
    trainable: Leaves | Shapes, frozen: Leaves | Shapes, sources: Mapping[str, str] | None = None
) -> Table:
    """Parameters by part of the model, trainable beside frozen; below it the sources of their values, if they are given.

    Args:
      trainable, frozen: the leaves by name.
      sources: part (`backbone/encoder`, or `adapter` for all of it) -> text.
    """
    parts: dict[str, list[int]] = {}
    dtypes: dict[str, set[str]] = {}
    for tree, column in ((trainable, 0), (frozen, 1)):
        for name, leaf in tree.items():
            part = "/".join(name.split("/")[:2])
            parts.setdefault(part, [0, 0])[column] += leaf.size
            dtypes.setdefault(part, set()).add(str(leaf.dtype))
    columns = [Column("part", overflow="fold")] + [Column(name, justify="right") for name in ("trainable", "frozen")]
    if sources is not None:
        columns.append(Column("stored as", overflow="fold"))
    table = Table(*columns, title="Parameters", title_justify="left", caption_justify="left")
    show = lambda n: f"{n:,}" if n else "-"
    parts_of: dict[str, list[str]] = {}
    for part, row in sorted(parts.items()):
        if sources is not None:
            parts_of.setdefault(sources.get(part) or sources[part.split("/")[0]], []).append(part)
        table.add_row(part, *map(show, row), *([", ".join(sorted(dtypes[part]))] if sources is not None else []))
    sums = [sum(row[i] for row in parts.values()) for i in (0, 1)]
    table.add_section()
    table.add_row("all", *map(show, sums), style="bold")
    origins = [f"{_together(names, list(parts))}: {source}" for source, names in parts_of.items()]
    table.caption = "\n".join([counts(trainable, frozen), *origins])
    return table


def counts(trainable: Leaves | Shapes, frozen: Leaves | Shapes) -> str:
    """How many of the parameters are trained, as one sentence."""
    trained = count(trainable)
    total = trained + count(frozen)
    return f"{trained:,} of {total:,} parameters are trained: {trained / max(1, total):.4%}"


def _together(names: list[str], every: list[str]) -> str:
    """Names of parts, or the first folder alone (`backbone`) if they are all parts of it."""
    folder = names[0].split("/")[0]
    return folder if names == [part for part in sorted(every) if part.split("/")[0] == folder] else ", ".join(names)


def leaf_table(trainable: Leaves | Shapes, frozen: Leaves | Shapes) -> Table:
    """Every leaf under the names that `TRAINABLE` matches; equal layers share a line."""
    grouped: dict[str, list[dict]] = {}
    for row in leaves(trainable, frozen):
        grouped.setdefault(re.sub(r"layers_\d+", "layers_*", row["name"]), []).append(row)
    columns = [
        Column(x, justify="right" if x == "count" else "left", overflow="fold")
        for x in ("name", "shape", "count", "trained")
    ]
    table = Table(*columns, title="Leaves", title_justify="left")
    for name, rows in grouped.items():
        trained = sum(row["trainable"] for row in rows)
        shape = " x ".join(map(str, rows[0]["shape"]))
        table.add_row(name, shape, str(len(rows)), "all" if trained == len(rows) else str(trained or "-"))
    return table


_InfoRow = dataclasses.make_dataclass("_InfoRow", ("name", "shape", "dtype", "sharding", "trained"))


def model_info(trainable: Leaves | Shapes, frozen: Leaves | Shapes) -> str:
    """The text of `model-info.txt`: every array in memory with shape, dtype, sharding, and whether it is trained."""
    rows = [
        _InfoRow(name, leaf.shape, str(leaf.dtype), str(tuple(cast(NamedSharding, leaf.sharding).spec)), trained)
        for tree, trained in ((trainable, "trainable"), (frozen, "frozen"))
        for name, leaf in tree.items()
    ]
    totals = f"trainable {count(trainable):,}\nfrozen    {count(frozen):,}\n"
    return parameter_overview.make_table(sorted(rows, key=lambda row: row.name)) + "\n" + totals
