"""Hugging Face folders of the T5 family (T5, FLAN-T5, mT5, ByT5, UL2): `config.json` and safetensors, sharded or not.

Vision towers, and image-and-text models with a T5, are translated by `hf_vision`, their language models here.

Kernels stand the other way round there, the two norms and the MLP are numbered, tables of relative positions are
`[buckets, H]`. `pytorch_model.bin` is read through `torch.load(weights_only=True, mmap=True)`, and only where there is no
safetensors file.
"""

import dataclasses
import json
import os
import re

import numpy as np
from etils import epath

from adalink_jax.checkpoints import hf_vision
from adalink_jax.checkpoints.architecture import t5_sizes
from adalink_jax.checkpoints.positions import BICUBIC
from adalink_jax.checkpoints.source import Source
from adalink_jax.errors import CheckpointError
from adalink_jax.files import safetensors_file
from adalink_jax.files.leaves import Leaf, transposed

CONFIG, HUB = "config.json", "hf://"
SAFE, TORCH = "model.safetensors", "pytorch_model.bin"
T5_TYPES = ("t5", "mt5")
SHARD_BYTES = 5 * 10**9
ACTIVATIONS = {
    "relu": ("relu",),
    "gated-gelu": ("gelu", "linear"),
    "gated-silu": ("silu", "linear"),
    "gated-relu": ("relu", "linear"),
}
# What a tokenizer may consist of.
VOCABULARY_FILES = ("spiece.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                    "added_tokens.json")  # fmt: skip
TABLE = "shared.weight"
_TIED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
# Left over in old T5 1.0 files; `transformers` ignores it too.
_UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
_ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "out"}
_BLOCKS = {  # stack -> for each numbered sublayer its name there, ours, and our norm's
    "encoder": [
        ("SelfAttention", "attention", "pre_attention_layer_norm"),
        ("DenseReluDense", "mlp", "pre_mlp_layer_norm"),
    ],
    "decoder": [
        ("SelfAttention", "self_attention", "pre_self_attention_layer_norm"),
        ("EncDecAttention", "encoder_decoder_attention", "pre_cross_attention_layer_norm"),
        ("DenseReluDense", "mlp", "pre_mlp_layer_norm"),
    ],
}


def t5x_name(name: str) -> str | None:
    """The t5x name of a tensor of a Hugging Face T5; None for a name that is none of its."""
    whole = {
        TABLE: "token_embedder/embedding",
        "lm_head.weight": "decoder/logits_dense/kernel",
        "encoder.final_layer_norm.weight": "encoder/encoder_norm/scale",
        "decoder.final_layer_norm.weight": "decoder/decoder_norm/scale",
    }
    if name in whole:
        return whole[name]
    match = re.fullmatch(r"(encoder|decoder)\.block\.(\d+)\.layer\.(\d)\.(\w+)\.(?:(\w+)\.)?weight", name)
    if not match or int(match[3]) >= len(_BLOCKS[match[1]]):
        return None
    stack, i, sublayer, block, matrix = match.groups()
    theirs, ours, norm = _BLOCKS[stack][int(sublayer)]
    if block == "layer_norm" and matrix is None:
        return f"{stack}/layers_{i}/{norm}/scale"
    if block != theirs or matrix is None:
        return None
    if matrix == "relative_attention_bias":
        return f"{stack}/relpos_bias/rel_embedding" if i == sublayer == "0" else None
    return f"{stack}/layers_{i}/{ours}/{_ATTENTION.get(matrix, matrix)}/kernel"


