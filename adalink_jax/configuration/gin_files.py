"""Finds gin files: by the path as typed, in the search paths, among the shipped files, in installed packages (`t5x/...`)."""

import importlib.util
import os
import pathlib
from collections.abc import Sequence

from adalink_jax.errors import UserError
from adalink_jax.near_names import did_you_mean, near, near_paths

_PACKAGE = pathlib.Path(__file__).resolve().parent.parent


def gin_root() -> pathlib.Path:
    """The folder of the shipped gin files: inside an installed package, or beside it in a checkout."""
    inside = _PACKAGE / "gin"  # checked first: beside an installed package, `gin` is gin-config itself
    return inside if inside.is_dir() else _PACKAGE.parent / "gin"


def roots(search_paths: Sequence[str]) -> list[str]:
    """The folders in which a relative name is looked up; names of shipped files begin with `gin/`."""
    return ["", *(os.path.expanduser(path) for path in search_paths), str(gin_root().parent)]


def find(name: str, search_paths: Sequence[str]) -> str:
    """The path of the gin file called `name`.

    Raises:
      UserError: if it does not exist (the message names near files), or is a folder or a device.
    """
    tried = [os.path.join(root, os.path.expanduser(name)) for root in [*roots(search_paths), *_package(name)]]
    for path in tried:
        if os.path.isfile(path):
            return path
    for path in filter(os.path.exists, tried):
        raise UserError(f"{path} is {'a folder' if os.path.isdir(path) else 'not a regular file'}; name a gin file.")
    shipped = sorted(str(path.relative_to(gin_root().parent)) for path in gin_root().rglob("*.gin"))
    users = [path for root in ["", *search_paths] for path in near_paths(os.path.join(root, name), (".gin",))]
    nearest = users or near(name, shipped) or near(f"gin/{name}", shipped)
    raise UserError(f"There is no gin file {name}{did_you_mean(nearest, f'; shipped files are in {gin_root()}.')}")


def _package(name: str) -> list[str]:
    """The folders with the package that `name` begins with. Finding a package by its first name imports nothing."""
    package = name.split("/")[0]
    try:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
    except ValueError:  # such as `__main__`
        return []
    return [os.path.dirname(folder) for folder in (spec and spec.submodule_search_locations) or ()]
