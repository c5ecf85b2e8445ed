"""Methods that change the backbone's own layers: the intrusive baselines, which do not pass through the seam.

Such a method is a Flax module too. From the backbone's parameters it makes the variables that the backbone runs with: other
parameters, or arrays in the collection `adapter`, each beside the layer that it belongs to (`run_layers` slices them with the
parameters), which `intercept` uses when the layer is called. The backbone's code knows of neither.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from adalink_jax.errors import UserError
from adalink_jax.models import paths

COLLECTION = "adapter"
Leaf = tuple[Callable, tuple[int, ...], tuple[str | None, ...]]  # init(key, shape, dtype), shape, names of the axes


class LayerAdapter(nn.Module):
    """What every method of this kind offers. `backbone` is the backbone's nested dict of parameters."""

    identity_at_start: ClassVar[bool] = False  # a fresh one gives the base's outputs, to the bit
    per_row: ClassVar[bool] = False  # its collection may have a row of the batch each, and so a bank may serve it

    def __call__(self, backbone: dict) -> dict[str, Any]:
        """Collections to run the backbone with: `params` (the whole tree, changed) or `adapter`, or both."""
        raise NotImplementedError

    def merge(self, backbone: dict) -> dict:
        """Parameters of the plain backbone that give the same outputs.

        Raises:
          UserError: unless the method has its own.
        """
        raise UserError(f"{type(self).__name__} cannot be folded: it has no `merge`.")

    @nn.nowrap
    def intercept(self, call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext):
        """Around each call of a module of the backbone (`flax.linen.intercept_methods`)."""
        return call(*args, **kwargs)


def declare(module: nn.Module, leaves: dict[str, Leaf]) -> dict[str, jax.Array]:
    """Float32 parameters of `module` under `/`-joined names, as nested dicts in its tree.

    Args:
      module: inside its compact method.
      leaves: name (at least two parts) -> initialiser, shape, names of the axes.

    Returns:
      name -> array.
    """
    tree = paths.unflatten(leaves)

    def make(key, branch):
        flat = flatten_dict(branch, sep="/")
        keys = dict(zip(flat, jax.random.split(key, len(flat))))
        return paths.unflatten({
            name: nn.with_logical_partitioning(init, axes)(keys[name], shape, jnp.float32)
            for name, (init, shape, axes) in flat.items()
        })  # fmt: skip

    return paths.flatten({top: module.param(top, make, branch) for top, branch in tree.items()})
