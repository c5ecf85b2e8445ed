"""The one interface of attention, and the choice among its kinds."""

import functools
from collections.abc import Callable
from typing import Annotated, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from adalink_jax.errors import UserError
from adalink_jax.models.attention.bias import Bias, capped, diagonals, masked, of_rows, of_segments
from adalink_jax.models.attention.blockwise import Blocks, blockwise
from adalink_jax.models.attention.cudnn import filled_width, fused
from adalink_jax.parallel import over_shards
from adalink_jax.typed_values import one_of

KINDS = ("auto", "reference", "blockwise", "cudnn", "pallas")
AttentionKind = Annotated[str, one_of(*KINDS)]
_KERNELS = {"gpu": "cudnn", "tpu": "pallas"}  # the kernel of a platform
_BLOCK = 8  # queries; fewer, of the decodes of an input, make no block, and their keys stay where they are
_WORTH = 2**16  # scores of a row and head; fewer are stored as fast
_WIDEST = 256  # head of a kernel; half of it for cuDNN before Hopper
_HOPPER = 9.0  # compute capability
_OLD_TPUS = "TPU v2", "TPU v3", "TPU v4"  # cannot roll with a stride, as the TPU kernel does
_LONGEST = 8192  # queries or keys of the TPU kernel, which holds a row and head of them on the chip


class Scores(NamedTuple):
    """What the choice of a kind depends on, beside the platform.

    Attributes:
      queries, keys, width: Q, S, and K.
      dtype: of queries, keys and values.
      softcap: see `attend`.
    """

    queries: int
    keys: int
    width: int
    dtype: DTypeLike
    softcap: float | None = None


def attend(
    query: Float[Array, "B H Q K"],
    key: Float[Array, "B H S K"],
    value: Float[Array, "B H S K"],
    bias: Bias,
    kind: str = "auto",
    softcap: float | None = None,
) -> Float[Array, "B H Q K"]:
    """Attends. Scores and softmax are float32; a query that may see no key gets the mean of all values.

    Args:
      query: queries, already scaled.
      key: keys.
      value: values.
      bias: what is added to the scores.
      kind: "reference"; "blockwise", in plain JAX; the kernels "pallas" (TPU) and "cudnn" (GPU); or "auto",
        the reference for short inputs. All leave the queries of a decoding step to the reference. For other inputs "auto" is blockwise on a CPU, and
        elsewhere the platform's kernel where it can compute this, otherwise the reference.
      softcap: caps the products: `softcap * tanh(q k^T / softcap)`, before the bias. None means no cap.

    Returns:
      The mixed values, in their dtype.

    Raises:
      UserError: for another kind, and for a kernel that cannot compute this.
    """
    name = _kind(kind, Scores(query.shape[2], key.shape[2], query.shape[3], query.dtype, softcap), bias)
    if name == "reference":
        return reference(query, key, value, bias, softcap)
    function = _without_scores(name, softcap)
    split, rows = ("batch", "heads"), ("batch",)
    return over_shards(
        lambda query, key, value, *parts: function(query, key, value, Bias(*parts)),
        (
            query,
            key,
            value,
            bias.relative,
            bias.keys,
            bias.first,
            bias.window,
            bias.exempt,
            bias.query_segments,
            bias.key_segments,
        ),
        (split, split, split, ("heads",), rows, (), (), (), rows, rows),
        split,
    )


def _without_scores(kind: str, softcap: float | None) -> Callable[..., Array]:
    """A function of queries, keys, values, and bias. Pallas is imported where it runs, which takes half a second."""
    if kind == "pallas":
        from adalink_jax.models.attention.pallas import Kernel, flash

        return functools.partial(flash, Kernel(softcap))
    if kind == "cudnn":
        return fused
    return functools.partial(blockwise, Blocks(softcap, one_tile=_platform() == "cpu"))


