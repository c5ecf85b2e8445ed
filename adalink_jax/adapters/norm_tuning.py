"""Norm tuning: trained offsets to the scales of the layer norms (Zhao et al., 2023, arXiv:2312.11420).

    scale' = scale + offset          scale, offset [D]; also what `NormTuning.merge` stores

D parameters per norm. Offsets start at zero, so a fresh one changes nothing. As offsets, and not as new scales, they are an
adapter: a file of their own that leaves the base unchanged.
"""

from typing import Any, ClassVar

import flax.linen as nn
import gin

from adalink_jax.adapters.layer_adapter import LayerAdapter, Params, declare
from adalink_jax.models import paths


@gin.configurable
class NormTuning(LayerAdapter):
    """Offsets to the backbone's leaves that `scales` matches, under the same names.

    Attributes:
      scales: regular expressions that match whole unscanned paths, such as `encoder/layers_0/pre_mlp_layer_norm/scale`. The
        default matches all layer norms of the language model.

    Raises:
      UserError: for an expression that matches nothing.
    """

    scales: tuple[str, ...] = (r"(encoder|decoder)/.*norm/scale",)
    identity_at_start: ClassVar[bool] = True
    per_segment: ClassVar[bool] = True

    @nn.compact
    def __call__(self, backbone: Params) -> dict[str, Any]:
        """Returns `{"params": the backbone's parameters with the offsets added}`."""
        leaves = paths.flatten(backbone)
        matched = set().union(*paths.matching(self.scales, paths.leaf_names(backbone), "NormTuning.scales"))
        offsets = declare(self, {
            name: (nn.initializers.zeros, leaves[name].shape, ("layers",) * (leaves[name].ndim - 1) + ("adapter_embed",))
            for name in sorted(matched)
        })  # fmt: skip
        changed = {name: leaves[name] + offset for name, offset in offsets.items()}
        return {"params": paths.unflatten({**leaves, **changed})}

    def merge(self, backbone: Params) -> dict[str, Any]:
        """Returns the changed parameters, each in the dtype of the backbone's leaf."""
        leaves = paths.flatten(backbone)
        merged = paths.flatten(self(backbone)["params"])
        return paths.unflatten({name: leaf.astype(leaves[name].dtype) for name, leaf in merged.items()})
