"""PaliGemma in a `.npz` of big_vision: the tower under `img/`, the projection as its `head`, the language model under `llm/`.

Layers are stacked on axis 0, heads are apart, and tensors that are read together are one: keys and values, the two MLP inputs.
"""

import re
from collections.abc import Mapping

from adalink_jax.checkpoints.families import gemma_tensors
from adalink_jax.checkpoints.families.family import LANGUAGE, Translation
from adalink_jax.checkpoints.families.vit_family import ViTFamily
from adalink_jax.errors import CheckpointError
from adalink_jax.files.leaves import Leaf, layer

_LLM = re.compile(r"(?:params/)?llm/(.*)")
_HEAD = re.compile(r"(?:params/)?img/head/(kernel|bias)")
_WHOLE = {
    gemma_tensors.TABLE: "token_embedder/embedding",
    gemma_tensors.FINAL_NORM: "decoder/decoder_norm/scale",
}
_ATTENTIONS = {"attn": "self_attention"}
_NORMS = {
    "pre_attention": "pre_self_attention",
    "pre_ffw": "pre_mlp",
    "post_attention": "post_self_attention",
    "post_ffw": "post_mlp",
}
_LAYERS = "layers/"


def translated(tensors: Mapping[str, Leaf], path: str) -> Translation | None:
    """The model in this package's terms; None if the file has no language model.

    Args:
      tensors: by the file's names.
      path: the file, for errors.

    Raises:
      CheckpointError: for a file that lacks a part of the model.
    """
    language = {match[1]: leaf for name, leaf in tensors.items() if (match := _LLM.fullmatch(name))}
    if gemma_tensors.TABLE not in language:
        return None
    heads = {match[1]: name for name in tensors if (match := _HEAD.fullmatch(name))}
    tower = {name: x for name, x in tensors.items() if not _LLM.fullmatch(name) and name not in heads.values()}
    vision = ViTFamily().from_big_vision(tower, path)
    if vision is None:
        raise CheckpointError(f"{path} has a language model and no vision tower; give the .npz of a PaliGemma.")
    leaves = vision.leaves | {f"projection/{kind}": tensors[name] for kind, name in heads.items()}
    stacked = {name.removeprefix(_LAYERS): leaf for name, leaf in language.items() if name.startswith(_LAYERS)}
    leaves |= {_WHOLE.get(name, f"llm/{name}"): x for name, x in language.items() if not name.startswith(_LAYERS)}
    depths = {leaf.shape[0] for leaf in stacked.values()}
    if len(depths) > 1:
        raise CheckpointError(f"{path} has tensors of {min(depths)} and of {max(depths)} layers; copy it again.")
    for i in range(max(depths, default=0)):
        of_layer = {name: layer(leaf, i, 0, leaf.shape[1:]) for name, leaf in stacked.items()}
        block = gemma_tensors.of_block(of_layer, _ATTENTIONS, _NORMS)
        leaves |= {f"decoder/layers_{i}/{name}": leaf for name, leaf in block.items()}
    query, kv = (language.get(f"layers/attn/{kind}_einsum/w") for kind in ("q", "kv"))
    if query is None or kv is None:
        raise CheckpointError(f"{path} has no attention of a Gemma; give the .npz of a PaliGemma.")
    settings = {"num_heads": query.shape[1], "num_kv_heads": kv.shape[2], "head_dim": query.shape[3]}
    return Translation(leaves, {LANGUAGE: settings, **vision.settings})
