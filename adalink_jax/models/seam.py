"""The seam between the embeddings and the first block: the only place where an input adapter meets a backbone.

    inputs  = backbone.embed(batch)                        # Inputs: image [B, N, D], text [B, L, D] and their masks
    inputs  = input_adapter(inputs)                        # AdaLink, a soft prompt, a chain of them, or nothing
    encoded = backbone.encode(inputs)                      # Encoded: states [B, S, D] and their mask
    target  = backbone.embed_target(tokens)                # [B, T, D]; passes the adapter as Inputs(target=...)
    logits, cache = backbone.decode(encoded, target, cache)  # [B, T, V], Cache | None

Letters: B batch, P prompt length, N visual tokens, L text length, S encoder length (P + N + L), T target length, D model
width, V vocabulary. `models/backbone.py` declares the backbone's methods.
"""

from typing import Any

import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from adalink_jax.models.structs import Struct

ENCODER_KINDS = ("image", "text")
KINDS = ENCODER_KINDS + ("target",)


class Cache(Struct):
    """What the decoder keeps from one step to the next.

    Attributes:
      tokens: pytree of the family's own, of the tokens so far: every step changes it. Rows are on axis 1 of its arrays.
      inputs: pytree of the family's own, of the encoder's states. The first step fills it in, and later steps leave it unchanged, for
        all decodes of an input. None before, and always in a family whose layers read `Encoded.per_layer` instead.
      index: int32, how many tokens there are.
    """

    tokens: Any
    inputs: Any
    index: Int[Array, ""]


class Inputs(Struct):
    """Embeddings on their way into the model. An absent kind is None.

    Attributes:
      prompt: a soft prompt [B, P, D]. It comes from an adapter and precedes all other inputs of the encoder.
      prompt_mask: bool [B, P].
      image: visual tokens [B, N, D], in the activation dtype.
      image_mask: bool [B, N], True where there is a token.
      text: embedded input tokens [B, L, D].
      text_mask: bool [B, L].
      image_places: bool [B, L], the text's positions that visual tokens take, the first the first, ...; tokens without a position are
        dropped. None puts all of them before the text.
      text_segments: int32 [B, L], with packed examples: the number of a token's example in its row, from 1; 0 for padding.
      text_positions: int32 [B, L], with packed examples: a token's position in its example.
      target: embedded decoder inputs [B, T, D]. They pass the seam alone, in training and at each decoding step.
      adapter_index: int32 [B], for a bank of adapters: the adapter that serves each row.
    """

    prompt: Float[Array, "B P D"] | None = None
    prompt_mask: Bool[Array, "B P"] | None = None
    image: Float[Array, "B N D"] | None = None
    image_mask: Bool[Array | np.ndarray, "B N"] | None = None
    text: Float[Array, "B L D"] | None = None
    text_mask: Bool[Array | np.ndarray, "B L"] | None = None
    image_places: Bool[Array | np.ndarray, "B L"] | None = None
    text_segments: Int[Array | np.ndarray, "B L"] | None = None
    text_positions: Int[Array | np.ndarray, "B L"] | None = None
    target: Float[Array, "B T D"] | None = None
    adapter_index: Int[Array | np.ndarray, " B"] | None = None


class Encoded(Struct):
    """What the decoder attends to.

    Attributes:
      states: encoder states [B, S, D].
      mask: bool [B, S], True where there is a token.
      adapter_index: int32 [B], or [B * N] where each row has N decodes: the adapter of each; None without a bank.
      segments: int32 [B, S], with packed examples: the number of the example in its row that each state is of; 0 for padding.
      per_layer: pytree of the family's own, of what each of the decoder's layers reads, where that is not `states`. Rows are on axis
        1 of its arrays.
    """

    states: Float[Array, "B S D"]
    mask: Bool[Array, "B S"]
    adapter_index: Int[Array | np.ndarray, " decodes"] | None = None
    segments: Int[Array, "B S"] | None = None
    per_layer: Any = None
