"""Adapters as files: a folder with PEFT's file names, `adapter_model.safetensors` and `adapter_config.json`.

Our fields stand under one key, `adalink`, with a `format_version`; a file of any released version loads for ever. LoRA and
prompt tuning are written in PEFT's layout, and read from PEFT's folders (`peft_files`); all else has our own names.

A file is not trusted: its header and configuration are checked before values are read, and nothing is unpickled.
"""

import json
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from adalink_jax import parallel
from adalink_jax.adapters import describe_adapter
from adalink_jax.checkpoints import peft_files
from adalink_jax.errors import CheckpointError
from adalink_jax.files import safetensors_file
from adalink_jax.files.leaves import Leaf, from_array
from adalink_jax.models import paths
from adalink_jax.version import __version__

WEIGHTS, CONFIG, PICKLE = "adapter_model.safetensors", "adapter_config.json", "adapter_model.bin"
FORMAT_VERSION = 1
_MAX_CONFIG = 2**20  # bytes
_OWN = "ADALINK"
_UNSEEN = ("phi", "scale", "alpha")  # settings that decide the numbers and leave the shapes as they are


def save_adapter(folder: str, adapter, about: dict) -> None:
    """Writes the adapter's tree (names without the leading `adapter/`); all processes call it, the first writes.

    Args:
      folder: made if absent.
      adapter: nested dict of arrays, scanned or not.
      about: `method`, `settings`, `base` (`name` and `fingerprint`), and further JSON-able facts.
    """
    leaves = paths.unscan(paths.flatten(parallel.to_host(adapter)))
    parallel.once(_write, epath.Path(folder), leaves, about)


