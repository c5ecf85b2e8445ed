"""Adapter folders with PEFT's file names: `adapter_model.safetensors` and `adapter_config.json`.

This package's fields are under one key, `adalink`, with a `format_version`; files of every released version load. LoRA and
prompt tuning are written in PEFT's layout and read from PEFT's folders (`peft_files`); other methods use this package's names.

A file is not trusted: its header and configuration are checked before values are read, and nothing is unpickled.
"""

import os
from collections.abc import Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from etils import epath

from adalink_jax import parallel
from adalink_jax.adapters import describe_adapter, make_adapter
from adalink_jax.adapters.registry import METHODS
from adalink_jax.checkpoints import hugging_face, peft_files
from adalink_jax.checkpoints.adapter_facts import AdapterFacts, BaseReference
from adalink_jax.checkpoints.digests import note_unverified
from adalink_jax.errors import CheckpointError, UserError
from adalink_jax.files import safetensors_file, sealed_json
from adalink_jax.files.leaves import Leaf, from_array
from adalink_jax.files.places import path_of
from adalink_jax.files.typed_json import Form, as_form, parse_object, read_text
from adalink_jax.files.whole_file import writing_folder
from adalink_jax.models import paths
from adalink_jax.near_names import did_you_mean, near_paths
from adalink_jax.version import __version__

WEIGHTS, CONFIG, PICKLE = "adapter_model.safetensors", "adapter_config.json", "adapter_model.bin"
FORMAT_VERSION = 2  # 1 has no digests
_SEALED = {**safetensors_file.PLAIN, "adalink": "sealed"}  # the metadata of a file whose configuration states digests
_REMEDY = "copy or write it again"
_LOAD_AGAIN = "load it in that precision (FROZEN_DTYPE), or set ALLOW_OTHER_PRECISION = True (`adalink adapters verify` measures what that changes)"
_PEFT_TYPE = "ADALINK"
_UNSEEN = ("phi", "scale", "alpha")  # settings that decide the numbers and that shapes do not show

Folder = str | os.PathLike[str]


class _Base(Form):
    name: str | None
    fingerprint: str | None
    family: str | None = None
    parent: str | None = None
    precision: str | None = None


class _About(Form):
    """The `adalink` object of `adapter_config.json`."""

    format_version: Annotated[int, pydantic.Field(ge=1)]
    method: str
    settings: dict[str, Any] = {}
    base: _Base
    metrics: dict[str, float | bool] = {}
    task: str = ""
    empty_input: list[int] | None = None
    base_settings: dict[str, dict[str, Any]] | None = None
    step: Annotated[int, pydantic.Field(ge=0)] = 0
    version: str = ""
    versions: dict[str, str] = {}
    digests: dict[str, str] | None = None
    digest: str | None = None


class _Written(Form):
    adalink: _About


class _Config(Form):
    """`adapter_config.json`, PEFT's or this package's."""

    peft_type: str = _PEFT_TYPE
    adalink: dict[str, Any] | None = None


def save_adapter(folder: Folder, adapter: Mapping[str, Any], facts: AdapterFacts | Mapping[str, Any]) -> None:
    """Writes an adapter's folder; all processes call it, process 0 writes.

    Args:
      folder: created if absent.
      adapter: `{name in memory: array}` without the leading `adapter/`, flat or nested, scanned or not.
      facts: the adapter's facts, or their JSON with at least `method`, `settings`, and `base` (`name`, `fingerprint`).
    """
    facts = facts if isinstance(facts, AdapterFacts) else AdapterFacts.from_json(facts)
    leaves = paths.unscan(parallel.to_host(paths.flatten(adapter)))
    parallel.once(_write, path_of(folder), leaves, facts)


def _write(destination: epath.Path, leaves: dict[str, np.ndarray], facts: AdapterFacts) -> None:
    native = {"peft_type": _PEFT_TYPE, "task_type": peft_files.task_type(facts.base)}
    tensors, fields = peft_files.to_peft(facts, leaves) or (leaves, native)
    tensors = {name: from_array(np.ascontiguousarray(tensors[name]), name) for name in sorted(tensors)}
    dtypes = {name: leaf.dtype for name, leaf in tensors.items()}
    about = facts.to_json() | {
        "format_version": FORMAT_VERSION,
        "version": __version__,
        "digests": {name: safetensors_file.digest(name, leaf) for name, leaf in tensors.items()},
    }
    as_form({"adalink": about}, _Written, f"The adapter for {destination}", "give other facts", CheckpointError)
    config = fields | {"base_model_name_or_path": facts.base.name, "adalink": about}
    with writing_folder(destination) as folder:
        safetensors_file.write_leaves(folder / WEIGHTS, tensors, dtypes, _SEALED)
        (folder / CONFIG).write_text(sealed_json.seal(config, "adalink"))


