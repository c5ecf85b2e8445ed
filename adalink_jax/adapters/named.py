"""Named adapters on one model: add, activate, disable and delete adapters, with one compiled program throughout.

    adapters = NamedAdapters(model.backbone, AdaLinkAdapter(rank=16), capacity=8)
    adapters.add("reverse", module, params)
    model = AdaptedModel(model.backbone, adapters.bank)
    variables = {"params": {"backbone": base, "adapter": adapters.params}}
    jax.jit(model.apply)(variables, {**batch, "adapter_index": adapters.rows(["reverse", None])})

The name None stands for the plain base.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from adalink_jax.adapters.adapted import AdaptedModel, abstract_params
from adalink_jax.adapters.bank import NONE, make_bank, pad, widest
from adalink_jax.adapters.layer_adapter import Params
from adalink_jax.adapters.registry import describe_adapter
from adalink_jax.errors import UserError
from adalink_jax.models.backbone import Backbone
from adalink_jax.parallel import unbox


class NamedAdapters:
    """A bank whose places have names.

    Args:
      backbone: the backbone that the adapters were trained for.
      largest: their method, with the highest rank and the longest prompt that may be added.
      capacity: the most adapters held at once.

    Attributes:
      bank: the module, for `AdaptedModel(backbone, bank)`.
      params: its parameters, for `{"backbone": ..., "adapter": params}`; replaced, never changed in place.
      active: the adapter that serves rows without a name; None is the plain base.
    """

    def __init__(self, backbone: Backbone, largest: nn.Module, capacity: int) -> None:
        if capacity < 1:
            raise UserError(f"A bank's capacity is {capacity}; it must be at least 1.")
        self._largest = largest
        self._boxed = abstract_params(AdaptedModel(backbone, largest))["adapter"]
        self._places: list[str | None] = [None] * capacity
        self.bank = make_bank(largest)
        self.active: str | None = None
        empty = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), unbox(self._boxed))
        one = dict(zip(("stacked", "padding"), pad(empty, self._boxed)))
        self.params = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), one)

    @property
    def names(self) -> list[str]:
        """Names of the adapters held, in the order of their places."""
        return [name for name in self._places if name is not None]

    def add(self, name: str, module: nn.Module, params: Params) -> None:
        """Puts an adapter into a free place.

        Raises:
          UserError: for a name that is taken, a full bank, and an adapter that does not fit it.
        """
        if name in self._places:
            raise UserError(f"There is an adapter {name!r} already; delete it first.")
        if None not in self._places:
            raise UserError(
                f"The bank is full with {len(self._places)} adapters; delete one, or make the bank with a larger capacity."
            )
        if widest([self._largest, module]) != self._largest:
            settings = lambda adapter: describe_adapter(adapter)["settings"]
            raise UserError(
                f"The adapter {name!r} is larger than its bank: {settings(module)} in {settings(self._largest)}; make the "
                f"bank with its sizes."
            )
        self._put(self._places.index(None), dict(zip(("stacked", "padding"), pad(params, self._boxed))))
        self._places[self._places.index(None)] = name

    def activate(self, name: str) -> None:
        """Lets `name` serve the rows without a name."""
        self.rows([name])
        self.active = name

    def disable(self) -> None:
        """Lets the plain base serve the rows without a name."""
        self.active = None

    def delete(self, name: str) -> None:
        """Frees the adapter's place.

        Raises:
          UserError: for an unknown name.
        """
        place = int(self.rows([name])[0]) - 1
        self._put(place, jax.tree.map(lambda x: jnp.zeros_like(x[0]), self.params))
        self._places[place] = None
        if self.active == name:
            self.active = None

    def rows(self, names: Sequence[str | None] | int) -> np.ndarray:
        """Returns `adapter_index`, int32 [B].

        Args:
          names: a name per row (None: the plain base); or B, for that many rows of the active adapter.

        Raises:
          UserError: for an unknown name.
        """
        if isinstance(names, int):
            names = [self.active] * names
        unknown = sorted({str(name) for name in names if name is not None and name not in self._places})
        if unknown:
            raise UserError(f"There is no adapter {unknown[0]!r}; there are: {', '.join(self.names) or 'none'}.")
        return np.array([NONE if name is None else self._places.index(name) + 1 for name in names], np.int32)

    def _put(self, place: int, one: dict) -> None:
        self.params = jax.tree.map(lambda all_, x: all_.at[place].set(x), self.params, one)
