"""A run of t5x of an adapted model (`adalink_jax.t5x`): its adapter as a file of ours."""

import dataclasses
import json
import os
import re

import numpy as np
from etils import epath

from adalink_jax.checkpoints.adapter_files import save_adapter
from adalink_jax.checkpoints.fingerprint import fingerprint_of_source
from adalink_jax.checkpoints.load_base import open_source
from adalink_jax.checkpoints.source import Source
from adalink_jax.errors import CheckpointError
from adalink_jax.models import paths

ABOUT = "adapter.json"
_BACKBONE, _ADAPTER = "backbone/", "adapter/"
_FIELDS = {"method": str, "settings": dict, "base": str, "task": str, "trainable": tuple}  # of ABOUT


@dataclasses.dataclass(frozen=True)
class RunCheckpoint:
    """One checkpoint of a run, opened and not yet read.

    Attributes:
      path: `MODEL_DIR/checkpoint_N`.
      step: N.
      about: what the run left about its adapter: `method`, `settings`, `base`, `task`.
      base: the backbone's leaves.
      adapter: name -> leaf.
    """

    path: str
    step: int
    about: dict
    base: Source
    adapter: dict


def open_t5x_run(path: str) -> RunCheckpoint:
    """Opens the last checkpoint of a run, or a given one.

    Args:
      path: `MODEL_DIR`, or `MODEL_DIR/checkpoint_N`.

    Raises:
      CheckpointError: if there is no checkpoint, or none of an adapted model.
    """
    folder = epath.Path(os.fspath(path)).expanduser()
    if _step(folder) is None:
        found = [at for at in (folder.iterdir() if folder.is_dir() else ()) if _step(at) is not None]
        if not found:
            raise CheckpointError(
                f"{path} holds no checkpoint_N; give the MODEL_DIR of a run of t5x, or one of its checkpoints."
            )
        folder = max(found, key=_step)
    file = folder.parent / ABOUT
    if not file.exists():
        raise CheckpointError(
            f"{folder.parent} has no {ABOUT}, which a run of gin/t5x/finetune.gin leaves; copy it there."
        )
    source = open_source(str(folder))
    of = lambda prefix: {n.removeprefix(prefix): leaf for n, leaf in source.leaves.items() if n.startswith(prefix)}
    if not of(_BACKBONE) or not of(_ADAPTER):
        raise CheckpointError(
            f"{folder} is no checkpoint of an adapted model: it has no leaves {_BACKBONE}... and {_ADAPTER}..."
        )
    try:
        stated = json.loads(file.read_text())
        about = {name: kind(stated[name]) for name, kind in _FIELDS.items()}
    except (ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"{file} is damaged or cut short ({type(e).__name__}: {e}); copy it again.") from e
    if any(re.fullmatch(each, _BACKBONE + name) for each in about["trainable"] for name in of(_BACKBONE)):
        raise CheckpointError(
            f"{folder.parent} trained leaves of the backbone too ({', '.join(about['trainable'])}), which an adapter's folder cannot hold; "
            f"use the whole checkpoint."
        )
    base = dataclasses.replace(source, leaves=of(_BACKBONE))
    return RunCheckpoint(str(folder), _step(folder), about, base, of(_ADAPTER))


def extract_adapter(run: RunCheckpoint, folder: str) -> dict:
    """Writes the adapter of a run's checkpoint as a folder of ours; reads all of its base, for the fingerprint.

    Args:
      run: from `open_t5x_run`; its `base` may count the bytes that are read.
      folder: a new one.

    Returns:
      The adapter's facts, as `open_adapter` gives them.

    Raises:
      CheckpointError: if the folder is there already, or an array is damaged.
    """
    if epath.Path(folder).exists():
        raise CheckpointError(f"{folder} is there already; delete it, or give another folder.")
    base = epath.Path(run.about["base"].rstrip("/"))
    step = _step(base)
    about = {
        "method": run.about["method"],
        "settings": run.about["settings"],
        "task": run.about["task"],
        "step": run.step,
        "base": {
            "name": base.name if step is None else f"{base.parent.name}@{step}",
            "fingerprint": fingerprint_of_source(run.base),
        },
    }
    leaves = {name: np.asarray(leaf.whole(), np.float32) for name, leaf in run.adapter.items()}
    save_adapter(folder, paths.unflatten(leaves), about)
    return about


def _step(folder: epath.Path) -> int | None:
    """N of `checkpoint_N`; None for another name."""
    found = re.fullmatch(r"checkpoint_(\d+)", folder.name)
    return int(found[1]) if found else None