def open_adapter(folder: Folder) -> tuple[dict[str, Leaf], AdapterFacts]:
    """Opens an adapter's folder, and compares all that it holds with the digests that it states.

    Args:
      folder: the folder, or `hf://OWNER/NAME[@revision]`, of which an adapter's files alone are downloaded.

    Returns:
      The leaves by this package's names, and the adapter's facts. `facts.verified` is False for files without digests, which
      version 0.1.0 and PEFT write.

    Raises:
      CheckpointError: for a folder that is not an adapter, a damaged file, invalid settings, and what this package does not
        implement.
    """
    path = os.fspath(folder)
    on_hub = path.startswith(hugging_face.HUB)
    directory = hugging_face.download_files(path, CONFIG, WEIGHTS) if on_hub else path_of(folder)
    if (directory / PICKLE).exists() and not (directory / WEIGHTS).exists():
        raise CheckpointError(
            f"{path} holds {PICKLE}, a pickle, which is never opened; save it with PEFT as {WEIGHTS} (its default)."
        )
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).exists():
            remedy = did_you_mean(near_paths(path), "; give a folder such as a run's `adapter/`.")
            raise CheckpointError(f"{path} is not an adapter: it has no {name}{remedy}")
    config = _read_config(directory / CONFIG, path)
    leaves, metadata = safetensors_file.read_header(directory / WEIGHTS)
    about = config.get("adalink") or {}
    _check_digests(leaves, metadata, about, path)
    for name, leaf in leaves.items():
        if any(part in ("", ".", "..") for part in name.split("/")):
            raise CheckpointError(
                f"The adapter {path} holds a leaf named {name[:60]!r}, which is not a valid name; train it again."
            )
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise CheckpointError(
                f"The adapter {path} holds {name[:100]} as {leaf.dtype}; only floating-point values are supported, so save "
                f"it as float32."
            )
    peft_type = config["peft_type"]
    if peft_type in peft_files.TYPES:
        leaves = peft_files.from_peft(leaves, peft_type, path)
    elif not about:
        raise CheckpointError(
            f"The adapter {path} is PEFT's {peft_type[:60]}; of PEFT's methods only {' and '.join(peft_files.TYPES)} are "
            f"supported."
        )
    if not about:
        return leaves, peft_files.facts_of(config, leaves, path)
    facts = AdapterFacts.from_json(about)
    if _is_ours({"method": facts.method, "settings": facts.settings}):
        try:
            make_adapter(facts.method, facts.settings)
        except UserError as e:
            why = str(e).split("\n")[0].rstrip(".")
            raise CheckpointError(f"{path}/{CONFIG} states invalid settings ({why}); copy or write it again.") from e
    return leaves, facts


def _is_ours(description: Any) -> bool:
    """Whether a description names this package's methods only; a user's is checked when its module is made, after its import."""
    if isinstance(description, Mapping):
        return description.get("method") in METHODS and all(map(_is_ours, description.get("settings", {}).values()))
    return all(map(_is_ours, description)) if isinstance(description, list) else True


def _check_digests(
    leaves: Mapping[str, Leaf], metadata: Mapping[str, str], about: Mapping[str, Any], path: str
) -> None:
    """Refuses tensors that are not those whose digests the configuration states."""
    damaged = lambda why: CheckpointError(f"The adapter {path} is damaged ({why}); copy or write it again.")
    stated = about.get("digests")
    if stated is None:
        if "adalink" in metadata:
            raise damaged(f"{CONFIG} lacks the digests of {WEIGHTS}")
        return
    if dict(metadata) != _SEALED:
        raise damaged(f"the header of {WEIGHTS} was changed")
    if odd := sorted(stated.keys() ^ leaves.keys()):
        raise damaged(f"{odd[0][:100]} is {'missing' if odd[0] in stated else 'left over'}")
    for name, leaf in leaves.items():
        if safetensors_file.digest(name, leaf) != stated[name]:
            raise damaged(f"the digest of {name[:100]} differs")


def read_adapter(folder: Folder) -> tuple[dict[str, np.ndarray], AdapterFacts]:
    """Reads an adapter of any method and base model.

    Returns:
      The values by this package's unscanned names, and the adapter's facts.

    Raises:
      CheckpointError: as `open_adapter`, and for values that are not finite.
    """
    leaves, facts = open_adapter(folder)
    _note(folder, facts)
    return _read(leaves, folder), facts


def _note(folder: Folder, facts: AdapterFacts) -> None:
    if not facts.verified:
        note_unverified(f"The adapter {os.fspath(folder)}", "PEFT or by version 0.1.0")


