"""Banks: adapters of one method, stacked, so that one program serves each row of a batch by its own.

    params = {"stacked": leaves [A, ...], "padding": masks [A, n]}         row b is served by adapter adapter_index[b] - 1

Index 0 (`NONE`) is no adapter. Adapters of lower ranks and shorter prompts are padded to the bank's: a rank with zeros, which
changes nothing; a prompt on its left, with positions that the mask hides. So adapters may come and go, and rows change from
one to another, without a new program.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from adalink_jax.adapters.adapted import AdaptedModel, abstract_params
from adalink_jax.adapters.layer_adapter import COLLECTION, LayerAdapter
from adalink_jax.errors import UserError
from adalink_jax.models import paths
from adalink_jax.models.seam import Inputs

NONE = 0
PADDED = {"adapter_rank": "right", "adapter_length": "left"}  # logical axes that may be longer in a bank, and where
_SIZES = ("rank", "length")


class _Bank:
    """What both kinds of bank share; `adapter` is the method, at the bank's sizes."""

    by_index: ClassVar[bool] = True  # each row of the batch names its adapter

    def _rows(self, index: jax.Array) -> dict:
        """Variables of each row's adapter: leaves [B, ...]."""
        take = lambda leaf: jnp.take(leaf, index - 1, axis=0, mode="clip")
        tree = jax.tree.map(take, self.variables["params"])
        return {"params": tree["stacked"], "padding": tree["padding"]}


