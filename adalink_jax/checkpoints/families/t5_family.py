"""The T5 family (T5, FLAN-T5, mT5, umT5, ByT5, UL2) in files.

Hugging Face: kernels are transposed, norms and MLPs are numbered sublayers, and tables of relative positions are
`[buckets, H]`. t5x: scanned networks stack their layers on axis 1, keep heads apart, and have a table of relative positions
per layer.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import pydantic

from adalink_jax.checkpoints.families.family import (
    LANGUAGE,
    Family,
    Shapes,
    Translation,
    depth,
    equal,
    renamed,
    stated_ids,
)
from adalink_jax.checkpoints.source import Source
from adalink_jax.errors import CheckpointError
from adalink_jax.files.leaves import Leaf, from_array, layer, transposed
from adalink_jax.files.typed_json import Form, as_form
from adalink_jax.models.t5 import T5, T5Config

ACTIVATIONS = {  # feed_forward_proj -> T5Config.mlp_activations
    "relu": ("relu",),
    "gated-gelu": ("gelu", "linear"),
    "gated-silu": ("silu", "linear"),
    "gated-relu": ("relu", "linear"),
}
_STACKS = ("encoder", "decoder")
TABLE, HEAD = "shared.weight", "lm_head.weight"
_EMBEDDING = "token_embedder/embedding"
_STACK_TABLES = tuple(f"{stack}.embed_tokens.weight" for stack in _STACKS)
# A leftover of old T5 1.0 files, which `transformers` ignores too.
_UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
_ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "out"}
_MLP = {name: name for name in ("wi", "wi_0", "wi_1", "wo")}
_SUBLAYERS = (  # stack, number, norm, Hugging Face's block, this package's block, and its matrices
    ("encoder", 0, "pre_attention_layer_norm", "SelfAttention", "attention", _ATTENTION),
    ("encoder", 1, "pre_mlp_layer_norm", "DenseReluDense", "mlp", _MLP),
    ("decoder", 0, "pre_self_attention_layer_norm", "SelfAttention", "self_attention", _ATTENTION),
    ("decoder", 1, "pre_cross_attention_layer_norm", "EncDecAttention", "encoder_decoder_attention", _ATTENTION),
    ("decoder", 2, "pre_mlp_layer_norm", "DenseReluDense", "mlp", _MLP),
)
_BIAS = "block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
_OF_LAYERS = "umt5"  # model_type of models whose layers have a table of relative positions each
_NAMES = {  # Hugging Face's name -> this package's; {} is the number of a layer
    TABLE: _EMBEDDING,
    HEAD: "decoder/logits_dense/kernel",
    **{f"{stack}.final_layer_norm.weight": f"{stack}/{stack}_norm/scale" for stack in _STACKS},
    **{f"{stack}.{_BIAS.format(0)}": f"{stack}/relpos_bias/rel_embedding" for stack in _STACKS},
    **{f"{stack}.{_BIAS}": f"{stack}/layers_{{}}/relpos_bias/rel_embedding" for stack in _STACKS},
    **{f"{stack}.block.{{}}.layer.{i}.layer_norm.weight": f"{stack}/layers_{{}}/{norm}/scale"
       for stack, i, norm, *_ in _SUBLAYERS},
    **{f"{stack}.block.{{}}.layer.{i}.{hf_block}.{matrix}.weight": f"{stack}/layers_{{}}/{block}/{name}/kernel"
       for stack, i, _, hf_block, block, matrices in _SUBLAYERS for matrix, name in matrices.items()},
}  # fmt: skip
_TENSORS = {name: tensor for tensor, name in _NAMES.items()}
_BIASES = {f"{stack}/relpos_bias/rel_embedding": f"{stack}/layers_0/relpos_bias/rel_embedding" for stack in _STACKS}
_Id = Annotated[int, pydantic.Field(ge=0, lt=2**31)]
_Ids = _Id | list[_Id] | None


class _Config(Form):
    """What `config.json` states and shapes do not show."""

    model_type: str
    feed_forward_proj: str = "relu"
    layer_norm_epsilon: float = 1e-6
    relative_attention_max_distance: Annotated[int, pydantic.Field(ge=1, lt=2**31)] = 128
    tie_word_embeddings: bool | None = None
    scale_decoder_outputs: bool | None = None
    decoder_start_token_id: _Ids = None
    pad_token_id: _Ids = None
    eos_token_id: _Ids = None


class T5Family(Family):
    """Encoder-decoders of the T5 family."""

    name = "T5"
    part = LANGUAGE
    config = T5Config
    backbone = T5
    implied = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
    deciding = ("mlp_activations", "relpos_max_distance", *implied)
    encoder_table = "encoder.embed_tokens.weight"
    model_types = ("t5", "mt5", _OF_LAYERS)

    def sizes(self, shapes: Shapes) -> dict[str, Any]:
        """`T5Config`'s sizes, and `gated`: whether the MLP has two activations."""
        mlp, per_layer = "encoder/layers_0/mlp/", "encoder/layers_0/relpos_bias/rel_embedding"
        gated = f"{mlp}wi_0/kernel" in shapes
        embedding = shapes.get(_EMBEDDING)
        positions = shapes.get("encoder/relpos_bias/rel_embedding") or shapes.get(per_layer)
        query = shapes.get("encoder/layers_0/attention/query/kernel")
        wide = shapes.get(f"{mlp}wi_0/kernel" if gated else f"{mlp}wi/kernel")
        if embedding is None or positions is None or query is None or wide is None:
            return {}
        if any(len(shape) != 2 or 0 in shape for shape in (embedding, positions, query, wide)):
            return {}  # damaged
        return {
            "vocab_size": embedding[0],
            "emb_dim": embedding[1],
            "num_heads": positions[0],
            "head_dim": query[1] // positions[0],
            "mlp_dim": wide[1],
            "num_encoder_layers": depth(shapes, "encoder"),
            "num_decoder_layers": depth(shapes, "decoder"),
            "logits_via_embedding": "decoder/logits_dense/kernel" not in shapes,
            "encoder_embedding": f"encoder/{_EMBEDDING}" in shapes,
            "relpos_num_buckets": positions[1],
            "relpos_per_layer": per_layer in shapes,
            "gated": gated,
        }

    def name_from_hugging_face(self, tensor: str) -> str | None:
        """`encoder.block.0.layer.0.SelfAttention.q.weight` -> `encoder/layers_0/attention/query/kernel`."""
        return renamed(tensor, _NAMES)

    def name_in_hugging_face(self, name: str) -> str | None:
        """`encoder/layers_0/attention/query/kernel` -> `encoder.block.0.layer.0.SelfAttention.q.weight`."""
        return renamed(name, _TENSORS)

    def from_hugging_face(
        self, tensors: Mapping[str, Leaf], config: Mapping[str, Any], folder, path: str
    ) -> Translation:
        """See `Family`."""
        stated, leaves = as_form(config, _Config, f"{path}/config.json", error=CheckpointError), {}
        for tensor, leaf in _untied(tensors, stated, path).items():
            name = self.name_from_hugging_face(tensor) or tensor
            if stated.model_type == _OF_LAYERS:
                name = _BIASES.get(name, name)
            leaves[name] = transposed(leaf) if _is_transposed(name) else leaf
        return Translation(leaves, {LANGUAGE: _settings(stated, path)})

    def to_hugging_face(self, leaves: Mapping[str, Leaf]) -> dict[str, Leaf]:
        """See `Family`."""
        return self._renamed_tensors(leaves, _is_transposed)

    def hugging_face_config(self, source: Source) -> dict[str, Any]:
        """See `Family`."""
        settings, sizes = source.settings[LANGUAGE], self.sizes(source.shapes)
        activations = settings["mlp_activations"]
        feed_forward = [name for name, value in ACTIVATIONS.items() if value == activations]
        if not feed_forward:
            raise CheckpointError(
                f"{source.path} has mlp_activations {activations}; a Hugging Face T5 supports {list(ACTIVATIONS.values())}."
            )
        tied = sizes["logits_via_embedding"]
        return {
            "architectures": [f"{'UMT5' if sizes['relpos_per_layer'] else 'T5'}ForConditionalGeneration"],
            "model_type": _OF_LAYERS if sizes["relpos_per_layer"] else "t5",
            "vocab_size": sizes["vocab_size"],
            "d_model": sizes["emb_dim"],
            "d_kv": sizes["head_dim"],
            "d_ff": sizes["mlp_dim"],
            "num_heads": sizes["num_heads"],
            "num_layers": sizes["num_encoder_layers"],
            "num_decoder_layers": sizes["num_decoder_layers"],
            "feed_forward_proj": feed_forward[0],
            "relative_attention_num_buckets": sizes["relpos_num_buckets"],
            "relative_attention_max_distance": settings.get("relpos_max_distance", 128),
            "layer_norm_epsilon": 1e-6,
            "dropout_rate": 0.1,
            "tie_word_embeddings": tied,
            "scale_decoder_outputs": tied,
            "is_encoder_decoder": True,
            **{field: settings.get(field, value) for field, value in self.implied.items()},
        }

    def from_t5x(self, leaves: Mapping[str, Leaf]) -> Translation | None:
        """Leaves of a scanned network (`encoder/encoder/...`, layers on axis 1) under the unscanned names.

        Each layer of such a network has its own table of relative positions; where all are equal they become one table of
        the stack.
        """
        out = {}
        for name, leaf in leaves.items():
            stack = next((s for s in _STACKS if name.startswith(f"{s}/{s}/")), None)
            if stack is None:
                out[name] = leaf
                continue
            inner = name.removeprefix(f"{stack}/{stack}/")
            shape = (leaf.shape[0], *leaf.shape[2:])
            if len(shape) == 3:  # kernels of attention: [D, H, K], or out's [H, K, D]
                is_out = inner.endswith("out/kernel")
                shape = (shape[0] * shape[1], shape[2]) if is_out else (shape[0], shape[1] * shape[2])
            for i in range(leaf.shape[1]):
                out[f"{stack}/layers_{i}/{inner}"] = layer(leaf, i, 1, shape)
        for stack in _STACKS:
            tables = {n: x.whole() for n, x in out.items() if re.fullmatch(rf"{stack}/layers_\d+/relpos_bias/.*", n)}
            first, *others = tables.values() or (None,)
            if first is not None and all(np.array_equal(table, first) for table in others):
                for name in tables:
                    del out[name]
                out[f"{stack}/relpos_bias/rel_embedding"] = from_array(
                    first, f"{stack}/{stack}/relpos_bias/rel_embedding"
                )
        return Translation(out, {}) if out.keys() != leaves.keys() else None