def _write(folder: epath.Path, leaves: dict[str, np.ndarray], about: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    own = {"peft_type": _OWN, "task_type": "SEQ_2_SEQ_LM"}
    tensors, fields = peft_files.to_peft(about, leaves) or (leaves, own)
    tensors = {name: from_array(np.ascontiguousarray(tensors[name]), name) for name in sorted(tensors)}
    safetensors_file.write_leaves(folder / WEIGHTS, tensors, {name: leaf.dtype for name, leaf in tensors.items()})
    config = fields | {
        "base_model_name_or_path": about["base"]["name"],
        "adalink": {"format_version": FORMAT_VERSION, "version": __version__, **about},
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def open_adapter(folder: str) -> tuple[dict[str, Leaf], dict]:
    """An adapter's leaves by our names, with no value read yet, and its facts.

    Returns:
      `(leaves, about)`: `about` has at least `method`, `settings` and `base` (`name` and `fingerprint`). A folder that PEFT
      wrote does not say which base it belongs to; its fingerprint is None.

    Raises:
      CheckpointError: for a folder that is no adapter, a damaged file, and what this package does not compute.
    """
    path, folder = os.fspath(folder), epath.Path(folder).expanduser()
    if (folder / PICKLE).exists() and not (folder / WEIGHTS).exists():
        raise CheckpointError(
            f"{path} holds {PICKLE}, a pickle, which is never opened; save it with PEFT as {WEIGHTS} (its default)."
        )
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).exists():
            raise CheckpointError(f"{path} is no adapter: it has no {name} (a run writes one as `adapter/`).")
    config = _read_config(folder / CONFIG, path)
    leaves = safetensors_file.read_leaves(folder / WEIGHTS)
    for name, leaf in leaves.items():
        if any(part in ("", ".", "..") for part in name.split("/")):
            raise CheckpointError(
                f"The adapter {path} holds a leaf named {name[:60]!r}, which is no name; train it again."
            )
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise CheckpointError(
                f"The adapter {path} holds {name[:100]} as {leaf.dtype}; only floating-point numbers can be used, so save it "
                f"as float32."
            )
    kind = config["peft_type"]
    if kind in peft_files.TYPES:
        leaves = peft_files.from_peft(leaves, kind, path)
    elif "adalink" not in config:
        raise CheckpointError(
            f"The adapter {path} is PEFT's {kind[:60]}; of PEFT's only {' and '.join(peft_files.TYPES)} can be used."
        )
    return leaves, config["adalink"] if "adalink" in config else peft_files.describe(config, leaves, path)


def read_adapter(folder: str) -> tuple[dict[str, np.ndarray], dict]:
    """An adapter's values by our names, and its facts (see `open_adapter`), whatever its method and base.

    Raises:
      CheckpointError: as `open_adapter`, and for values that are not finite.
    """
    leaves, about = open_adapter(folder)
    return _read(leaves, folder), about


def check_base(path: str, about: dict, base_fingerprint: str, remedy: str) -> None:
    """Refuses an adapter that was trained on another base; `remedy` ends the sentence. One whose file does not tell its base
    (PEFT's) passes."""
    base = about["base"]
    if base["fingerprint"] not in (None, base_fingerprint):
        raise CheckpointError(
            f"The adapter {path} was trained on another base: {base['name']} {base['fingerprint'][:12]}, this one is "
            f"{base_fingerprint[:12]}; {remedy}."
        )


def check_shapes(path: str, about: dict, found: dict[str, Leaf], wanted: dict[str, tuple[int, ...]]) -> None:
    """Refuses an adapter whose leaves are not those wanted (unscanned name -> shape); names the first that differs."""
    for name in sorted(found.keys() | wanted.keys()):
        have = tuple(found[name].shape) if name in found else None
        want = wanted.get(name)
        if have == want:
            continue
        what = f"has {name[:100]} {have}, where {want} is wanted"
        if have is None or want is None:
            what = f"lacks {name} {want}" if have is None else f"has {name[:100]} {have}, which is not wanted"
        raise CheckpointError(
            f"The adapter {path} {what}; use its method and settings ({_settings_text(about)}), and the model that it is for."
        )


def load_adapter(
    folder: str, abstract, base_fingerprint: str, allow_other_base: bool = False, module: nn.Module | None = None
):
    """Reads an adapter for a given base.

    Args:
      folder: what `save_adapter` or PEFT wrote.
      abstract: the adapter's tree wanted: `jax.ShapeDtypeStruct` leaves.
      base_fingerprint: fingerprint of the base that it is to work on.
      allow_other_base: take an adapter that was trained on another base (transfer experiments).
      module: the method wanted; settings that shapes do not show (phi, scale, alpha) are then compared too.

    Returns:
      `(adapter, about)`: arrays on the leaves' shardings, and its facts. `about["base"]["fingerprint"]` is None where the
      file does not tell its base, which then was not checked.

    Raises:
      CheckpointError: for a folder that is no adapter, a damaged file, another method, rank or setting, another base.
    """
    found, about = open_adapter(folder)
    if not allow_other_base:
        remedy = "load that base, or set ALLOW_OTHER_BASE = True for a transfer experiment"
        check_base(folder, about, base_fingerprint, remedy)
    wanted = paths.flatten(abstract)
    check_shapes(folder, about, found, paths.unscanned_shapes(wanted))
    if module is not None:
        check_method(folder, about, describe_adapter(module))
    whole = paths.rescan(_read(found, folder), wanted)
    leaves = {name: jax.device_put(whole[name].astype(leaf.dtype), leaf.sharding) for name, leaf in wanted.items()}
    return paths.unflatten(leaves), about


def _read_config(file: epath.Path, path: str) -> dict:
    """`adapter_config.json`, with a `peft_type`, and, under `adalink`, fields of the types that they should have."""
    damaged = lambda why: CheckpointError(f"{path}/{CONFIG} is damaged or cut short ({why}); copy or write it again.")
    if file.stat().length > _MAX_CONFIG:
        raise damaged(f"{file.stat().length:,} bytes are more than a configuration has")
    try:
        config = json.loads(file.read_text())
    except (ValueError, RecursionError) as e:
        raise damaged(str(e)) from e
    if not isinstance(config, dict) or not isinstance(config.get("peft_type", _OWN), str):
        raise damaged("it is no object with a peft_type")
    if "adalink" not in config and "peft_type" not in config:
        raise damaged("it has neither adalink nor peft_type")
    if "adalink" in config:
        _check_fields(config["adalink"], path, damaged)
    return {"peft_type": _OWN, **config}


def _check_fields(about, path: str, damaged) -> None:
    if not isinstance(about, dict):
        raise damaged("its adalink is no object")
    version = about.get("format_version")
    if type(version) is not int or version < 1:
        raise damaged("its format_version is no number from 1 on")
    if version > FORMAT_VERSION:
        raise CheckpointError(f"{path} was written by a newer version ({about.get('version')}); update adalink-jax.")
    for key, kind in (("method", str), ("settings", dict), ("base", dict), ("metrics", dict)):
        if key in ("settings", "metrics"):
            about.setdefault(key, {})
        if not isinstance(about.get(key), kind):
            raise damaged(f"its {key} is missing or of a wrong type")
    base = about["base"]
    for key in ("name", "fingerprint"):
        if key not in base or not isinstance(base[key], str | None):
            raise damaged(f"the {key} of its base is missing or of a wrong type")


def _read(leaves: dict[str, Leaf], path: str) -> dict[str, np.ndarray]:
    values = {name: leaf.whole() for name, leaf in leaves.items()}
    for name, value in values.items():
        with np.errstate(over="ignore"):
            finite = np.isfinite(value.astype(np.float32)).all()
        if not finite:
            raise CheckpointError(
                f"The adapter {path} holds values that are not finite, in {name}; train it again from an earlier checkpoint."
            )
    return values


def check_method(path: str, about: dict, wanted: dict) -> None:
    """Refuses an adapter of another method, or with another setting that shapes do not show, than `wanted` (`describe_adapter`)."""
    _check_settings(path, about, about, wanted)


def _check_settings(path: str, about: dict, mine: dict, wanted: dict) -> None:
    """Refuses settings that shapes do not show and that differ; `mine` and `wanted` are as `describe_adapter` gives them."""
    if mine.get("method") != wanted["method"]:
        raise CheckpointError(
            f"The adapter {path} is {mine.get('method')}, where {wanted['method']} is wanted; use its method and settings "
            f"({_settings_text(about)})."
        )
    found = mine.get("settings", {})
    unseen = _UNSEEN if "." not in wanted["method"] else wanted["settings"]  # of others' methods any may be
    for key, value in wanted["settings"].items():
        if key in unseen and key in found and found[key] != value:
            raise CheckpointError(
                f"The adapter {path} has {key} = {found[key]!r}, where {value!r} is wanted; use its method and settings "
                f"({_settings_text(about)})."
            )
        if isinstance(value, list) and value and isinstance(value[0], dict):
            for one, other in zip(found.get(key, ()), value):
                _check_settings(path, about, one, other)


def _settings_text(about: dict) -> str:
    settings = ", ".join(f"{key} {value}" for key, value in about.get("settings", {}).items())
    return f"{about.get('method')}, {settings}"[:200]
