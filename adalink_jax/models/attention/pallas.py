"""Attention as two Pallas kernels for TPUs, forward and backward: scores exist for one block of queries and keys at a time.

The softmax is computed online over blocks of keys (Dao et al., 2022, arXiv:2205.14135), and the backward pass computes the scores
again, once, for all its gradients. Every operand is read from memory once: a kernel holds all keys and values of a row and head
(backward: its queries) on the chip and loops over their blocks. The relative bias gets a gradient only where its table is trained.

Scores are transposed in here, [keys, queries], so that what belongs to a query (its maximum, its sum) is a row of lanes.

Lengths are filled up to whole blocks: filled keys have weight 0, filled queries gradient 0.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Float

from adalink_jax.models.attention.bias import Bias, capped, without_symbols
from adalink_jax.models.attention.blockwise import product, recomputed_scores
from adalink_jax.models.attention.pallas_blocks import LANES, Added, Kernel, Side, Sizes, fill, roll_strip, unroll_strip

_MEMORY = 60 * 2**20  # bytes on the chip that a kernel may use: v5p has 64 MB


def _at_first_program(function: Any) -> None:
    """Runs `function` in the first program of a head."""
    pl.when((pl.program_id(1) == 0) & (pl.program_id(2) == 0))(function)


def _forward_kernel(kernel: Kernel, sizes: Sizes, structure: Any, *references: Any) -> None:
    count = structure.num_leaves
    added = jax.tree.unflatten(structure, references[:count])
    query, key, value, mixed, largest, inverse, top, total, sums, *rolled = references[count:]
    rolled = rolled[0] if rolled else None
    if rolled is not None:
        _at_first_program(lambda: roll_strip(added.strip, rolled, sizes))
    top[...] = jnp.full(top.shape, -jnp.inf)
    total[...] = jnp.zeros(total.shape)
    sums[...] = jnp.zeros(sums.shape)
    queries = query[0, 0]
    first_query = pl.program_id(2) * sizes.query_block

    def step(i: Array, _: None) -> None:
        start = pl.multiple_of(i * sizes.key_block, LANES)
        part = pl.ds(start, sizes.key_block)
        products = product(key[0, 0, part], queries, (1, 1))
        scores = capped(products, kernel.softcap)
        scores += added.to_scores(sizes, rolled, (start, first_query), part, slice(None))
        old = top[...]
        new = jnp.maximum(old, jnp.max(scores, axis=0, keepdims=True))
        weights, factor = jnp.exp(scores - new), jnp.exp(old - new)
        top[...] = new
        total[...] = total[...] * factor + jnp.sum(weights, axis=0, keepdims=True)
        values = value[0, 0, part]
        sums[...] = sums[...] * factor + product(values, weights.astype(values.dtype), (0, 0))

    jax.lax.fori_loop(0, sizes.keys // sizes.key_block, step, None)
    largest[0, 0], inverse[0, 0] = top[...], 1 / total[...]
    mixed[0, 0] = (sums[...] * inverse[0, 0]).T.astype(mixed.dtype)


def _backward_kernel(kernel: Kernel, sizes: Sizes, structure: Any, trained: bool, *references: Any) -> None:
    count = structure.num_leaves
    added = jax.tree.unflatten(structure, references[:count])
    query, key, value, gradient, largest, inverse, dots, *rest = references[count:]
    d_query, d_key, d_value, *d_strip = rest[: 3 + trained]
    d_queries, d_keys, d_values, *rolls = rest[3 + trained :]
    rolled, d_rolled = (*rolls, None, None)[:2]
    if rolled is not None:
        _at_first_program(lambda: roll_strip(added.strip, rolled, sizes))
    if trained:
        _at_first_program(lambda: _clear(d_rolled))
    pl.when(pl.program_id(2) == 0)(lambda: _clear(d_queries))
    _clear(d_keys)
    _clear(d_values)
    keys, values = key[0, 0], value[0, 0]
    first_key = pl.program_id(2) * sizes.key_block

    def step(i: Array, _: None) -> None:
        start = pl.multiple_of(i * sizes.query_block, LANES)
        part = pl.ds(start, sizes.query_block)
        queries, gradients = query[0, 0, part], gradient[0, 0, part]
        products = jax.jit(recomputed_scores)(keys, queries)
        scores = capped(products, kernel.softcap)
        scores += added.to_scores(sizes, rolled, (first_key, start), slice(None), part)
        weights = jnp.exp(scores - largest[0, 0, :, part]) * inverse[0, 0, :, part]
        d_values[...] += product(weights.astype(values.dtype), gradients, (1, 0))
        d_scores = weights * (product(values, gradients, (1, 1)) - dots[0, 0, :, part])
        if d_rolled is not None:
            column = pl.multiple_of(start - first_key + sizes.keys - sizes.key_block, LANES)
            d_rolled[:, pl.ds(column, sizes.query_block)] += d_scores
        if kernel.softcap is not None:
            d_scores = d_scores * (1 - jnp.square(jnp.tanh(products / kernel.softcap)))
        d_products = d_scores.astype(keys.dtype)
        d_keys[...] += product(d_products, queries, (1, 0))
        d_queries[:, part] += product(keys, d_products, (0, 0))

    jax.lax.fori_loop(0, sizes.queries // sizes.query_block, step, None)
    d_key[0, 0], d_value[0, 0] = d_keys[...].astype(d_key.dtype), d_values[...].astype(d_value.dtype)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _() -> None:
        def write(i: Array, _: None) -> None:
            part = pl.ds(pl.multiple_of(i * sizes.query_block, LANES), sizes.query_block)
            d_query[0, 0, part] = d_queries[:, part].T.astype(d_query.dtype)

        jax.lax.fori_loop(0, sizes.queries // sizes.query_block, write, None)

    if trained:
        last = (pl.program_id(1) == pl.num_programs(1) - 1) & (pl.program_id(2) == pl.num_programs(2) - 1)
        pl.when(last)(lambda: unroll_strip(d_rolled, d_strip[0], sizes))


def _clear(reference: Any) -> None:
    reference[...] = jnp.zeros(reference.shape, reference.dtype)


def _call(body: Any, query: Array, steps: int, in_specs: Any, out_specs: Any, outputs: Any, scratch: Any) -> Any:
    rows, heads = query.shape[:2]
    return pl.pallas_call(
        body,
        grid=(heads, rows, steps),
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=outputs,
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=_MEMORY
        ),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def flash(
    kernel: Kernel,
    query: Float[Array, "B H Q K"],
    key: Float[Array, "B H S K"],
    value: Float[Array, "B H S K"],
    bias: Bias,
) -> Float[Array, "B H Q K"]:
    """`attend` on a TPU, without an array of the scores; `bias.stored` is None."""
    return _forward(kernel, query, key, value, bias)[0]


def _forward(
    kernel: Kernel, query: Array, key: Array, value: Array, bias: Bias
) -> tuple[Float[Array, "B H Q K"], tuple[Float[Array, "B H 1 queries"], Float[Array, "B H 1 queries"]]]:
    """The mixed values, and each query's maximum and one over its sum, of the filled length."""
    sizes = Sizes.of(query, key, bias)
    added = Added.of(bias, sizes, key.shape[2])
    queries, keys = Side(sizes.query_block, True), Side(sizes.keys, False)
    rows, heads, length, width = query.shape
    arrays, structure = jax.tree.flatten(added)
    numbers = jax.ShapeDtypeStruct((rows, heads, 1, sizes.queries), jnp.float32)
    block = sizes.query_block
    mixed, *softmax = _call(
        functools.partial(_forward_kernel, kernel, sizes, structure),
        query,
        sizes.queries // block,
        [*added.specs(queries, keys), queries.vectors(width), keys.vectors(width), keys.vectors(width)],
        [queries.vectors(width), queries.numbers(), queries.numbers()],
        [jax.ShapeDtypeStruct((rows, heads, sizes.queries, width), value.dtype), numbers, numbers],
        [(1, block), (1, block), (width, block), *_rolls(sizes, added)],
    )(*arrays, fill(query, sizes.queries), fill(key, sizes.keys), fill(value, sizes.keys))
    return mixed[:, :, :length], tuple(softmax)


