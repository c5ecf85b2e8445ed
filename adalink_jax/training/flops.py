"""FLOPs of a program, counted from its trace: 2 for each multiply-add of a matrix product, nothing for the rest.

The trace is of the real step, with any method, forward and backward, and the body of a loop or of a Pallas kernel counts as often as it
runs (XLA's own analysis counts it once). *Model* FLOPs exclude recomputation (remat, and scores that attention computes again), the convention of
an MFU; in adapter training they are about 4 per parameter and token, not 6, since no gradient of a frozen weight exists.
"""

import math
from collections.abc import Callable

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr  # pyright: ignore[reportPrivateImportUsage]  # one class since jax 0.12

from adalink_jax.models.attention.blockwise import recomputed_scores
from adalink_jax.parallel.sharding import as_tuple

# Matrix products of the primitives of `jax.nn.dot_product_attention(implementation="cudnn")`, without recomputed scores.
_CUDNN = {"dot_product_attention_fwd_wrapper": 2, "dot_product_attention_bwd_wrapper": 4}


def count_flops(function: Callable, *arguments) -> int:
    """FLOPs of all matrix products and convolutions of `function(*arguments)`; the arguments may be abstract."""
    return count_traced(jax.make_jaxpr(function)(*arguments))


def count_traced(traced: ClosedJaxpr | Jaxpr) -> int:
    """`count_flops` of a trace, such as `jax.jit(function).trace(*arguments).jaxpr`."""
    return sum(_of_equation(equation) for equation in traced.eqns)


def _of_equation(equation) -> int:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        out_features = kernel[parameters["dimension_numbers"].rhs_spec[0]]
        return 2 * equation.outvars[0].aval.size * math.prod(kernel) // out_features
    if name in _CUDNN:
        query, key = (x.aval.shape for x in equation.invars[:2])  # [B, Q, H, K], [B, S, H, K]
        return 2 * _CUDNN[name] * math.prod(query) * key[1]
    if parameters.get("name") == recomputed_scores.__name__:
        return 0
    inner = [count_traced(x) for x in jax.tree.leaves(parameters) if isinstance(x, (ClosedJaxpr, Jaxpr))]
    if name == "cond":
        return max(inner)
    return sum(inner) * _times(name, equation)


def _times(name: str, equation) -> int:
    """How often an equation's inner programs run."""
    if name == "scan":
        return equation.params["length"]
    if name == "pallas_call":
        return math.prod(equation.params["grid_mapping"].grid)
    return _shards(equation) if name == "shard_map" else 1


def _shards(equation) -> int:
    """How many different parts of the work the devices of a `shard_map` do."""
    mesh, specs = equation.params["mesh"], equation.params["out_specs"]
    axes = {axis for spec in specs for entry in spec for axis in as_tuple(entry)}
    return math.prod(mesh.shape[axis] for axis in axes)
