"""The dtype of every leaf in memory: frozen leaves of the backbone are stored as FROZEN_DTYPE, all other leaves as float32."""

from collections.abc import Collection


def leaf_dtype(name: str, trainable_names: Collection[str], frozen_dtype: str) -> str:
    """The dtype in which the leaf `name` is stored.

    Args:
      name: the leaf's name in memory (`backbone/...` or `adapter/...`).
      trainable_names: names of the trainable leaves.
      frozen_dtype: `Setup.frozen_dtype`.
    """
    return frozen_dtype if name.startswith("backbone/") and name not in trainable_names else "float32"
