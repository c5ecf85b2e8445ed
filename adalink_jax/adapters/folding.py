"""Folding: an adapter of single embeddings can be stored in what makes the embeddings, and then costs nothing.

Text: the adapted rows of the embedding table, for any phi. T5 shares its table with the decoder (and T5 1.0 with the logits), so
the folded one is a table of its own, for the encoder alone (`T5Config.encoder_embedding`).

Images: a linear adapter goes into the visual projection, kernel W (I + s down up) and bias b (I + s down up).

Exact up to the rounding of the products and of the dtype that the arrays are stored in.
"""

import flax.linen as nn
import jax
import numpy as np

from adalink_jax.adapters.layer_adapter import LayerAdapter
from adalink_jax.errors import UserError
from adalink_jax.models import paths
from adalink_jax.models.seam import KINDS, Inputs

TABLE, ENCODER_TABLE = "token_embedder/embedding", "encoder/token_embedder/embedding"
_ROWS = 8192  # at once


def fold_text(adapter: nn.Module, params, table: np.ndarray) -> np.ndarray:
    """The encoder's table with the adapter in it: float32 [V, D].

    Args:
      adapter: an input adapter that maps each text embedding alone (`per_token`).
      params: its parameters.
      table: the base's embeddings [V, D].

    Raises:
      UserError: if the adapter cannot be folded, or adapts more than the text. (A shared pair of all kinds is taken for
        the text's: whether there are images is the backbone's to say.)
    """
    _check_per_token(adapter)
    name = type(adapter).__name__
    kinds = getattr(adapter, "kinds", None) or tuple(sorted(params.keys() & set(KINDS))) or ("text",)
    if kinds != ("text",):
        raise UserError(
            f"{name} adapts {', '.join(kinds)}; only an adapter of the text alone can be folded into a table."
        )
    return _adapted(adapter, params, "text", table)


def fold_image(adapter: nn.Module, params, kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The visual projection with the adapter in it.

    Args:
      adapter: an input adapter that maps each image embedding alone and linearly (`per_token`, `linear`).
      params: its parameters.
      kernel, bias: the base's [E, D] and [D], E the vision tower's width.

    Returns:
      The same, adapted, float32.

    Raises:
      UserError: if the adapter is not linear, or does more than map each embedding.
    """
    _check_per_token(adapter)
    if not getattr(adapter, "linear", False):
        raise UserError(
            f"The images' adapter cannot be folded: {type(adapter).__name__} is not linear here "
            f"(phi {getattr(adapter, 'phi', 'unknown')}); keep it as an adapter."
        )
    return _adapted(adapter, params, "image", kernel), _adapted(adapter, params, "image", bias[None])[0]


def fold_adapter(adapter: nn.Module, params, backbone) -> dict:
    """A backbone's parameters with the adapter in them: the images' in `projection`, the text's in
    `encoder/token_embedder`; what changes the layers is merged.

    Args:
      adapter: an input adapter of single embeddings, or a `LayerAdapter`.
      params: its parameters.
      backbone: nested dict of the backbone's.

    Returns:
      The parameters of a plain backbone, with `T5Config.encoder_embedding` where the text was adapted.

    Raises:
      UserError: for an adapter that cannot be folded.
    """
    if isinstance(adapter, LayerAdapter):
        return jax.device_get(adapter.apply({"params": params}, backbone, method="merge"))
    _check_per_token(adapter)
    folded = dict(paths.flatten(jax.device_get(backbone)))
    present = ("image", "text") if "projection" in backbone else ("text",)
    own = tuple(sorted(params.keys() & set(KINDS)))
    kinds = getattr(adapter, "kinds", None) or own or present
    if "target" in kinds:
        raise UserError(
            f"{type(adapter).__name__} adapts the decoder's input as well, whose table it cannot be folded into."
        )
    if "image" in kinds:
        names = "projection/kernel", "projection/bias"
        folded |= dict(zip(names, fold_image(adapter, params, *(folded[name] for name in names))))
    if "text" in kinds:
        table = folded.get(ENCODER_TABLE, folded[TABLE])
        folded[ENCODER_TABLE] = _adapted(adapter, params, "text", table)
    return paths.unflatten(folded)


def _check_per_token(adapter: nn.Module) -> None:
    if not getattr(adapter, "per_token", False):
        raise UserError(f"{type(adapter).__name__} cannot be folded: it does more than map each token's embedding.")


def _adapted(adapter: nn.Module, params, kind: str, rows: np.ndarray) -> np.ndarray:
    """`rows` [n, D] as embeddings of a kind, adapted: float32."""
    adapt = jax.jit(lambda rows: getattr(adapter.apply({"params": params}, Inputs(**{kind: rows[None]})), kind)[0])
    with jax.default_matmul_precision("highest"):
        parts = [adapt(rows[i : i + _ROWS].astype(np.float32)) for i in range(0, len(rows), _ROWS)]
    return np.concatenate([np.asarray(part) for part in parts])
