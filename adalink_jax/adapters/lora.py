"""LoRA: a low-rank branch beside chosen projections of the backbone (Hu et al., 2021, arXiv:2106.09685, equation 3).

    y      = x @ kernel + (alpha / rank) * (x @ down) @ up          x [..., in], down [in, R], up [R, out]
    merged:  kernel' = kernel + (alpha / rank) * down @ up          `LoRA.merge`

R * (in + out) parameters per projection. `up` starts at zero, so a fresh LoRA changes nothing; `down` starts as in PEFT,
uniform in +-in^-0.5. Until it is merged, the branch is computed by itself, in float32, and never added to the kernel.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import gin
import jax
import jax.numpy as jnp
from flax import linen as nn

from adalink_jax.adapters.layer_adapter import COLLECTION, LayerAdapter, Params, declare
from adalink_jax.errors import UserError
from adalink_jax.models import paths
from adalink_jax.models.quantised import Quantised, dequantised
from adalink_jax.typed_values import FiniteFloat, PositiveInt

KERNEL = "/kernel"


def _uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Draws [..., in, R] uniformly in +-in^-0.5, as torch's `kaiming_uniform_(a=sqrt(5))`."""
    return jax.random.uniform(key, shape, dtype, -1.0, 1.0) * shape[-2] ** -0.5


@gin.configurable
class LoRA(LayerAdapter):
    """LoRA on the projections that `projections` matches.

    Attributes:
      rank: R.
      alpha: the branch is multiplied by alpha / rank.
      projections: regular expressions that match whole unscanned paths of the backbone's dense layers, such as
        `encoder/layers_0/attention/query`. The default is PEFT's for T5: the queries and values of all attention layers.

    Raises:
      UserError: for a rank below 1, or an expression that matches no dense layer.
    """

    rank: PositiveInt = 8
    alpha: FiniteFloat = 8.0
    projections: tuple[str, ...] = (r"(encoder|decoder)/.*/(query|value)",)
    identity_at_start: ClassVar[bool] = True
    per_segment: ClassVar[bool] = True
    per_row: ClassVar[bool] = True

    def __post_init__(self):
        if not isinstance(self.rank, int) or self.rank < 1:
            raise UserError(f"LoRA's rank is {self.rank!r}; it must be at least 1.")
        super().__post_init__()

    @nn.compact
    def __call__(self, backbone: Params) -> dict[str, Any]:
        """Returns `{"adapter": {<projection>: {"down", "up"}}}`, with `up` multiplied by alpha / rank."""
        flat = paths.flatten(backbone).items()
        shapes = {name.removesuffix(KERNEL): leaf.shape for name, leaf in flat if name.endswith(KERNEL)}
        names = {name: paths.unscanned_names(name, shape) for name, shape in shapes.items()}
        leaves = {}
        for name in sorted(set().union(*paths.matching(self.projections, names, "LoRA.projections"))):
            *stacked, inputs, outputs = shapes[name]
            layers = ("layers",) * len(stacked)
            leaves[f"{name}/down"] = _uniform, (*stacked, inputs, self.rank), (*layers, "adapter_embed", "adapter_rank")
            leaves[f"{name}/up"] = (
                nn.initializers.zeros, (*stacked, self.rank, outputs), (*layers, "adapter_rank", "adapter_embed")
            )  # fmt: skip
        params = declare(self, leaves)
        masks = paths.flatten(self.variables.get("padding", {}))  # see `bank.pad`
        # A member of a bank that was padded to a higher rank keeps its own rank.
        rank = lambda name: jnp.sum(masks[name]) if name in masks else self.rank
        scaled = {k: x * (self.alpha / rank(k)) if k.endswith("/up") else x for k, x in params.items()}
        return {COLLECTION: paths.unflatten(scaled)}

    def merge(self, backbone: Params) -> dict[str, Any]:
        """Returns the backbone's parameters with `(alpha / rank) * down @ up` added to each kernel, in the kernel's dtype.

        A quantised kernel becomes float32: quantised again, it would lose much of what was added.
        """
        branches = paths.flatten(self(backbone)[COLLECTION])
        merged = dict(paths.flatten(backbone))
        for name in {name.rpartition("/")[0] for name in branches}:
            kernel = merged[name + KERNEL]
            delta = branches[f"{name}/down"] @ branches[f"{name}/up"]
            stored = jnp.float32 if isinstance(kernel, Quantised) else kernel.dtype
            merged[name + KERNEL] = (dequantised(kernel) + delta).astype(stored)
        return paths.unflatten(merged)

    @nn.nowrap
    def intercept(self, call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        """Adds the branch to the output of a dense layer that has one. In a bank, `down` and `up` are [B, ...]."""
        y = call(*args, **kwargs)
        module = context.module
        if context.method_name != "__call__" or not module.has_variable(COLLECTION, "down"):
            return y
        down, up = (module.get_variable(COLLECTION, name) for name in ("down", "up"))
        # In float32, as in PEFT, so that the gradients that cross devices are float32 too.
        branch = (args[0].astype(jnp.float32) @ down) @ up
        return (y.astype(jnp.float32) + branch).astype(y.dtype)
