"""Hugging Face folders: `config.json` and safetensors, sharded or not, local or on the Hub.

The family of models that reads the folder's `model_type` translates names and settings. `pytorch_model.bin` is read through
`torch.load(weights_only=True, mmap=True)`, and only where there is no safetensors file.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pydantic
from etils import epath

from adalink_jax.adapters.folding import TABLE
from adalink_jax.checkpoints.families import image_processors
from adalink_jax.checkpoints.families.family import Family, family_of_model_type, family_of_shapes, one_id, translating
from adalink_jax.checkpoints.positions import BICUBIC, BILINEAR
from adalink_jax.checkpoints.source import Source
from adalink_jax.errors import CheckpointError, GatedError
from adalink_jax.files import network_calls, safetensors_file
from adalink_jax.files.hub_file import HubFile
from adalink_jax.files.leaves import Leaf
from adalink_jax.files.places import file_size, path_of
from adalink_jax.files.typed_json import Form, as_form, find_object, read_form

CONFIG, GENERATION, HUB = "config.json", "generation_config.json", "hf://"
SAFE, TORCH = "model.safetensors", "pytorch_model.bin"
SHARD_BYTES = 5 * 10**9
VOCABULARY_FILES = (  # files that a tokenizer may consist of
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
FILES_OF_THE_BASE = (GENERATION, *VOCABULARY_FILES, *image_processors.FILES)  # that a converted base keeps


class _Config(Form):
    """`config.json`; the family of models reads the rest."""

    model_type: str | None = None
    name_or_path: str | None = pydantic.Field(None, alias="_name_or_path")
    tokenizer_class: str | None = None
    # Other weights than the files'.
    quantization_config: Any = None
    transformers_weights: Any = None


class _Index(Form):
    """`model.safetensors.index.json`."""

    weight_map: dict[str, str]


def download(path: str, weights: bool = True) -> epath.Path:
    """Downloads what `huggingface_hub`'s cache lacks of `hf://OWNER/NAME[@revision]`, and returns the folder in the cache.

    Args:
      path: the repository.
      weights: whether to download the weights, too.

    Raises:
      CheckpointError: if `huggingface_hub` is missing, or the repository is not available; `GatedError` if it is for those alone who have
        accepted its terms.
    """
    small = (CONFIG, "*.index.json", "qformer_tokenizer/*.json", *FILES_OF_THE_BASE)
    if not weights:
        return download_files(path, *small)
    folder = download_files(path, *small, "model*.safetensors")
    return folder if any(folder.glob("*.safetensors")) else download_files(path, *small, "pytorch_model*.bin")


def download_files(path: str, *patterns: str) -> epath.Path:
    """As `download`, of the files whose names match the `patterns`, with `*`."""
    with _from_the_hub(path) as (hub, repository, revision):
        return path_of(hub.snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))


@contextlib.contextmanager
def _from_the_hub(path: str) -> Iterator[tuple[Any, str, str | None]]:
    """Yields `huggingface_hub`, and the repository and revision of `hf://OWNER/NAME[@revision]`; what goes wrong within it is one sentence."""
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ModuleNotFoundError as e:
        raise CheckpointError(f"{path} needs huggingface_hub: pip install 'adalink-jax[hf]'.") from e
    repository, _, revision = path.removeprefix(HUB).partition("@")
    try:
        yield huggingface_hub, repository, revision or None
    except errors.GatedRepoError as e:
        raise GatedError(
            f"{path} is gated; accept its terms at {huggingface_hub.constants.ENDPOINT}/{repository}, then run hf auth login."
        ) from e
    except (
        errors.HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # httpx's, under any of its names
        errors.HFValidationError,
        errors.LocalEntryNotFoundError,
        OSError,
    ) as e:
        offline = ", and HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else ""
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise CheckpointError(f"{path} is not available{offline}: {reason.rstrip('.')}.") from e


def open_on_the_hub(path: str) -> Source:
    """Opens `hf://OWNER/NAME[@revision]` without downloading its weights, which are read where they are; at first their names and shapes,
    and as much of tables that models may share as shows whether this one does. Without safetensors they are downloaded.

    Raises:
      CheckpointError: see `download` and `open_folder`.
    """
    folder = download(path, weights=False)
    index = folder / f"{SAFE}.index.json"
    shards = read_form(index, _Index, error=CheckpointError).weight_map.values() if index.exists() else ()
    names = sorted(set(shards)) or [SAFE]
    if all((folder / name).exists() for name in names):  # in the cache
        return open_folder(folder, path)
    with _from_the_hub(path):
        files = [HubFile(f"{path}/{name}") for name in names]
        if not files[0].exists():
            return open_folder(download(path), path)
        tensors = _of_all(safetensors_file.read_leaves, files, network_calls.AT_ONCE)
        return _opened(tensors, folder, path)


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
    return _opened(_tensors(folder, path), folder, path)


def _opened(leaves: dict[str, Leaf], folder: epath.Path, path: str) -> Source:
    """Tensors by their names in the files, with what the other files of `folder` state."""
    config = find_object(folder / CONFIG, error=CheckpointError) or {}
    stated = as_form(config, _Config, f"{path}/{CONFIG}", error=CheckpointError)
    for key in ("quantization_config", "transformers_weights"):
        if getattr(stated, key) is not None:
            raise CheckpointError(f"{path}/{CONFIG} has {key}, which this package does not support.")
    settings = {}
    if family := family_of_model_type(stated.model_type):
        generation = find_object(folder / GENERATION, error=CheckpointError) or {}
        complete = _with_generation(config, generation, family.implied, path)
        with translating(path):
            translation = family.from_hugging_face(leaves, complete, folder, path)
        leaves, settings = translation.leaves, translation.settings
    return Source(
        kind=f"Hugging Face folder ({stated.model_type or 'no config.json'})",
        path=path,
        name=path.removeprefix(HUB) if path.startswith(HUB) else stated.name_or_path or folder.name,
        leaves=dict(sorted(leaves.items())),
        folder=folder,
        settings=settings,
        config=config,
        position_rule=BICUBIC if family else BILINEAR,
    )


def _tensors(folder: epath.Path, path: str) -> dict[str, Leaf]:
    """The folder's tensors; of several files the one that `transformers` takes."""
    for single, read in ((SAFE, safetensors_file.read_leaves), (TORCH, _torch_leaves)):
        if (folder / single).exists():
            return read(folder / single)
        index = f"{single}.index.json"
        if (folder / index).exists():
            return _shards(folder, path, index, read)
    raise CheckpointError(f"{path} has no weights: neither {SAFE} nor {TORCH}; copy or download it again.")


