"""Loads base models: takes every leaf from exactly one source, and reads it straight to its place.

Invariant: after a load every leaf of the model that was not named as fresh comes from a file, and no leaf of a file, or of
the part of it that was requested, is left over.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from adalink_jax import parallel, timings
from adalink_jax.checkpoints import native
from adalink_jax.checkpoints.adapter_facts import BaseReference
from adalink_jax.checkpoints.architecture import check_fit, check_settings
from adalink_jax.checkpoints.digests import Checksums, digests, fingerprint, joined, note_unverified
from adalink_jax.checkpoints.families.family import FAMILIES, LANGUAGE, Shapes, family_of_shapes
from adalink_jax.checkpoints.formats import open_source
from adalink_jax.checkpoints.source import Source
from adalink_jax.errors import CheckpointError
from adalink_jax.files.leaves import Leaf, fill
from adalink_jax.models import paths
from adalink_jax.models.quantised import Quantised, in_form, precision_of

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
      parent: of a quantised model, the fingerprint of the model that it was made from; None where no file states it.
      precision: of a quantised model, how it is stored ("int8", "int4/64").
    """

    leaves: dict[str, jax.Array]
    name: str
    fingerprint: str | None
    sources: dict[str, str]
    parent: str | None = None
    precision: str | None = None

    @property
    def reference(self) -> BaseReference:
        """What an adapter's facts state of this base model."""
        family = family_of_shapes(paths.unscanned_shapes(self.leaves))
        name = family.name if family else None
        return BaseReference(self.name, self.fingerprint, name, self.parent, self.precision)

    @property
    def params(self) -> dict[str, Any]:
        """The leaves as a nested dict, as Flax takes them."""
        return paths.unflatten(self.leaves)


@timings.phase("base model")
def load_base(
    path: str | os.PathLike[str] | Mapping[str, str | None],
    abstract: Mapping[str, Any],
    renames: Renames = (),
    configs: Mapping[str, Any] | None = None,
) -> Base:
    """Reads a base model leaf by leaf and shard by shard, straight to its place.

    Args:
      path: anything that `open_source` takes; or a mapping from parts of the model to such paths. A part is a top folder of
        the leaves' names (`vision`, `projection`), or `language` for all leaves that no other key names. A part whose path
        is None is fresh.
      abstract: the wanted leaves by their names in memory, flat or nested: `jax.ShapeDtypeStruct`s of the dtype in which they are to be
        stored, or abstract `Quantised` ones, with shardings where there is a mesh.
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
    precision = precision_of(wanted.values())
    _check_precision(sources.values(), precision)
    arrays, as_read = _read(wanted, leaves, _stated(sources.values()))
    complete = arrays.keys() == wanted.keys()
    mark = joined(as_read) if complete else None
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
    name = " + ".join(source.name for source in sources.values())
    # Of parts, and of leaves that were changed, no file states the fingerprint of the exact model.
    whole = next(iter(sources.values())) if stated is not None and not notes else None
    stated_precision = next((source.precision for source in sources.values() if source.precision), None)
    parent = whole.parent if whole is not None and stated_precision else None
    if precision is None:
        return Base(arrays, name, mark, descriptions, parent, stated_precision)
    quantised_mark = fingerprint(arrays) if complete else None
    return Base(arrays, name, quantised_mark, descriptions, parent if stated_precision else mark, precision)


def _check_precision(sources: Iterable[Source], wanted: str | None) -> None:
    """Refuses to quantise a quantised model in another way."""
    for source in sources:
        if wanted and source.precision and wanted != source.precision:
            raise CheckpointError(
                f"{source.path} is stored in {source.precision}, and quantised again (to {wanted}) it would lose twice; "
                f"set FROZEN_DTYPE and QUANTISED_BLOCK as the file has them, or give the base that it was made from."
            )


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
    wanted: Mapping[str, Any], leaves: Mapping[str, Leaf], stated: Mapping[Leaf, tuple[Source, str]]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Those of the wanted leaves that `leaves` has, each device with its own part (see `parallel.Readers`).

    Leaves with `stated` digests are compared with them in the file's dtype, before they are cast. Of a stack that is to be
    quantised, one layer is in memory at a time as the file has it.

    Returns:
      The arrays by name in memory, and by unscanned name the checksums, rounded, of what was read.
    """
    readers, arrays, compared = parallel.Readers(), {}, {}
    exact, rounded = Checksums(rounded=False), Checksums(rounded=True)

    def read(name: str, leaf: Any, parts: list[Leaf], names: list[str], stored: np.dtype | None) -> jax.Array:
        """An array in the dtype of its files, whose digests are compared, or else in `stored` (None: in the files')."""
        dtypes = {part.dtype for part in parts}
        file_dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)
        is_stated = file_dtype.itemsize < 8 and all(part in stated for part in parts)
        dtype = (
            file_dtype if is_stated or (stored is None and file_dtype.itemsize < 8) else stored or np.dtype(np.float32)
        )
        array = _place(readers, leaf, parts, names != [name], dtype)
        if is_stated:
            compared.update(zip(names, parts))
            exact.add(name, array)
        return array

    for name, leaf in wanted.items():
        names = paths.unscanned_names(name, leaf.shape)
        if names[0] not in leaves:
            continue
        parts = [leaves[part_name] for part_name in names]
        if not isinstance(leaf, Quantised):
            array = read(name, leaf, parts, names, leaf.dtype)
            arrays[name] = array if array.dtype == leaf.dtype else _converted(leaf)(array)
            rounded.add(name, arrays[name])
            continue
        is_stacked = names != [name]
        one = _layer_of(leaf) if is_stacked else leaf
        stack = _empty(leaf) if is_stacked else None
        for number, (part, part_name) in enumerate(zip(parts, names)):
            array = read(part_name, one.codes, [part], [part_name], None)
            rounded.add(part_name, array)
            layer = _converted(one)(array)
            stack = layer if stack is None else _put(leaf)(stack, layer, number)
            parallel.settle(stack)
        arrays[name] = stack
    actual = exact.by_name()
    readers.finish()
    _check_digests({leaf: actual[name] for name, leaf in compared.items()}, stated)
    return arrays, rounded.by_name()


