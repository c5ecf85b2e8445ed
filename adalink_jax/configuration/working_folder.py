"""Data that is beside a gin file, but not in the working folder, from which relative paths start."""

import os

from adalink_jax.configuration import gin_files
from adalink_jax.configuration.flags import GinFlags
from adalink_jax.configuration.gin_checks import macros_set
from adalink_jax.errors import UserError


def check_working_folder(flags: GinFlags) -> None:
    """Refuses the DATA and IMAGES of a task file that was written in another folder, by `adalink init`.

    Raises:
      UserError: names both folders.
    """
    folders = dict.fromkeys(
        os.path.dirname(os.path.abspath(gin_files.find(file, flags.search_paths))) for file in flags.files
    )
    for name in ("DATA", "IMAGES"):
        value = macros_set().get(name)
        for path in (
            value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
        ):
            if not isinstance(path, str) or os.path.exists(os.path.expanduser(path)):
                continue
            folder = next((folder for folder in folders if os.path.exists(os.path.join(folder, path))), None)
            if folder is not None:
                raise UserError(
                    f"{name} is {path!r}, relative to the working folder {os.getcwd()}, where it is not; it is in {folder}: run the "
                    f"command there, or set {name} to an absolute path."
                )