def load_adapter(
    folder: Folder,
    abstract: Mapping[str, Any],
    base: BaseReference,
    allow_other_base: bool = False,
    allow_other_precision: bool = False,
    module: nn.Module | None = None,
    inputs_embeds_scale: float = 1.0,
) -> tuple[dict[str, jax.Array], AdapterFacts]:
    """Reads an adapter for a given base model.

    Args:
      folder: what `save_adapter` or PEFT wrote.
      abstract: the wanted leaves by their names in memory, flat or nested: `jax.ShapeDtypeStruct`s with shardings.
      base: the base model that it is to work on.
      allow_other_base: accept an adapter that was trained on another base model (transfer experiments).
      allow_other_precision: accept one that was trained on the same base model in another precision.
      module: the wanted method; settings that shapes do not show (phi, scale, alpha) are then compared too.
      inputs_embeds_scale: the backbone's. PEFT's prompts precede the multiplication, this package's do not, so they are multiplied.

    Returns:
      The flat `{name in memory: array}`, on the wanted shardings, and the adapter's facts. If `facts.base.fingerprint` is
      None, the file does not state its base model, and the base model was not checked.

    Raises:
      CheckpointError: for a folder that is not an adapter, a damaged file, another method, rank or setting, and another
        base model.
    """
    leaves, facts = open_adapter(folder)
    if not allow_other_base:
        remedy = "load that base, or set ALLOW_OTHER_BASE = True for a transfer experiment"
        check_base(folder, facts, base, remedy, allow_other_precision)
    wanted = paths.flatten(abstract)
    check_shapes(folder, facts, leaves, paths.unscanned_shapes(wanted))
    if module is not None:
        check_method(folder, facts, describe_adapter(module))
    _note(folder, facts)
    values = paths.rescan(_read(leaves, folder), wanted)
    if facts.base.fingerprint is None and "prompt" in values:  # PEFT's
        values["prompt"] = values["prompt"] * np.float32(inputs_embeds_scale)
    return {
        name: jax.device_put(values[name].astype(leaf.dtype), leaf.sharding) for name, leaf in wanted.items()
    }, facts


def check_base(
    path: Folder,
    facts: AdapterFacts,
    base: BaseReference,
    remedy: str,
    allow_other_precision: bool = False,
    precision_remedy: str = _LOAD_AGAIN,
) -> None:
    """Refuses an adapter that was trained on another base model, or on the same one in another precision.

    The rule: fingerprints are compared, which differ between an exact base and each of its quantised forms. Where they differ,
    but those of the exact models are equal, the adapter was trained on the same base in another precision. An adapter
    whose file does not state its base (PEFT's) passes.

    Args:
      path: the adapter, for the error.
      facts: its facts.
      base: the base model that it is to work on.
      remedy: what to do instead of loading it on another base, which ends the error.
      allow_other_precision: whether the same base in another precision will do.
      precision_remedy: what to do instead of loading it on another precision.
    """
    stated = facts.base
    if stated.fingerprint in (None, base.fingerprint):
        return
    if stated.exact == base.exact:
        if not allow_other_precision:
            trained, here = (f"in {x.precision}" if x.precision else "as it is, not quantised" for x in (stated, base))
            if stated.precision == base.precision:
                here += " with other leaves exact (QUANTISED_EXACT)"
            raise CheckpointError(
                f"The adapter {path} was trained on this base {trained}, and the base is loaded here {here}; {precision_remedy}."
            )
        return
    raise CheckpointError(
        f"The adapter {path} was trained on another base: {stated.name} {str(stated.fingerprint)[:12]}, this one is "
        f"{str(base.fingerprint)[:12]}; {remedy}."
    )


def own_base(base: BaseReference) -> str:
    """What to do for an adapter of the base in another precision, where nothing but the base's path can be given."""
    if base.precision is None:
        return "give the exact base with --base"
    kind, _, block = base.precision.partition("/")
    size = f" --block {block}" if block else ""
    return f"give the base in that form with --base, which `adalink convert BASE NEW --to native --dtype {kind}{size}` writes"


def check_base_settings(
    path: Folder, facts: AdapterFacts, settings: Mapping[str, Mapping[str, Any]], remedy: str
) -> None:
    """Refuses an adapter that was trained with other settings of the base model than `settings` (`settings_by_part`).

    Settings that either side does not state are not compared: files of earlier versions, and PEFT's, state none.

    Args:
      path: the adapter, for the error.
      facts: its facts.
      settings: part of the model -> its settings.
      remedy: what to do instead, which ends the error.
    """
    plain = lambda value: list(value) if isinstance(value, tuple) else value  # as JSON has it
    for part, fields in (facts.base_settings or {}).items():
        for field, value in fields.items():
            here = plain(settings.get(part, {}).get(field, value))
            if here != plain(value):
                raise CheckpointError(
                    f"The adapter {path} was trained with {field} = {value!r} in the {part} model, and this one has {here!r}; {remedy}."
                )


