"""How the frozen leaves of a backbone are stored: FROZEN_DTYPE and the settings beside it.

Invariant: a leaf is quantised only if a product reads it (a kernel, or an embedding table) and no rule keeps it exact. Where
kernels are quantised, all other frozen leaves (norms, biases, tables of positions) are stored in the activations' dtype.
"""

import dataclasses
import math
import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from adalink_jax.errors import UserError
from adalink_jax.models import paths
from adalink_jax.models.quantised.arrays import CODE_DTYPES, Quantised, block_size, quantise
from adalink_jax.typed_values import one_of

STORED = ("float32", "bfloat16", *CODE_DTYPES)
StoredDType = Annotated[str, one_of(*STORED)]
Matmul = Annotated[str | None, one_of(None, "int8")]
TABLE = ("token_embedder",)  # kept exact by default
_AXES = {"kernel": -2, "embedding": -1}  # last part of a name -> the axis that its products sum over
_BACKBONE = "backbone/"


@dataclasses.dataclass(frozen=True)
class Storage:
    """How frozen leaves are stored. See `Setup` for the settings.

    Attributes:
      dtype: FROZEN_DTYPE, one of `STORED`.
      block: QUANTISED_BLOCK: values that share a scale; None means all of an output's for eight bits, 64 for four.
      exact: QUANTISED_EXACT: what is not quantised. A rule is one part of a path or several neighbours (`token_embedder`,
        `decoder/layers_0`); each is a regular expression that matches the whole part.
      matmul: FROZEN_MATMUL: "int8" multiplies in int8.
      activations: dtype of the activations.

    Raises:
      UserError: for settings that have no effect with this dtype, or that do not go together.
    """

    dtype: str = "float32"
    block: int | None = None
    exact: tuple[str, ...] = TABLE
    matmul: str | None = None
    activations: str = "float32"

    def __post_init__(self):
        if not self.quantises:
            idle = {"QUANTISED_BLOCK": self.block, "FROZEN_MATMUL": self.matmul}
            idle |= {"QUANTISED_EXACT": self.exact} if tuple(self.exact) != TABLE else {}
            for name, value in idle.items():
                if value is not None:
                    raise UserError(
                        f"{name} is {value!r}, but FROZEN_DTYPE {self.dtype!r} quantises nothing; set FROZEN_DTYPE to one of "
                        f"{', '.join(CODE_DTYPES)}, or leave {name} out."
                    )
        elif self.matmul == "int8" and (self.dtype != "int8" or self.block is not None):
            raise UserError(
                "FROZEN_MATMUL = 'int8' needs FROZEN_DTYPE = 'int8' with one scale for each output; set that and leave "
                "QUANTISED_BLOCK out."
            )

    @property
    def quantises(self) -> bool:
        """Whether any leaf is quantised."""
        return self.dtype in CODE_DTYPES

    @property
    def plain_dtype(self) -> str:
        """Dtype of the frozen leaves that are not quantised."""
        return self.activations if self.quantises else self.dtype

    def stored(
        self, leaves: Mapping[str, Any], trainable_names: Collection[str]
    ) -> dict[str, jax.ShapeDtypeStruct | Quantised]:
        """The leaves as they are in memory: trainable ones and an adapter's are float32.

        Args:
          leaves: all leaves of a model by name (`backbone/...`, `adapter/...`), `jax.ShapeDtypeStruct`s of float32, with shardings where there is a mesh.
          trainable_names: names of the trainable leaves.

        Raises:
          UserError: for a rule that keeps nothing exact, or some layers of a scanned stack.
        """
        frozen = {name for name in leaves if name.startswith(_BACKBONE) and name not in trainable_names}
        quantised = self._quantised({name: leaf for name, leaf in leaves.items() if name in frozen})

        def stored(name: str, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct | Quantised:
            if name in quantised:
                return self._abstract(leaf, _AXES[name.rpartition("/")[2]])
            dtype = self.plain_dtype if name in frozen else "float32"
            return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)

        return {name: stored(name, leaf) for name, leaf in leaves.items()}

    def of(self, leaves: Mapping[str, Any]) -> dict[str, Any]:
        """A backbone's frozen leaves in memory (`backbone/...`), as they are stored; see `stored`."""
        wanted = self.stored({name: jax.ShapeDtypeStruct(x.shape, jnp.float32) for name, x in leaves.items()}, ())
        convert = jax.jit(in_form, static_argnums=1)
        return {name: convert(leaf, wanted[name]) for name, leaf in leaves.items()}

    def _quantised(self, leaves: Mapping[str, jax.ShapeDtypeStruct]) -> set[str]:
        """The names of those of a backbone's frozen leaves that are quantised."""
        if not self.quantises:
            return set()
        rules = [(rule, [_pattern(part, rule) for part in rule.split("/")]) for rule in self.exact]
        used: set[str] = set()
        names: set[str] = set()
        for name, leaf in leaves.items():
            unscanned = paths.unscanned_names(name.removeprefix(_BACKBONE), leaf.shape)
            is_exact = False
            for rule, parts in rules:
                hits = sum(_holds(parts, one.split("/")) for one in unscanned)
                if hits and hits < len(unscanned):
                    raise UserError(
                        f"QUANTISED_EXACT: {rule!r} keeps {hits} of the {len(unscanned)} layers of {name}, which is one array while "
                        f"layers are scanned; set SCAN_LAYERS = False to keep single layers exact."
                    )
                used |= {rule} if hits else set()
                is_exact = is_exact or bool(hits)
            matrix = name.rpartition("/")[2] in _AXES and leaf.ndim == 2 + (unscanned != [name.removeprefix(_BACKBONE)])
            names |= {name} if matrix and not is_exact else set()
        if idle := [rule for rule in self.exact if rule not in used]:
            tops = sorted({part for name in leaves for part in name.split("/")[1:-1]})
            raise UserError(
                f"QUANTISED_EXACT: {idle[0]!r} matches no frozen parameter; it must match whole parts of a path, which here are "
                f"{', '.join(tops[:12])}, ... (`adalink params` lists them)."
            )
        return names

    def _abstract(self, leaf: jax.ShapeDtypeStruct, axis: int) -> Quantised:
        blocks = leaf.shape[axis] // block_size(leaf.shape[axis], self.dtype, self.block)
        at = leaf.ndim + axis
        shape = (*leaf.shape[:at], blocks, *leaf.shape[at + 1 :])
        codes = jax.ShapeDtypeStruct(leaf.shape, CODE_DTYPES[self.dtype][0], sharding=leaf.sharding)
        scales = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=_with_blocks(leaf.sharding, at, blocks))
        return Quantised(codes, scales, axis, self.matmul)


