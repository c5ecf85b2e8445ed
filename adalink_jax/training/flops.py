"""FLOPs of a program, counted from its trace: 2 for each multiply-add of a matrix product, nothing for the rest.

The trace is of the real step, with any method, forward and backward, and the body of a loop counts as often as it runs (XLA's
own analysis counts it once). *Model* FLOPs exclude recomputation (remat), the convention of an MFU; in adapter training they are
about 4 per parameter and token, not 6, since no gradient of a frozen weight exists.
"""

from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr


def count_flops(function: Callable, *arguments) -> int:
    """FLOPs of all matrix products and convolutions of `function(*arguments)`; the arguments may be abstract."""
    return count_traced(jax.make_jaxpr(function)(*arguments))


def count_traced(traced: ClosedJaxpr) -> int:
    """`count_flops` of a trace, such as `jax.jit(function).trace(*arguments).jaxpr`."""
    return _of_jaxpr(traced.jaxpr)


def _of_jaxpr(jaxpr: Jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation) -> int:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * _size(equation.outvars[0]) * int(np.prod([shape[i] for i in contracted], dtype=np.int64))
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        out_features = kernel[parameters["dimension_numbers"].rhs_spec[0]]
        return 2 * _size(equation.outvars[0]) * int(np.prod(kernel, dtype=np.int64)) // out_features
    inner = [_of_jaxpr(jaxpr) for jaxpr in _inside(parameters)]
    if name == "scan":
        return parameters["length"] * sum(inner)
    if name == "cond":
        return max(inner)
    return sum(inner)


def _inside(parameters: dict) -> Iterator[Jaxpr]:
    for value in parameters.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def _size(variable) -> int:
    return int(np.prod(variable.aval.shape, dtype=np.int64))
