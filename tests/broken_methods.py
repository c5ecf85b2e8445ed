"""Methods that are wrong in one thing each, to see that the behaviours find it."""

import enum
from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from adalink_jax.adapters import LayerAdapter
from adalink_jax.adapters.layer_adapter import COLLECTION, declare
from adalink_jax.models import paths


class Shift(nn.Module):
    """The right one: an offset to each text embedding."""

    size: float = 1.0
    per_token: ClassVar[bool] = True

    @nn.compact
    def __call__(self, inputs):
        return inputs if inputs.text is None else inputs.replace(text=self.shifted(inputs.text))

    def shifted(self, x):
        offset = self.param("offset", nn.initializers.normal(0.1), (x.shape[-1],), jnp.float32)
        return x + self.size * offset


class SaysItStartsAsTheBase(Shift):
    identity_at_start: ClassVar[bool] = True


class HasNoEffect(Shift):
    size: float = 0.0


class HasADeadLeaf(Shift):
    @nn.compact
    def __call__(self, inputs):
        if inputs.text is None:
            return inputs
        self.param("unused", nn.initializers.normal(), (3,), jnp.float32)
        return inputs.replace(text=self.shifted(inputs.text))


class HoldsWhatNoFileCan(Shift):
    phi: Callable = nn.gelu

    def shifted(self, x):
        return self.phi(super().shifted(x))


class Direction(enum.StrEnum):
    UP = "up"
    DOWN = "down"


class LosesASetting(Shift):
    """In a file its setting is a string, and it is looked at as if it were not."""

    direction: Direction = Direction.DOWN

    def shifted(self, x):
        return super().shifted(x) * (-1.0 if self.direction is Direction.DOWN else 1.0)


class FoldsWrongly(Shift):
    """It declares to map each token alone, and looks at its neighbours."""

    def shifted(self, x):
        return super().shifted(x) + x.mean(axis=-2, keepdims=True)


class DecodesOtherwise(Shift):
    """It adapts the decoder's input by position, and each decoding step begins at position 0."""

    @nn.compact
    def __call__(self, inputs):
        if inputs.target is None:
            return inputs
        shifted = self.shifted(inputs.target)
        place = jnp.arange(inputs.target.shape[1])[None, :, None]
        return inputs.replace(target=jnp.where(place % 2 == 0, shifted, inputs.target - 5 * (shifted - inputs.target)))


class KnowsTheMesh(Shift):
    """It computes something else where there is a mesh."""

    def shifted(self, x):
        return super().shifted(x) * (2.0 if nn.get_logical_axis_rules() else 1.0)


class Raises(Shift):
    def shifted(self, x):
        return x @ x


class Scales(LayerAdapter):
    """The right one: factors for the outputs of the feed-forward layers, made in their kernels."""

    @nn.compact
    def __call__(self, backbone):
        leaves = paths.flatten(backbone)
        picked = {name: leaf for name, leaf in leaves.items() if name.endswith("mlp/wo/kernel")}
        axes = lambda leaf: ("layers",) * (leaf.ndim - 2) + ("adapter_embed",)
        scales = declare(self, {
            f"{name}/scale": (nn.initializers.ones, (*leaf.shape[:-2], leaf.shape[-1]), axes(leaf))
            for name, leaf in picked.items()
        })  # fmt: skip
        changed = {name: leaf * self.factor(name, scales[f"{name}/scale"]) for name, leaf in picked.items()}
        return {"params": paths.unflatten({**leaves, **changed})}

    def factor(self, name, scale):
        return scale[..., None, :]

    def merge(self, backbone):
        return self(backbone)["params"]


class MergesWrongly(Scales):
    def merge(self, backbone):
        return jax.tree.map(lambda x: 1.001 * x, self(backbone)["params"])


class MergesInPlace(Scales):
    def merge(self, backbone):
        merged = self(backbone)["params"]
        backbone["encoder"]["encoder_norm"]["scale"] = merged["encoder"]["encoder_norm"]["scale"] + 1.0
        return merged


class DependsOnScanning(Scales):
    def factor(self, name, scale):
        return super().factor(name, scale) * (1.01 if paths.SCANNED in name.split("/") else 1.0)


class DoesNotLetGo(LayerAdapter):
    """A factor beside each kernel of the feed-forward layers: without an adapter a bank gives 0, and 0 is not neutral."""

    per_row: ClassVar[bool] = True

    @nn.compact
    def __call__(self, backbone):
        picked = {name: x for name, x in paths.flatten(backbone).items() if name.endswith("mlp/wo/kernel")}
        return {COLLECTION: paths.unflatten(declare(self, {
            name.removesuffix("kernel") + "factor": (
                nn.initializers.ones, (*x.shape[:-2], x.shape[-1]), ("layers",) * (x.ndim - 2) + ("adapter_embed",)
            )
            for name, x in picked.items()
        }))}  # fmt: skip

    @nn.nowrap
    def intercept(self, call, args, kwargs, context):
        y = call(*args, **kwargs)
        if context.method_name != "__call__" or not context.module.has_variable(COLLECTION, "factor"):
            return y
        factor = context.module.get_variable(COLLECTION, "factor")
        return y * (factor if factor.ndim == 1 else factor[:, None])
