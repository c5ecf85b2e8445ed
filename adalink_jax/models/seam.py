"""The seam between the embeddings and the first block: the only place where an adapter meets a backbone.

    inputs  = backbone.embed(batch)
    inputs  = input_adapter(inputs)
    encoded = backbone.encode(inputs)
    logits, cache = backbone.decode(encoded, target, cache)

Letters: B batch, P prompt length, L text length, N visual tokens, S encoder length (P + N + L), T target length, D model width, V vocabulary.
"""

import flax.struct
import jax

ENCODER_KINDS = ("image", "text")
KINDS = ENCODER_KINDS + ("target",)


@flax.struct.dataclass
class Inputs:
    """Embeddings on their way into the model. A kind that is absent is None.

    Attributes:
      prompt: soft prompt, [B, P, D]; it comes from an adapter, and stands before all other inputs of the encoder.
      prompt_mask: bool [B, P].
      image: visual tokens, [B, N, D], in the activation dtype.
      image_mask: bool [B, N], True where there is a token.
      text: embedded input tokens, [B, L, D].
      text_mask: bool [B, L].
      target: embedded decoder inputs, [B, T, D]; they pass the seam alone, in training and at each decoding step.
      adapter_index: int32 [B], for a bank of adapters: which one serves the row.
    """

    prompt: jax.Array | None = None
    prompt_mask: jax.Array | None = None
    image: jax.Array | None = None
    image_mask: jax.Array | None = None
    text: jax.Array | None = None
    text_mask: jax.Array | None = None
    target: jax.Array | None = None
    adapter_index: jax.Array | None = None


@flax.struct.dataclass
class Encoded:
    """What the decoder attends to: states [B, S, D] and their mask, bool [B, S]; and the rows' adapters, int32 [B] or None."""

    states: jax.Array
    mask: jax.Array
    adapter_index: jax.Array | None = None