class Bank(nn.Module, _Bank):
    """A bank of input adapters. Its parameters come from `stack_adapters`.

    Attributes:
      adapter: the method, at the bank's sizes.
    """

    adapter: nn.Module

    @nn.compact
    def __call__(self, inputs: Inputs) -> Inputs:
        """Each row by the adapter of its `adapter_index`; rows of index 0 stay as they are, to the bit."""
        index = _required(inputs.adapter_index)
        member = self.adapter.clone(parent=None, name=None)
        one = lambda variables, row: member.apply(variables, jax.tree.map(lambda x: x[None], row))
        plain = inputs.replace(adapter_index=None)
        adapted = jax.tree.map(lambda x: x[:, 0], jax.vmap(one)(self._rows(index), plain))
        served = index != NONE
        kept = {}
        for field in dataclasses.fields(Inputs):
            old, new = getattr(plain, field.name), getattr(adapted, field.name)
            if old is not None:
                kept[field.name] = jnp.where(served.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
        if plain.prompt is None and adapted.prompt is not None:
            kept["prompt_mask"] = adapted.prompt_mask & served[:, None]
        return adapted.replace(**kept, adapter_index=index)


class LayerBank(LayerAdapter, _Bank):
    """A bank of adapters of the backbone's layers; see `Bank`."""

    adapter: nn.Module

    @nn.compact
    def __call__(self, backbone, index=None):
        """The collection with a row of the batch each: leaves [B, ...], of scanned stacks [layers, B, ...]."""
        index = _required(index)
        member = self.adapter.clone(parent=None, name=None)
        rows = jax.vmap(lambda variables: member.apply(variables, backbone)[COLLECTION])(self._rows(index))
        served = index != NONE

        def place(path, leaf):
            leaf = jnp.where(served.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, 0)
            return jnp.moveaxis(leaf, 0, 1) if any(key.key == paths.SCANNED for key in path) else leaf

        return {COLLECTION: jax.tree_util.tree_map_with_path(place, rows)}

    @nn.nowrap
    def intercept(self, call, args, kwargs, context):
        """The member's."""
        return self.adapter.intercept(call, args, kwargs, context)


def _required(index):
    if index is None:
        raise UserError("A bank of adapters needs `adapter_index` [B] in the batch, the number of each row's adapter.")
    return index


def make_bank(adapter: nn.Module) -> nn.Module:
    """The bank's module for adapters of `adapter`'s method, with its sizes the largest.

    Raises:
      UserError: for a method that changes the layers in a way that rows cannot differ in.
    """
    if not isinstance(adapter, LayerAdapter):
        return Bank(adapter)
    if not adapter.per_row:
        raise UserError(
            f"{type(adapter).__name__} cannot be served from a bank; its rows would need layers of their own."
        )
    return LayerBank(adapter)


def widest(adapters: Sequence[nn.Module]) -> nn.Module:
    """One module with the largest rank and length of `adapters`, which are alike otherwise.

    Raises:
      UserError: names a setting that differs.
    """
    first = adapters[0]
    names = sorted({type(adapter).__name__ for adapter in adapters})
    if len(names) > 1:
        raise UserError(f"The adapters are of different methods: {', '.join(names)}; they must be of one.")
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
            changed[field.name] = tuple(widest(each) for each in zip(*values))
        elif any(value != values[0] for value in values):
            different = next(value for value in values if value != values[0])
            raise UserError(
                f"The adapters differ in {type(first).__name__}.{field.name} ({values[0]} and {different}); together only "
                f"{' and '.join(_SIZES)} may differ."
            )
    return first.clone(parent=None, name=None, **changed)


def pad(params, boxed):
    """An adapter at the sizes of a bank.

    Args:
      params: its nested dict of arrays.
      boxed: the bank's, with logical axes (`abstract_params(...)["adapter"]`).

    Returns:
      `(params, padding)`: NumPy arrays of the bank's shapes; for each leaf with an axis that may be padded a bool mask [n] of
      that axis, True where it is the adapter's own, nested as the leaves are.

    Raises:
      UserError: for a leaf that is missing, left over or of a shape that padding does not explain.
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
                raise UserError(f"The adapter does not fit its bank: {name} is {leaf.shape}, there {box.value.shape}.")
            left = PADDED.get(axis) == "left"
            widths.append((missing, 0) if left else (0, missing))
            if axis in PADDED:
                own = np.arange(want)
                masks[name] = own >= missing if left else own < have
        padded[name] = np.pad(leaf, widths)
    return paths.unflatten(padded), paths.unflatten(masks)


def unpad(params, boxed):
    """The inverse of `pad`: the parts of `params` that are the adapter's own, whose `abstract_params` are `boxed`."""

    def own(leaf, box):
        for dim, (axis, size) in enumerate(zip(box.names, box.value.shape, strict=True)):
            extra = leaf.shape[dim] - size
            start = extra if PADDED.get(axis) == "left" else 0
            leaf = leaf[(slice(None),) * dim + (slice(start, start + size),)]
        return leaf

    leaves = paths.flatten(params)
    return paths.unflatten({name: own(leaves[name], box) for name, box in _boxes(boxed).items()})


def _boxes(boxed) -> dict[str, nn.LogicallyPartitioned]:
    """By name; a leaf whose axes were given no names has None for each."""
    is_box = lambda node: isinstance(node, nn.LogicallyPartitioned)
    box = lambda leaf: leaf if is_box(leaf) else nn.LogicallyPartitioned(leaf, (None,) * len(leaf.shape))
    found = jax.tree_util.tree_flatten_with_path(boxed, is_leaf=is_box)[0]
    return {"/".join(key.key for key in path): box(leaf) for path, leaf in found}


def align(backbone: nn.Module, members: Sequence[tuple[nn.Module, dict]]) -> tuple[nn.Module, dict, dict]:
    """Adapters of one method at common sizes.

    Args:
      backbone: what they are for.
      members: `(module, parameters)` of each.

    Returns:
      The largest module; parameters and padding (see `pad`), each with the members on axis 0.

    Raises:
      UserError: for adapters of different methods, settings or widths.
    """
    largest = widest([module for module, _ in members])
    boxed = abstract_params(AdaptedModel(backbone, largest))["adapter"]
    params, padding = zip(*(pad(params, boxed) for _, params in members))
    stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    return largest, stack(params), stack(padding)


def stack_adapters(backbone: nn.Module, members: Sequence[tuple[nn.Module, dict]]) -> tuple[nn.Module, dict]:
    """A bank of trained adapters.

    Args:
      backbone: what they were trained for.
      members: `(module, parameters)` of each; the first gets index 1.

    Returns:
      The bank's module, for `AdaptedModel(backbone, bank)`, and its parameters, for `{"backbone": ..., "adapter": params}`.

    Raises:
      UserError: for adapters of different methods, settings or widths.
    """
    largest, params, padding = align(backbone, members)
    return make_bank(largest), {"stacked": params, "padding": padding}
