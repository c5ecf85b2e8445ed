"""How base models are stored, for people: what `inspect`, `convert` and `export` print of quantised ones."""

from typing import TYPE_CHECKING

from adalink_jax.errors import UserError
from adalink_jax.files.base_formats import QUANTISED

if TYPE_CHECKING:
    from adalink_jax.checkpoints import Source
    from adalink_jax.files.leaves import Leaf
    from adalink_jax.models.quantised import Storage


def dequantised_row(precision: str | None) -> list[tuple[str, str]]:
    """What `print_facts` says of values that were written from a quantised base; nothing for an exact one."""
    if precision is None:
        return []
    return [
        (
            "values",
            f"those of the base in {precision}, dequantised: what was rounded stays rounded, and the fingerprint is of these values, "
            f"not of the exact base",
        )
    ]


def storage_of(to: str, dtype: str | None, block: int | None, exact: list[str] | None) -> "Storage | None":
    """How `convert` quantises; None if it does not.

    Raises:
      UserError: for settings that would have no effect.
    """
    if dtype not in QUANTISED:
        if block is not None or exact is not None:
            name = "--block" if block is not None else "--exact"
            raise UserError(f"{name} needs --dtype {', '.join(QUANTISED)}; nothing is quantised without it.")
        return None
    if to != "native":
        raise UserError(f"Only --to native holds a base in {dtype}; with --to {to} give --dtype float32 or bfloat16.")
    if block is not None and block < 1:
        raise UserError(f"--block is {block}; give a positive number.")
    from adalink_jax.models.quantised import TABLE, Storage

    return Storage(dtype, block, TABLE if exact is None else tuple(exact))


def dtype_of(leaf: "Leaf") -> str:
    """How a leaf is stored: its dtype, or "int8" of a quantised one."""
    return leaf.precision or leaf.dtype.name


def stored_as(source: "Source") -> str:
    """The dtypes of a file's values: of a quantised base its precision first, and what is exact."""
    exact = sorted({leaf.dtype.name for leaf in source.leaves.values() if leaf.precision is None})
    if source.precision is None:
        return ", ".join(exact)
    last = [
        name.rpartition("/")[2]
        for name, leaf in source.leaves.items()
        if leaf.precision is None and len(leaf.shape) > 1
    ]
    kernels = last.count("kernel")
    further = (["embedding tables"] if "embedding" in last else []) + ([f"{kernels} kernels"] if kernels else [])
    return f"{source.precision} (exact, in {', '.join(exact)}: {', '.join(['norms, biases', *further])})"
