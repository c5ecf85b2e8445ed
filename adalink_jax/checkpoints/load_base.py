"""Base models from wherever they are: recognised by looking, every leaf from exactly one source, straight to its place.

Invariant: after a load every leaf of the model that was not named as fresh comes from a file, and no leaf of a file, or of
the part of it that was asked for, is left over.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from adalink_jax import parallel
from adalink_jax.checkpoints import architecture, big_vision, hugging_face, native, positions, t5x
from adalink_jax.checkpoints.architecture import LANGUAGE, VISION
from adalink_jax.checkpoints.fingerprint import fingerprint
from adalink_jax.checkpoints.source import Source
from adalink_jax.errors import CheckpointError
from adalink_jax.files.leaves import Leaf
from adalink_jax.models import paths

BUNDLED = "bundled:"
_ASSETS = pathlib.Path(__file__).parent.parent / "assets"
_KNOWN = (
    "a native base model (base_config.json), a Hugging Face folder (config.json and model.safetensors), a checkpoint_N of "
    "t5x, a .npz of big_vision, hf://OWNER/NAME or bundled:NAME"
)

Renames = Sequence[tuple[str, str | None]]


def folder_of(path: str, must_exist: bool = False) -> epath.Path:
    """Where a path that a user gave is: local or remote, `bundled:NAME`, or `hf://OWNER/NAME[@revision]`, downloaded.

    Raises:
      CheckpointError: if it cannot be had, or, where it `must_exist`, is no folder.
    """
    if path.startswith(BUNDLED):
        return _bundled(path)
    folder = hugging_face.download(path) if path.startswith(hugging_face.HUB) else epath.Path(path).expanduser()
    if must_exist and not folder.is_dir():
        raise CheckpointError(f"There is no folder {path}; give {_KNOWN}.")
    return folder


def open_source(path: str) -> Source:
    """Opens the checkpoint at `path`, whatever it is.

    Raises:
      CheckpointError: if there is nothing, or nothing known, or it is damaged.
    """
    path = os.fspath(path)
    folder = folder_of(path)
    if folder.name == t5x.FILE and folder.is_file():
        folder = folder.parent
    if folder.suffix == big_vision.SUFFIX and folder.is_file():
        return big_vision.open_file(folder, path)
    if not folder.is_dir():
        raise CheckpointError(f"There is no folder {path}; give {_KNOWN}.")
    if native.is_folder(folder):
        return native.open_folder(folder, path)
    if t5x.is_legacy(folder):
        return t5x.open_legacy(folder, path)
    if (arrays := t5x.orbax_folder(folder)) is not None:
        return t5x.open_orbax(arrays, path)
    if hugging_face.is_folder(folder):
        return hugging_face.open_folder(folder, path)
    inside = sorted(entry.name for entry in folder.iterdir())
    if "adapter_config.json" in inside:
        raise CheckpointError(f"{path} is an adapter, not a base model; INITIAL_ADAPTER_PATH takes it.")
    steps = [name for name in inside if re.fullmatch(r"checkpoint_\d+", name)]
    if steps:
        raise CheckpointError(f"{path} holds the checkpoints {', '.join(steps[-4:])}; give one, as {path}/{steps[-1]}.")
    raise CheckpointError(f"{path} is no base model: it is none of {_KNOWN}.")


def _bundled(path: str) -> epath.Path:
    name = path.removeprefix(BUNDLED)
    known = sorted(p.parent.name for p in _ASSETS.glob(f"*/{native.CONFIG}"))
    if name not in known:
        raise CheckpointError(f"There is no bundled base {name!r}; there are: {', '.join(known)}.")
    return epath.Path(_ASSETS) / name


@dataclasses.dataclass
class Base:
    """A loaded base model.

    Attributes:
      params: nested dict of arrays, without the fresh leaves.
      name: the base's name.
      fingerprint: of the weights; None while leaves are still fresh.
      sources: top folder of the leaves' names -> where they came from, for people.
    """

    params: dict
    name: str
    fingerprint: str | None
    sources: dict[str, str]


def load_base(
    path: str | Mapping[str, str | None],
    abstract,
    dtype: Callable[[str], str] = lambda name: "float32",
    renames: Renames = (),
    configs: Mapping[str, Any] | None = None,
) -> Base:
    """Reads a base model leaf by leaf, shard by shard, straight to its place.

    Args:
      path: anything that `open_source` takes; or a mapping from a part of the model to one: a top folder of its names
        (`vision`, `projection`), or `language` for all that no other key names. A part whose path is None is fresh.
      abstract: the tree wanted: `jax.ShapeDtypeStruct` leaves, with shardings where there is a mesh.
      dtype: name of a leaf in memory -> the dtype that it is stored in.
      renames: see `rename`.
      configs: the model's configurations (`configs_of`), compared with what the checkpoint states of them; a table of positions
        for another resolution than the vision tower's is resampled. None compares shapes only.

    Raises:
      CheckpointError: for a folder that is no base, leaves that are missing, left over or misshapen, a damaged file.
    """
    wanted = paths.flatten(abstract)
    names = {name: paths.unscanned_names(name, leaf.shape) for name, leaf in wanted.items()}
    shapes = paths.unscanned_shapes(wanted)
    by_part = dict(path) if isinstance(path, Mapping) else {None: path}
    parts = _parts(by_part, shapes)
    found: dict[str, Leaf] = {}
    opened: dict[str, Source] = {}
    notes: dict[str | None, str] = {}
    configs = configs or {}
    for part, where in by_part.items():
        if where is None:
            continue
        if where not in opened:
            opened[where] = open_source(where)
        source = opened[where]
        leaves = rename(source.leaves, renames, where) if part is None or part == LANGUAGE else source.leaves
        mine = {name: leaf for name, leaf in leaves.items() if _part_of(name, by_part) == part}
        if _resample(mine, shapes, configs.get(VISION), source):
            notes[part] = f", positions resampled ({source.position_rule})"
        architecture.check_fit(
            {name: leaf.shape for name, leaf in mine.items()}, {name: shapes[name] for name in parts[part]}, where
        )
        if LANGUAGE in configs and part in (None, LANGUAGE):
            architecture.check_settings(source.settings, configs[LANGUAGE], where)
        architecture.check_part_settings(source, configs, None if part is None else {part})
        found |= mine
    kept = {name: leaf for name, leaf in wanted.items() if names[name][0] in found}
    readers = parallel.Readers()
    params = {
        name: _place(readers, leaf, [found[n] for n in names[name]], names[name] != [name], dtype(name))
        for name, leaf in kept.items()
    }
    readers.finish()
    params = paths.unflatten(params)
    mark = fingerprint(params) if kept.keys() == wanted.keys() else None
    stated = next(iter(opened.values())).fingerprint if len(by_part) == 1 and not renames else None
    if stated is not None and mark != stated and not notes:
        raise CheckpointError(
            f"The weights in {path} do not have the fingerprint that {native.CONFIG} names; copy or write it again."
        )
    sources = {}
    for part, mine in parts.items():
        where = by_part[part]
        text = "fresh" if where is None else f"{where}, {opened[where].kind}"
        for top in {name.split("/")[0] for name in mine}:
            sources[top] = text + (notes.get(part, "") if top == VISION else "")
    name = " + ".join(source.name for source in opened.values())
    return Base(params, name, mark, sources)


def _resample(mine: dict[str, Leaf], shapes: Mapping, vision, source: Source) -> bool:
    """Puts a table of positions in place that fits the model's resolution; says whether one had to be made."""
    name = "vision/pos_embedding"
    if vision is None or name not in mine or name not in shapes or mine[name].shape[0] == shapes[name][0]:
        return False
    mine[name] = positions.for_grid(mine[name], vision.grid, vision.class_token, source.position_rule, source.path)
    return True


