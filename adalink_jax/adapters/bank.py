"""Banks: many adapters of one method in two stacked trees, so that one program serves each row of a batch by its own adapter.

    params = {"stacked": leaves [A, ...], "padding": masks [A, n]}         adapter_index[b] - 1 serves row b; 0 (`NONE`): none

Adapters of lower ranks and shorter prompts are padded to the bank's sizes. A rank is padded with zeros, which change nothing; a
prompt is padded on its left, with positions that the mask hides. So adapters can be added and removed, and rows can switch
between them, without compiling a new program.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Int

from adalink_jax.adapters.adapted import AdaptedModel, abstract_params
from adalink_jax.adapters.layer_adapter import COLLECTION, LayerAdapter, Params
from adalink_jax.errors import UserError
from adalink_jax.models import paths
from adalink_jax.models.backbone import Backbone
from adalink_jax.models.seam import Inputs

NONE = 0
PADDED = {"adapter_rank": "right", "adapter_length": "left"}  # logical axes that may be longer in a bank -> padded side
_SIZES = ("rank", "length")
_AdapterIndex = Int[Array | np.ndarray, " B"] | None


class Bank(nn.Module):
    """A bank of input adapters. Its parameters come from `stack_adapters`.

    Attributes:
      adapter: the method, at the bank's sizes.
    """

    adapter: nn.Module
    by_index: ClassVar[bool] = True  # reads `adapter_index`

    @nn.compact
    def __call__(self, inputs: Inputs) -> Inputs:
        """Adapts each row by the adapter of its `adapter_index`. Rows of index 0 keep every bit."""
        variables, served = _of_rows(self, inputs.adapter_index)
        member = self.adapter.clone(parent=None, name=None)
        one = lambda variables, row: member.apply(variables, jax.tree.map(lambda x: x[None], row))
        plain = inputs.replace(adapter_index=None)
        adapted = jax.tree.map(lambda x: x[:, 0], jax.vmap(one)(variables, plain))
        choose = lambda old, new: (
            new if old is None else jnp.where(served.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
        )
        outputs = jax.tree.map(choose, plain, adapted, is_leaf=lambda x: x is None)
        if plain.prompt is None and outputs.prompt is not None:
            outputs = outputs.replace(prompt_mask=outputs.prompt_mask & served[:, None])
        return outputs.replace(adapter_index=inputs.adapter_index)


class LayerBank(LayerAdapter):
    """A bank of layer adapters; see `Bank`."""

    adapter: LayerAdapter
    by_index: ClassVar[bool] = True

    @nn.compact
    def __call__(self, backbone: Params, index: _AdapterIndex = None) -> dict[str, Any]:
        """Returns the collection with one entry per row: leaves [B, ...], those of scanned stacks [layers, B, ...]."""
        variables, served = _of_rows(self, index)
        member = self.adapter.clone(parent=None, name=None)
        collection = lambda variables: cast(dict, member.apply(variables, backbone))[COLLECTION]
        rows = jax.vmap(collection)(variables)

        def place(path, leaf):
            leaf = jnp.where(served.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, 0)
            return jnp.moveaxis(leaf, 0, 1) if any(key.key == paths.SCANNED for key in path) else leaf

        return {COLLECTION: jax.tree_util.tree_map_with_path(place, rows)}

    @nn.nowrap
    def intercept(self, call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        """Intercepts as the bank's method does."""
        return self.adapter.intercept(call, args, kwargs, context)


def _of_rows(bank: nn.Module, index: _AdapterIndex) -> tuple[dict[str, Any], Array | np.ndarray]:
    """Gathers the variables of each row's adapter, leaves [B, ...]; and whether a row has one, bool [B]."""
    if index is None:
        raise UserError("A bank of adapters needs `adapter_index` [B] in the batch, the number of each row's adapter.")
    take = lambda leaf: jnp.take(leaf, index - 1, axis=0, mode="clip")
    tree = jax.tree.map(take, bank.variables["params"])
    return {"params": tree["stacked"], "padding": tree["padding"]}, index != NONE


def make_bank(adapter: nn.Module) -> nn.Module:
    """Returns the bank's module for adapters of `adapter`'s method, up to its sizes.

    Raises:
      UserError: for a method whose changes to the layers cannot differ between rows.
    """
    if not isinstance(adapter, LayerAdapter):
        return Bank(adapter)
    if not adapter.per_row:
        raise UserError(
            f"{type(adapter).__name__} cannot be served from a bank: its changes to the layers cannot differ between rows."
        )
    return LayerBank(adapter)


