"""Folding: stores a trained adapter in the backbone's own weights, where it costs nothing.

    text:    encoder's table  E' = adapter(E)                                        any phi; E, E' [V, D]
    images:  projection       W' = W (I + s down up),  b' = b (I + s down up)        linear adapters only; W [E, D], b [D]; tables of
                                                                                     places [rows, D] as W
    layers:  `LoRA.merge`, `NormTuning.merge`: the method's module has its own

T5 shares its table with the decoder (and T5 1.0 with the logits), so the folded table is a leaf of its own, for the encoder
alone (`encoder_embedding`). Where a family multiplies rows of its table by s on their way to the seam, E' = adapter(s E) / s; vectors
beside the table are not multiplied, and rows that are replaced on that way stay as they are. Folding
is exact up to the rounding of the products and of the stored dtype.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Float

from adalink_jax.adapters.adapted_kinds import kinds_of
from adalink_jax.adapters.layer_adapter import LayerAdapter, Params
from adalink_jax.errors import UserError
from adalink_jax.models import paths
from adalink_jax.models.backbone import Backbone
from adalink_jax.models.quantised import Quantised, dequantised
from adalink_jax.models.seam import KINDS, Inputs

TABLE, ENCODER_TABLE = "token_embedder/embedding", "encoder/token_embedder/embedding"
_KERNEL, _BIAS = "projection/kernel", "projection/bias"
_PLACES = (
    "projection/row_embedding",
    "projection/column_embedding",
)  # tables [rows, D] that a family may add to visual tokens
_ROWS = 8192  # rows of a table adapted at once


def fold_text(
    adapter: nn.Module, params: Params, table: Float[np.ndarray, "V D"], embedding_scale: float = 1.0
) -> Float[np.ndarray, "V D"]:
    """`fold_embeddings` of a table [V, D] alone; returns the adapted table, float32."""
    return fold_embeddings(adapter, params, {TABLE: table}, embedding_scale)[ENCODER_TABLE]


def fold_embeddings(
    adapter: nn.Module,
    params: Params,
    leaves: Mapping[str, np.ndarray],
    embedding_scale: float = 1.0,
    replaced_ids: Sequence[int] = (),
) -> dict[str, np.ndarray]:
    """Folds a text adapter into the encoder's embeddings.

    Args:
      adapter: an input adapter that maps each text embedding by itself (`per_token`).
      params: its parameters.
      leaves: the base's embeddings by name: `token_embedder/embedding` [V, D] and vectors [D] beside it, and those of its encoder
        (`encoder/...`) where it has its own.
      embedding_scale, replaced_ids: the backbone's.

    Returns:
      The encoder's adapted embeddings by name, float32.

    Raises:
      UserError: if the adapter cannot be folded, or adapts more than the text. (A pair shared by all kinds is accepted: only
        the backbone knows whether there are images.)
    """
    _check_per_token(adapter)
    name = type(adapter).__name__
    kinds = kinds_of(adapter) or tuple(sorted(params.keys() & set(KINDS))) or ("text",)
    if kinds != ("text",):
        raise UserError(
            f"{name} adapts {', '.join(kinds)}; only an adapter of the text alone can be folded into a table."
        )
    return _adapted_embeddings(adapter, params, leaves, embedding_scale, replaced_ids)


def fold_image(
    adapter: nn.Module, params: Params, kernel: Float[np.ndarray, "E D"], bias: Float[np.ndarray, " D"] | None
) -> tuple[Float[np.ndarray, "E D"], Float[np.ndarray, " D"] | None]:
    """Folds an image adapter into the visual projection.

    Args:
      adapter: an input adapter that maps each image embedding by itself and linearly (`per_token`, `linear`).
      params: its parameters.
      kernel, bias: the base's projection, with E the vision tower's width; the bias may be absent.

    Returns:
      The adapted kernel and bias, float32.

    Raises:
      UserError: if the adapter is not linear, or does more than map each embedding.
    """
    _check_per_token(adapter)
    if not getattr(adapter, "linear", False):
        raise UserError(
            f"The images' adapter cannot be folded: {type(adapter).__name__} is not linear here "
            f"(phi {getattr(adapter, 'phi', 'unknown')}); keep it as an adapter."
        )
    adapted = lambda rows: _adapted(adapter, params, "image", rows)
    return adapted(kernel), None if bias is None else adapted(bias[None])[0]


def fold_adapter(
    adapter: nn.Module,
    params: Params,
    backbone: Params,
    embedding_scale: float = 1.0,
    replaced_ids: Sequence[int] = (),
    reads_text: bool = True,
) -> dict[str, Any]:
    """Folds an adapter into a backbone's parameters: images into `projection`, text into `encoder/token_embedder`; a layer
    adapter merges itself.

    Args:
      adapter: an input adapter of single embeddings, or a `LayerAdapter`.
      params: its parameters.
      backbone: the backbone's parameters.
      embedding_scale, replaced_ids, reads_text: the backbone's.

    Returns:
      The parameters of `folded_backbone`.

    Raises:
      UserError: for an adapter that cannot be folded.
    """
    if isinstance(adapter, LayerAdapter):
        return jax.device_get(adapter.apply({"params": params}, backbone, method="merge"))
    _check_per_token(adapter)
    folded: dict[str, Any] = {name: _exact(leaf) for name, leaf in paths.flatten(backbone).items()}
    present = ("image",) * ("projection" in backbone) + ("text",) * reads_text
    kinds = kinds_of(adapter) or tuple(sorted(params.keys() & set(KINDS))) or present
    if "target" in kinds:
        raise UserError(
            f"{type(adapter).__name__} adapts the decoder's input as well, and cannot be folded into the decoder's table."
        )
    if "image" in kinds:
        adapted = zip((_KERNEL, _BIAS), fold_image(adapter, params, folded[_KERNEL], folded.get(_BIAS)))
        tables = {name: fold_image(adapter, params, folded[name], None)[0] for name in _PLACES if name in folded}
        folded |= {name: leaf for name, leaf in adapted if leaf is not None} | tables
    if "text" in kinds:
        folded |= _adapted_embeddings(adapter, params, folded, embedding_scale, replaced_ids)
    return paths.unflatten(folded)


def folded_backbone(backbone: Backbone, folded: Params) -> Backbone:
    """The backbone of folded parameters: its encoder has its own table if they have one."""
    own_table = ENCODER_TABLE in paths.flatten(folded)
    if backbone.config.encoder_embedding == own_table:
        return backbone
    return backbone.clone(config=dataclasses.replace(cast(Any, backbone.config), encoder_embedding=own_table))


def _exact(leaf: Any) -> np.ndarray:
    """A leaf on the host; a quantised one dequantised to float32."""
    return jax.device_get(dequantised(leaf) if isinstance(leaf, Quantised) else leaf)


def _check_per_token(adapter: nn.Module) -> None:
    if not getattr(adapter, "per_token", False):
        raise UserError(
            f"{type(adapter).__name__} cannot be folded: it does not declare `per_token = True`, that it maps each token's embedding "
            f"by itself; declare that if it is so, else keep it as an adapter."
        )


def _adapted_embeddings(
    adapter: nn.Module, params: Params, leaves: Mapping[str, np.ndarray], scale: float, replaced_ids: Sequence[int]
) -> dict[str, np.ndarray]:
    """The encoder's embeddings, which are the decoder's where it has none: the table, and vectors [D] beside it."""
    adapted = {}
    for name in (name for name in leaves if name.startswith("token_embedder/")):
        encoder_name = f"encoder/{name}"
        values = np.asarray(leaves.get(encoder_name, leaves[name]))
        factor = np.float32(scale if name == TABLE else 1)
        rows = _adapted(adapter, params, "text", values.reshape(-1, values.shape[-1]) * factor) / factor
        adapted[encoder_name] = rows.reshape(values.shape)
        if name == TABLE:
            adapted[encoder_name][list(replaced_ids)] = values[list(replaced_ids)]
    return adapted


def _adapted(adapter: nn.Module, params: Params, kind: str, rows: np.ndarray) -> Float[np.ndarray, "rows D"]:
    """Adapts `rows` [rows, D] as embeddings of a kind."""
    adapt = jax.jit(lambda rows: getattr(adapter.apply({"params": params}, Inputs(**{kind: rows[None]})), kind)[0])
    with jax.default_matmul_precision("highest"):
        parts = [adapt(rows[i : i + _ROWS].astype(np.float32)) for i in range(0, len(rows), _ROWS)]
    return np.concatenate([np.asarray(part) for part in parts])
