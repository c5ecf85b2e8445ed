"""Native base models: a folder with `model.safetensors` (unscanned names, float32) and `base_config.json`.

Invariant: after a load every leaf of the model comes from the file, none is left over, and the fingerprint is the one
that was written.
"""

import json
import os
import pathlib
from collections.abc import Callable

import jax
import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from adalink_jax.checkpoints.fingerprint import fingerprint
from adalink_jax.errors import CheckpointError
from adalink_jax.models import paths

WEIGHTS, CONFIG = "model.safetensors", "base_config.json"
FORMAT_VERSION = 1
BUNDLED = "bundled:"
_ASSETS = pathlib.Path(__file__).parent.parent / "assets"


def resolve(path: str) -> epath.Path:
    """The folder that `path` names; `bundled:NAME` is a base that ships with the package.

    Raises:
      CheckpointError: if there is no such folder or it holds no native base model.
    """
    path = os.fspath(path)
    if path.startswith(BUNDLED):
        folder = epath.Path(_ASSETS) / path.removeprefix(BUNDLED)
        known = sorted(p.parent.name for p in _ASSETS.glob(f"*/{CONFIG}"))
        if folder.name not in known:
            raise CheckpointError(f"There is no bundled base {folder.name!r}; there are: {', '.join(known)}.")
        return folder
    folder = epath.Path(path)
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).exists()]
    if missing:
        raise CheckpointError(
            f"{path} is no native base model (it has no {missing[0]}); give a folder that a run wrote as `model/`, "
            f"or bundled:NAME."
        )
    return folder


def save_base(folder: str, params, name: str, about: dict) -> dict:
    """Writes the backbone's tree `params` (float32) as a native base model.

    Args:
      folder: made if absent.
      params: nested dict, scanned or not.
      name: the base's name, such as "pali_nano".
      about: JSON-able facts to keep beside it (task, step, metrics, versions).

    Returns:
      What it wrote to `base_config.json`, with the `fingerprint`.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    leaves = paths.unscan(paths.flatten(jax.device_get(params)))
    leaves = {key: np.ascontiguousarray(leaf, np.float32) for key, leaf in leaves.items()}
    save_file(leaves, folder / WEIGHTS)
    config = {
        "format_version": FORMAT_VERSION,
        "name": name,
        "parameters": sum(leaf.size for leaf in leaves.values()),
        "fingerprint": fingerprint(params),
        **about,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return config


def load_base(path: str, abstract, dtype: Callable[[str], str] = lambda name: "float32"):
    """Reads a base model leaf by leaf, straight to its place.

    Args:
      path: a folder, or `bundled:NAME`.
      abstract: the tree wanted: `jax.ShapeDtypeStruct` leaves, with shardings where there is a mesh.
      dtype: name of a leaf in memory -> the dtype that it is stored in.

    Returns:
      `(params, config)`: the filled tree, and the contents of `base_config.json`.

    Raises:
      CheckpointError: for a folder that is no base, leaves that are missing, left over or misshapen, a damaged file.
    """
    folder = resolve(path)
    try:
        config = json.loads((folder / CONFIG).read_text())
        with safe_open(folder / WEIGHTS, framework="numpy") as file:
            params = _read(file, paths.flatten(abstract), dtype, path)
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError) as e:
        raise CheckpointError(f"{path} is damaged or cut short ({e}); copy or write it again.") from e
    if fingerprint(params) != config.get("fingerprint"):
        raise CheckpointError(
            f"The weights in {path} do not have the fingerprint that {CONFIG} names; copy or write it again."
        )
    return params, config


def _read(file, wanted: dict, dtype, path: str) -> dict:
    needed = {name: paths.unscanned_names(name, leaf.shape) for name, leaf in wanted.items()}
    _compare(file, wanted, needed, path)
    leaves = {}
    for name, leaf in wanted.items():
        parts = [file.get_tensor(each) for each in needed[name]]
        array = parts[0] if needed[name] == [name] else np.stack(parts)
        leaves[name] = jax.device_put(array.astype(dtype(name)), leaf.sharding)
    return paths.unflatten(leaves)


def _compare(file, wanted: dict, needed: dict, path: str) -> None:
    found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
    shapes = {
        each: leaf.shape if needed[name] == [name] else leaf.shape[1:]
        for name, leaf in wanted.items()
        for each in needed[name]
    }
    problems = [
        ("lacks", sorted(shapes.keys() - found.keys())),
        ("has, and the model does not,", sorted(found.keys() - shapes.keys())),
        ("has in another shape", [
            f"{key} {found[key]} (model: {shapes[key]})"
            for key in sorted(shapes.keys() & found.keys()) if found[key] != tuple(shapes[key])
        ]),
    ]  # fmt: skip
    told = [
        f"{verb} {len(names)}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
        for verb, names in problems
        if names
    ]
    if told:
        raise CheckpointError(f"{path} does not fit this model: it {'; it '.join(told)}.")
