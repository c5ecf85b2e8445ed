"""What the forward pass of a training step saves for its backward pass, read from the trace of the step's loss.

An array counts if the trace's backward pass reads it and it depends on the batch: parameters are in memory anyway. The compiler
may still compute a cheap array again instead of saving it (in unrolled layers; what a scan saves, it saves).
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Var  # pyright: ignore[reportPrivateImportUsage]  # one class since jax 0.12
from jax.sharding import Mesh

from adalink_jax import parallel
from adalink_jax.training import abstract, partition
from adalink_jax.training.setup import Setup
from adalink_jax.training.step import make_loss


@dataclasses.dataclass(frozen=True)
class SavedArray:
    """An array that is saved.

    Attributes:
      stack: the stack of layers that computes it ("encoder"), or "other".
      layers: the numbers of its layers: one, or all of a scanned stack, which are on axis 0; none outside of a stack.
      kind: its `checkpoint_name` ("mlp_in"), else the module that computes it.
      primitive: what computes it there ("tanh").
      shape: the whole array's.
      nbytes: its size.
    """

    stack: str
    layers: tuple[int, ...]
    kind: str
    primitive: str
    shape: tuple[int, ...]
    nbytes: int


def saved_on_chip(
    setup: Setup, loss: Callable, microbatches: int, mesh: Mesh, rules: parallel.LogicalRules
) -> dict[str, dict[str, Any]]:
    """What a step saves, as `by_stack`: bytes per chip for one microbatch, before a `model` axis divides some of it."""
    parts = parallel.data_axis_size(mesh)
    rows = max(1, setup.data.batch_size // microbatches // parts) * parts
    trainable, frozen = partition.split(abstract.abstract_leaves(setup.model, mesh, rules), setup.trainable)
    frozen = setup.storage.stored(frozen, ())
    arrays = saved_arrays(make_loss(setup.model, loss), trainable, frozen, setup.train_batch(rows))
    return by_stack([dataclasses.replace(array, nbytes=-(-array.nbytes // parts)) for array in arrays])


def saved_arrays(summed_loss: Callable, trainable: Any, frozen: Any, batch: Any) -> list[SavedArray]:
    """The arrays that `summed_loss` (see `make_loss`) saves for its gradient with respect to `trainable`.

    The arguments may be abstract.
    """

    def backward(batch: Any, seed: Any, trainable: Any, frozen: Any) -> list[Any]:
        key = jax.random.key(seed)
        of = lambda trainable: summed_loss(trainable, frozen, batch, key)
        return jax.tree.leaves(jax.vjp(of, trainable, has_aux=True)[1])

    traced = jax.make_jaxpr(backward)(batch, 0, trainable, frozen)
    inputs = len(jax.tree.leaves(batch)) + 1
    from_batch = _dependent(traced.jaxpr, traced.jaxpr.invars[:inputs])
    saved = {x for x in traced.jaxpr.outvars if isinstance(x, Var) and x in from_batch and _nbytes(x.aval)}
    return [_described(traced.jaxpr, x) for x in saved]


def by_stack(arrays: Iterable[SavedArray]) -> dict[str, dict[str, Any]]:
    """Sums of bytes, JSON-able: `{stack: {"bytes": all, "layers": number, "layer": {kind: bytes of a layer on average}}}`."""
    stacks: dict[str, list[SavedArray]] = {}
    for array in arrays:
        stacks.setdefault(array.stack, []).append(array)
    sums = {}
    for stack, members in sorted(stacks.items()):
        kinds: dict[str, int] = {}
        for array in members:
            kinds[array.kind] = kinds.get(array.kind, 0) + array.nbytes
        layers = len({number for array in members for number in array.layers}) or 1
        largest = sorted(kinds.items(), key=lambda item: -item[1])
        layer = {kind: round(size / layers) for kind, size in largest}
        sums[stack] = {"bytes": sum(kinds.values()), "layers": layers, "layer": layer}
    return sums


def _nbytes(aval: Any) -> int:
    is_stored = aval.dtype != jax.dtypes.float0 and not jnp.issubdtype(aval.dtype, jax.dtypes.extended)
    return math.prod(aval.shape) * aval.dtype.itemsize if is_stored else 0


def _dependent(jaxpr: Jaxpr, inputs: Iterable[Var]) -> set[Var]:
    """The variables that depend on `inputs`."""
    dependent = set(inputs)
    for equation in jaxpr.eqns:
        if any(isinstance(x, Var) and x in dependent for x in equation.invars):
            dependent.update(equation.outvars)
    return dependent


def _described(jaxpr: Jaxpr, array: Var) -> SavedArray:
    aval = cast(Any, array.aval)
    path, name, primitive = _origin(jaxpr, array)
    modules = [part.split(".")[0] for part in re.sub(r"\w+\(|\)", "", path).split("/")]
    modules = [part for part in modules if part and not _METHODS.fullmatch(part)]
    index = next((i for i, part in enumerate(modules) if _LAYER.fullmatch(part)), None)
    if index is None and modules and primitive == "input":  # what enters each layer of a scan
        layers = tuple(range(aval.shape[0]))
        return SavedArray(
            "/".join(dict.fromkeys(modules)), layers, "residual stream", primitive, aval.shape, _nbytes(aval)
        )
    if index is None:
        return SavedArray("other", (), name or [*modules, "loss"][0], primitive, aval.shape, _nbytes(aval))
    number = _LAYER.fullmatch(modules[index])
    layers = (int(number[1]),) if number and number[1] else tuple(range(aval.shape[0]))
    kind = name or ("residual stream" if _LAYER.fullmatch(modules[-1]) else modules[-1])
    stack = "/".join(dict.fromkeys(modules[:index]))
    return SavedArray(stack, layers, kind, primitive, aval.shape, _nbytes(aval))


# What Flax and JAX have in a name stack beside the modules of the backbone.
_METHODS = re.compile(r"[A-Z].*|backbone|while|body|closed_call|checkpoint|rematted_computation")
_LAYER = re.compile(r"layers(?:_(\d+))?")


def _origin(jaxpr: Jaxpr, array: Any) -> tuple[str, str | None, str]:
    """Name stack, `checkpoint_name` and primitive of what computes `array`, in the innermost program that does."""
    equation = next((e for e in jaxpr.eqns if any(x is array for x in e.outvars)), None)
    if equation is None:
        return "", None, "input"
    stack, primitive = str(equation.source_info.name_stack), equation.primitive.name
    if primitive == "name":
        return stack, equation.params["name"], primitive
    if primitive == "reduce_precision":  # `jax.checkpoint` fixes the precision of what a policy saves
        return _origin(jaxpr, equation.invars[0])
    for inner in jax.tree.leaves(list(equation.params.values())):
        inner = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
        if isinstance(inner, Jaxpr) and len(inner.outvars) == len(equation.outvars):
            position = next(i for i, x in enumerate(equation.outvars) if x is array)
            inner_stack, name, inner_primitive = _origin(inner, inner.outvars[position])
            return f"{stack}/{inner_stack}", name, inner_primitive
    return stack, None, primitive
