"""Methods with one error each, which the checks must find, and two correct ones."""

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
    """A correct method: an offset to each text embedding."""

    size: float = 1.0
    per_token: ClassVar[bool] = True

    @nn.compact
    def __call__(self, inputs):
        return inputs if inputs.text is None else inputs.replace(text=self.shifted(inputs.text))

    def shifted(self, x):
        offset = self.param("offset", nn.initializers.normal(0.1), (x.shape[-1],), jnp.float32)
        return x + self.size * offset


class HasOtherKinds(Shift):
    kinds: int = 3  # the package reads the field as kinds of embeddings


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
    """Its setting is a string in a file, but its code expects an enum."""

    direction: Direction = Direction.DOWN

    def shifted(self, x):
        return super().shifted(x) * (-1.0 if self.direction is Direction.DOWN else 1.0)


class FoldsWrongly(Shift):
    """Declares that it maps each token alone, but uses the neighbours."""

    def shifted(self, x):
        return super().shifted(x) + x.mean(axis=-2, keepdims=True)


class MixesARow(Shift):
    """Declares that it heeds the segments of a row, but uses its mean."""

    per_token: ClassVar[bool] = False
    per_segment: ClassVar[bool] = True

    def shifted(self, x):
        return super().shifted(x) + x.mean(axis=-2, keepdims=True)


class DecodesOtherwise(Shift):
    """Adapts the decoder's input by position, but each decoding step starts at position 0."""

    @nn.compact
    def __call__(self, inputs):
        if inputs.target is None:
            return inputs
        shifted = self.shifted(inputs.target)
        place = jnp.arange(inputs.target.shape[1])[None, :, None]
        return inputs.replace(target=jnp.where(place % 2 == 0, shifted, inputs.target - 5 * (shifted - inputs.target)))


class KnowsTheMesh(Shift):
    """Computes something else on a mesh."""

    def shifted(self, x):
        return super().shifted(x) * (2.0 if nn.get_logical_axis_rules() else 1.0)


class Raises(Shift):
    def shifted(self, x):
        return x @ x


class Scales(LayerAdapter):
    """A correct method: factors for the outputs of the feed-forward layers, applied to their kernels."""

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
    """A factor beside each feed-forward kernel: without an adapter, a bank gives 0, which is not neutral for a factor."""

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