def hf_name(name: str) -> str:
    """The inverse of `t5x_name`.

    Raises:
      CheckpointError: for a leaf that no Hugging Face T5 has.
    """
    whole = {
        "token_embedder/embedding": TABLE,
        "decoder/logits_dense/kernel": "lm_head.weight",
        "encoder/encoder_norm/scale": "encoder.final_layer_norm.weight",
        "decoder/decoder_norm/scale": "decoder.final_layer_norm.weight",
    }
    if name in whole:
        return whole[name]
    missing = CheckpointError(f"A Hugging Face T5 has no place for {name}; such a model stays native or t5x's.")
    if not re.fullmatch(r"(encoder|decoder)/(relpos_bias|layers_\d+/(?!relpos_bias)\w+)/.*", name):
        raise missing
    stack, layer, block, *rest = name.split("/")
    if layer == "relpos_bias":
        return f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    at = f"{stack}.block.{layer.removeprefix('layers_')}.layer"
    for number, (theirs, ours, norm) in enumerate(_BLOCKS[stack]):
        if block == norm:
            return f"{at}.{number}.layer_norm.weight"
        if block == ours:
            back = {ours: theirs for theirs, ours in _ATTENTION.items()} if theirs != "DenseReluDense" else {}
            return f"{at}.{number}.{theirs}.{back.get(rest[0], rest[0])}.weight"
    raise missing


def download(path: str) -> epath.Path:
    """The folder in `huggingface_hub`'s cache of `hf://OWNER/NAME[@revision]`; downloads what is not there yet."""
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ModuleNotFoundError as e:
        raise CheckpointError(f"{path} needs huggingface_hub: pip install 'adalink-jax[hf]'.") from e
    repo, _, revision = path.removeprefix(HUB).partition("@")
    get = lambda patterns: huggingface_hub.snapshot_download(
        repo, revision=revision or None, allow_patterns=list(patterns)
    )
    small = (CONFIG, "preprocessor_config.json", "*.index.json", "qformer_tokenizer/*.json", *VOCABULARY_FILES)
    try:
        folder = epath.Path(get((*small, "model*.safetensors")))
        if not any(f.name.endswith(".safetensors") for f in folder.iterdir()):
            folder = epath.Path(get((*small, "pytorch_model*.bin")))
        return folder
    except (errors.HfHubHTTPError, errors.HFValidationError, errors.LocalEntryNotFoundError, OSError) as e:
        offline = ", and HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise CheckpointError(
            f"{path} cannot be had{offline}: {str(e).splitlines()[0] if str(e) else type(e).__name__}"
        ) from e


def is_folder(folder: epath.Path) -> bool:
    """Whether `folder` holds weights as Hugging Face stores them."""
    return any((folder / name).exists() for name in (SAFE, f"{SAFE}.index.json", TORCH, f"{TORCH}.index.json"))


def open_folder(folder: epath.Path, path: str) -> Source:
    """Opens a folder; a T5's leaves get t5x's names, another model's keep their own."""
    try:
        config = json.loads((folder / CONFIG).read_text()) if (folder / CONFIG).exists() else {}
    except json.JSONDecodeError as e:
        raise CheckpointError(f"{path}/{CONFIG} is damaged or cut short ({e}); copy it again.") from e
    tensors = _tensors(folder, path)
    name = path.removeprefix(HUB) if path.startswith(HUB) else config.get("_name_or_path") or folder.name
    kind = f"Hugging Face folder ({config.get('model_type', 'no config.json')})"
    if config.get("model_type") in hf_vision.TYPES:
        return _with_vision(Source(kind, path, name, tensors, folder, config=config, position_rule=BICUBIC))
    if config.get("model_type") not in T5_TYPES:
        return Source(kind, path, name, dict(sorted(tensors.items())), folder, config=config)
    leaves = _t5_leaves(tensors, config, path)
    return Source(kind, path, name, leaves, folder, settings=_settings(config, path), config=config)


def _with_vision(opened: Source) -> Source:
    """A vision tower's folder, or an image-and-text model's, under our names."""
    config, path = opened.config, opened.path
    leaves = hf_vision.leaves_of(opened.leaves, config["model_type"])
    parts = hf_vision.settings_of(config, opened.folder, path)
    prefix = hf_vision.LANGUAGE_PREFIX
    language = {k.removeprefix(prefix): leaf for k, leaf in opened.leaves.items() if k.startswith(prefix)}
    settings = {}
    if language:
        text = config.get("text_config", {})
        if text.get("model_type") not in T5_TYPES:
            raise CheckpointError(f"The language model of {path} is a {text.get('model_type')}, and no T5.")
        leaves |= _t5_leaves(language, text, path)
        settings = _settings(text, path)
    return dataclasses.replace(opened, leaves=dict(sorted(leaves.items())), settings=settings, part_settings=parts)


