"""Native base models: a folder with `model.safetensors` (unscanned names) and `base_config.json`.

Of a quantised model the values of `model.safetensors` are codes and scales (`quantised_files`).
`base_config.json` is written last and holds the fingerprint and exact digests of all leaves, which every load compares with the
arrays that it read. Files of version 0.1.0 have the fingerprint alone, which is of values rounded to bfloat16.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from etils import epath

from adalink_jax import parallel
from adalink_jax.checkpoints.digests import Checksums, joined
from adalink_jax.checkpoints.families.family import LANGUAGE
from adalink_jax.checkpoints.positions import BILINEAR
from adalink_jax.checkpoints.quantised_files import QuantisedForm, QuantisedModel, values_of
from adalink_jax.checkpoints.source import Source
from adalink_jax.errors import CheckpointError
from adalink_jax.files import safetensors_file, sealed_json
from adalink_jax.files.leaves import Index, Leaf
from adalink_jax.files.places import path_of
from adalink_jax.files.typed_json import Form, as_form, parse_object, read_text
from adalink_jax.files.whole_file import writing_folder
from adalink_jax.models import paths
from adalink_jax.models.quantised import Quantised, dequantised

Marks = tuple[str, Mapping[str, str]]  # fingerprint, digests
WEIGHTS, CONFIG = "model.safetensors", "base_config.json"
FORMAT_VERSION, QUANTISED_VERSION = 2, 3
_REMEDY = "copy or write it again"
UNVERIFIED = "native base model (without digests, of version 0.1.0)"


class _Config(Form):
    """`base_config.json`."""

    format_version: Annotated[int, pydantic.Field(ge=1)]
    name: str
    fingerprint: str
    digests: dict[str, str] | None = None
    digest: str | None = None
    settings: dict[str, Any] = {}
    part_settings: dict[str, dict[str, Any]] = {}
    position_rule: Literal["bilinear", "bicubic"] = BILINEAR
    quantised: QuantisedForm | None = None
    parent: str | None = None


def is_folder(folder: epath.Path) -> bool:
    """Whether `folder` is a native base model."""
    return (folder / CONFIG).exists()


def open_folder(folder: epath.Path, path: str) -> Source:
    """Opens a native base model.

    Args:
      folder: the folder.
      path: the folder as the user gave it, for errors.

    Raises:
      CheckpointError: for a folder that is damaged, incomplete, or of a newer version of this package.
    """
    text = read_text(folder / CONFIG, _REMEDY, CheckpointError)
    stated = parse_object(text, f"{path}/{CONFIG}", _REMEDY, CheckpointError)
    config = as_form(stated, _Config, f"{path}/{CONFIG}", _REMEDY, CheckpointError)
    if config.format_version > QUANTISED_VERSION:
        raise CheckpointError(f"{path} was written by a newer version of adalink-jax; update adalink-jax.")
    sealed = config.format_version > 1 or config.digest is not None
    if sealed and not (config.digest and config.digests is not None and sealed_json.is_intact(text, config.digest)):
        raise CheckpointError(f"{path}/{CONFIG} was changed after it was written; {_REMEDY}.")
    if not (folder / WEIGHTS).exists():
        raise CheckpointError(f"{path} has no {WEIGHTS}; copy or write it again.")
    leaves, metadata = safetensors_file.read_header(folder / WEIGHTS)
    if sealed and metadata not in ({}, safetensors_file.PLAIN):
        raise CheckpointError(f"The header of {path}/{WEIGHTS} was changed after it was written; {_REMEDY}.")
    if config.quantised is not None:
        leaves = values_of(leaves, config.quantised, f"{path}/{WEIGHTS}")
    plain = lambda fields: {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    return Source(
        kind="native base model" if sealed else UNVERIFIED,
        path=path,
        name=config.name,
        leaves=dict(sorted(leaves.items())),
        folder=folder,
        settings={part: plain(fields) for part, fields in {LANGUAGE: config.settings, **config.part_settings}.items()},
        fingerprint=config.fingerprint,
        parent=config.parent,
        digests=config.digests or {},
        position_rule=config.position_rule,
    )


def save_base(
    folder: str | epath.Path, params: Mapping[str, Any], name: str, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes a backbone's parameters as a native base model, in float32 (quantised leaves as their values); all processes call it.

    Process 0 writes, and the others send it what it lacks of one leaf after the other, or of one layer of a stack: besides the parameters a
    device and the host of process 0 hold one such leaf.

    Args:
      folder: created if absent.
      params: `{name in memory: array}`, flat or nested, scanned or not.
      name: the base model's name, such as "pali_nano".
      about: JSON-able facts to store beside it (task, step, metrics, versions).

    Returns:
      The contents of `base_config.json`, with the `fingerprint`.
    """
    params = paths.flatten(params)
    exact, rounded = Checksums(rounded=False), Checksums(rounded=True)
    for key, part in _parts(params):
        exact.add(key, jnp.asarray(part, jnp.float32))
        rounded.add(key, part)
    marks = joined(rounded.by_name()), exact.by_name()
    gathered = ((key, parallel.to_first(part)) for key, part in _parts(params))
    values: dict[str, np.ndarray | None] = {}  # of one leaf, the last

    def read(index: Index, key: str) -> np.ndarray:
        while key not in values:
            values.clear()
            values.update([next(gathered)])
        return np.asarray(values[key])[index].astype(np.float32)

    saved, error = {}, None
    if parallel.is_first():
        grain = lambda shape: (1, *shape[1:]) if shape else ()
        leaves = {
            key: Leaf(shape, np.dtype(np.float32), key, functools.partial(read, key=key), grain(shape))
            for key, shape in paths.unscanned_shapes(params).items()
        }
        try:
            with writing_folder(path_of(folder)) as new:
                saved = _write(new, leaves, name, about, marks, None)
        except Exception as e:
            error = e
    for _ in gathered:  # the part of the other processes, and of one that failed
        pass

    def outcome() -> dict[str, Any]:
        if error is not None:
            raise error
        return saved

    return parallel.once(outcome)


