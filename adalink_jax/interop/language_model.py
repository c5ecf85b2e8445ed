"""A model from a checkpoint alone, without a gin file: its sizes are read off its leaves."""

import math
import re
from typing import Any

from adalink_jax import parallel
from adalink_jax.adapters import AdaptedModel
from adalink_jax.checkpoints import Source, config_fields
from adalink_jax.checkpoints.families.family import QFORMER, VISION, Shapes, family_of_shapes
from adalink_jax.errors import CheckpointError
from adalink_jax.models.backbone import Backbone
from adalink_jax.models.blip2 import BLIP2
from adalink_jax.models.qformer import QFormerConfig
from adalink_jax.models.visual import Visual
from adalink_jax.models.vit import ViTConfig
from adalink_jax.training.setup import Setup, load_parameters


def backbone_of(source: Source, dtype: str = "float32") -> Backbone:
    """The backbone of a language model, with its vision tower where it has one.

    Args:
      source: the checkpoint; its settings state every deciding field of its families.
      dtype: the dtype of the activations.

    Raises:
      CheckpointError: for another model.
    """
    family, shapes = family_of_shapes(source.shapes), source.shapes
    sees = any(name.startswith(f"{VISION}/") for name in shapes)
    kind = family and family.backbone
    if sees and QFORMER in source.settings:
        kind = BLIP2
    if family is None or kind is None or sees != issubclass(kind, Visual):
        raise CheckpointError(
            f"{source.path} is not a known language model ({source.kind}); give a T5, a T5Gemma, a T5Gemma 2, a PaliGemma, a Pix2Struct, "
            f"a BLIP-2 or an InstructBLIP."
        )
    parts: list[Any] = [family.config(**config_fields(source), dtype=dtype, scan_layers=True)]
    if sees:
        parts.append(_vision_config(source, dtype))
    return kind(*parts, **({"qformer_config": _qformer_config(source)} if kind is BLIP2 else {}))


def load_language_model(source: Source, dtype: str = "float32") -> tuple[AdaptedModel, dict[str, Any]]:
    """Loads a model, which computes in float32, and its parameters as Flax takes them.

    Args:
      source: see `backbone_of`.
      dtype: the dtype in which the parameters are stored, "float32" or "bfloat16".
    """
    model = AdaptedModel(backbone_of(source))
    return model, load_weights(model, source, dtype)


def load_weights(model: AdaptedModel, source: Source, dtype: str = "float32") -> dict[str, Any]:
    """The parameters of `model`, stored in `dtype`, as Flax takes them."""
    mesh, rules = parallel.make_mesh(), parallel.logical_axis_rules()
    with parallel.use_mesh(mesh, rules):
        setup = Setup(model, initial_checkpoint_path=source.path, frozen_dtype=dtype)
        return load_parameters(setup, mesh, rules).tree()


def _vision_config(source: Source, dtype: str) -> ViTConfig:
    shapes = source.shapes
    pixels, width = shapes["vision/patch_embedding/kernel"]
    patch, class_token = math.isqrt(pixels // 3), "vision/class_token" in shapes
    side = patch * math.isqrt(shapes["vision/pos_embedding"][0] - class_token)
    settings = dict(source.settings[VISION])
    return ViTConfig(
        (side, side), patch, width, settings.pop("num_heads"), shapes["vision/layers_0/mlp/wi/kernel"][1],
        _layers(shapes, VISION), class_token=class_token, dtype=dtype, scan_layers=True, **settings,
    )  # fmt: skip


def _qformer_config(source: Source) -> QFormerConfig:
    shapes = source.shapes
    queries, width = shapes["qformer/query_tokens"][-2:]
    reads = "qformer/token_embedder/embedding" in shapes
    words = (shapes["qformer/token_embedder/embedding"][0], shapes["qformer/pos_embedding"][0]) if reads else (0, 512)
    return QFormerConfig(
        queries, width, mlp_dim=shapes["qformer/layers_0/query_mlp/wi/kernel"][1], num_layers=_layers(shapes, QFORMER),
        vocab_size=words[0], max_length=words[1], **source.settings[QFORMER],
    )  # fmt: skip


def _layers(shapes: Shapes, part: str) -> int:
    return len({match[0] for name in shapes if (match := re.match(rf"{part}/layers_\d+/", name))})
