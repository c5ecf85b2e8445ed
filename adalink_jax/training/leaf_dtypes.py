"""The dtype of every leaf in memory: frozen leaves of the backbone are stored as FROZEN_DTYPE, all other leaves as float32."""

from collections.abc import Collection

from adalink_jax.errors import UserError

FROZEN_DTYPES = ("float32", "bfloat16")


def check_frozen_dtype(dtype: str) -> None:
    """Refuses a FROZEN_DTYPE that is not supported.

    Raises:
      UserError: names the dtypes that are.
    """
    if dtype not in FROZEN_DTYPES:
        raise UserError(f"FROZEN_DTYPE is {dtype!r}; set it to {' or '.join(map(repr, FROZEN_DTYPES))}.")


def leaf_dtype(name: str, trainable_names: Collection[str], frozen_dtype: str) -> str:
    """The dtype in which the leaf `name` is stored.

    Args:
      name: the leaf's name in memory (`backbone/...` or `adapter/...`).
      trainable_names: names of the trainable leaves.
      frozen_dtype: `Setup.frozen_dtype`.
    """
    return frozen_dtype if name.startswith("backbone/") and name not in trainable_names else "float32"