def in_form(leaf: jax.Array, form: jax.ShapeDtypeStruct | Quantised) -> Any:
    """A leaf in the form of an abstract one: cast to its dtype, or quantised."""
    if not isinstance(form, Quantised):
        return leaf.astype(form.dtype)
    return dataclasses.replace(quantise(leaf, form.kind, form.block, form.axis), matmul=form.matmul)


def _with_blocks(sharding: Any, at: int, blocks: int) -> Any:
    """The placement of scales: as their codes, unless the blocks do not divide over the devices of axis `at`."""
    if not isinstance(sharding, NamedSharding) or at >= len(sharding.spec):
        return sharding
    axes = sharding.spec[at]
    devices = math.prod(sharding.mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes or ()))
    if blocks % devices == 0:
        return sharding
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:at], None, *sharding.spec[at + 1 :]))


def _pattern(part: str, rule: str) -> re.Pattern[str]:
    try:
        return re.compile(part)
    except re.error as e:
        raise UserError(f"QUANTISED_EXACT: {rule!r} is not a valid regular expression ({e}).") from e


def _holds(rule: list[re.Pattern[str]], name: list[str]) -> bool:
    """Whether a rule's parts are neighbours in a name."""
    starts = range(len(name) - len(rule) + 1)
    return any(all(pattern.fullmatch(part) for pattern, part in zip(rule, name[i:])) for i in starts)
