"""Layers shared by all families: dense, embedding, norms, MLP, attention.

Every parameter is declared as float32, with logical axis names (`parallel/sharding.py`); what is stored in its place may be
bfloat16 or `Quantised`, which `product` and `rows` read. Arithmetic is in each module's `dtype`,
except for norm statistics, attention scores and the softmax, which are float32.

Letters: B batch, L or S sequence length, Q queries, D model width, H heads, K head width, F MLP width, V vocabulary.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float, Int

from adalink_jax.models.attention import Bias, attend, attend_merged
from adalink_jax.models.quantised import Quantised, product, rows
from adalink_jax.models.rotary import Rotation
from adalink_jax.models.structs import Struct
from adalink_jax.parallel import constrain, splits
from adalink_jax.typed_values import one_of

fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "normal")

ACTIVATIONS = {
    "relu": nn.relu,
    "gelu": nn.gelu,  # tanh approximation: T5 1.1, SigLIP
    "gelu_exact": lambda x: nn.gelu(x, approximate=False),  # erf: ViT, EVA, BERT
    "silu": nn.silu,
    "linear": lambda x: x,
}
Activation = Annotated[str, one_of(*ACTIVATIONS)]


def param(module: nn.Module, name: str, init: Callable, shape: tuple[int, ...], axes: tuple[str, ...]) -> Array:
    """Declares a float32 parameter of `module`, with one logical axis name per dimension."""
    value = module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)
    return cast(Array, value)  # Flax unboxes it


class Dense(nn.Module):
    """A linear map, `x @ kernel (+ bias)`, computed in `dtype`.

    Attributes:
      features: output width.
      axes: logical names of the kernel's two axes.
      dtype: of the arithmetic and the result.
      kernel_init: initialiser of the kernel [in, features].
      use_bias: whether there is a bias [features].
    """

    features: int
    axes: tuple[str, str]
    dtype: str
    kernel_init: Callable = fan_in
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "... inputs"]) -> Float[Array, "... outputs"]:
        kernel = param(self, "kernel", self.kernel_init, (x.shape[-1], self.features), self.axes)
        y = product(x, kernel, self.dtype, self.axes)
        if self.use_bias:
            bias = param(self, "bias", nn.initializers.zeros, (self.features,), self.axes[1:])
            y = y + bias.astype(self.dtype)
        return y


class Embed(nn.Module):
    """An embedding table [V, D], looked up by ids."""

    vocab_size: int
    features: int
    dtype: str
    embedding_init: ClassVar[Callable] = staticmethod(nn.initializers.normal(1.0))
    axes: ClassVar[tuple[str, str]] = ("vocab", "embed")

    def setup(self) -> None:
        shape = (self.vocab_size, self.features)
        self.embedding = param(self, "embedding", self.embedding_init, shape, self.axes)

    def __call__(self, ids: Int[Array | np.ndarray, "B L"]) -> Float[Array, "B L D"]:
        return constrain(rows(self.embedding, ids, self.dtype), "batch", "length", "embed")

    def attend(self, x: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Scores every token by the dot product with its embedding."""
        if isinstance(self.embedding, Quantised):
            return product(x, self.embedding, self.dtype, self.axes)
        return jnp.dot(x.astype(self.dtype), self.embedding.astype(self.dtype).T)


class LayerNorm(nn.Module):
    """Layer norm with scale and bias (Ba et al., 2016). Statistics in float32."""

    dtype: str
    epsilon: float = 1e-6
    centered: ClassVar[bool] = True  # subtracts the mean, and has a bias

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        x = x.astype(jnp.float32)
        if self.centered:
            x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        x = x * param(self, "scale", nn.initializers.ones, (x.shape[-1],), ("embed",))
        if self.centered:
            x = x + param(self, "bias", nn.initializers.zeros, (x.shape[-1],), ("embed",))
        return x.astype(self.dtype)


class RMSNorm(LayerNorm):
    """T5's layer norm: no mean, no bias (Zhang and Sennrich, 2019). Statistics in float32."""

    centered: ClassVar[bool] = False