def for_stack(bias: Bias, kind: str, scores: Scores) -> Bias:
    """A bias that all layers of a stack share: for the reference, its relative part is computed once, [H, Q, S]."""
    if bias.relative is None or _kind(kind, scores, bias) != "reference":
        return bias
    return bias.replace(relative=None, stored=diagonals(bias.relative, 0, scores.queries, scores.keys))


def reference(
    query: Float[Array, "B H Q K"],
    key: Float[Array, "B H S K"],
    value: Float[Array, "B H S K"],
    bias: Bias,
    softcap: float | None = None,
) -> Float[Array, "B H Q K"]:
    """`attend` as its formula has it, with all scores in memory."""
    scores = jnp.einsum("bhqk,bhsk->bhqs", query, key, preferred_element_type=jnp.float32)
    scores = capped(scores, softcap)
    if (added := of_rows(bias, 0, query.shape[2], key.shape[2])) is not None:
        scores = scores + added
    if bias.keys is not None:
        scores = scores + masked(bias.keys)[:, None, None, :]
    if bias.query_segments is not None and bias.key_segments is not None:
        scores = scores + of_segments(bias.query_segments, bias.key_segments)[:, None]
    return jnp.einsum("bhqs,bhsk->bhqk", nn.softmax(scores).astype(value.dtype), value)


def _kind(kind: str, scores: Scores, bias: Bias) -> str:
    if kind not in KINDS:
        raise UserError(f"ATTENTION is {kind!r}; it must be one of {', '.join(KINDS)}.")
    platform = _platform()
    if kind == "auto":
        kernel = _KERNELS.get(platform, "blockwise")
        able = kernel == "blockwise" or _obstacle(kernel, platform, scores, bias) is None
        return kernel if able and scores.queries * scores.keys >= _WORTH else "reference"
    if kind in _KERNELS.values():
        if obstacle := _obstacle(kind, platform, scores, bias):
            raise UserError(f"ATTENTION = {kind!r} {obstacle}; set ATTENTION = 'auto'.")
    few = 1 if kind in _KERNELS.values() or not bias.same_for_queries else _BLOCK - 1
    return "reference" if scores.queries <= few else kind


def _obstacle(kernel: str, platform: str, scores: Scores, bias: Bias) -> str | None:
    """Why a kernel cannot compute this, as a sentence's predicate; None if it can."""
    dtypes = {"cudnn": ("bfloat16",), "pallas": ("bfloat16", "float32")}[kernel]
    if _KERNELS.get(platform) != kernel:
        return f"does not run on a {platform.upper()}"
    if kernel == "pallas" and _device_kind().startswith(_OLD_TPUS):
        return f"needs a TPU v5 or newer, not a {_device_kind()}"
    if jnp.dtype(scores.dtype).name not in dtypes:
        return f"needs activations of {' or '.join(dtypes)}, not {jnp.dtype(scores.dtype).name}"
    width, widest = scores.width, _WIDEST
    if kernel == "cudnn":
        width = filled_width(width, masks=bias.keys is not None or scores.keys % 2 == 1)
        widest = _WIDEST if _gpu_capability() >= _HOPPER else _WIDEST // 2
    if width > widest:
        return f"takes heads of at most {widest} numbers here, not {width}"
    if kernel == "cudnn" and scores.softcap is not None:
        return "has no softcap"
    if kernel == "cudnn" and bias.query_segments is not None:
        return "has no segments for packed examples"
    longest = max(scores.queries, scores.keys)
    if kernel == "pallas" and longest > _LONGEST:
        return f"takes at most {_LONGEST:,} positions, not {longest:,}"
    return None


def _gpu_capability() -> float:
    """The compute capability of this process' GPUs."""
    return float(getattr(jax.local_devices()[0], "compute_capability", 0))


def _device_kind() -> str:
    device = jax.sharding.get_abstract_mesh().abstract_device
    return (jax.local_devices()[0] if device is None else device).device_kind


def _platform() -> str:
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform
