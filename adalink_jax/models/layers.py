"""Layers that T5 and the vision tower are made of. Every parameter carries logical axis names."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from adalink_jax.parallel import constrain

fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "normal")

ACTIVATIONS = {
    "relu": nn.relu,
    "gelu": nn.gelu,  # by tanh, as T5 1.1 and SigLIP have it
    "gelu_exact": lambda x: nn.gelu(x, approximate=False),  # by erf, as ViT, EVA and BERT
    "silu": nn.silu,
    "linear": lambda x: x,
}


def param(module: nn.Module, name: str, init: Callable, shape: tuple[int, ...], axes: tuple[str, ...]) -> jax.Array:
    """A float32 parameter of `module` whose axes are called `axes`."""
    return module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)


class Dense(nn.Module):
    """`x @ kernel (+ bias)`, [..., in] -> [..., features], computed in `dtype`."""

    features: int
    axes: tuple[str, str]
    dtype: str
    kernel_init: Callable = fan_in
    use_bias: bool = False

    @nn.compact
    def __call__(self, x):
        kernel = param(self, "kernel", self.kernel_init, (x.shape[-1], self.features), self.axes)
        y = jnp.dot(x.astype(self.dtype), kernel.astype(self.dtype))
        if self.use_bias:
            bias = param(self, "bias", nn.initializers.zeros, (self.features,), self.axes[1:])
            y = y + bias.astype(self.dtype)
        return y


class Embed(nn.Module):
    """A table of V vectors. `__call__`: ids [B, L] -> [B, L, D]."""

    vocab_size: int
    features: int
    dtype: str

    def setup(self):
        shape = (self.vocab_size, self.features)
        self.embedding = param(self, "embedding", nn.initializers.normal(1.0), shape, ("vocab", "embed"))

    def __call__(self, ids):
        return constrain(jnp.take(self.embedding, ids, axis=0).astype(self.dtype), "batch", "length", "embed")

    def attend(self, x):
        """Scores of every token: [..., D] -> [..., V]."""
        return jnp.dot(x.astype(self.dtype), self.embedding.astype(self.dtype).T)


class RMSNorm(nn.Module):
    """T5's layer norm: no mean, no bias; statistics in float32. [..., D] -> [..., D]."""

    dtype: str
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x):
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        scale = param(self, "scale", nn.initializers.ones, (x.shape[-1],), ("embed",))
        return (x * scale).astype(self.dtype)


