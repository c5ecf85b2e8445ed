"""Loads base models: takes every leaf from exactly one source, and reads it straight to its place.

Invariant: after a load every leaf of the model that was not named as fresh comes from a file, and no leaf of a file, or of
the part of it that was requested, is left over.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from adalink_jax import parallel, timings
from adalink_jax.checkpoints import native
from adalink_jax.checkpoints.adapter_facts import BaseReference
from adalink_jax.checkpoints.architecture import check_fit, check_settings
from adalink_jax.checkpoints.digests import digests, digests_as_read, fingerprint, note_unverified
from adalink_jax.checkpoints.families.family import FAMILIES, LANGUAGE, Shapes, family_of_shapes
from adalink_jax.checkpoints.formats import open_source
from adalink_jax.checkpoints.source import Source
from adalink_jax.errors import CheckpointError
from adalink_jax.files.leaves import Leaf
from adalink_jax.models import paths

Renames = Sequence[tuple[str, str | None]]
Paths = Mapping[str | None, str | None]  # part of the model (None: all of it) -> its checkpoint (None: fresh)


@dataclasses.dataclass
class Base:
    """A loaded base model.

    Attributes:
      leaves: `{name in memory: array}`, without the fresh leaves.
      name: the base model's name.
      fingerprint: the fingerprint of the weights; None while some leaves are fresh.
      sources: top folder of the leaves' names -> where they came from, for messages.
    """

    leaves: dict[str, jax.Array]
    name: str
    fingerprint: str | None
    sources: dict[str, str]

    @property
    def reference(self) -> BaseReference:
        """What an adapter's facts state of this base model."""
        family = family_of_shapes(paths.unscanned_shapes(self.leaves))
        return BaseReference(self.name, self.fingerprint, family.name if family else None)

    @property
    def params(self) -> dict[str, Any]:
        """The leaves as a nested dict, as Flax takes them."""
        return paths.unflatten(self.leaves)


@timings.phase("base model")
def load_base(
    path: str | os.PathLike[str] | Mapping[str, str | None],
    abstract: Mapping[str, Any],
    dtype: Callable[[str], str] = lambda name: "float32",
    renames: Renames = (),
    configs: Mapping[str, Any] | None = None,
) -> Base:
    """Reads a base model leaf by leaf and shard by shard, straight to its place.

    Args:
      path: anything that `open_source` takes; or a mapping from parts of the model to such paths. A part is a top folder of
        the leaves' names (`vision`, `projection`), or `language` for all leaves that no other key names. A part whose path
        is None is fresh.
      abstract: the wanted leaves by their names in memory, flat or nested: `jax.ShapeDtypeStruct`s, with shardings where
        there is a mesh.
      dtype: maps a name in memory to the dtype that the leaf is stored in.
      renames: see `rename`.
      configs: the configurations of the model's parts (`configs_of`), which are compared with what the checkpoint states;
        positions for another resolution than the vision tower's are resampled. None compares shapes only.

    Raises:
      CheckpointError: for a path that is not a base model, leaves that are missing, left over or of another shape, and a
        damaged file.
    """
    wanted = paths.flatten(abstract)
    path_of_part: Paths = {**path} if isinstance(path, Mapping) else {None: os.fspath(path)}
    shapes_of_part = _split(paths.unscanned_shapes(wanted), path_of_part)
    sources = {part_path: open_source(part_path) for part_path in path_of_part.values() if part_path is not None}
    leaves: dict[str, Leaf] = {}
    notes: dict[str, str] = {}
    for part, part_path in path_of_part.items():
        if part_path is not None:
            part_leaves, part_notes = _leaves_of_part(
                part, sources[part_path], shapes_of_part[part], path_of_part, renames, configs or {}
            )
            leaves |= part_leaves
            notes |= part_notes
    arrays = _read(wanted, leaves, dtype, _stated(sources.values()))
    mark = fingerprint(arrays) if arrays.keys() == wanted.keys() else None
    stated = (
        next(iter(sources.values())).fingerprint if len(path_of_part) == len(sources) == 1 and not renames else None
    )
    if stated is not None and mark != stated and not notes:
        raise CheckpointError(
            f"The weights in {path} do not have the fingerprint that {native.CONFIG} states; copy or write it again."
        )
    for source in sources.values():
        if source.kind == native.UNVERIFIED:
            note_unverified(f"The base {source.path}", "version 0.1.0")
    descriptions = {}
    for part, shapes in shapes_of_part.items():
        part_path = path_of_part[part]
        text = "fresh" if part_path is None else f"{part_path}, {sources[part_path].kind}"
        descriptions |= {top: text + notes.get(top, "") for top in {name.split("/")[0] for name in shapes}}
    return Base(arrays, " + ".join(source.name for source in sources.values()), mark, descriptions)


