"""Norm tuning: the scales of the layer norms are trained, as offsets from the base's (Zhao et al., 2023, arXiv:2312.11420).

    scale' = scale + offset          offset [D], zero at first

The offsets make an adapter of it: a file of its own, with the base as it is.
"""

from typing import ClassVar

import flax.linen as nn
import gin

from adalink_jax.adapters.layer_adapter import LayerAdapter, declare
from adalink_jax.models import paths


@gin.configurable
class NormTuning(LayerAdapter):
    """Offsets to the backbone's leaves that `scales` picks, under the same names.

    Attributes:
      scales: expressions for whole unscanned paths (`encoder/layers_0/pre_mlp_layer_norm/scale`). By default all layer
        norms of the language model.

    Raises:
      UserError: for expressions that match nothing.
    """

    scales: tuple[str, ...] = (r"(encoder|decoder)/.*norm/scale",)
    identity_at_start: ClassVar[bool] = True

    @nn.compact
    def __call__(self, backbone):
        """`{"params": the backbone's, with the offsets added}`."""
        leaves = paths.flatten(backbone)
        picked = set().union(*paths.matching(self.scales, paths.leaf_names(backbone), "NormTuning.scales"))
        offsets = declare(self, {
            name: (nn.initializers.zeros, leaves[name].shape, ("layers",) * (leaves[name].ndim - 1) + ("adapter_embed",))
            for name in sorted(picked)
        })  # fmt: skip
        changed = {name: leaves[name] + offset for name, offset in offsets.items()}
        return {"params": paths.unflatten({**leaves, **changed})}

    def merge(self, backbone):
        """The parameters that it runs with, each in the dtype that the backbone's was."""
        leaves = paths.flatten(backbone)
        merged = paths.flatten(self(backbone)["params"])
        return paths.unflatten({name: leaf.astype(leaves[name].dtype) for name, leaf in merged.items()})
