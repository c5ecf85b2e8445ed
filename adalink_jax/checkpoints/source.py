"""What a checkpoint is to the loader, whatever its format: named leaves that are read piece by piece.

Names are the unscanned ones of t5x (`encoder/layers_0/attention/query/kernel`); each format's module translates its own.
Nothing is read before it is asked for, and never more than asked for.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from adalink_jax.files.leaves import Leaf


def counted(source: "Source", on_bytes: Callable[[int], None]) -> "Source":
    """`source`, that tells how many bytes of values each read gave."""

    def watch(leaf):
        def read(index):
            values = leaf.read(index)
            on_bytes(values.nbytes)
            return values

        return dataclasses.replace(leaf, read=read)

    return dataclasses.replace(source, leaves={name: watch(leaf) for name, leaf in source.leaves.items()})


@dataclasses.dataclass
class Source:
    """An opened checkpoint.

    Attributes:
      kind: what it is, for people.
      path: where it is, as it was asked for.
      name: the base's name.
      leaves: unscanned name -> leaf; the file's own names where they are no T5's.
      settings: fields of `T5Config` that the format states and shapes do not show (`mlp_activations`).
      part_settings: the same of other parts: `vision` (`ViTConfig`), `qformer` (`QFormerConfig`).
      position_rule: how the vision tower's positions are resampled for another resolution (`positions.RULES`).
      fingerprint: the one that the format states, or None.
      config: the format's own configuration (`config.json`), or {}.
      folder: the local or remote folder of the files.
    """

    kind: str
    path: str
    name: str
    leaves: dict[str, Leaf]
    folder: Any
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    fingerprint: str | None = None
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    part_settings: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    position_rule: str = "bilinear"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape."""
        return {name: leaf.shape for name, leaf in self.leaves.items()}

    @property
    def parameters(self) -> int:
        """Number of values."""
        return sum(leaf.size for leaf in self.leaves.values())

    @property
    def nbytes(self) -> int:
        """Bytes of the values in the files' dtypes."""
        return sum(leaf.nbytes for leaf in self.leaves.values())
