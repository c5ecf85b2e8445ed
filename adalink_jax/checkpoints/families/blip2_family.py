"""BLIP-2 and InstructBLIP in Hugging Face folders: an EVA tower, a Q-Former (`qformer/`), a projection, and a language model.

The language model may be of any family that reads the `model_type` of its `text_config`.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import pydantic
from etils import epath

from adalink_jax.checkpoints.families.family import QFORMER, VISION, Family, Translation, family_of_model_type
from adalink_jax.checkpoints.families.vit_family import SIGLIP_NAMES, NameTable, translated, vision_settings
from adalink_jax.errors import CheckpointError
from adalink_jax.files.leaves import Leaf
from adalink_jax.files.typed_json import Form, as_form
from adalink_jax.models.qformer import QFormerConfig
from adalink_jax.typed_values import shown

_LANGUAGE_PREFIX = "language_model."
_Q = r"qformer\.encoder\.layer\.(\d+)"
_QFORMER_NAMES: NameTable = [
    (r"query_tokens", "qformer/query_tokens", "table"),
    (r"qformer\.(?:embeddings\.)?layernorm", "qformer/embedding_layer_norm", "norm"),
    (r"qformer\.embeddings\.word_embeddings", "qformer/token_embedder/embedding", "table"),
    (r"qformer\.embeddings\.position_embeddings", "qformer/pos_embedding", "table"),
    (_Q + r"\.attention\.attention\.(query|key|value)", r"qformer/layers_\1/self_attention/\2", "dense"),
    (_Q + r"\.attention\.output\.dense", r"qformer/layers_\1/self_attention/out", "dense"),
    (_Q + r"\.attention\.output\.LayerNorm", r"qformer/layers_\1/post_self_attention_layer_norm", "norm"),
    (_Q + r"\.crossattention\.attention\.(query|key|value)", r"qformer/layers_\1/cross_attention/\2", "dense"),
    (_Q + r"\.crossattention\.output\.dense", r"qformer/layers_\1/cross_attention/out", "dense"),
    (_Q + r"\.crossattention\.output\.LayerNorm", r"qformer/layers_\1/post_cross_attention_layer_norm", "norm"),
    (_Q + r"\.intermediate_query\.dense", r"qformer/layers_\1/query_mlp/wi", "dense"),
    (_Q + r"\.output_query\.dense", r"qformer/layers_\1/query_mlp/wo", "dense"),
    (_Q + r"\.output_query\.LayerNorm", r"qformer/layers_\1/post_query_mlp_layer_norm", "norm"),
    (_Q + r"\.intermediate\.dense", r"qformer/layers_\1/mlp/wi", "dense"),
    (_Q + r"\.output\.dense", r"qformer/layers_\1/mlp/wo", "dense"),
    (_Q + r"\.output\.LayerNorm", r"qformer/layers_\1/post_mlp_layer_norm", "norm"),
    (r"language_projection", "projection", "dense"),
]

_Count = Annotated[int, pydantic.Field(ge=1, lt=2**31)]


class _QFormer(Form):
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    num_attention_heads: _Count = 12
    cross_attention_frequency: _Count = 2


class _Config(Form):
    """What `config.json` states of the Q-Former, and of the language model for its family."""

    qformer_config: _QFormer = _QFormer()
    text_config: dict[str, Any] = {}


class BLIP2Family(Family):
    """BLIP-2 and InstructBLIP; the configuration of their own is the Q-Former's."""

    name = "BLIP-2"
    part = QFORMER
    config = QFormerConfig
    deciding = ("num_heads", "cross_attention_frequency")
    model_types = ("blip-2", "instructblip")

    def from_hugging_face(
        self, tensors: Mapping[str, Leaf], config: Mapping[str, Any], folder: epath.Path, path: str
    ) -> Translation:
        """See `Family`."""
        stated = as_form(config, _Config, f"{path}/config.json", error=CheckpointError)
        others = {tensor: leaf for tensor, leaf in tensors.items() if not tensor.startswith(_LANGUAGE_PREFIX)}
        language = {t.removeprefix(_LANGUAGE_PREFIX): leaf for t, leaf in tensors.items() if t not in others}
        leaves = translated(others, [*SIGLIP_NAMES, *_QFORMER_NAMES])
        settings = {
            VISION: vision_settings(config, folder, path),
            QFORMER: _qformer_settings(stated.qformer_config, path),
        }
        if language:
            model_type = stated.text_config.get("model_type")
            family = family_of_model_type(model_type)
            if family is None or family.backbone is None:
                raise CheckpointError(
                    f"{path} has a language model of type {shown(model_type)}, which this package does not "
                    f"implement; use a checkpoint with a T5."
                )
            text = family.from_hugging_face(language, stated.text_config, folder, path)
            leaves, settings = leaves | text.leaves, settings | text.settings
        return Translation(leaves, settings)


def _qformer_settings(stated: _QFormer, path: str) -> dict[str, Any]:
    if stated.hidden_act != "gelu" or stated.layer_norm_eps != 1e-12:
        raise CheckpointError(
            f"{path} has a Q-Former whose activation or norm epsilon is not BERT's (gelu, 1e-12); this package supports "
            f"no other."
        )
    return {
        "num_heads": stated.num_attention_heads,
        "cross_attention_frequency": stated.cross_attention_frequency,
    }
