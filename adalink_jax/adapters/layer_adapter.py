"""Layer adapters: methods that change the backbone's own layers (the intrusive baselines), instead of passing the seam.

    variables = adapter(backbone_params)                # {"params": changed tree} or {"adapter": arrays beside layers}, or both
    backbone.apply(variables, ...)                      # with every layer call passing `adapter.intercept`
    params    = adapter.merge(backbone_params)          # the plain backbone with the same outputs

Arrays in the collection `adapter` are stored under the name of the layer that they belong to (`run_layers` slices them with
the parameters), and `intercept` uses them when that layer is called. The backbone's code is unaware of both.
"""

import abc
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from adalink_jax.errors import UserError
from adalink_jax.models import paths

COLLECTION = "adapter"
Params = Mapping[str, Any]  # a nested dict of arrays
Leaf = tuple[Callable, tuple[int, ...], tuple[str | None, ...]]  # init(key, shape, dtype), shape, names of the axes


class LayerAdapter(nn.Module, abc.ABC):
    """Base class. `backbone` is the backbone's nested dict of parameters.

    Attributes:
      identity_at_start: whether a fresh adapter gives the base's outputs, to the bit.
      per_segment: whether it keeps packed examples apart, as a method does that changes weights, or outputs token by token.
      per_row: whether its collection may have one entry per row of the batch, so that a bank can serve it.
    """

    identity_at_start: ClassVar[bool] = False
    per_segment: ClassVar[bool] = False
    per_row: ClassVar[bool] = False

    @abc.abstractmethod
    def __call__(self, backbone: Params) -> dict[str, Any]:
        """Returns the collections to run the backbone with: `params` (the whole tree, changed), `adapter`, or both."""

    def merge(self, backbone: Params) -> dict[str, Any]:
        """Returns parameters of the plain backbone that give the same outputs.

        Raises:
          UserError: unless the method overrides this.
        """
        raise UserError(f"{type(self).__name__} cannot be folded: it has no `merge`.")

    @nn.nowrap
    def intercept(self, call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        """Wraps each call of a module of the backbone (`flax.linen.intercept_methods`)."""
        return call(*args, **kwargs)


def declare(module: nn.Module, leaves: dict[str, Leaf]) -> dict[str, jax.Array]:
    """Declares float32 parameters of `module` under `/`-joined names, nested in its tree.

    Args:
      module: the module, inside its compact method.
      leaves: name (at least two parts) -> initialiser, shape, names of the axes.

    Returns:
      name -> array.
    """
    tree = paths.unflatten(leaves)

    def make(key, branch):
        flat = cast(dict[str, Leaf], flatten_dict(branch, sep="/"))
        keys = dict(zip(flat, jax.random.split(key, len(flat))))
        draw = lambda name, init, shape, axes: nn.with_logical_partitioning(init, axes)(keys[name], shape, jnp.float32)
        return paths.unflatten({name: draw(name, *leaf) for name, leaf in flat.items()})

    return paths.flatten({top: module.param(top, make, branch) for top, branch in tree.items()})
