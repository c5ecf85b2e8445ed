"""Adapters as files: a folder with PEFT's file names, `adapter_model.safetensors` and `adapter_config.json`.

Our fields stand under one key, `adalink`, with a `format_version`; a file of any released version loads for ever.
"""

import json

import jax
import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from adalink_jax.errors import CheckpointError
from adalink_jax.models import paths
from adalink_jax.version import __version__

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
FORMAT_VERSION = 1


def save_adapter(folder: str, adapter, about: dict) -> None:
    """Writes the adapter's tree (names without the leading `adapter/`).

    Args:
      folder: made if absent.
      adapter: nested dict of arrays.
      about: `method`, `settings`, `base` (`name` and `fingerprint`), and further JSON-able facts.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    leaves = paths.unscan(paths.flatten(jax.device_get(adapter)))
    leaves = {name: np.ascontiguousarray(leaf) for name, leaf in leaves.items()}
    save_file(leaves, folder / WEIGHTS)
    config = {
        "peft_type": "ADALINK",
        "task_type": "SEQ_2_SEQ_LM",
        "base_model_name_or_path": about["base"]["name"],
        "adalink": {"format_version": FORMAT_VERSION, "version": __version__, **about},
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def read_adapter(folder: str) -> tuple[dict[str, np.ndarray], dict]:
    """An adapter's leaves by name, and its `adalink` fields, whatever its method and base.

    Raises:
      CheckpointError: for a folder that is no adapter, a damaged file, values that are not finite.
    """
    path, folder = folder, epath.Path(folder).expanduser()
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).exists():
            raise CheckpointError(f"{path} is no adapter: it has no {name} (a run writes one as `adapter/`).")
    try:
        about = json.loads((folder / CONFIG).read_text())["adalink"]
        if about["format_version"] > FORMAT_VERSION:
            raise CheckpointError(f"{path} was written by a newer version ({about['version']}); update adalink-jax.")
        about["base"]["name"], about["base"]["fingerprint"]
        with safe_open(folder / WEIGHTS, framework="numpy") as file:
            found = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as e:
        raise CheckpointError(f"The adapter {path} is damaged or cut short ({e}); copy or train it again.") from e
    for name, leaf in found.items():
        if not np.isfinite(leaf.astype(np.float32)).all():
            raise CheckpointError(f"The adapter {path} holds values that are not finite, in {name}.")
    return found, about


def check_base(path: str, about: dict, base_fingerprint: str, remedy: str) -> None:
    """Refuses an adapter that was trained on another base; `remedy` ends the sentence."""
    base = about["base"]
    if base["fingerprint"] != base_fingerprint:
        raise CheckpointError(
            f"The adapter {path} was trained on another base: {base['name']} {base['fingerprint'][:12]}, this one is "
            f"{base_fingerprint[:12]}; {remedy}."
        )


def load_adapter(folder: str, abstract, base_fingerprint: str, allow_other_base: bool = False):
    """Reads an adapter for a given base.

    Args:
      folder: what `save_adapter` wrote.
      abstract: the adapter's tree wanted: `jax.ShapeDtypeStruct` leaves.
      base_fingerprint: fingerprint of the base that it is to work on.
      allow_other_base: take an adapter that was trained on another base (transfer experiments).

    Returns:
      `(adapter, about)`: arrays on the leaves' shardings, and the `adalink` fields.

    Raises:
      CheckpointError: for a folder that is no adapter, a damaged file, another method or rank, another base.
    """
    found, about = read_adapter(folder)
    if not allow_other_base:
        remedy = "load that base, or set ALLOW_OTHER_BASE = True for a transfer experiment"
        check_base(folder, about, base_fingerprint, remedy)
    wanted = paths.flatten(abstract)
    shapes = {name: tuple(leaf.shape) for name, leaf in found.items()}
    if shapes != paths.unscanned_shapes(wanted):
        raise CheckpointError(
            f"The adapter {folder} is {shapes} and this run's is {paths.unscanned_shapes(wanted)}: "
            f"use its method and settings ({about.get('method')}, {about.get('settings')})."
        )
    whole = paths.rescan(found, wanted)
    leaves = {name: jax.device_put(whole[name].astype(leaf.dtype), leaf.sharding) for name, leaf in wanted.items()}
    return paths.unflatten(leaves), about