def _stated(sources: Iterable[Source]) -> dict[Leaf, tuple[Source, str]]:
    """The leaves whose exact digests their checkpoints state: leaf -> its checkpoint and the digest."""
    return {
        leaf: (source, source.digests[name])
        for source in sources
        for name, leaf in source.leaves.items()
        if name in source.digests
    }


def _check_digests(actual: Mapping[Leaf, str], stated: Mapping[Leaf, tuple[Source, str]]) -> None:
    """Refuses leaves that do not have the digests that their checkpoints state."""
    for leaf, digest in actual.items():
        source, expected = stated[leaf]
        if digest != expected:
            raise CheckpointError(
                f"{leaf.origin} in {source.path} does not have the digest that {native.CONFIG} states; copy or write it again."
            )


def _leaves_of_part(
    part: str | None, source: Source, shapes: Shapes, path_of_part: Paths, renames: Renames, configs: Mapping
) -> tuple[dict[str, Leaf], dict[str, str]]:
    """The leaves of one part, which fit the model, and what was changed to make them fit, by top folder."""
    leaves = rename(source.leaves, renames, source.path) if part in (None, LANGUAGE) else source.leaves
    leaves = {name: leaf for name, leaf in leaves.items() if _part_of(name, path_of_part) == part}
    notes = {}
    for family in FAMILIES:
        if isinstance(config := configs.get(family.part), family.config):
            before = leaves
            leaves, note = family.resized(leaves, shapes, config, source)
            stated = _stated([source])  # of leaves that are resampled below, whose digests are compared here
            replaced = {name: leaf for name, leaf in before.items() if leaves[name] is not leaf and leaf in stated}
            _check_digests({leaf: digests({n: leaf.whole()})[n] for n, leaf in replaced.items()}, stated)
            notes |= {family.part: note} if note else {}
    check_fit({name: leaf.shape for name, leaf in leaves.items()}, shapes, source.path)
    check_settings(source, configs, part)
    return leaves, notes


def rename(leaves: Mapping[str, Leaf], renames: Renames, path: str) -> dict[str, Leaf]:
    """Renames the leaves of a base model whose names no family of models knows.

    Args:
      leaves: by this package's names where a family knows the checkpoint, otherwise by the checkpoint's.
      renames: `(regular expression, replacement)`; the first that matches a whole name is applied. A replacement of None
        drops the leaf.
      path: the checkpoint, for errors.

    Raises:
      CheckpointError: for an invalid expression, one that matches nothing, and two leaves with the same new name.
    """
    renamed: dict[str, Leaf] = {}
    used = set()
    for name, leaf in leaves.items():
        new = name
        for expression, replacement in renames:
            try:
                match = re.fullmatch(expression, name)
                if match:
                    used.add(expression)
                    new = None if replacement is None else match.expand(replacement)
                    break
            except (re.error, IndexError) as e:
                raise CheckpointError(f"CHECKPOINT_RENAMES: {expression!r} -> {replacement!r} is invalid: {e}.") from e
        if new in renamed:
            raise CheckpointError(
                f"CHECKPOINT_RENAMES gives the name {new} to two leaves of {path}: {renamed[new].origin} and {leaf.origin}."
            )
        if new is not None:
            renamed[new] = leaf
    unused = [expression for expression, _ in renames if expression not in used]
    if unused:
        raise CheckpointError(
            f"CHECKPOINT_RENAMES: {unused[0]!r} matches no leaf of {path}; its leaves are {', '.join(list(leaves)[:3])}, ..."
        )
    return renamed


