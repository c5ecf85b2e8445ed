"""BLIP-2 (Li et al., 2023) and InstructBLIP (Dai et al., 2023) with a T5: a PaLI whose projection reads a Q-Former.

images -> EVA ViT (`vision/`) -> Q-Former (`qformer/`) -> one linear map to D (`projection/`) -> [32 vectors ; text] -> T5

BLIP-2's vectors depend on the image alone; InstructBLIP's Q-Former also reads the instruction, in a vocabulary of its own.
"""

import gin
import jax
import jax.numpy as jnp

from adalink_jax.errors import UserError
from adalink_jax.models.pali import PaLI
from adalink_jax.models.qformer import QFormer, QFormerConfig

INSTRUCTION = "qformer_input_tokens"


@gin.configurable
class BLIP2(PaLI):
    """A PaLI with a Q-Former behind its vision tower; InstructBLIP where `qformer_config.vocab_size` is not 0."""

    qformer_config: QFormerConfig

    def setup(self):
        super().setup()
        self.qformer = QFormer(self.qformer_config)

    def abstract_batch(self, batch_size: int, inputs: int, targets: int) -> dict[str, jax.ShapeDtypeStruct]:
        """As PaLI's; for an InstructBLIP also the instruction's ids in the Q-Former's vocabulary, as many as inputs."""
        batch = super().abstract_batch(batch_size, inputs, targets)
        if not self.qformer_config.vocab_size:
            return batch
        if inputs > self.qformer_config.max_length:
            raise UserError(
                f"TASK_FEATURE_LENGTHS has {inputs} inputs, and the Q-Former only {self.qformer_config.max_length} positions."
            )
        return batch | {INSTRUCTION: jax.ShapeDtypeStruct((batch_size, inputs), jnp.int32)}

    def image_features(self, batch: dict, train: bool = False) -> jax.Array:
        """`images` [B, height, width, 3] in [-1, 1] (and `qformer_input_tokens` int32 [B, M]) -> [B, 32, 768]."""
        words = batch[INSTRUCTION] if self.qformer_config.vocab_size else None
        return self.qformer(super().image_features(batch, train), words, train)
