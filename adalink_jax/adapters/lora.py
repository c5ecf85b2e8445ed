"""LoRA (Hu et al., 2021, arXiv:2106.09685): a low-rank branch beside chosen projections.

    y = x @ kernel + (alpha / rank) * (x @ down) @ up          down [in, R], up [R, out]

`up` starts at zero, so a fresh LoRA changes nothing; `down` starts as PEFT's does, uniform in +-in^-0.5. The branch is
computed as such, never as a sum of kernels, until it is merged. R * (in + out) parameters a projection.
"""

from collections.abc import Callable
from typing import ClassVar

import gin
import jax
import jax.numpy as jnp
from flax import linen as nn

from adalink_jax.adapters.layer_adapter import COLLECTION, LayerAdapter, declare
from adalink_jax.errors import UserError
from adalink_jax.models import paths

KERNEL = "/kernel"


def _uniform(key, shape, dtype):
    """Uniform in +-in^-0.5, for [..., in, R]: `kaiming_uniform_(a=sqrt(5))` of torch."""
    return jax.random.uniform(key, shape, dtype, -1.0, 1.0) * shape[-2] ** -0.5


@gin.configurable
class LoRA(LayerAdapter):
    """LoRA on the projections that `projections` picks.

    Attributes:
      rank: R.
      alpha: the branch is multiplied by alpha / rank.
      projections: expressions for whole unscanned paths of the backbone's dense layers (`encoder/layers_0/attention/query`).
        By default queries and values of all attention of the language model, as PEFT's for T5.

    Raises:
      UserError: for a rank below 1, and expressions that match no dense layer.
    """

    rank: int = 8
    alpha: float = 8.0
    projections: tuple[str, ...] = (r"(encoder|decoder)/.*/(query|value)",)
    identity_at_start: ClassVar[bool] = True
    per_row: ClassVar[bool] = True

    @nn.compact
    def __call__(self, backbone):
        """`{"adapter": {<projection>: {"down", "up"}}}`, with alpha / rank in `up`."""
        if self.rank < 1:
            raise UserError(f"LoRA's rank is {self.rank}; it must be at least 1.")
        leaves = {}
        for name, shape in self._kernels(backbone).items():
            *stacked, inputs, outputs = shape
            layers = ("layers",) * len(stacked)
            leaves[f"{name}/down"] = _uniform, (*stacked, inputs, self.rank), (*layers, "adapter_embed", "adapter_rank")
            leaves[f"{name}/up"] = (
                nn.initializers.zeros, (*stacked, self.rank, outputs), (*layers, "adapter_rank", "adapter_embed")
            )  # fmt: skip
        params = declare(self, leaves)
        scaled = {k: x * self._scale(k) if k.endswith("/up") else x for k, x in params.items()}
        return {COLLECTION: paths.unflatten(scaled)}

    def merge(self, backbone):
        """The kernels with `scale * down @ up` added."""
        branches = paths.flatten(self(backbone)[COLLECTION])
        merged = dict(paths.flatten(backbone))
        for name in {name.rpartition("/")[0] for name in branches}:
            kernel = merged[name + KERNEL]
            delta = branches[f"{name}/down"] @ branches[f"{name}/up"]
            merged[name + KERNEL] = (kernel + delta).astype(kernel.dtype)
        return paths.unflatten(merged)

    @nn.nowrap
    def intercept(self, call: Callable, args, kwargs, context):
        """Adds the branch to a dense layer beside which there is one; rows of a bank have theirs on axis 0."""
        y = call(*args, **kwargs)
        module = context.module
        if context.method_name != "__call__" or not module.has_variable(COLLECTION, "down"):
            return y
        down, up = (module.get_variable(COLLECTION, name) for name in ("down", "up"))
        # In float32, as PEFT's, so that the gradients that cross devices are.
        branch = (args[0].astype(jnp.float32) @ down) @ up
        return (y.astype(jnp.float32) + branch).astype(y.dtype)

    def _kernels(self, backbone) -> dict[str, tuple[int, ...]]:
        """Path of a dense layer in memory -> shape of its kernel, of those that are picked."""
        shapes = {
            name.removesuffix(KERNEL): leaf for name, leaf in paths.flatten(backbone).items() if name.endswith(KERNEL)
        }
        names = {name: paths.unscanned_names(name, leaf.shape) for name, leaf in shapes.items()}
        picked = set().union(*paths.matching(self.projections, names, "LoRA.projections"))
        return {name: tuple(shapes[name].shape) for name in sorted(picked)}

    def _scale(self, name: str):
        """alpha / rank; a member of a bank that was padded to a higher rank keeps its own."""
        return self.alpha / live(self, name, self.rank)


def live(module: nn.Module, name: str, size: int):
    """How many entries of a leaf's paddable axis are the adapter's own; all, but for a member of a bank."""
    top, *rest = name.split("/")
    mask = module.get_variable("padding", top)
    for part in rest:
        mask = None if mask is None else mask.get(part)
    return size if mask is None else jnp.sum(mask)