def _part_of(name: str, path_of_part: Paths) -> str | None:
    top = name.split("/")[0]
    if top in path_of_part:
        return top
    return LANGUAGE if LANGUAGE in path_of_part else None


def _split(shapes: Shapes, path_of_part: Paths) -> dict[str | None, dict[str, tuple[int, ...]]]:
    """The model's shapes by part."""
    parts: dict[str | None, dict[str, tuple[int, ...]]] = {part: {} for part in path_of_part}
    for name, shape in shapes.items():
        part = _part_of(name, path_of_part)
        if part not in parts:
            raise CheckpointError(
                f"INITIAL_CHECKPOINT_PATH names no source for {name}; add {name.split('/')[0]!r} or {LANGUAGE!r}."
            )
        parts[part][name] = shape
    empty = [part for part, part_shapes in parts.items() if not part_shapes]
    if empty:
        tops = sorted({name.split("/")[0] for name in shapes})
        raise CheckpointError(
            f"INITIAL_CHECKPOINT_PATH names {empty[0]!r}, but this model has only {', '.join(tops)} ({LANGUAGE!r}: the rest)."
        )
    return parts


def _read(
    wanted: Mapping[str, Any],
    leaves: Mapping[str, Leaf],
    dtype: Callable[[str], str],
    stated: Mapping[Leaf, tuple[Source, str]],
) -> dict[str, jax.Array]:
    """Those of the wanted arrays that `leaves` has, each device with its own part (see `parallel.Readers`).

    Leaves with `stated` digests are compared with them in the file's dtype, before they are cast.
    """
    readers, arrays, compared = parallel.Readers(), {}, {}

    def read() -> Iterator[tuple[str, jax.Array]]:
        for name, leaf in wanted.items():
            names = paths.unscanned_names(name, leaf.shape)
            if names[0] not in leaves:
                continue
            parts, stored = [leaves[part_name] for part_name in names], np.dtype(dtype(name))
            dtypes = {part.dtype for part in parts if part in stated}
            exact = dtypes.pop() if len(dtypes) == 1 and all(part in stated for part in parts) else None
            array = _place(readers, leaf, parts, names != [name], exact or stored)
            if exact is not None:
                compared.update(zip(names, parts))
                yield name, array
            arrays[name] = array if array.dtype == stored else _cast(stored, leaf.sharding)(array)

    actual = digests_as_read(read())
    readers.finish()
    _check_digests({leaf: actual[name] for name, leaf in compared.items()}, stated)
    return arrays


@functools.lru_cache(maxsize=None)
def _cast(dtype: np.dtype, sharding: jax.sharding.Sharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda x: x.astype(dtype), out_shardings=sharding)


def _place(readers: parallel.Readers, wanted: Any, parts: list[Leaf], is_stacked: bool, dtype: np.dtype) -> jax.Array:
    """One array in memory from its leaves in files: one, or one per layer for a stack."""

    def read(index: tuple[slice, ...]) -> np.ndarray:
        out = parallel.host_zeros([i.stop - i.start for i in index], dtype)
        if is_stacked:
            for row, i in enumerate(range(index[0].start, index[0].stop)):
                parts[i].fill(out[row], index[1:])
        else:
            parts[0].fill(out, index)
        return out

    grain = (1, *parts[0].grain) if is_stacked else parts[0].grain
    return readers.array(wanted.shape, dtype, wanted.sharding, read, grain)
