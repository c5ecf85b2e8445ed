"""BLIP-2 (Li et al., 2023, arXiv:2301.12597) and InstructBLIP (Dai et al., 2023, arXiv:2305.06500), with a T5.

    images -> EVA ViT (`vision/`) -> Q-Former (`qformer/`) -> one linear map to D (`projection/`) -> [32 vectors ; text] -> T5

It is a PaLI whose projection reads a Q-Former. BLIP-2's vectors depend on the image alone; InstructBLIP's Q-Former also reads
the instruction, in its own vocabulary.
"""

import gin
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from adalink_jax.errors import UserError
from adalink_jax.models.backbone import Batch
from adalink_jax.models.pali import PaLI
from adalink_jax.models.qformer import QFormer, QFormerConfig

INSTRUCTION = "qformer_input_tokens"


@gin.configurable
class BLIP2(PaLI):
    """A PaLI with a Q-Former behind its vision tower; an InstructBLIP if `qformer_config.vocab_size` is not 0."""

    qformer_config: QFormerConfig  # pyright: ignore[reportGeneralTypeIssues]  # `features_dtype` before it is keyword-only

    @property
    def encoder_parts(self) -> tuple[str, ...]:
        """PaLI's and the Q-Former."""
        return (*super().encoder_parts, "qformer")

    def setup(self) -> None:
        super().setup()
        self.qformer = QFormer(self.qformer_config)

    def abstract_batch(self, batch_size: int, inputs: int, targets: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns PaLI's shapes and, for an InstructBLIP, L ids of the instruction in the Q-Former's vocabulary."""
        batch = super().abstract_batch(batch_size, inputs, targets)
        if not self.qformer_config.vocab_size:
            return batch
        if inputs > self.qformer_config.max_length:
            raise UserError(
                f"TASK_FEATURE_LENGTHS has {inputs} inputs, but the Q-Former has only {self.qformer_config.max_length} positions."
            )
        return batch | {INSTRUCTION: jax.ShapeDtypeStruct((batch_size, inputs), jnp.int32)}

    def image_features(self, batch: Batch, train: bool = False) -> Float[Array, "B N width"]:
        """Maps `images` [B, height, width, 3] in [-1, 1] (and `qformer_input_tokens`, int32 [B, M]) to [B, 32, 768]."""
        words = batch[INSTRUCTION] if self.qformer_config.vocab_size else None
        return self.qformer(super().image_features(batch, train), words, train)
