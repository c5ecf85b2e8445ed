"""Hugging Face folders: `config.json` and safetensors, sharded or not, local or on the Hub.

The family of models that reads the folder's `model_type` translates names and settings. `pytorch_model.bin` is read through
`torch.load(weights_only=True, mmap=True)`, and only where there is no safetensors file.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from adalink_jax.adapters.folding import TABLE
from adalink_jax.checkpoints.families import image_processors
from adalink_jax.checkpoints.families.family import Family, family_of_model_type, family_of_shapes
from adalink_jax.checkpoints.positions import BICUBIC, BILINEAR
from adalink_jax.checkpoints.source import Source
from adalink_jax.errors import CheckpointError
from adalink_jax.files import safetensors_file
from adalink_jax.files.leaves import Leaf

CONFIG, HUB = "config.json", "hf://"
SAFE, TORCH = "model.safetensors", "pytorch_model.bin"
SHARD_BYTES = 5 * 10**9
VOCABULARY_FILES = (  # files that a tokenizer may consist of
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def download(path: str) -> epath.Path:
    """Downloads what `huggingface_hub`'s cache lacks of `hf://OWNER/NAME[@revision]`, and returns the folder in the cache.

    Raises:
      CheckpointError: if `huggingface_hub` is missing, or the repository is not available.
    """
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ModuleNotFoundError as e:
        raise CheckpointError(f"{path} needs huggingface_hub: pip install 'adalink-jax[hf]'.") from e
    repo, _, revision = path.removeprefix(HUB).partition("@")
    get = lambda patterns: huggingface_hub.snapshot_download(
        repo, revision=revision or None, allow_patterns=list(patterns)
    )
    small = (CONFIG, *image_processors.FILES, "*.index.json", "qformer_tokenizer/*.json", *VOCABULARY_FILES)
    try:
        folder = epath.Path(get((*small, "model*.safetensors")))
        if not any(f.name.endswith(".safetensors") for f in folder.iterdir()):
            folder = epath.Path(get((*small, "pytorch_model*.bin")))
        return folder
    except (errors.HfHubHTTPError, errors.HFValidationError, errors.LocalEntryNotFoundError, OSError) as e:
        offline = ", and HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else ""
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise CheckpointError(f"{path} is not available{offline}: {reason}") from e


def is_folder(folder: epath.Path) -> bool:
    """Whether `folder` holds weights as Hugging Face stores them."""
    return any((folder / name).exists() for name in (SAFE, f"{SAFE}.index.json", TORCH, f"{TORCH}.index.json"))


def open_folder(folder: epath.Path, path: str) -> Source:
    """Opens a folder; leaves of a model that no family knows keep the file's names.

    Args:
      folder: the folder.
      path: the folder as the user gave it, for errors.

    Raises:
      CheckpointError: for files that are missing or damaged, and settings that this package does not implement.
    """
    try:
        config = json.loads((folder / CONFIG).read_text()) if (folder / CONFIG).exists() else {}
    except json.JSONDecodeError as e:
        raise CheckpointError(f"{path}/{CONFIG} is damaged or cut short ({e}); copy it again.") from e
    leaves, settings = _tensors(folder, path), {}
    if family := family_of_model_type(config.get("model_type")):
        translation = family.from_hugging_face(leaves, config, folder, path)
        leaves, settings = translation.leaves, translation.settings
    return Source(
        kind=f"Hugging Face folder ({config.get('model_type', 'no config.json')})",
        path=path,
        name=path.removeprefix(HUB) if path.startswith(HUB) else config.get("_name_or_path") or folder.name,
        leaves=dict(sorted(leaves.items())),
        folder=folder,
        settings=settings,
        config=config,
        position_rule=BICUBIC if family else BILINEAR,
    )


def _tensors(folder: epath.Path, path: str) -> dict[str, Leaf]:
    for single, read in ((SAFE, safetensors_file.read_leaves), (TORCH, _torch_leaves)):
        index = folder / f"{single}.index.json"
        if index.exists():
            try:
                file_of_tensor = json.loads(index.read_text())["weight_map"]
            except (json.JSONDecodeError, KeyError) as e:
                raise CheckpointError(f"{index} is damaged or cut short ({e}); copy it again.") from e
            files = sorted(set(file_of_tensor.values()))
            missing = [file for file in files if not (folder / file).exists()]
            if missing:
                raise CheckpointError(
                    f"{path} lacks {len(missing)} of its files: {', '.join(missing[:4])}; copy or download them again."
                )
            tensors = {name: leaf for file in files for name, leaf in read(folder / file).items()}
            lost = sorted(file_of_tensor.keys() - tensors.keys())
            if lost:
                raise CheckpointError(
                    f"{path}: {index.name} places {lost[0]} in {file_of_tensor[lost[0]]}, which does not have it; copy or "
                    f"download the folder again."
                )
            return tensors
        if (folder / single).exists():
            return read(folder / single)
    raise CheckpointError(f"{path} has no weights: neither {SAFE} nor {TORCH}; copy or download it again.")


def _torch_leaves(file: epath.Path) -> dict[str, Leaf]:
    try:
        import torch  # pyright: ignore[reportMissingImports]  # optional
    except ModuleNotFoundError as e:
        raise CheckpointError(f"{file} needs PyTorch to be read: install torch, or use a safetensors file.") from e
    try:
        state = torch.load(os.fspath(file), weights_only=True, mmap=True, map_location="cpu")
    except Exception as e:  # torch raises errors of many types here
        reason = str(e).splitlines()[0][:120]
        raise CheckpointError(f"{file} is damaged, or not a plain dictionary of tensors ({reason}).") from e

    def leaf(name: str, tensor: Any) -> Leaf:
        bits = tensor.dtype == torch.bfloat16
        dtype = np.dtype(str(tensor.dtype).removeprefix("torch."))
        view = (tensor.view(torch.int16) if bits else tensor).detach().numpy()
        grain = (1, *view.shape[1:]) if view.shape else ()
        return Leaf(view.shape, dtype, name, lambda index: view[index].view(dtype), grain)

    return {name: leaf(name, tensor) for name, tensor in state.items()}


def copy_vocabulary(source: Source, folder: epath.Path) -> None:
    """Copies those files of a tokenizer that the source has."""
    for name in VOCABULARY_FILES:
        if (source.folder / name).exists():
            (source.folder / name).copy(folder / name, overwrite=True)


def config_of(source: Source, dtype: str | None = None) -> dict[str, Any]:
    """The `config.json` for `source`: its own, or one made from its sizes and settings.

    Args:
      source: a language model; without a `config.json` of its own its settings state every deciding field of its family.
      dtype: the dtype that `config.json` states; None means the embedding table's.

    Raises:
      CheckpointError: for a model, a leaf, or a setting that no Hugging Face model has.
    """
    family = _family_of(source)
    family.to_hugging_face(source.leaves)  # refuses leaves that Hugging Face's model does not have
    if source.config.get("model_type") in family.model_types:
        config = {key: value for key, value in source.config.items() if key != "torch_dtype"}
    else:
        config = family.hugging_face_config(source)
    return config | {"dtype": dtype or source.leaves[TABLE].dtype.name}


def write(
    folder: epath.Path,
    source: Source,
    config: Mapping[str, Any],
    dtype: str | None = None,
    extra: Mapping[str, Leaf] | None = None,
) -> None:
    """Writes a language model as a Hugging Face folder, in files of at most `SHARD_BYTES`.

    Args:
      folder: created if absent.
      source: the model.
      config: the contents of `config.json` (`config_of`).
      dtype: the dtype of all values; None keeps each leaf's own.
      extra: further tensors by Hugging Face's names (a folded encoder table).
    """
    tensors = {**(extra or {}), **_family_of(source).to_hugging_face(source.leaves)}
    folder.mkdir(parents=True, exist_ok=True)
    dtypes = {name: np.dtype(dtype) if dtype else leaf.dtype for name, leaf in tensors.items()}
    shards, size = [{}], 0
    for name in sorted(tensors):
        length = tensors[name].size * dtypes[name].itemsize
        if shards[-1] and size + length > SHARD_BYTES:
            shards, size = [*shards, {}], 0
        shards[-1][name], size = tensors[name], size + length
    files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    files = [SAFE] if len(shards) == 1 else files
    for file, shard in zip(files, shards):
        safetensors_file.write_leaves(folder / file, shard, dtypes)
    if len(files) > 1:
        file_of_tensor = {name: file for file, shard in zip(files, shards) for name in shard}
        total = sum(leaf.size * dtypes[name].itemsize for name, leaf in tensors.items())
        index = {"metadata": {"total_size": total}, "weight_map": file_of_tensor}
        (folder / f"{SAFE}.index.json").write_text(json.dumps(index, indent=2) + "\n")
    copy_vocabulary(source, folder)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _family_of(source: Source) -> Family:
    family = family_of_shapes(source.shapes)
    if family is None:
        raise CheckpointError(f"{source.path} is not a language model that can be written as a Hugging Face folder.")
    return family