class MlpBlock(nn.Module):
    """Feed-forward block: plain with one activation (`wi`), or gated with two, the product of `wi_0` and `wi_1`.

    The gated form is that of T5 1.1 (Shazeer, 2020, "GLU Variants Improve Transformer").
    """

    mlp_dim: int
    activations: Sequence[str]
    dropout_rate: float
    dtype: str
    deterministic: bool
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        branches = []
        for i, activation in enumerate(self.activations):
            name = "wi" if len(self.activations) == 1 else f"wi_{i}"
            branch = Dense(self.mlp_dim, ("embed", "mlp"), self.dtype, use_bias=self.use_bias, name=name)(x)
            branch = checkpoint_name(constrain(branch, "batch", "length", "mlp"), "mlp_in")
            branches.append(ACTIVATIONS[activation](branch))
        hidden = functools.reduce(operator.mul, branches)
        hidden = nn.Dropout(self.dropout_rate, broadcast_dims=(-2,))(hidden, deterministic=self.deterministic)
        hidden = checkpoint_name(constrain(hidden, "batch", "length", "mlp"), "mlp_hidden")
        y = Dense(x.shape[-1], ("mlp", "embed"), self.dtype, use_bias=self.use_bias, name="wo")(hidden)
        return checkpoint_name(y, "mlp_out")


class KeyValues(Struct):
    """Keys and values of one attention layer, [B, H, S, K]."""

    key: Float[Array, "B H S K"]
    value: Float[Array, "B H S K"]

    def repeated(self, times: int) -> "KeyValues":
        """With every head `times` times, side by side."""
        if times == 1:
            return self
        return KeyValues(jnp.repeat(self.key, times, axis=1), jnp.repeat(self.value, times, axis=1))

    def followed_by(self, other: "KeyValues") -> "KeyValues":
        """These keys and values, and behind them those of `other`."""
        join = lambda x, y: jnp.concatenate([x, y], axis=2)
        return KeyValues(join(self.key, other.key), join(self.value, other.value))


class CachedKeyValues(Struct):
    """Keys and values of the tokens so far, in all layers of a stack, which `put` changes in their place."""

    key: Float[Array, "layers B H S K"]
    value: Float[Array, "layers B H S K"]

    @classmethod
    def zeros(cls, *shape: int, dtype: str) -> "CachedKeyValues":
        """Room for tokens to come."""
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def put(self, new: KeyValues, layer: Int[Array, ""], index: Int[Array, ""]) -> "CachedKeyValues":
        """Writes the keys and values of one token, [B, H, 1, K], at position `index` of a layer."""
        write = lambda cache, x: jax.lax.dynamic_update_slice(
            cache, x[None].astype(cache.dtype), (layer, 0, 0, index, 0)
        )
        return CachedKeyValues(write(self.key, new.key), write(self.value, new.value))

    def of(self, layer: Int[Array, ""]) -> KeyValues:
        """The keys and values of one layer."""
        read = lambda cache: jax.lax.dynamic_index_in_dim(cache, layer, keepdims=False)
        return KeyValues(read(self.key), read(self.value))