def _tensors(folder: epath.Path, path: str) -> dict[str, Leaf]:
    for single, read in ((SAFE, safetensors_file.read_leaves), (TORCH, _torch_leaves)):
        index = folder / f"{single}.index.json"
        if index.exists():
            try:
                where = json.loads(index.read_text())["weight_map"]
            except (json.JSONDecodeError, KeyError) as e:
                raise CheckpointError(f"{index} is damaged or cut short ({e}); copy it again.") from e
            missing = sorted({file for file in where.values() if not (folder / file).exists()})
            if missing:
                raise CheckpointError(f"{path} lacks {len(missing)} of its files: {', '.join(missing[:4])}.")
            tensors = {}
            for file in sorted(set(where.values())):
                tensors |= read(folder / file)
            lost = sorted(where.keys() - tensors.keys())
            if lost:
                raise CheckpointError(f"{path}: its index names {lost[0]}, and {where[lost[0]]} does not have it.")
            return tensors
        if (folder / single).exists():
            return read(folder / single)
    raise CheckpointError(f"{path} holds no weights: neither {SAFE} nor {TORCH}.")


def _torch_leaves(file: epath.Path) -> dict[str, Leaf]:
    try:
        import torch
    except ModuleNotFoundError as e:
        raise CheckpointError(f"{file} needs PyTorch to be read; install torch, or take a safetensors file.") from e
    try:
        state = torch.load(os.fspath(file), weights_only=True, mmap=True, map_location="cpu")
    except Exception as e:  # torch has no error of its own for this
        raise CheckpointError(
            f"{file} is damaged, or no plain dictionary of tensors ({str(e).splitlines()[0][:120]})."
        ) from e

    def leaf(name, tensor):
        bits = tensor.dtype == torch.bfloat16
        dtype = np.dtype(str(tensor.dtype).removeprefix("torch."))
        view = (tensor.view(torch.int16) if bits else tensor).detach().numpy()
        grain = (1, *view.shape[1:]) if view.shape else ()
        return Leaf(view.shape, dtype, name, lambda index: view[index].view(dtype), grain)

    return {name: leaf(name, tensor) for name, tensor in state.items()}


def _settings(config: dict, path: str) -> dict:
    """What shapes do not show."""
    feed_forward = config.get("feed_forward_proj", "relu")
    if feed_forward not in ACTIVATIONS:
        raise CheckpointError(f"{path} has feed_forward_proj {feed_forward!r}; known are {', '.join(ACTIVATIONS)}.")
    if config.get("layer_norm_epsilon", 1e-6) != 1e-6:
        raise CheckpointError(f"{path} has layer_norm_epsilon {config['layer_norm_epsilon']}; T5 has 1e-06 here.")
    return {
        "mlp_activations": ACTIVATIONS[feed_forward],
        "relpos_max_distance": config.get("relative_attention_max_distance", 128),
    }


def _t5_leaves(tensors: dict[str, Leaf], config: dict, path: str) -> dict[str, Leaf]:
    tensors = {name: leaf for name, leaf in tensors.items() if name != _UNUSED}
    tables = {name: tensors.pop(name) for name in _TIED if name in tensors}
    shared = tensors.get(TABLE) or tables.get("encoder.embed_tokens.weight")
    if shared is None:
        raise CheckpointError(f"{path} lacks {TABLE}, the embedding table.")
    tensors[TABLE] = shared
    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        if name in tables and not _equal(tables[name], shared):
            raise CheckpointError(
                f"{path}: {name} is not {TABLE}, as in a folder with a folded adapter; give the base that it was made of."
            )
    head = tables.get("lm_head.weight")
    if head is not None and _equal(head, shared):
        head = None
    scaled = _scales_logits(config)
    if head is not None and scaled:
        raise CheckpointError(
            f"{path} scales the logits of an untied head (tie_word_embeddings is not false); no T5 does, and none here."
        )
    if not scaled:  # tied without scaling is untied with the same matrix
        tensors["lm_head.weight"] = shared if head is None else head
    leaves = {}
    for theirs, leaf in tensors.items():
        name = t5x_name(theirs)
        if name is None:
            leaves[theirs] = leaf  # left over: the loader names it
        elif name.endswith("/kernel") or name.endswith("rel_embedding"):
            leaves[name] = transposed(leaf)
        else:
            leaves[name] = leaf
    return dict(sorted(leaves.items()))