def rename(leaves: Mapping[str, Leaf], renames: Renames, path: str) -> dict[str, Leaf]:
    """Leaves under other names, for bases that are none of ours.

    Args:
      leaves: under t5x's names where the checkpoint is a T5, else under its own.
      renames: `(regular expression, replacement)`; the first that matches a whole name is applied. A replacement of None
        leaves the leaf out.
      path: for errors.

    Raises:
      CheckpointError: for an expression that is none or matches nothing, and two leaves of one new name.
    """
    out: dict[str, Leaf] = {}
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
                raise CheckpointError(f"CHECKPOINT_RENAMES: {expression!r} -> {replacement!r}: {e}.") from e
        if new in out:
            raise CheckpointError(
                f"CHECKPOINT_RENAMES gives {new} to two leaves of {path}: {out[new].origin} and {leaf.origin}."
            )
        if new is not None:
            out[new] = leaf
    unused = [expression for expression, _ in renames if expression not in used]
    if unused:
        raise CheckpointError(
            f"CHECKPOINT_RENAMES: {unused[0]!r} matches no leaf of {path}; they are called {', '.join(list(leaves)[:3])}, ..."
        )
    return out


def _part_of(name: str, by_part: Mapping) -> str | None:
    top = name.split("/")[0]
    if top in by_part:
        return top
    return LANGUAGE if LANGUAGE in by_part else None


def _parts(by_part: Mapping, shapes: Mapping) -> dict:
    parts: dict = {part: [] for part in by_part}
    for name in shapes:
        part = _part_of(name, by_part)
        if part not in parts:
            raise CheckpointError(
                f"INITIAL_CHECKPOINT_PATH names no source for {name}; add {name.split('/')[0]!r} or {LANGUAGE!r}."
            )
        parts[part].append(name)
    empty = [part for part, mine in parts.items() if not mine]
    if empty:
        tops = sorted({name.split("/")[0] for name in shapes})
        raise CheckpointError(
            f"INITIAL_CHECKPOINT_PATH names {empty[0]!r}, and this model has only {', '.join(tops)} ({LANGUAGE!r}: the rest)."
        )
    return parts


def _place(readers: parallel.Readers, wanted, parts: list[Leaf], stacked: bool, dtype: str) -> jax.Array:
    """One leaf in memory, from its leaves in files; each device gets its own part (see `parallel.Readers`)."""
    np_dtype = np.dtype(dtype)

    def read(index):
        out = parallel.host_zeros([i.stop - i.start for i in index], np_dtype)
        if stacked:
            for row, i in enumerate(range(index[0].start, index[0].stop)):
                parts[i].fill(out[row], index[1:])
        else:
            parts[0].fill(out, index)
        return out

    grain = (1, *parts[0].grain) if stacked else parts[0].grain
    return readers.array(wanted.shape, np_dtype, wanted.sharding, read, grain)
