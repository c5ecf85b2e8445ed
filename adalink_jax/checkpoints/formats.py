"""Formats of checkpoints: finds the folder of a path that a user gave, detects its format, and opens it."""

import os
import pathlib
import re

import jax.numpy as jnp
from etils import epath

from adalink_jax.checkpoints import big_vision, hugging_face, native, t5x_format
from adalink_jax.checkpoints.families.family import check_stated
from adalink_jax.checkpoints.source import Source
from adalink_jax.errors import CheckpointError
from adalink_jax.files.places import path_of
from adalink_jax.near_names import near, near_paths

BUNDLED = "bundled:"
_ASSETS = pathlib.Path(__file__).parent.parent / "assets"
_KNOWN = (
    "a native base model (base_config.json), a Hugging Face folder (config.json and model.safetensors), a checkpoint_N of "
    "t5x, a .npz of big_vision, hf://OWNER/NAME or bundled:NAME"
)


def folder_of(path: str, must_exist: bool = False, weights: bool = True) -> epath.Path:
    """The local or remote folder of a path that a user gave: a folder, `bundled:NAME`, or `hf://OWNER/NAME[@revision]`.

    Args:
      path: the path; a repository of the Hub is downloaded.
      must_exist: whether a path that is not a folder is an error.
      weights: whether a repository's weights are downloaded, too.

    Raises:
      CheckpointError: if it is not available.
    """
    if path.startswith(BUNDLED):
        return _bundled(path)
    folder = hugging_face.download(path, weights) if path.startswith(hugging_face.HUB) else path_of(path)
    if must_exist and not folder.is_dir():
        raise CheckpointError(f"There is no folder {path}; {_meant(path)}give {_KNOWN}.")
    return folder


def open_source(path: str | os.PathLike[str], download: bool = True) -> Source:
    """Opens the checkpoint at `path` and detects its format.

    Args:
      path: a folder, a file, `bundled:NAME` or `hf://OWNER/NAME[@revision]`.
      download: whether a repository's weights are downloaded; if not, they are read where they are.

    Raises:
      CheckpointError: if there is no checkpoint, its format is not known, or it is damaged.
    """
    path = os.fspath(path)
    on_the_hub = path.startswith(hugging_face.HUB) and not download
    source = hugging_face.open_on_the_hub(path) if on_the_hub else _open(path)
    check_stated(source.settings, source.path)
    for name, leaf in source.leaves.items():
        if (
            not (jnp.issubdtype(leaf.dtype, jnp.floating) or jnp.issubdtype(leaf.dtype, jnp.integer))
            and leaf.dtype != bool
        ):
            raise CheckpointError(f"{source.path} holds {name[:100]} as {leaf.dtype}, not as numbers; copy it again.")
    return source


def _open(path: str) -> Source:
    if "\0" in path:
        raise CheckpointError(f"There is no folder {path!r}; give {_KNOWN}.")
    folder = folder_of(path)
    if folder.name == t5x_format.FILE and folder.is_file():
        folder = folder.parent
    if folder.suffix == big_vision.SUFFIX and folder.is_file():
        return big_vision.open_file(folder, path)
    if not folder.is_dir():
        raise CheckpointError(f"There is no folder {path}; {_meant(path)}give {_KNOWN}.")
    if native.is_folder(folder):
        return native.open_folder(folder, path)
    if t5x_format.is_legacy(folder):
        return t5x_format.open_legacy(folder, path)
    if (arrays := t5x_format.orbax_folder(folder)) is not None:
        return t5x_format.open_orbax(arrays, path)
    if hugging_face.is_folder(folder):
        return hugging_face.open_folder(folder, path)
    names = sorted(entry.name for entry in folder.iterdir())
    if "adapter_config.json" in names:
        raise CheckpointError(f"{path} is an adapter, not a base model; set INITIAL_ADAPTER_PATH to it instead.")
    steps = [name for name in names if re.fullmatch(r"checkpoint_\d+", name)]
    if steps:
        raise CheckpointError(
            f"{path} holds the checkpoints {', '.join(steps[-4:])}; give one of them, such as {path}/{steps[-1]}."
        )
    raise CheckpointError(f"{path} is not a base model; give {_KNOWN}.")


def _meant(path: str) -> str:
    """A question for a path that is misspelt, or lacks the beginning that says where it is."""
    is_repository = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", path) and not path_of(path).parent.exists()
    meant = [BUNDLED + name for name in near(path, bundled_names())[:1]] or near_paths(path)
    meant = meant or ([hugging_face.HUB + path] if is_repository else [])
    return f"did you mean {' or '.join(meant)}? Else " if meant else ""


def bundled_names() -> list[str]:
    """The names of the base models in this package."""
    return sorted(p.parent.name for p in _ASSETS.glob(f"*/{native.CONFIG}"))


def _bundled(path: str) -> epath.Path:
    name, names = path.removeprefix(BUNDLED), bundled_names()
    if name not in names:
        raise CheckpointError(f"There is no bundled base model {name!r}; give one of {', '.join(names)}.")
    return path_of(_ASSETS) / name
