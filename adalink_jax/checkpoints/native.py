"""Native base models: a folder with `model.safetensors` (unscanned names) and `base_config.json`.

`base_config.json` is written last and holds the fingerprint, which every load compares with the arrays that it read.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from adalink_jax import parallel
from adalink_jax.checkpoints.digests import fingerprint
from adalink_jax.checkpoints.families.family import LANGUAGE
from adalink_jax.checkpoints.positions import BILINEAR
from adalink_jax.checkpoints.source import Source
from adalink_jax.errors import CheckpointError
from adalink_jax.files import safetensors_file
from adalink_jax.files.leaves import Leaf, from_array
from adalink_jax.models import paths

WEIGHTS, CONFIG = "model.safetensors", "base_config.json"
FORMAT_VERSION = 1


def is_folder(folder: epath.Path) -> bool:
    """Whether `folder` is a native base model."""
    return (folder / CONFIG).exists()


def open_folder(folder: epath.Path, path: str) -> Source:
    """Opens a native base model.

    Args:
      folder: the folder.
      path: the folder as the user gave it, for errors.

    Raises:
      CheckpointError: for a folder that is damaged, incomplete, or of a newer version of this package.
    """
    try:
        config = json.loads((folder / CONFIG).read_text())
        version, name, mark = config["format_version"], config["name"], config["fingerprint"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as e:
        raise CheckpointError(f"{path}/{CONFIG} is damaged or cut short ({e}); copy or write it again.") from e
    if version > FORMAT_VERSION:
        raise CheckpointError(f"{path} was written by a newer version of adalink-jax; update adalink-jax.")
    if not (folder / WEIGHTS).exists():
        raise CheckpointError(f"{path} has no {WEIGHTS}; copy or write it again.")
    stated = {LANGUAGE: config.get("settings", {}), **config.get("part_settings", {})}
    plain = lambda fields: {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    return Source(
        kind="native base model",
        path=path,
        name=name,
        leaves=dict(sorted(safetensors_file.read_leaves(folder / WEIGHTS).items())),
        folder=folder,
        settings={part: plain(fields) for part, fields in stated.items()},
        fingerprint=mark,
        position_rule=config.get("position_rule", BILINEAR),
    )


def save_base(
    folder: str | epath.Path, params: Mapping[str, Any], name: str, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes a backbone's parameters as a native base model, in float32; all processes call it, process 0 writes.

    Args:
      folder: created if absent.
      params: `{name in memory: array}`, flat or nested, scanned or not.
      name: the base model's name, such as "pali_nano".
      about: JSON-able facts to store beside it (task, step, metrics, versions).

    Returns:
      The contents of `base_config.json`, with the `fingerprint`.
    """
    params = paths.flatten(params)
    leaves = paths.unscan(parallel.to_host(params))
    leaves = {key: from_array(np.ascontiguousarray(leaf, np.float32), key) for key, leaf in leaves.items()}
    mark = fingerprint(params)
    return parallel.once(_write, epath.Path(folder), leaves, name, about, mark, None)


def write(folder: epath.Path, source: Source, dtype: str | None, mark: str) -> dict[str, Any]:
    """Writes a source as a native base model.

    Args:
      folder: created if absent.
      source: the model.
      dtype: the dtype of all values; None keeps each leaf's own.
      mark: the source's fingerprint.

    Returns:
      The contents of `base_config.json`.
    """
    parts = dict(source.settings)
    about: dict[str, Any] = {"settings": parts.pop(LANGUAGE, {}), "converted_from": source.kind}
    if parts:
        about |= {"part_settings": parts, "position_rule": source.position_rule}
    return _write(folder, source.leaves, source.name, about, mark, dtype)


def _write(
    folder: epath.Path, leaves: Mapping[str, Leaf], name: str, about: Mapping[str, Any], mark: str, dtype: str | None
) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    stored = np.dtype(dtype) if dtype else None
    dtypes = {key: stored or leaf.dtype for key, leaf in leaves.items()}
    safetensors_file.write_leaves(folder / WEIGHTS, leaves, dtypes)
    config = {
        "format_version": FORMAT_VERSION,
        "name": name,
        "parameters": sum(leaf.size for leaf in leaves.values()),
        "fingerprint": mark,
        **about,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return config
