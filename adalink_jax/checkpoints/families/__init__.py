"""Families of models, as files hold them: names in each format, settings that decide the numbers, sizes read off shapes."""

from adalink_jax.checkpoints.families.blip2_family import BLIP2Family
from adalink_jax.checkpoints.families.family import Family, Translation, register
from adalink_jax.checkpoints.families.paligemma_family import PaliGemmaFamily
from adalink_jax.checkpoints.families.pix2struct_family import Pix2StructFamily
from adalink_jax.checkpoints.families.t5_family import T5Family
from adalink_jax.checkpoints.families.t5gemma2_family import T5Gemma2Family
from adalink_jax.checkpoints.families.t5gemma_family import T5GemmaFamily
from adalink_jax.checkpoints.families.vit_family import ViTFamily

for _family in (
    ViTFamily(), PaliGemmaFamily(), T5Gemma2Family(), T5GemmaFamily(), T5Family(), BLIP2Family(),
    Pix2StructFamily(),  # after T5Family: its configuration is one of T5's
):  # fmt: skip
    register(_family)

__all__ = [
    "BLIP2Family",
    "Family",
    "PaliGemmaFamily",
    "Pix2StructFamily",
    "T5Family",
    "T5Gemma2Family",
    "T5GemmaFamily",
    "Translation",
    "ViTFamily",
    "register",
]
