"""What all encoder-decoders share: batches in t5x's features, and stacks that read [prompt ; image ; text].

A family names the modules of its two stacks, which are called as `encode` and `decode_states` call them, and adds its embeddings,
logits and cache. A family that reads images extends `embed`.
"""

import abc
from typing import Annotated, Any, ClassVar, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from jax import Array
from jaxtyping import Bool, Float, Int

from adalink_jax.errors import UserError
from adalink_jax.models.backbone import Backbone, Batch, LanguageConfig
from adalink_jax.models.seam import Cache, Encoded, Inputs
from adalink_jax.parallel import constrain
from adalink_jax.token_ids import TokenIds
from adalink_jax.typed_values import NonNegativeInt

EndIds = NonNegativeInt | Annotated[tuple[NonNegativeInt, ...], pydantic.Field(min_length=1)]


class SpecialIds(LanguageConfig, Protocol):
    """A configuration with the special ids of its model.

    Attributes:
      decoder_start_token_id: the decoder's first input.
      pad_token_id: fills up rows; the encoder does not attend to it.
      eos_token_id: ends an output; of several ids, each does, and the vocabulary ends texts with the first.
    """

    decoder_start_token_id: int
    pad_token_id: int
    eos_token_id: EndIds


def check_ids(config: Any) -> None:
    """Refuses special ids that a model cannot have, in a configuration as `SpecialIds` describes it.

    Raises:
      UserError: for ids beyond the embedding table, or padding that ends an output.
    """
    ids = _token_ids(config)
    if not all(0 <= i < config.vocab_size for i in (ids.start, ids.pad, *ids.ends)) or ids.pad in ids.ends:
        raise UserError(
            f"{type(config).__name__} has decoder_start_token_id {ids.start}, pad_token_id {ids.pad} and eos_token_id "
            f"{config.eos_token_id}; they must be rows of the embedding table, below vocab_size {config.vocab_size}, and the "
            f"last two must differ."
        )


def _token_ids(config: Any) -> TokenIds:
    ends = config.eos_token_id
    eos, *further = (ends,) if isinstance(ends, int) else ends
    return TokenIds(config.decoder_start_token_id, config.pad_token_id, eos, tuple(further))


def joined(inputs: Inputs) -> tuple[Float[Array, "B S D"], Bool[Array, "B S"], Int[Array, "B S"] | None]:
    """[prompt ; image ; text], their mask, and with packed examples their segments.

    Visual tokens that have places in the text are put there; where `inputs` names places, tokens without one are dropped.

    Raises:
      UserError: for a prompt or an image before packed examples.
    """
    segments = None if inputs.text_segments is None else jnp.asarray(inputs.text_segments)
    if inputs.image_places is not None:
        inputs = _in_places(inputs, jnp.asarray(inputs.image_places))
    embeddings = [x for x in (inputs.prompt, inputs.image, inputs.text) if x is not None]
    masks = [x for x in (inputs.prompt_mask, inputs.image_mask, inputs.text_mask) if x is not None]
    if segments is not None and len(embeddings) > 1:
        raise UserError("A prompt or an image would precede a row of packed examples; set PACK_EXAMPLES to False.")
    return jnp.concatenate(embeddings, axis=1), jnp.concatenate(masks, axis=1), segments


def _in_places(inputs: Inputs, places: Bool[Array, "B L"]) -> Inputs:
    """The text with visual tokens in their places, in order; tokens without a place are dropped, places without a token masked."""
    image, image_mask, text, text_mask = inputs.image, inputs.image_mask, inputs.text, inputs.text_mask
    assert image is not None and image_mask is not None and text is not None and text_mask is not None
    number = jnp.cumsum(places, axis=1) - 1
    take = jnp.clip(number, 0, image.shape[1] - 1)
    here = jnp.take_along_axis(jnp.asarray(image_mask), take, axis=1) & (number < image.shape[1])
    text = jnp.where(places[..., None], jnp.take_along_axis(image, take[..., None], axis=1), text)
    mask = jnp.where(places, here, text_mask)
    return inputs.replace(image=None, image_mask=None, text=constrain(text, "batch", "length", "embed"), text_mask=mask)


class EncoderDecoder(Backbone):
    """Base of the families of encoder-decoders. See `Backbone` for its methods."""

    encoder_type: ClassVar[type[nn.Module]]
    decoder_type: ClassVar[type[nn.Module]]
    config: SpecialIds  # pyright: ignore[reportIncompatibleVariableOverride]  # narrower; Flax modules are frozen

    def setup(self) -> None:
        self.encoder, self.decoder = self.encoder_type(self.config), self.decoder_type(self.config)

    @property
    def token_ids(self) -> TokenIds:
        """The special ids of the configuration."""
        return _token_ids(self.config)

    def abstract_batch(self, batch_size: int, inputs: int, targets: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes of t5x's features for L = `inputs` and T = `targets` tokens."""
        ids = lambda length: jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
        return {
            "encoder_input_tokens": ids(inputs),
            "decoder_input_tokens": ids(targets),
            "decoder_target_tokens": ids(targets),
            "decoder_loss_weights": jax.ShapeDtypeStruct((batch_size, targets), jnp.float32),
        }

    def abstract_packed_batch(self, batch_size: int, inputs: int, targets: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes of t5x's features of packed examples."""
        batch = self.abstract_batch(batch_size, inputs, targets)
        sides = {"encoder": batch["encoder_input_tokens"], "decoder": batch["decoder_input_tokens"]}
        more = {f"{side}_{name}": ids for side, ids in sides.items() for name in ("segment_ids", "positions")}
        return batch | more

    @abc.abstractmethod
    def embed_text(self, tokens: Int[Array | np.ndarray, "B L"]) -> Float[Array, "B L D"]:
        """Embeds the encoder's ids."""

    def embed(self, batch: Batch, train: bool = False) -> Inputs:
        """Embeds `encoder_input_tokens`, int32 [B, L] padded with `pad_token_id`, as text [B, L, D]."""
        tokens = batch["encoder_input_tokens"]
        return Inputs(
            text=self.embed_text(tokens),
            text_mask=tokens != self.config.pad_token_id,
            text_segments=batch.get("encoder_segment_ids"),
            text_positions=batch.get("encoder_positions"),
        )

    def encode(self, inputs: Inputs, train: bool = False) -> Encoded:
        """Runs the encoder on [prompt ; image ; text].

        Raises:
          UserError: for a prompt or an image before packed examples.
        """
        x, mask, segments = joined(inputs)
        states = self.encoder(x, mask, segments, deterministic=not train)
        return Encoded(states, mask, segments=segments)

    def decode_states(
        self,
        encoded: Encoded,
        target: Float[Array, "B T D"],
        cache: Cache | None = None,
        train: bool = False,
        segments: Int[Array | np.ndarray, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        """Runs the decoder; see `Backbone.decode_states`."""
        segments = None if segments is None else jnp.asarray(segments)
        return self.decoder(target, encoded, segments, cache, deterministic=not train)
