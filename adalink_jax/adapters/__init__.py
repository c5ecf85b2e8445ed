"""Adaptation methods: input adapters at the seam, and layer adapters inside the backbone. They know no family of models.

One module per method: `adalink`, `prompt_tuning`, `position_offsets`, `chain` (input adapters, `Inputs -> Inputs`), `lora` and
`norm_tuning` (layer adapters, each with its own `merge` into the backbone's weights). `adapted` joins a backbone and an
adapter, `bank` serves many adapters in one program, and `folding` stores a trained input adapter in the embedding table.
"""

from adalink_jax.adapters.adalink import AdaLink, AdaLinkAdapter
from adalink_jax.adapters.adapted import AdaptedModel, abstract_params, fresh_params
from adalink_jax.adapters.bank import NONE, Bank, align, stack_adapters, unpad, widest
from adalink_jax.adapters.chain import Chain
from adalink_jax.adapters.folding import fold_adapter, fold_embeddings, fold_image, fold_text, folded_backbone
from adalink_jax.adapters.layer_adapter import LayerAdapter
from adalink_jax.adapters.lora import LoRA
from adalink_jax.adapters.named import NamedAdapters
from adalink_jax.adapters.norm_tuning import NormTuning
from adalink_jax.adapters.packable import check_packable
from adalink_jax.adapters.position_offsets import PositionOffsets
from adalink_jax.adapters.prompt_tuning import PromptTuning
from adalink_jax.adapters.registry import describe_adapter, make_adapter

__all__ = [
    "NONE",
    "AdaLink",
    "AdaLinkAdapter",
    "AdaptedModel",
    "Bank",
    "Chain",
    "LayerAdapter",
    "LoRA",
    "NamedAdapters",
    "NormTuning",
    "PositionOffsets",
    "PromptTuning",
    "abstract_params",
    "align",
    "check_packable",
    "describe_adapter",
    "fold_adapter",
    "fold_embeddings",
    "fold_image",
    "fold_text",
    "folded_backbone",
    "fresh_params",
    "make_adapter",
    "stack_adapters",
    "unpad",
    "widest",
]
