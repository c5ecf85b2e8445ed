"""The interface of a backbone: what a family of models implements, and all that the rest of the package calls.

A family is a module under `models` with a configuration, its blocks and one subclass of `Backbone`. Adapters, training,
decoding, serving and planning use only the methods below; none of them branches on a family.
"""

import abc
from collections.abc import Mapping
from typing import Protocol

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Float, Int

from adalink_jax.errors import UserError
from adalink_jax.models.seam import Cache, Encoded, Inputs
from adalink_jax.token_ids import T5_IDS, TokenIds

Batch = Mapping[str, jax.Array | np.ndarray]  # feature name -> array with the batch on axis 0


class LanguageConfig(Protocol):
    """What code outside of a family reads of its language model's configuration.

    Attributes:
      vocab_size: V, rows of the embedding table.
      emb_dim: D, model width.
      dtype: dtype of the activations, "float32" or "bfloat16".
      scan_layers: whether the layers' parameters are stacked on axis 0.
      encoder_embedding: whether the encoder has its own embedding table, which a folded text adapter needs.
    """

    vocab_size: int
    emb_dim: int
    dtype: str
    scan_layers: bool
    encoder_embedding: bool


class Backbone(nn.Module, abc.ABC):
    """A model that encodes its inputs and decodes a text from them, cut at the seam (`models/seam.py`). It contains no adapter.

    Attributes:
      config: the language model's configuration, a frozen dataclass.
    """

    config: LanguageConfig

    @property
    def encoder_parts(self) -> tuple[str, ...]:
        """Names of the submodules that decoding does not call, once the inputs are encoded."""
        return ("encoder",)

    @property
    def embedding_scale(self) -> float:
        """What a row of the text's embedding table is multiplied by on its way to the seam."""
        return 1.0

    @property
    def inputs_embeds_scale(self) -> float:
        """What Hugging Face's model multiplies its argument `inputs_embeds` by, and so PEFT's prompts."""
        return 1.0

    @property
    def replaced_ids(self) -> tuple[int, ...]:
        """Ids of the text whose rows of the embedding table are not what passes the seam."""
        return ()

    @property
    def reads_text(self) -> bool:
        """Whether the encoder reads text; if not, what an example asks is drawn into its picture."""
        return True

    @property
    def image_places(self) -> tuple[int, int] | None:
        """The text's id whose places an image's tokens take, and how many they are; None where images precede the text."""
        return None

    @property
    def token_ids(self) -> TokenIds:
        """The language model's special ids; T5's, unless a family has others."""
        return T5_IDS

    @abc.abstractmethod
    def abstract_batch(self, batch_size: int, inputs: int, targets: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of the features that this backbone reads, for L = `inputs` and T = `targets` tokens."""

    def abstract_packed_batch(self, batch_size: int, inputs: int, targets: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of the features of packed examples: those of `abstract_batch`, and t5x's segment ids and positions.

        Raises:
          UserError: unless the family overrides this, or for a model that reads images.
        """
        raise UserError(f"{type(self).__name__} takes one example per row; set PACK_EXAMPLES to False.")

    def as_images(self, numbers: np.ndarray) -> np.ndarray:
        """Random numbers in [-1, 1], in the shape of `images`, as images of random content: as they are, unless a family's say more."""
        return numbers

    @abc.abstractmethod
    def embed(self, batch: Batch, train: bool = False) -> Inputs:
        """Embeds the encoder's features: image [B, N, D] and text [B, L, D], where present, and their masks."""

    @abc.abstractmethod
    def embed_target(self, tokens: Int[jax.Array | np.ndarray, "B T"]) -> Float[jax.Array, "B T D"]:
        """Embeds decoder input ids."""

    @abc.abstractmethod
    def encode(self, inputs: Inputs, train: bool = False) -> Encoded:
        """Runs the encoder on embeddings: [prompt ; image ; text] -> states [B, S, D]."""

    @abc.abstractmethod
    def decode_states(
        self,
        encoded: Encoded,
        target: Float[jax.Array, "B T D"],
        cache: Cache | None = None,
        train: bool = False,
        segments: Int[jax.Array | np.ndarray, "B T"] | None = None,
    ) -> tuple[Float[jax.Array, "B T D"], Cache | None]:
        """Runs the decoder on target embeddings, up to the head.

        Args:
          encoded: what `encode` returned, with the rows of `target`; with a cache, from the second step on, several rows of `target`,
            side by side, may be decodes of one row.
          target: embeddings [B, T, D]; T is 1 with a cache.
          cache: keys and values of the steps before, from `empty_cache`; None decodes all T positions at once.
          train: whether dropout is applied.
          segments: with packed examples, the numbers of the target's examples in their row; each attends to itself and to the
            states of its number. Only families with an `abstract_packed_batch` get them.

        Returns:
          The states that `logits` reads, and the cache after this step (None without one).
        """

    @abc.abstractmethod
    def logits(self, states: Float[jax.Array, "B T D"]) -> Float[jax.Array, "B T V"]:
        """Computes float32 logits from decoder states; those of a position depend on its state alone."""

    def decode(
        self,
        encoded: Encoded,
        target: Float[jax.Array, "B T D"],
        cache: Cache | None = None,
        train: bool = False,
        segments: Int[jax.Array | np.ndarray, "B T"] | None = None,
    ) -> tuple[Float[jax.Array, "B T V"], Cache | None]:
        """Runs `decode_states`, whose arguments it has, and `logits`. Returns the logits and the cache after this step."""
        packed = () if segments is None else (segments,)
        states, cache = self.decode_states(encoded, target, cache, train, *packed)
        return self.logits(states), cache

    @abc.abstractmethod
    def empty_cache(self, batch_size: int, max_length: int) -> Cache:
        """Returns the cache before the first decoding step, with `max_length` positions."""