def _parts(params: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The leaves by their names in files, made one after the other: the layers of stacks, and the values of quantised leaves."""
    for name, leaf in params.items():
        names = paths.unscanned_names(name, leaf.shape)
        for i, part_name in enumerate(names):
            part = leaf if names == [name] else _layer(leaf, i)
            yield part_name, dequantised(part) if isinstance(part, Quantised) else part


def _layer(stack: Any, i: int) -> Any:
    """Layer `i` of a stack."""
    at = lambda x: x[i] if isinstance(x, np.ndarray) else jax.lax.dynamic_index_in_dim(x, i, keepdims=False)
    return jax.tree.map(at, stack)


def write(
    folder: epath.Path, source: Source, dtype: str | None, marks: Marks, quantised: QuantisedModel | None = None
) -> dict[str, Any]:
    """Writes a source as a native base model.

    Args:
      folder: created if absent.
      source: the model.
      dtype: the dtype of all values; None keeps each leaf's own.
      marks: the source's fingerprint and digests (`digests.marks_of_source`, for the same dtype).
      quantised: the source's quantised form, whose `source` it is, to be written as it is; None for values as they are.

    Returns:
      The contents of `base_config.json`.
    """
    parts = dict(source.settings)
    about: dict[str, Any] = {"settings": parts.pop(LANGUAGE, {}), "converted_from": source.kind}
    if parts:
        about |= {"part_settings": parts, "position_rule": source.position_rule}
    if quantised is not None:
        form = quantised.form.model_dump()
        about |= {"format_version": QUANTISED_VERSION, "parameters": source.parameters}
        about |= {"quantised": form, "parent": source.parent}
    tensors = source.leaves if quantised is None else quantised.tensors
    return _write(folder, tensors, source.name, about, marks, dtype)


def _write(
    folder: epath.Path, leaves: Mapping[str, Leaf], name: str, about: Mapping[str, Any], marks: Marks, dtype: str | None
) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    stored = np.dtype(dtype) if dtype else None
    dtypes = {key: stored or leaf.dtype for key, leaf in leaves.items()}
    safetensors_file.write_leaves(folder / WEIGHTS, leaves, dtypes)
    config = {
        "format_version": FORMAT_VERSION,
        "name": name,
        "parameters": sum(leaf.size for leaf in leaves.values()),
        "fingerprint": marks[0],
        "digests": marks[1],
        **about,
    }
    (folder / CONFIG).write_text(sealed_json.seal(config))
    return config