def _is_transposed(name: str) -> bool:
    """Whether Hugging Face stores the leaf with its axes reversed."""
    return name.endswith(("/kernel", "rel_embedding"))


def _settings(stated: _Config, path: str) -> dict[str, Any]:
    """Fields of `T5Config` that `config.json` states and shapes do not show."""
    if stated.feed_forward_proj not in ACTIVATIONS:
        raise CheckpointError(
            f"{path} has feed_forward_proj {stated.feed_forward_proj!r}; this package supports {', '.join(ACTIVATIONS)}."
        )
    if stated.layer_norm_epsilon != 1e-6:
        raise CheckpointError(
            f"{path} has layer_norm_epsilon {stated.layer_norm_epsilon}; this package supports only 1e-06 for T5."
        )
    return {
        "mlp_activations": ACTIVATIONS[stated.feed_forward_proj],
        "relpos_max_distance": stated.relative_attention_max_distance,
        **stated_ids({name: [getattr(stated, name)] for name in T5Family.implied}, T5Family.implied, path),
    }


def _untied(tensors: Mapping[str, Leaf], stated: _Config, path: str) -> dict[str, Leaf]:
    """The tensors with one embedding table, and with a head exactly where the model's logits are not tied to the table."""
    tables = {name: tensors[name] for name in (*_STACK_TABLES, HEAD) if name in tensors}
    tensors = {name: leaf for name, leaf in tensors.items() if name not in tables and name != _UNUSED}
    of_one_table = [
        tensors.get(TABLE),
        *(tables.get(name) for name in _STACK_TABLES),
    ]  # MADLAD's files have no shared.weight
    if stated.tie_word_embeddings is not False:
        of_one_table.append(tables.get(HEAD))
    shared = next((leaf for leaf in of_one_table if leaf is not None), None)
    if shared is None:
        raise CheckpointError(f"{path} has no {TABLE}, the embedding table; copy or download the folder again.")
    tensors[TABLE] = shared
    for name in _STACK_TABLES:
        if name in tables and not equal(tables[name], shared):
            raise CheckpointError(
                f"{path}: {name} differs from {TABLE}, as in a folder with a folded adapter; give the base model that it "
                f"was exported from."
            )
    head = tables.get(HEAD)
    if head is not None and equal(head, shared):
        head = None
    # transformers' rule: mT5 never scales its logits; T5 and umT5 do unless `tie_word_embeddings` was saved as false.
    scale = stated.scale_decoder_outputs
    scaled = stated.model_type != "mt5" and (stated.tie_word_embeddings is not False if scale is None else scale)
    if head is not None and scaled:
        raise CheckpointError(
            f"{path} has an untied {HEAD} and scales its logits; if its logits are not tied to the embedding table, set "
            f"tie_word_embeddings to false in config.json."
        )
    if not scaled:  # tied without scaling equals untied with the same matrix
        tensors[HEAD] = shared if head is None else head
    return tensors