def widest(adapters: Sequence[nn.Module]) -> nn.Module:
    """Returns one module with the largest rank and length of `adapters`; all other settings must be equal.

    Raises:
      UserError: names a setting that differs.
    """
    first = adapters[0]
    names = sorted({type(adapter).__name__ for adapter in adapters})
    if len(names) > 1:
        raise UserError(f"The adapters are of different methods: {', '.join(names)}; they must be of one method.")
    changed = {}
    for field in dataclasses.fields(first):
        if field.name in ("parent", "name"):
            continue
        values = [getattr(adapter, field.name) for adapter in adapters]
        if field.name in _SIZES and isinstance(values[0], int):
            changed[field.name] = max(values)
        elif isinstance(values[0], nn.Module):
            changed[field.name] = widest(values)
        elif isinstance(values[0], tuple) and values[0] and isinstance(values[0][0], nn.Module):
            if len({len(value) for value in values}) > 1:
                raise UserError(f"The adapters differ in the number of {type(first).__name__}.{field.name}.")
            changed[field.name] = tuple(widest(modules) for modules in zip(*values))
        elif any(value != values[0] for value in values):
            different = next(value for value in values if value != values[0])
            raise UserError(
                f"The adapters differ in {type(first).__name__}.{field.name} ({values[0]} and {different}); only "
                f"{' and '.join(_SIZES)} may differ."
            )
    return first.clone(parent=None, name=None, **changed)


def pad(params: Params, boxed: Params) -> tuple[dict, dict]:
    """Pads an adapter to the sizes of a bank.

    Args:
      params: the adapter's parameters.
      boxed: shapes and logical axes at the bank's sizes (`abstract_params(...)["adapter"]`).

    Returns:
      `(params, padding)`: NumPy arrays of the bank's shapes; and, nested alike, a bool mask [n] of each axis that may be padded,
      False at padding.

    Raises:
      UserError: for a leaf that is missing, left over, or of a shape that padding does not explain.
    """
    wanted = _boxes(boxed)
    leaves = {name: np.asarray(leaf) for name, leaf in paths.flatten(params).items()}
    if leaves.keys() != wanted.keys():
        odd = sorted(leaves.keys() ^ wanted.keys())[0]
        raise UserError(f"The adapter does not fit its bank: {odd} is {'missing' if odd in wanted else 'left over'}.")
    padded, masks = {}, {}
    for name, box in wanted.items():
        leaf, widths = leaves[name], []
        for axis, have, want in zip(box.names, leaf.shape, box.value.shape, strict=True):
            missing = want - have
            if missing < 0 or (missing and axis not in PADDED):
                raise UserError(
                    f"The adapter does not fit its bank: {name} is {leaf.shape}, in the bank {box.value.shape}."
                )
            left = axis is not None and PADDED.get(axis) == "left"
            widths.append((missing, 0) if left else (0, missing))
            if axis in PADDED:
                positions = np.arange(want)
                masks[name] = positions >= missing if left else positions < have
        padded[name] = np.pad(leaf, widths)
    return paths.unflatten(padded), paths.unflatten(masks)


def unpad(params: Params, boxed: Params) -> dict:
    """Inverts `pad`: cuts `params` to the adapter's own sizes, whose `abstract_params` are `boxed`."""
    side = lambda have, axis, size: slice(have - size, have) if PADDED.get(axis) == "left" else slice(size)
    cut = lambda leaf, box: leaf[tuple(map(side, leaf.shape, box.names, box.value.shape))]
    leaves = paths.flatten(params)
    return paths.unflatten({name: cut(leaves[name], box) for name, box in _boxes(boxed).items()})


def _boxes(boxed: Params) -> dict[str, nn.LogicallyPartitioned]:
    """Returns the boxes by name; a leaf without axis names gets None for each axis."""
    is_box = lambda node: isinstance(node, nn.LogicallyPartitioned)
    box = lambda leaf: leaf if is_box(leaf) else nn.LogicallyPartitioned(leaf, (None,) * len(leaf.shape))
    leaves = jax.tree_util.tree_flatten_with_path(boxed, is_leaf=is_box)[0]
    return {"/".join(key.key for key in path): box(leaf) for path, leaf in leaves}


def align(backbone: Backbone, members: Sequence[tuple[nn.Module, Params]]) -> tuple[nn.Module, dict, dict]:
    """Brings adapters of one method to common sizes.

    Args:
      backbone: the backbone that they adapt.
      members: `(module, parameters)` of each.

    Returns:
      The largest module; parameters and padding (see `pad`), each with the members on axis 0.

    Raises:
      UserError: for adapters of different methods, settings or widths.
    """
    largest = widest([module for module, _ in members])
    boxed = abstract_params(AdaptedModel(backbone, largest))["adapter"]
    params, padding = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(pad(params, boxed) for _, params in members))
    return largest, params, padding


def stack_adapters(backbone: Backbone, members: Sequence[tuple[nn.Module, Params]]) -> tuple[nn.Module, dict]:
    """Makes a bank of trained adapters.

    Args:
      backbone: the backbone that they were trained for.
      members: `(module, parameters)` of each; the first gets index 1.

    Returns:
      The bank's module, for `AdaptedModel(backbone, bank)`, and its parameters, for `{"backbone": ..., "adapter": params}`.

    Raises:
      UserError: for adapters of different methods, settings or widths.
    """
    largest, params, padding = align(backbone, members)
    return make_bank(largest), {"stacked": params, "padding": padding}
