"""What the families made of Gemma's blocks share: norms, embeddings, layers that see a window of tokens or all of them.

    x = x + norm(attention(norm(x)));  x = x + norm(mlp(norm(x)))          norms before and after each sublayer

Grouped-query attention with rotary positions, soft caps, gated GELU (Gemma 2, 2024, arXiv:2408.00118). Parameter names follow
`t5.py`; a norm's scale is stored less 1, as in the published checkpoints.
"""

import abc
import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from adalink_jax.errors import UserError
from adalink_jax.models import layers
from adalink_jax.models.attention.bias import capped
from adalink_jax.models.encoder_decoder import EncoderDecoder
from adalink_jax.parallel import constrain

ALL = 2**30  # positions on either side: more than any input has


def check_heads(config: Any, side: str = "") -> None:
    """Refuses heads that `Layer` cannot have; `side` is the prefix of the sizes among the configuration's fields.

    Raises:
      UserError: for heads of keys that do not divide those of queries, and an odd head width.
    """
    name, size = type(config).__name__, lambda field: getattr(config, side + field)
    if size("num_heads") % size("num_kv_heads"):
        raise UserError(
            f"{name}.{side}num_kv_heads is {size('num_kv_heads')}; it must divide {side}num_heads, {size('num_heads')}."
        )
    if size("head_dim") % 2:
        raise UserError(f"{name}.{side}head_dim is odd; rotary positions turn pairs of numbers.")


class RMSNorm(nn.Module):
    """Gemma's RMS norm, `(1 + scale) * x / rms(x)`, in float32 and rounded once."""

    dtype: str
    epsilon: ClassVar[float] = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        scale = layers.param(self, "scale", nn.initializers.zeros, (x.shape[-1],), ("embed",))
        return (x * (1 + scale)).astype(self.dtype)


class Embed(layers.Embed):
    """An embedding table whose rows are multiplied by sqrt(D) when they are looked up, but not for the logits.

    The factor is rounded to the activations' dtype first, as in the reference: 2304^0.5 is 48, 640^0.5 is 25.25 in bfloat16.
    """

    embedding_init = staticmethod(nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=1, out_axis=0))

    def __call__(self, ids: Int[Array | np.ndarray, "B L"]) -> Float[Array, "B L D"]:
        return super().__call__(ids) * jnp.asarray(self.features**0.5, self.dtype)


class Layer(nn.Module):
    """Base of the layers: their attention and MLP, norms before and after each sublayer, and dropout.

    Attributes:
      config: the model's configuration.
      deterministic: no dropout.
      side: prefix of the layer's sizes among the fields of `config`.
      head_norms: whether each head's queries and keys are normed (Gemma 3, 2025, arXiv:2503.19786).
    """

    config: Any
    deterministic: bool
    side: ClassVar[str] = ""
    head_norms: ClassVar[bool] = False

    def size(self, name: str) -> int:
        """A size of this side of the model."""
        return getattr(self.config, self.side + name)

    def norm(self, name: str) -> RMSNorm:
        """A norm of the layer."""
        return RMSNorm(self.config.dtype, name=f"{name}_layer_norm")

    def attention(self, name: str) -> layers.Attention:
        """Attention with this side's heads."""
        cfg = self.config
        return layers.Attention(
            self.size("num_heads"), self.size("head_dim"), cfg.dropout_rate, cfg.dtype, self.deterministic,
            features=self.size("emb_dim"), kind=cfg.attention, scale=cfg.query_pre_attn_scalar**-0.5,
            num_kv_heads=self.size("num_kv_heads"), softcap=cfg.attention_softcap,
            head_norm=functools.partial(RMSNorm, cfg.dtype) if self.head_norms else None, name=name,
        )  # fmt: skip

    def normed(self, y: Float[Array, "B L D"], norm: str) -> Float[Array, "B L D"]:
        """A sublayer's result behind its norm, which Gemma 1 does not have."""
        return self.norm(norm)(y)

    def add(self, x: Float[Array, "B L D"], y: Float[Array, "B L D"], norm: str) -> Float[Array, "B L D"]:
        """Adds a sublayer's result."""
        y = nn.Dropout(self.config.dropout_rate, broadcast_dims=(-2,))(
            self.normed(y, norm), deterministic=self.deterministic
        )
        return constrain(x + y, "batch", "length", "embed")

    def mlp(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """The MLP's sublayer."""
        cfg = self.config
        y = layers.MlpBlock(
            self.size("mlp_dim"), ("gelu", "linear"), cfg.dropout_rate, cfg.dtype, self.deterministic, name="mlp"
        )(self.norm("pre_mlp")(x))
        return self.add(x, y, "post_mlp")


class Stack(nn.Module):
    """Base of encoder and decoder: dropout before and after the layers, and the last norm."""

    config: Any

    def drop(self, x: Float[Array, "B L D"], deterministic: bool) -> Float[Array, "B L D"]:
        """Dropout, of an embedding for all positions of a row."""
        return nn.Dropout(self.config.dropout_rate, broadcast_dims=(-2,))(x, deterministic=deterministic)

    def end(self, x: Float[Array, "B L D"], norm: str, deterministic: bool) -> Float[Array, "B L D"]:
        """What follows the last layer."""
        return self.drop(RMSNorm(self.config.dtype, name=norm)(x), deterministic)


class LanguageModel(EncoderDecoder):
    """Base of the language models: embeddings are multiplied by sqrt(D), and the decoder's table is the head. See `Backbone`."""

    config: Any

    def setup(self) -> None:
        self.token_embedder = self.new_embedder()
        super().setup()

    @abc.abstractmethod
    def new_embedder(self) -> Embed:
        """The table of the decoder and the logits."""

    @property
    def embedding_scale(self) -> float:
        """The factor of Gemma's embeddings, sqrt(D)."""
        return self.config.emb_dim**0.5

    def embed_text(self, tokens: Int[Array | np.ndarray, "B L"]) -> Float[Array, "B L D"]:
        """Embeds the encoder's ids, multiplied by sqrt(D), by its own table where it has one."""
        return (self.encoder.token_embedder if self.config.encoder_embedding else self.token_embedder)(tokens)

    def embed_target(self, tokens: Int[Array | np.ndarray, "B T"]) -> Float[Array, "B T E"]:
        """Embeds decoder input ids, multiplied by the square root of their width."""
        return self.token_embedder(tokens)

    def logits(self, states: Float[Array, "B T E"]) -> Float[Array, "B T V"]:
        """Scores every token by the decoder's table."""
        logits = self.token_embedder.attend(states).astype(jnp.float32)
        return constrain(capped(logits, self.config.logits_softcap), "batch", "length", "vocab")


def windows(
    num_layers: int, full_attention_every: int, window: tuple[int, int], length: int
) -> Int[Array, "layers 2"] | None:
    """How many positions before and after its own a query sees in each layer, as `attention.Bias.window`.

    Args:
      num_layers: depth of the stack.
      full_attention_every: each so many layers, the last of them sees all positions; the others see `window`.
      window: before, after.
      length: of the longest input; None is returned where no layer would see less than all of it.
    """
    if full_attention_every == 1 or length <= 1 + min(window):
        return None
    full = (np.arange(num_layers) + 1) % full_attention_every == 0
    return jnp.asarray(np.where(full[:, None], ALL, np.array(window)), jnp.int32)