def _rolls(sizes: Sizes, added: Added) -> list[tuple[int, int]]:
    return [] if added.strip is None else [(sizes.key_block, sizes.columns)]


def _forward_saving(kernel: Kernel, *arguments: Any) -> tuple[Float[Array, "B H Q K"], Any]:
    (query, key, value, bias), trained = without_symbols(arguments)
    mixed, softmax = checkpoint_name(_forward(kernel, query, key, value, bias), "attention_softmax")
    return mixed, (query, key, value, bias, mixed, softmax, trained)


def _backward(kernel: Kernel, saved: Any, gradient: Any) -> tuple[Array, Array, Array, Bias]:
    query, key, value, bias, mixed, softmax, trained = saved
    if isinstance(gradient, jax.custom_derivatives.SymbolicZero):
        gradient = jnp.zeros_like(mixed)
    sizes = Sizes.of(query, key, bias)
    added = Added.of(bias, sizes, key.shape[2])
    queries, keys = Side(sizes.queries, False), Side(sizes.key_block, True)
    rows, heads, length, width = query.shape
    arrays, structure = jax.tree.flatten(added)
    dots = jnp.sum(gradient.astype(jnp.float32) * mixed.astype(jnp.float32), axis=-1)[:, :, None]
    of_queries, of_keys = (
        jax.ShapeDtypeStruct((rows, heads, n, width), query.dtype) for n in (sizes.queries, sizes.keys)
    )
    outputs, specs = [of_queries, of_keys, of_keys], [queries.vectors(width), keys.vectors(width), keys.vectors(width)]
    if trained is not None:
        strip = added.strip
        outputs.append(jax.ShapeDtypeStruct(strip.shape, strip.dtype))
        specs.append(pl.BlockSpec((1, 1, strip.shape[2]), lambda h, b, i: (h, 0, 0)))
    inputs = [queries.vectors(width), keys.vectors(width), keys.vectors(width), queries.vectors(width)]
    d_query, d_key, d_value, *d_strip = _call(
        functools.partial(_backward_kernel, kernel, sizes, structure, trained is not None),
        query,
        sizes.keys // sizes.key_block,
        [*added.specs(queries, keys), *inputs, *[queries.numbers()] * 3],
        specs,
        outputs,
        [(width, sizes.queries), *[(sizes.key_block, width)] * 2, *_rolls(sizes, added) * (1 if trained is None else 2)],
    )(
        *arrays,
        fill(query, sizes.queries), fill(key, sizes.keys), fill(value, sizes.keys), fill(gradient, sizes.queries),
        *softmax, fill(dots, sizes.queries, axis=3),
    )  # fmt: skip
    d_relative = None
    if trained is not None:
        start = sizes.keys - key.shape[2]
        d_relative = d_strip[0][:, 0, start : start + bias.relative.shape[1]][:, ::-1]
    return d_query[:, :, :length], d_key[:, :, : key.shape[2]], d_value[:, :, : key.shape[2]], Bias(d_relative)


flash.defvjp(_forward_saving, _backward, symbolic_zeros=True)