@functools.lru_cache(maxsize=None)
def _converted(form: jax.ShapeDtypeStruct | Quantised) -> Callable[[jax.Array], Any]:
    """A program that converts an array to the form and the placement of an abstract leaf."""
    return jax.jit(lambda values: in_form(values, form), out_shardings=_shardings(form))


def _layer_of(stack: Quantised) -> Quantised:
    """One layer of an abstract stack."""

    def layer(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        place: Any = x.sharding
        if isinstance(place, NamedSharding):
            place = NamedSharding(place.mesh, PartitionSpec(*place.spec[1:]))
        return jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=place)

    return jax.tree.map(layer, stack)


def _shardings(leaf: jax.ShapeDtypeStruct | Quantised) -> Any:
    return jax.tree.map(lambda x: x.sharding, leaf)


def _empty(stack: Quantised) -> Quantised:
    return jax.jit(
        lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), stack), out_shardings=_shardings(stack)
    )()


@functools.lru_cache(maxsize=None)
def _put(stack: Quantised) -> Callable[[Quantised, Quantised, int], Quantised]:
    put = lambda whole, layer, i: jax.tree.map(
        lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new, i, 0), whole, layer
    )
    return jax.jit(put, donate_argnums=0, out_shardings=_shardings(stack))


def _place(readers: parallel.Readers, wanted: Any, parts: list[Leaf], is_stacked: bool, dtype: np.dtype) -> jax.Array:
    """One array in memory from its leaves in files: one, or one per layer for a stack."""

    def read(index: tuple[slice, ...]) -> np.ndarray:
        out = parallel.host_zeros([i.stop - i.start for i in index], dtype)
        if is_stacked:
            first = index[0].start
            fill([(out[i - first], parts[i], index[1:]) for i in range(first, index[0].stop)])
        else:
            fill([(out, parts[0], index)])
        return out

    grain = (1, *parts[0].grain) if is_stacked else parts[0].grain
    return readers.array(wanted.shape, dtype, wanted.sharding, read, grain)
