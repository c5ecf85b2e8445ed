"""Native base models: a folder with `model.safetensors` (unscanned names) and `base_config.json`.

`base_config.json` is written last, and holds the fingerprint, which every load compares with the arrays that it made.
"""

import json
from collections.abc import Mapping

import numpy as np
from etils import epath

from adalink_jax import parallel
from adalink_jax.checkpoints.fingerprint import fingerprint
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
    """Opens a native base model."""
    try:
        config = json.loads((folder / CONFIG).read_text())
        version, name, mark = config["format_version"], config["name"], config["fingerprint"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as e:
        raise CheckpointError(f"{path}/{CONFIG} is damaged or cut short ({e}); copy or write it again.") from e
    if version > FORMAT_VERSION:
        raise CheckpointError(f"{path} was written by a newer version; update adalink-jax.")
    if not (folder / WEIGHTS).exists():
        raise CheckpointError(f"{path} has no {WEIGHTS}; copy or write it again.")
    leaves = dict(sorted(safetensors_file.read_leaves(folder / WEIGHTS).items()))
    plain = lambda fields: {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    parts = {part: plain(fields) for part, fields in config.get("part_settings", {}).items()}
    return Source(
        "native base model", path, name, leaves, folder, plain(config.get("settings", {})), mark, part_settings=parts,
        position_rule=config.get("position_rule", BILINEAR),
    )  # fmt: skip


def save_base(folder: str, params, name: str, about: dict) -> dict:
    """Writes the backbone's tree `params` (float32) as a native base model; all processes call it, the first writes.

    Args:
      folder: made if absent.
      params: nested dict, scanned or not.
      name: the base's name, such as "pali_nano".
      about: JSON-able facts to keep beside it (task, step, metrics, versions).

    Returns:
      What it wrote to `base_config.json`, with the `fingerprint`.
    """
    leaves = paths.unscan(paths.flatten(parallel.to_host(params)))
    leaves = {key: from_array(np.ascontiguousarray(leaf, np.float32), key) for key, leaf in leaves.items()}
    mark = fingerprint(params)
    return parallel.once(_write, epath.Path(folder), leaves, name, about, mark, None)


def write(folder: epath.Path, source: Source, dtype: str | None, mark: str) -> dict:
    """Writes `source`, whose fingerprint is `mark`, as a native base model, in `dtype` (None keeps each leaf's own)."""
    about = {"settings": source.settings, "converted_from": source.kind}
    if source.part_settings:
        about |= {"part_settings": source.part_settings, "position_rule": source.position_rule}
    return _write(folder, source.leaves, source.name, about, mark, dtype)


def _write(folder: epath.Path, leaves: Mapping[str, Leaf], name: str, about: dict, mark: str, dtype: str | None):
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
