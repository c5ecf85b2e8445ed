"""T5Gemma as google-deepmind/gemma stores it with Orbax: `encoder/layer_0/attn/q_einsum/w`, heads apart.

Names may begin with `params/` or `transformer/`.
"""

import collections
import re
from collections.abc import Mapping

from adalink_jax.checkpoints.families import gemma_tensors
from adalink_jax.checkpoints.families.family import LANGUAGE, Translation
from adalink_jax.files.leaves import Leaf, rows

_ROOTS = re.compile(r"(?:(?:params|transformer)/)*")
_LAYER = re.compile(r"(encoder|decoder)/layer_(\d+)/(.*)")
_WHOLE = {
    f"decoder/{gemma_tensors.TABLE}": "token_embedder/embedding",
    f"encoder/{gemma_tensors.TABLE}": "encoder/token_embedder/embedding",
    **{f"{stack}/{gemma_tensors.FINAL_NORM}": f"{stack}/{stack}_norm/scale" for stack in ("encoder", "decoder")},
}
_ATTENTIONS = {
    "encoder": {"attn": "attention"},
    "decoder": {"attn": "self_attention", "cross_attn": "encoder_decoder_attention"},
}
_NORMS = {
    stack: {f"{place}_{tensor}": f"{place}_{name}" for place in ("pre", "post") for tensor, name in names.items()}
    for stack, names in {
        "encoder": {"attention": "attention", "ffw": "mlp"},
        "decoder": {"attention": "self_attention", "cross_attention": "cross_attention", "ffw": "mlp"},
    }.items()
}
_PADDED_ROWS, _ROWS = 256_128, 256_000  # of the released tables, whose last rows belong to no token


def translated(leaves: Mapping[str, Leaf]) -> Translation | None:
    """The model in this package's terms; None if the leaves are another's."""
    leaves = {_ROOTS.sub("", name, count=1): leaf for name, leaf in leaves.items()}
    outs = {stack: leaves.get(f"{stack}/layer_0/attn/attn_vec_einsum/w") for stack in _ATTENTIONS}
    if any(leaf is None for leaf in outs.values()):
        return None
    layers, translation = collections.defaultdict(dict), {}
    for tensor, leaf in leaves.items():
        if match := _LAYER.fullmatch(tensor):
            layers[match[1], match[2]][match[3]] = leaf
        else:
            is_padded = tensor in _WHOLE and leaf.shape[0] == _PADDED_ROWS
            translation[_WHOLE.get(tensor, tensor)] = rows(leaf, 0, _ROWS) if is_padded else leaf
    for (stack, number), tensors in layers.items():
        block = gemma_tensors.of_block(tensors, _ATTENTIONS[stack], _NORMS[stack])
        translation |= {f"{stack}/layers_{number}/{name}": leaf for name, leaf in block.items()}
    settings = {}
    for stack, prefix in (("encoder", ""), ("decoder", "decoder_")):
        heads, width, _ = leaves[f"{stack}/layer_0/attn/attn_vec_einsum/w"].shape
        kv = leaves.get(f"{stack}/layer_0/attn/kv_einsum/w")
        settings |= {
            f"{prefix}num_heads": heads,
            f"{prefix}num_kv_heads": heads if kv is None else kv.shape[1],
            f"{prefix}head_dim": width,
        }
    return Translation(translation, {LANGUAGE: settings})