def _shards(
    folder: epath.Path, path: str, index: str, read: Callable[[epath.Path], dict[str, Leaf]]
) -> dict[str, Leaf]:
    file_of_tensor = read_form(folder / index, _Index, error=CheckpointError).weight_map
    files = sorted(set(file_of_tensor.values()))
    if outside := [file for file in files if not file or "\0" in file or file != pathlib.PurePath(file).name]:
        raise CheckpointError(
            f"{path}/{index} names {outside[0]!r}, which is not a file of this folder; copy it again."
        )
    if missing := [file for file in files if not (folder / file).exists()]:
        raise CheckpointError(
            f"{path} lacks {len(missing)} of its files: {', '.join(missing[:4])}; copy or download them again."
        )
    tensors = _of_all(read, [folder / file for file in files], network_calls.at_once(folder))
    if lost := sorted(file_of_tensor.keys() - tensors.keys()):
        raise CheckpointError(
            f"{path}: {index} places {lost[0]} in {file_of_tensor[lost[0]]}, which does not have it; copy or download the "
            f"folder again."
        )
    return tensors


def _of_all(read: Callable[[Any], dict[str, Leaf]], files: Iterable[Any], at_once: int) -> dict[str, Leaf]:
    """The tensors of several files, of which so many are opened at a time."""
    return {name: leaf for leaves in network_calls.mapped(read, files, at_once) for name, leaf in leaves.items()}


def _with_generation(config: dict[str, Any], generation: Mapping[str, Any], fields: Iterable[str], path: str) -> dict:
    """`config` with those `fields` that `generation_config.json` states; both must state the same, or the latter more."""
    stated = {name: generation[name] for name in fields if generation.get(name) is not None}
    for name, value in stated.items():
        first = value[:1] if isinstance(value, list) else value
        if config.get(name) is not None and one_id(config[name]) not in (one_id(value), one_id(first)):
            raise CheckpointError(
                f"{path} has {name} {config[name]!r:.60} in {CONFIG} and {value!r:.60} in {GENERATION}; make them the same."
            )
    return config | stated


def _torch_leaves(file: epath.Path) -> dict[str, Leaf]:
    try:
        import torch  # pyright: ignore[reportMissingImports]  # optional
    except ModuleNotFoundError as e:
        raise CheckpointError(f"{file} needs PyTorch to be read: install torch, or use a safetensors file.") from e
    try:
        file_size(file, error=CheckpointError)
        state = torch.load(os.fspath(file), weights_only=True, mmap=True, map_location="cpu")
    except CheckpointError:
        raise
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


def copy_files(source: Source, folder: epath.Path) -> None:
    """Copies the tokenizer's and the generation's files that the source has.

    Where only the `config.json` of a Hugging Face folder says that `transformers` reads the vocabulary, a file is added that
    says it in the copy.
    """
    for name in FILES_OF_THE_BASE:
        if (source.folder / name).exists():
            (source.folder / name).copy(folder / name, overwrite=True)
    kind = source.config.get("tokenizer_class") or ("T5Tokenizer" if (folder / "spiece.model").exists() else None)
    if source.config and kind and not (folder / "tokenizer_config.json").exists():
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}) + "\n")


def config_of(source: Source, dtype: str | None = None) -> dict[str, Any]:
    """The `config.json` for `source`: its own, or one made from its sizes and settings.

    Args:
      source: a language model; without a `config.json` of its own its settings state every deciding field of its family.
      dtype: the dtype that `config.json` states; None means the embedding table's.

    Raises:
      CheckpointError: for a model, a leaf, or a setting that no Hugging Face model has.
    """
    family = family_of(source)
    family.to_hugging_face(source.leaves)  # refuses leaves that Hugging Face's model does not have
    if source.config.get("model_type") in family.model_types:
        config = family.kept_config(source.config, source)
        config.pop("torch_dtype", None)
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
      extra: tensors by Hugging Face's names in place of the source's, or beside them (a folded encoder table).
    """
    tensors = {**family_of(source).to_hugging_face(source.leaves), **(extra or {})}
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
    copy_files(source, folder)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def family_of(source: Source) -> Family:
    """The family of a language model.

    Raises:
      CheckpointError: for another model.
    """
    family = family_of_shapes(source.shapes)
    if family is None:
        raise CheckpointError(f"{source.path} is not a language model that can be written as a Hugging Face folder.")
    return family
