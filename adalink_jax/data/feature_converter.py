"""Tokenised examples -> model features, in NumPy, for every source of examples.

Feature names are t5x's: `encoder_input_tokens` [B, L], `decoder_target_tokens`, `decoder_input_tokens`,
`decoder_loss_weights` [B, T]; with images, `images` [B, height, width, channels].
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from adalink_jax.data.vocabularies import PAD


@dataclasses.dataclass(frozen=True)
class FeatureConverter:
    """Pads and stacks examples `{"inputs": ids, "targets": ids, "image": float32 array (optional)}`.

    Attributes:
      task_feature_lengths: `{"inputs": L, "targets": T}`. Longer sequences are cut.
    """

    task_feature_lengths: Mapping[str, int]

    def __call__(self, examples: Sequence[dict], batch_size: int | None = None) -> dict[str, np.ndarray]:
        """Features of `examples`, with empty rows of loss weight 0 added up to `batch_size`."""
        rows = batch_size or len(examples)
        inputs = self._stack(examples, "inputs", rows)
        targets = self._stack(examples, "targets", rows)
        shifted = np.zeros_like(targets)
        shifted[:, 1:] = targets[:, :-1]
        batch = {
            "encoder_input_tokens": inputs,
            "decoder_target_tokens": targets,
            "decoder_input_tokens": shifted,  # starts with id 0, as T5 does
            "decoder_loss_weights": (targets != PAD).astype(np.float32),
        }
        if "image" in examples[0]:
            images = np.zeros((rows, *np.shape(examples[0]["image"])), np.float32)
            images[: len(examples)] = np.stack([example["image"] for example in examples])
            batch["images"] = images
        return batch

    def _stack(self, examples, name, rows):
        length = self.task_feature_lengths[name]
        out = np.full((rows, length), PAD, np.int32)
        for row, example in zip(out, examples):
            ids = np.asarray(example[name])[:length]
            row[: len(ids)] = ids
        return out