def _scales_logits(config: dict) -> bool:
    """`transformers`' rule: mT5 never; T5 unless `tie_word_embeddings` was saved as false."""
    if config["model_type"] != "t5":
        return False
    return config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True) is not False)


def _equal(a: Leaf, b: Leaf) -> bool:
    return a.shape == b.shape and all(np.array_equal(a.read(block), b.read(block)) for block in a.blocks())


def copy_vocabulary(source: Source, folder: epath.Path) -> None:
    """Copies the files of the source's tokenizer, those that it has."""
    for name in VOCABULARY_FILES:
        if (source.folder / name).exists():
            (source.folder / name).copy(folder / name, overwrite=True)


def config_of(source: Source, activations: tuple[str, ...], dtype: str) -> dict:
    """The `config.json` of a T5: the source's own, or one made from its sizes.

    Raises:
      CheckpointError: for a leaf or activations that no Hugging Face T5 has.
    """
    for name in source.leaves:
        hf_name(name)
    if source.config.get("model_type") in T5_TYPES:
        return {key: value for key, value in source.config.items() if key != "torch_dtype"} | {"dtype": dtype}
    feed_forward = [name for name, value in ACTIVATIONS.items() if value == activations]
    if not feed_forward:
        raise CheckpointError(
            f"{source.path} has the activations {activations}; a Hugging Face T5 has one of {list(ACTIVATIONS.values())}."
        )
    sizes = t5_sizes(source.shapes)
    tied = sizes["logits_via_embedding"]
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "vocab_size": sizes["vocab_size"],
        "d_model": sizes["emb_dim"],
        "d_kv": sizes["head_dim"],
        "d_ff": sizes["mlp_dim"],
        "num_heads": sizes["num_heads"],
        "num_layers": sizes["num_encoder_layers"],
        "num_decoder_layers": sizes["num_decoder_layers"],
        "feed_forward_proj": feed_forward[0],
        "relative_attention_num_buckets": sizes["relpos_num_buckets"],
        "relative_attention_max_distance": source.settings.get("relpos_max_distance", 128),
        "layer_norm_epsilon": 1e-6,
        "dropout_rate": 0.1,
        "tie_word_embeddings": tied,
        "scale_decoder_outputs": tied,
        "is_encoder_decoder": True,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "dtype": dtype,
    }


def write(
    folder: epath.Path, source: Source, config: dict, dtype: str | None = None, extra: dict[str, Leaf] | None = None
) -> None:
    """Writes a T5 as a Hugging Face folder, in files of at most `SHARD_BYTES`.

    Args:
      folder: made if absent.
      source: a T5 with one relative-position table a stack.
      config: `config.json`.
      dtype: of all values; None keeps each leaf's own.
      extra: further tensors under Hugging Face's names (a folded encoder table).
    """
    tensors = dict(extra or {})
    for name, leaf in source.leaves.items():
        turn = name.endswith("/kernel") or name.endswith("rel_embedding")
        tensors[hf_name(name)] = transposed(leaf) if turn else leaf
    folder.mkdir(parents=True, exist_ok=True)
    dtypes = {name: np.dtype(dtype) if dtype else leaf.dtype for name, leaf in tensors.items()}
    shards, size = [{}], 0
    for name in sorted(tensors):
        length = tensors[name].size * dtypes[name].itemsize
        if shards[-1] and size + length > SHARD_BYTES:
            shards, size = [*shards, {}], 0
        shards[-1][name], size = tensors[name], size + length
    files = [SAFE] if len(shards) == 1 else [
        f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))
    ]  # fmt: skip
    for file, shard in zip(files, shards):
        safetensors_file.write_leaves(folder / file, shard, dtypes)
    if len(files) > 1:
        where = {name: file for file, shard in zip(files, shards) for name in shard}
        total = sum(leaf.size * dtypes[name].itemsize for name, leaf in tensors.items())
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / f"{SAFE}.index.json").write_text(json.dumps(index, indent=2) + "\n")
    copy_vocabulary(source, folder)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
