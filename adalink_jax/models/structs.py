"""Frozen dataclasses of arrays that JAX transforms as pytrees.

JAX rebuilds them without calling `__init__`: transformations fill pytrees with placeholders, batched or abstract values,
whereas what user code constructs are arrays. So the annotated shapes hold for every constructed or replaced struct, and the
tests check them there (`tests/shape_checks.py`).
"""

import dataclasses
from typing import Any, Self, dataclass_transform

import jax


@dataclass_transform(frozen_default=True)
class Struct:
    """Base class: subclasses become frozen dataclasses and pytrees, with every field a child."""

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(frozen=True)(cls)
        names = [field.name for field in dataclasses.fields(cls)]  # pyright: ignore[reportArgumentType]  # made above

        def unflatten(_, children):
            struct = object.__new__(cls)
            vars(struct).update(zip(names, children))
            return struct

        flatten = lambda struct: ([(jax.tree_util.GetAttrKey(name), getattr(struct, name)) for name in names], None)
        jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # pyright: ignore[reportArgumentType]