class Attention(nn.Module):
    """Multi-head attention with t5x's parameter names (Vaswani et al., 2017).

        out = softmax(scale * q k^T + bias) v          (`attention.attend`)

    It has two steps, so that a decoder can keep keys and values: `project(x)` computes `KeyValues`, `__call__(x, kv, bias)`
    attends to them. Where `x` has several rows for each of `kv`, side by side, these are one row's queries: `bias` has the
    rows of `kv`, and nothing for single queries. The softmax is in float32. With fewer heads of keys and values than of
    queries, each serves a group of neighbouring query heads (Ainslie et al., 2023, arXiv:2305.13245).

    With `before`, S keys and values known beforehand (of the encoder, of a prefix), one softmax is over these and `kv` behind
    them: in `bias`, key j of `kv` is at position S + j, `keys` has S + T columns and the rows of `before`, and the first query is at
    S (`first`) or, in decoding, at S plus the tokens so far. Single queries, of several decodes for each row of `before` or
    one, leave `before` where it is.

    Attributes:
      num_heads: H.
      head_dim: K.
      dropout_rate: of the attention weights; a key is dropped for all queries of a row.
      dtype: of everything but scores and softmax.
      deterministic: no dropout.
      features: output width D.
      scale: multiplies the query. T5 folds 1/sqrt(K) into the query's initialisation and uses 1.
      query_init: initialiser of the query's kernel.
      use_bias: whether the four projections have biases.
      kind: how scores are computed, see `attention.attend`.
      num_kv_heads: heads of keys and values, which divide H; None means H.
      softcap: caps the scores, see `attention.attend`.
      head_norm: makes the norms of each head's queries and keys, before scale and rotation; None means no norm.
    """

    num_heads: int
    head_dim: int
    dropout_rate: float
    dtype: str
    deterministic: bool
    features: int
    kind: str
    scale: float = 1.0
    query_init: Callable = fan_in
    use_bias: bool = False
    num_kv_heads: int | None = None
    softcap: float | None = None
    head_norm: Callable[[], nn.Module] | None = None

    def setup(self) -> None:
        dense = lambda heads, axis, **kw: Dense(
            heads * self.head_dim, ("embed", axis), self.dtype, use_bias=self.use_bias, **kw
        )
        kv_heads = self.num_kv_heads or self.num_heads
        # Grouped heads that do not divide over the devices are whole on each: parts of a head would have to be gathered.
        kv = "joined_kv" if kv_heads == self.num_heads or splits(kv_heads, "heads") else "kv"
        self.query = dense(self.num_heads, "joined_kv", kernel_init=self.query_init)
        self.key, self.value = dense(kv_heads, kv), dense(kv_heads, kv)
        self.out = Dense(self.features, ("joined_kv", "embed"), self.dtype, use_bias=self.use_bias)
        self.dropout = nn.Dropout(self.dropout_rate, broadcast_dims=(-2,))
        if self.head_norm is not None:
            self.query_norm, self.key_norm = self.head_norm(), self.head_norm()

    def _split_heads(self, x: Float[Array, "B L joined"]) -> Float[Array, "B H L K"]:
        x = x.reshape(*x.shape[:-1], -1, self.head_dim).swapaxes(1, 2)
        heads = "heads" if splits(x.shape[1], "heads") else None
        return checkpoint_name(constrain(x, "batch", heads, "length", "kv"), "projections")

    def project(self, x: Float[Array, "B S D"], rotation: Rotation | None = None) -> KeyValues:
        """Computes the keys, rotated if there is a rotation, and the values of `x`."""
        key, value = self._split_heads(self.key(x)), self._split_heads(self.value(x))
        key = key if self.head_norm is None else self.key_norm(key)
        return KeyValues(key if rotation is None else rotation(key), value)

    def __call__(
        self,
        x: Float[Array, "B Q D"],
        kv: KeyValues,
        bias: Bias | None = None,
        rotation: Rotation | None = None,
        before: KeyValues | None = None,
    ) -> Float[Array, "B Q E"]:
        """Lets `x`, its queries rotated if there is a rotation, attend to `before` and `kv`; `bias` is added to the scores."""
        query = self._split_heads(self.query(x))
        query = query if self.head_norm is None else self.query_norm(query)
        query = query * jnp.asarray(self.scale, self.dtype)
        query = query if rotation is None else rotation(query)
        bias = bias or Bias()
        if before is None:
            mixed = self._mixed(query, kv, bias)
        elif query.shape[2] > 1:
            mixed = self._mixed(query, before.followed_by(kv), bias)
        else:
            known, later = ((x.key, self._dropped(x.value)) for x in (before, kv))
            mixed = attend_merged(query, known, later, bias, self.softcap)
        mixed = mixed.swapaxes(1, 2)
        return checkpoint_name(self.out(mixed.reshape(*mixed.shape[:2], -1)), "attention_out")

    def _mixed(self, query: Float[Array, "B H Q K"], kv: KeyValues, bias: Bias) -> Float[Array, "B H Q K"]:
        # A group's heads are queries of one head, unless what is added depends on the query, or the query heads are on several devices.
        if not bias.same_for_queries or not splits(kv.key.shape[1], "heads"):
            kv = kv.repeated(query.shape[1] // kv.key.shape[1])
        value = self._dropped(kv.value)
        rows, heads, queries, width = query.shape
        kv_rows, kv_heads = value.shape[:2]
        together = kv_rows, rows // kv_rows, kv_heads, heads // kv_heads, queries, width
        query = query.reshape(together).swapaxes(1, 2)
        mixed = attend(query.reshape(kv_rows, kv_heads, -1, width), kv.key, value, bias, self.kind, self.softcap)
        return mixed.reshape(query.shape).swapaxes(1, 2).reshape(rows, heads, queries, width)

    def _dropped(self, value: Float[Array, "B H S K"]) -> Float[Array, "B H S K"]:
        """In training, the weight of a dropped key is 0 for all queries, as its value is."""
        if not self.dropout_rate or self.deterministic:
            return value
        rows, heads, keys, _ = value.shape
        factors = self.dropout(jnp.ones((rows, heads, 1, keys), value.dtype), deterministic=False)
        return value * factors.swapaxes(2, 3)
