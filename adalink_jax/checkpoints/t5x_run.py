"""Runs of t5x on an adapted model (`adalink_jax.t5x`): their adapter as a folder of this package."""

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from adalink_jax.checkpoints.adapter_facts import AdapterFacts, BaseReference
from adalink_jax.checkpoints.adapter_files import save_adapter
from adalink_jax.checkpoints.digests import fingerprint_of_source
from adalink_jax.checkpoints.formats import open_source
from adalink_jax.checkpoints.source import Source
from adalink_jax.checkpoints.t5x_format import name_of, step_of
from adalink_jax.errors import CheckpointError
from adalink_jax.files.leaves import Leaf
from adalink_jax.files.places import is_there, path_of
from adalink_jax.files.typed_json import Form, read_form

ABOUT = "adapter.json"
_BACKBONE, _ADAPTER = "backbone/", "adapter/"


class _About(Form):
    """`adapter.json`."""

    method: str
    settings: dict[str, Any]
    base: str
    task: str
    trainable: list[str]


@dataclasses.dataclass(frozen=True)
class RunCheckpoint:
    """One checkpoint of a run, opened and not yet read.

    Attributes:
      path: `MODEL_DIR/checkpoint_N`.
      step: N.
      method, settings: the adapter's, as `adapters.make_adapter` takes them.
      base_path: the checkpoint that the run started from.
      task: the task or mixture that it was trained on.
      base: the backbone's leaves.
      adapter: the adapter's leaves by name.
    """

    path: str
    step: int
    method: str
    settings: Mapping[str, Any]
    base_path: str
    task: str
    base: Source
    adapter: Mapping[str, Leaf]


def open_t5x_run(path: str | os.PathLike[str]) -> RunCheckpoint:
    """Opens the last checkpoint of a run, or a given one.

    Args:
      path: `MODEL_DIR`, or `MODEL_DIR/checkpoint_N`.

    Raises:
      CheckpointError: if there is no checkpoint, or it is not of an adapted model.
    """
    folder = path_of(path)
    if step_of(folder) is None:
        steps = {step: at for at in (folder.iterdir() if folder.is_dir() else ()) if (step := step_of(at)) is not None}
        if not steps:
            raise CheckpointError(
                f"{path} holds no checkpoint_N; give the MODEL_DIR of a run of t5x, or one of its checkpoints."
            )
        folder = steps[max(steps)]
    file = folder.parent / ABOUT
    if not is_there(file):
        raise CheckpointError(
            f"{folder.parent} has no {ABOUT}, which a run of gin/t5x/finetune.gin writes; copy it there from the run's MODEL_DIR."
        )
    source = open_source(str(folder))
    below = lambda prefix: {n.removeprefix(prefix): leaf for n, leaf in source.leaves.items() if n.startswith(prefix)}
    backbone, adapter = below(_BACKBONE), below(_ADAPTER)
    if not backbone or not adapter:
        raise CheckpointError(
            f"{folder} is not a checkpoint of an adapted model: it lacks leaves {_BACKBONE}... or {_ADAPTER}...; give a "
            f"checkpoint of a run of gin/t5x/finetune.gin."
        )
    about = read_form(file, _About, error=CheckpointError)
    try:
        expressions = list(map(re.compile, about.trainable))
    except re.error as e:
        raise CheckpointError(f"{file} has an invalid expression in `trainable` ({e}); copy it again.") from e
    if any(expression.fullmatch(_BACKBONE + name) for expression in expressions for name in backbone):
        raise CheckpointError(
            f"{folder.parent} trained leaves of the backbone too ({', '.join(about.trainable)}), which an adapter's folder cannot "
            f"hold; use the whole checkpoint."
        )
    base_source = dataclasses.replace(source, leaves=backbone)
    return RunCheckpoint(
        str(folder), step_of(folder) or 0, about.method, about.settings, about.base, about.task, base_source, adapter
    )


def extract_adapter(run: RunCheckpoint, folder: str) -> AdapterFacts:
    """Writes the adapter of a run's checkpoint as a folder; reads all of its base, for the fingerprint.

    Args:
      run: from `open_t5x_run`; its `base` may count the bytes that are read (`counted`).
      folder: a new folder.

    Returns:
      The adapter's facts.

    Raises:
      CheckpointError: if the folder exists, or an array is damaged.
    """
    if path_of(folder).exists():
        raise CheckpointError(f"{folder} exists already; delete it, or give another folder.")
    base = path_of(run.base_path.rstrip("/"))
    name = name_of(base, step_of(base))
    facts = AdapterFacts(
        run.method, run.settings, BaseReference(name, fingerprint_of_source(run.base)), task=run.task, step=run.step
    )
    save_adapter(folder, {name: np.asarray(leaf.whole(), np.float32) for name, leaf in run.adapter.items()}, facts)
    return facts
