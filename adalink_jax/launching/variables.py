"""Environment variables of a job's processes: the launcher's own, and the user's, ENV and SECRETS.

SECRETS names where a value is kept (a file, a secret of the cloud), and the value is read where the job runs; no file of a job holds it,
and no command line.

XLA's flags are not among them: each command adds those of COMPILER_FLAGS to what it finds (`parallel.compiler_settings`).
"""

import pathlib
from collections.abc import Collection, Mapping

from adalink_jax.errors import UserError
from adalink_jax.launching.job import ARRAY_INDEX
from adalink_jax.parallel.compiler_settings import VARIABLES

Variables = dict[str, str]
STACK_TRACES = "ADALINK_STACK_TRACES"  # read by `adalink_jax.stack_traces`
# By launcher: the variables that distinguish its processes.
RESERVED = {
    "local": ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES"),
    "ray": (ARRAY_INDEX,),
    "slurm": (ARRAY_INDEX,),
    "tpu": (ARRAY_INDEX, "TPU_CHIPS_PER_PROCESS_BOUNDS", "TPU_PROCESS_BOUNDS", "TPU_VISIBLE_DEVICES"),
    "gke": (STACK_TRACES,),
}
GPU_MEMORY = {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".92"}  # as the table of accelerators assumes


def check_variables(launcher: str, env: Collection[str], secrets: Collection[str] = ()) -> None:
    """Checks that ENV and SECRETS leave the launcher's variables alone, and each other's.

    Raises:
      UserError: for the first that they set.
    """
    for setting, names in (("ENV", env), ("SECRETS", secrets)):
        for name in names:
            if name in RESERVED[launcher]:
                raise UserError(f"{setting} sets {name}, which `adalink launch {launcher}` sets itself; leave it out.")
    for name in secrets:
        if name in env:
            raise UserError(f"{name} is in both ENV and SECRETS; leave one out.")


def read_secrets(secrets: Mapping[str, str]) -> Variables:
    """The values of SECRETS that are in files of this machine, without the newlines at their end, as by Bash's `$(cat FILE)`.

    Raises:
      UserError: names the file that cannot be read.
    """
    out = {}
    for name, path in secrets.items():
        try:
            out[name] = pathlib.Path(path).read_bytes().decode().rstrip("\n")
        except (OSError, UnicodeDecodeError) as e:
            why = getattr(e, "strerror", None) or "not a text in UTF-8"
            raise UserError(f"SECRETS reads {name} from {path}, which cannot be read where the job runs: {why}.") from e
    return out


def compiler_variables(env: Mapping[str, str]) -> Variables:
    """The variables of ENV from which compilers read flags; `adalink plan` of the job needs them too."""
    return {name: text for name, text in env.items() if name in VARIABLES.values()}


def note(env: Mapping[str, str]) -> str | None:
    """A sentence about flags of ENV that win over those of the table; None without any."""
    names = sorted(compiler_variables(env))
    return f"ENV sets {' and '.join(names)}: its flags win over those of COMPILER_FLAGS." if names else None
