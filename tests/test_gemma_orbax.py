"""T5Gemma in the Orbax files of google-deepmind/gemma."""

import numpy as np
import orbax.checkpoint as ocp
import pytest
from gemma_references import make_t5gemma
from test_t5_parity import ours

from adalink_jax.checkpoints import fingerprint, open_source
from adalink_jax.checkpoints.digests import fingerprint_of_source
from adalink_jax.checkpoints.families import gemma_orbax
from adalink_jax.models import paths

STACKS = {  # prefix of the settings; of each attention, its name there and here, and of its norms there and here
    "encoder": ("", [("attn", "attention", "attention", "attention")]),
    "decoder": (
        "decoder_",
        [
            ("attn", "self_attention", "attention", "self_attention"),
            ("cross_attn", "encoder_decoder_attention", "cross_attention", "cross_attention"),
        ],
    ),
}


def layer_as_gemma_stores_it(leaves, attentions, width, swapped):
    """The tensors of a layer, heads apart; the larger models' MLPs are swapped."""
    apart = lambda kernel: kernel.reshape(len(kernel), -1, width).transpose(1, 0, 2)
    scales = lambda norm, name: {
        f"{place}_{norm}_norm/scale": leaves[f"{place}_{name}_layer_norm/scale"] for place in ("pre", "post")
    }
    gating = np.stack([leaves[f"mlp/wi_{i}/kernel"] for i in (0, 1)])
    tensors = {"mlp/gating_einsum": gating.swapaxes(1, 2) if swapped else gating, "mlp/linear": leaves["mlp/wo/kernel"]}
    for tensor, name, norm, our_norm in attentions:
        query, key, value = (apart(leaves[f"{name}/{matrix}/kernel"]) for matrix in ("query", "key", "value"))
        out = leaves[f"{name}/out/kernel"]
        tensors[f"{tensor}/attn_vec_einsum/w"] = out.reshape(-1, width, out.shape[1])
        if len(query) == len(key) and tensor == "attn":
            tensors["attn/qkv_einsum/w"] = np.stack([query, key, value])
        else:
            tensors |= {f"{tensor}/q_einsum/w": query, f"{tensor}/kv_einsum/w": np.stack([key, value])}
        tensors |= scales(norm, our_norm)
    return tensors | scales("ffw", "mlp")


def as_gemma_stores_it(leaves, config, swapped):
    """The leaves of a T5Gemma by the names of google-deepmind/gemma."""
    tensors = {
        "encoder/embedder/input_embedding": leaves["encoder/token_embedder/embedding"],
        "decoder/embedder/input_embedding": leaves["token_embedder/embedding"],
    }
    for stack, (prefix, attentions) in STACKS.items():
        tensors[f"{stack}/final_norm/scale"] = leaves[f"{stack}/{stack}_norm/scale"]
        for i in range(getattr(config, f"num_{stack}_layers")):
            at = f"{stack}/layers_{i}/"
            of_layer = {name.removeprefix(at): leaf for name, leaf in leaves.items() if name.startswith(at)}
            layer = layer_as_gemma_stores_it(of_layer, attentions, getattr(config, f"{prefix}head_dim"), swapped)
            tensors |= {f"{stack}/layer_{i}/{name}": tensor for name, tensor in layer.items()}
    return tensors


@pytest.mark.parametrize("form, swapped, root", [("another decoder", True, "params/"), ("one head each", False, "")])
def test_orbax_files_of_gemma_are_read(tmp_path, monkeypatch, form, swapped, root):
    """With every kind of tensor that they have: seen to give the logits of google-deepmind/gemma (docs/checkpoints.md)."""
    make_t5gemma(form).save_pretrained(tmp_path / "hf")
    model, params = ours(tmp_path / "hf")
    leaves = {name: np.asarray(leaf) for name, leaf in paths.flatten(params["backbone"]).items()}
    tensors = as_gemma_stores_it(leaves, model.backbone.config, swapped)
    if root:  # as released: the table has rows behind those of tokens, the MLP's names end in /w
        rows = model.backbone.config.vocab_size
        monkeypatch.setattr(gemma_orbax, "_ROWS", rows)
        monkeypatch.setattr(gemma_orbax, "_PADDED_ROWS", rows + 8)
        padded = {name: np.pad(x, ((0, 8), (0, 0))) for name, x in tensors.items() if "embedding" in name}
        mlps = {f"{name}/w": tensors.pop(name) for name in list(tensors) if "/mlp/" in name}
        tensors = {f"{root}{name}": x for name, x in (tensors | padded | mlps).items()}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "orbax", paths.unflatten(tensors))
    source = open_source(tmp_path / "orbax")
    assert fingerprint_of_source(source) == fingerprint(params["backbone"])
    sizes = {name: getattr(model.backbone.config, name) for name in source.settings["language"]}
    assert source.settings["language"] == sizes and len(sizes) == 6