def check_shapes(
    path: Folder, facts: AdapterFacts, leaves: Mapping[str, Leaf], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuses an adapter whose leaves are not the wanted ones (unscanned name -> shape); names the first that differs."""
    for name in sorted(leaves.keys() | wanted.keys()):
        shape = tuple(leaves[name].shape) if name in leaves else None
        wanted_shape = wanted.get(name)
        if shape == wanted_shape:
            continue
        if shape is None:
            difference = f"lacks {name} {wanted_shape}"
        elif wanted_shape is None:
            difference = f"has {name[:100]} {shape}, which this model does not have"
        else:
            difference = f"has {name[:100]} {shape}, but this model has {wanted_shape}"
        raise CheckpointError(
            f"The adapter {path} {difference}; use its method and settings, {facts.summary[:200]}, and the model that it was "
            f"trained for."
        )


def check_method(
    path: Folder, facts: AdapterFacts, wanted: Mapping[str, Any], part: Mapping[str, Any] | None = None
) -> None:
    """Refuses an adapter of another method than `wanted`, or with another setting that shapes do not show.

    Args:
      path: the adapter, for the error.
      facts: its facts.
      wanted: the wanted method (`describe_adapter`).
      part: the description that is compared; None means the adapter's, otherwise that of a module among its settings.
    """
    stated = {"method": facts.method, "settings": facts.settings} if part is None else part
    remedy = f"use its method and settings, {facts.summary[:200]}"
    if stated.get("method") != wanted["method"]:
        raise CheckpointError(
            f"The adapter {path} is {stated.get('method')}, but the model has {wanted['method']}; {remedy}."
        )
    settings = stated.get("settings", {})
    # Any setting of a user's method may be unseen.
    unseen = _UNSEEN if "." not in wanted["method"] else wanted["settings"]
    for key, value in wanted["settings"].items():
        if key in unseen and key in settings and settings[key] != value:
            raise CheckpointError(
                f"The adapter {path} has {key} = {settings[key]!r}, but the model has {value!r}; {remedy}."
            )
        if isinstance(value, list) and value and isinstance(value[0], dict):
            for stated_module, wanted_module in zip(settings.get(key, ()), value):
                check_method(path, facts, wanted_module, stated_module)


def _read_config(file: epath.Path, path: str) -> dict[str, Any]:
    """`adapter_config.json`, with a `peft_type`, and under `adalink` fields of the expected types."""
    name = f"{path}/{CONFIG}"
    text = read_text(file, _REMEDY, CheckpointError)
    config = parse_object(text, name, _REMEDY, CheckpointError)
    if "adalink" not in config and "peft_type" not in config:
        raise CheckpointError(f"{name} is damaged or cut short (it has neither adalink nor peft_type); {_REMEDY}.")
    stated = as_form(config, _Config, name, _REMEDY, CheckpointError)
    if stated.adalink is not None:
        about = _checked(stated.adalink, name, path)
        if about.digest is not None and not sealed_json.is_intact(text, about.digest):
            raise CheckpointError(
                f"{name} is damaged (its text is not the one that its digest was made of); {_REMEDY}."
            )
        config["adalink"] = {"settings": {}, "metrics": {}} | stated.adalink
    return {"peft_type": _PEFT_TYPE, **config}


def _checked(fields: Mapping[str, Any], name: str, path: str) -> _About:
    """An `adalink` object as `AdapterFacts.from_json` can take it.

    Raises:
      CheckpointError: for any other object.
    """
    if isinstance(version := fields.get("format_version"), int) and version > FORMAT_VERSION:
        raise CheckpointError(f"{path} was written by a newer version ({fields.get('version')}); update adalink-jax.")
    about = as_form({"adalink": fields}, _Written, name, _REMEDY, CheckpointError).adalink
    if (about.digests is None or about.digest is None) and (about.format_version > 1 or about.digests or about.digest):
        raise CheckpointError(f"{name} is damaged (it lacks its digests); {_REMEDY}.")
    return about


def _read(leaves: Mapping[str, Leaf], path: Folder) -> dict[str, np.ndarray]:
    values = {name: leaf.whole() for name, leaf in leaves.items()}
    for name, value in values.items():
        with np.errstate(over="ignore"):
            finite = np.isfinite(value.astype(np.float32)).all()
        if not finite:
            raise CheckpointError(
                f"The adapter {path} holds values that are not finite, in {name}; train it again from an earlier checkpoint."
            )
    return values
