"""Plans of several candidates at once, each compiled in a process of its own, and kept for the next search."""

import concurrent.futures
import hashlib
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from adalink_jax import configuration
from adalink_jax.configuration import GinFlags
from adalink_jax.errors import UserError
from adalink_jax.files import whole_file
from adalink_jax.files.places import path_of

PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax")


def folder() -> epath.Path:
    """Where plans are kept: `adalink_jax/plans` of the user's cache folder ($XDG_CACHE_HOME, ~/.cache)."""
    return path_of(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "adalink_jax" / "plans"


def attempt_all(
    flags: Sequence[GinFlags], topologies: Sequence[str], options: Sequence[str], show: Callable[..., None]
) -> list[dict[str, Any] | None]:
    """`adalink plan --json` of each of `flags` on the topology beside it, all at once.

    Args:
      flags: gin's flags of each candidate.
      topologies: their topologies.
      options: other flags of `adalink plan`.
      show: see `terminal.progress`.

    Returns:
      Each plan as JSON values; None where the job refuses the settings.
    """
    done = 0

    def one(flags: GinFlags, key: str, topology: str) -> dict[str, Any] | None:
        nonlocal done
        plan = _planned([*flags.arguments(), "--topology", topology, *options], folder() / f"{key}.json")
        done += 1
        show(f"compiled {done} of {len(topologies)} for {', '.join(dict.fromkeys(topologies))}")
        return plan

    show(f"compiling {len(topologies)} for {', '.join(dict.fromkeys(topologies))}")
    keys = [_key(one, topology, options) for one, topology in zip(flags, topologies)]
    with concurrent.futures.ThreadPoolExecutor(len(topologies) or 1) as pool:
        return list(pool.map(one, flags, keys, topologies))


def _planned(arguments: list[str], file: epath.Path) -> dict[str, Any] | None:
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    done = subprocess.run(
        [sys.executable, "-m", "adalink_jax", "plan", *arguments, "--json"], capture_output=True, text=True
    )
    if done.returncode == 2:  # the batch or a leaf does not divide, a pack does not take it, ...
        return None
    if done.returncode not in (0, 1):
        raise UserError(f"A plan ended with status {done.returncode}: {done.stderr.strip()[-500:]}")
    plan = json.loads(done.stdout)
    file.parent.mkdir(parents=True, exist_ok=True)
    whole_file.write_json(file, plan)
    return plan


def _key(flags: GinFlags, topology: str, options: Sequence[str]) -> str:
    """A digest of all that a plan depends on: settings, topology, versions, this package's code, the compiler's flags."""
    import gin

    configuration.load(flags, extra_files=("gin/runs/plan.gin",))
    digest = hashlib.sha256(gin.config_str().encode())
    versions = {name: importlib.metadata.version(name) for name in PACKAGES if _is_installed(name)}
    machine = {name: os.environ.get(name) for name in ("LIBTPU_INIT_ARGS", "XLA_FLAGS")}
    digest.update(json.dumps([topology, *options, versions, machine], sort_keys=True).encode())
    root = pathlib.Path(__file__).parents[1]
    for file in sorted(root.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:32]


def _is_installed(name: str) -> bool:
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False
