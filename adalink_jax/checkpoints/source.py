"""An opened checkpoint, whatever its format: named leaves that are read piece by piece.

Names are the unscanned names of t5x (`encoder/layers_0/attention/query/kernel`); families of models translate the names of
each format. Opening a checkpoint reads no values, and a read loads only the values that it returns.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from adalink_jax.files.leaves import Index, Leaf


@dataclasses.dataclass
class Source:
    """An opened checkpoint.

    Attributes:
      kind: its format, as messages name it.
      path: where it is, as the user gave it.
      name: the base model's name.
      leaves: unscanned name -> leaf; the file's own names where no family of models knows it.
      folder: the local or remote folder of the files.
      settings: part of the model (`language`, `vision`, `qformer`) -> the fields of that part's configuration that the
        checkpoint states and that shapes do not show (`{"language": {"mlp_activations": ...}}`).
      fingerprint: the fingerprint that the checkpoint states, or None.
      parent: of a quantised model, the fingerprint of the model that it was made from; None for all others.
      digests: the exact `digests` that it states of its leaves in the file's dtypes, or {}.
      config: the contents of `config.json`, or {}.
      position_rule: how to resample the vision tower's positions for another resolution (`positions.RULES`).
    """

    kind: str
    path: str
    name: str
    leaves: dict[str, Leaf]
    folder: epath.Path
    settings: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    fingerprint: str | None = None
    parent: str | None = None
    digests: Mapping[str, str] = dataclasses.field(default_factory=dict)
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    position_rule: str = "bilinear"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape."""
        return {name: leaf.shape for name, leaf in self.leaves.items()}

    @property
    def precision(self) -> str | None:
        """How a quantised model is stored, by its leaf with the largest blocks ("int8", "int4/64"); None for all others."""
        block = lambda precision: int(precision.partition("/")[2] or 0)
        return max((leaf.precision for leaf in self.leaves.values() if leaf.precision), key=block, default=None)

    @property
    def parameters(self) -> int:
        """Number of values."""
        return sum(leaf.size for leaf in self.leaves.values())

    @property
    def nbytes(self) -> int:
        """Bytes of the values in the files."""
        return sum(leaf.nbytes for leaf in self.leaves.values())


def counted(source: Source, on_bytes: Callable[[int], None]) -> Source:
    """`source`, calling `on_bytes` with the number of bytes in the file of each read."""

    def read(leaf: Leaf, index: Index) -> np.ndarray:
        values = leaf.read(index)
        on_bytes(leaf.bytes_of(values.size))
        return values

    watch = lambda leaf: dataclasses.replace(leaf, read=functools.partial(read, leaf))
    return dataclasses.replace(source, leaves={name: watch(leaf) for name, leaf in source.leaves.items()})