class LayerNorm(nn.Module):
    """Layer norm with scale and bias; statistics in float32. [..., D] -> [..., D]."""

    dtype: str
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x):
        x = x.astype(jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        scale = param(self, "scale", nn.initializers.ones, (x.shape[-1],), ("embed",))
        bias = param(self, "bias", nn.initializers.zeros, (x.shape[-1],), ("embed",))
        return (x * scale + bias).astype(self.dtype)


class MlpBlock(nn.Module):
    """Feed-forward, plain (one activation: `wi`) or gated (two: the product of `wi_0` and `wi_1`). [B, L, D] -> [B, L, D]."""

    mlp_dim: int
    activations: Sequence[str]
    dropout_rate: float
    dtype: str
    deterministic: bool
    use_bias: bool = False

    @nn.compact
    def __call__(self, x):
        width, hidden = x.shape[-1], None
        for i, activation in enumerate(self.activations):
            name = "wi" if len(self.activations) == 1 else f"wi_{i}"
            branch = Dense(self.mlp_dim, ("embed", "mlp"), self.dtype, use_bias=self.use_bias, name=name)(x)
            branch = ACTIVATIONS[activation](branch)
            hidden = branch if hidden is None else hidden * branch
        hidden = nn.Dropout(self.dropout_rate, broadcast_dims=(-2,))(hidden, deterministic=self.deterministic)
        hidden = checkpoint_name(constrain(hidden, "batch", "length", "mlp"), "mlp_hidden")
        y = Dense(width, ("mlp", "embed"), self.dtype, use_bias=self.use_bias, name="wo")(hidden)
        return checkpoint_name(y, "mlp_out")


@flax.struct.dataclass
class KeyValues:
    """Keys and values of one attention: key, value [B, S, H, K]."""

    key: jax.Array
    value: jax.Array

    def put(self, new: "KeyValues", index: jax.Array) -> "KeyValues":
        """With `new` ([B, 1, H, K]) written at position `index`."""
        write = lambda cache, x: jax.lax.dynamic_update_slice_in_dim(cache, x.astype(cache.dtype), index, axis=1)
        return KeyValues(write(self.key, new.key), write(self.value, new.value))


class Attention(nn.Module):
    """Multi-head attention with t5x's parameter names; the softmax is in float32.

    Two steps, so that a decoder can keep keys and values: `project(x)` gives `KeyValues`, `__call__(x, kv, bias)` attends.
    `scale` multiplies the query: T5 folds 1/sqrt(K) into the query's initialisation and uses 1.
    """

    num_heads: int
    head_dim: int
    dropout_rate: float
    dtype: str
    deterministic: bool
    scale: float = 1.0
    query_init: Callable = fan_in
    use_bias: bool = False
    features: int | None = None

    def setup(self):
        joined = self.num_heads * self.head_dim
        dense = lambda **kw: Dense(joined, ("embed", "joined_kv"), self.dtype, use_bias=self.use_bias, **kw)
        self.query, self.key, self.value = dense(kernel_init=self.query_init), dense(), dense()
        self.out = Dense(self.features, ("joined_kv", "embed"), self.dtype, use_bias=self.use_bias)
        self.dropout = nn.Dropout(self.dropout_rate, broadcast_dims=(-2,))

    def _split_heads(self, x):
        x = x.reshape(*x.shape[:-1], self.num_heads, self.head_dim)
        return checkpoint_name(constrain(x, "batch", "length", "heads", "kv"), "projections")

    def project(self, x) -> KeyValues:
        """Keys and values of x: [B, S, D] -> two [B, S, H, K]."""
        return KeyValues(self._split_heads(self.key(x)), self._split_heads(self.value(x)))

    def __call__(self, x, kv: KeyValues, bias=None):
        """x [B, Q, D] attends to kv [B, S, H, K]; bias broadcasts to [B, H, Q, S] (large negative where masked)."""
        query = self._split_heads(self.query(x)) * jnp.asarray(self.scale, self.dtype)
        scores = jnp.einsum("bqhk,bshk->bhqs", query, kv.key, preferred_element_type=jnp.float32)
        if bias is not None:
            scores = scores + bias
        weights = self.dropout(nn.softmax(scores).astype(self.dtype), deterministic=self.deterministic)
        mixed = jnp.einsum("bhqs,bshk->bqhk", weights, kv.value)
        return checkpoint_name(self.out(mixed.reshape(*mixed.shape[:2], -1)), "attention_out")


def mask_to_bias(mask: jax.Array) -> jax.Array:
    """Bool mask (True: attend) -> float32 bias, 0 or -1e10, added to the scores."""
    return jnp.where(mask, 0.0, -1e10).astype(jnp.float32)


class RelativePositionBias(nn.Module):
    """T5's relative position bias, a table [H, buckets] (Raffel et al., 2020, section 2.1)."""

    num_heads: int
    bidirectional: bool
    num_buckets: int
    max_distance: int

    @nn.compact
    def __call__(self, query_positions, key_positions):
        """Positions [Q] and [S] -> float32 bias [1, H, Q, S]."""
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        table = param(self, "rel_embedding", init, (self.num_heads, self.num_buckets), ("heads", "relpos_buckets"))
        distance = key_positions[None, :] - query_positions[:, None]
        buckets = relative_position_bucket(distance, self.bidirectional, self.num_buckets, self.max_distance)
        return jnp.take(table.astype(jnp.float32), buckets, axis=1)[None]


def relative_position_bucket(distance, bidirectional: bool, num_buckets: int, max_distance: int):
    """Bucket of each distance (key position - query position), int32: exact up to a quarter or a half, then logarithmic.

    Bidirectional attention spends half of the buckets on either sign; causal attention gives all keys to come bucket 0.
    """
    offset = 0
    if bidirectional:
        num_buckets //= 2
        offset = jnp.where(distance > 0, num_buckets, 0)
        distance = jnp.abs(distance)
    else:
        distance = jnp.maximum(-distance, 0)
    exact = num_buckets // 2
    # float32 arithmetic on at least 1, as in the reference, so that bucket borders fall on the same distances.
    ratio = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) / jnp.log(max_distance / exact)
    far = jnp.minimum(exact + (ratio * (num_buckets - exact)).astype(jnp.int32), num_buckets - 1)
    return offset + jnp.where(distance < exact, distance, far)
