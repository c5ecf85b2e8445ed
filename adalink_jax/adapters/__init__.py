"""Methods: input adapters and the seam's upper side, and what changes the backbone's layers. They know the seam's structs and
no backbone."""

from adalink_jax.adapters.adalink import AdaLink, AdaLinkAdapter
from adalink_jax.adapters.adapted import AdaptedModel
from adalink_jax.adapters.chain import Chain
from adalink_jax.adapters.folding import fold_text
from adalink_jax.adapters.layer_adapter import LayerAdapter
from adalink_jax.adapters.lora import LoRA
from adalink_jax.adapters.norm_tuning import NormTuning
from adalink_jax.adapters.position_offsets import PositionOffsets
from adalink_jax.adapters.prompt_tuning import PromptTuning
from adalink_jax.adapters.registry import describe_adapter, make_adapter

__all__ = [
    "AdaLink",
    "AdaLinkAdapter",
    "AdaptedModel",
    "Chain",
    "LayerAdapter",
    "LoRA",
    "NormTuning",
    "PositionOffsets",
    "PromptTuning",
    "describe_adapter",
    "fold_text",
    "make_adapter",
]
