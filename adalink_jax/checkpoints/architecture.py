"""Whether a checkpoint is of a model's architecture: the same leaves and shapes, and the same settings that decide the numbers."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from adalink_jax.checkpoints.families.family import FAMILIES, LANGUAGE, Shapes, family_of_config, family_of_shapes
from adalink_jax.checkpoints.source import Source
from adalink_jax.errors import CheckpointError
from adalink_jax.models.backbone import Backbone


def sizes_of(shapes: Shapes) -> dict[str, Any]:
    """The language model's sizes in its configuration's terms, read off unscanned leaves; {} if no family knows them."""
    family = family_of_shapes(shapes)
    return family.sizes(shapes) if family else {}


def config_fields(source: Source) -> dict[str, Any]:
    """The fields of the language model's configuration: its sizes, and the settings that the checkpoint states."""
    family = family_of_shapes(source.shapes)
    fields = {field.name for field in dataclasses.fields(family.config)} if family else set()
    return {name: value for name, value in sizes_of(source.shapes).items() if name in fields} | dict(
        source.settings.get(LANGUAGE, {})
    )


def configs_of(backbone: Backbone) -> dict[str, Any]:
    """The configurations of a backbone's parts: `language` (its `config`), and `vision` for a `vision_config`, and so on."""
    configs = {LANGUAGE: backbone.config} if hasattr(backbone, "config") else {}
    parts = [field.name for field in dataclasses.fields(backbone) if field.name.endswith("_config")]
    return configs | {name.removesuffix("_config"): getattr(backbone, name) for name in parts}


def settings_of(config: Any) -> dict[str, Any]:
    """The fields of a part's configuration that decide the numbers and that shapes do not show."""
    plain = lambda value: tuple(value) if isinstance(value, list) else value
    return {field: plain(getattr(config, field)) for field in family_of_config(config).deciding}


def settings_by_part(backbone: Backbone) -> dict[str, dict[str, Any]]:
    """Part of the model -> `settings_of` its configuration; without parts of which no family is registered."""
    configs, known = configs_of(backbone), tuple(family.config for family in FAMILIES)
    return {part: settings_of(config) for part, config in configs.items() if isinstance(config, known)}


def stated_settings(backbone: Backbone) -> dict[str, Any]:
    """What `base_config.json` says of `backbone`: `settings` of its language model, `part_settings` of the other parts."""
    settings = {part: settings_of(config) for part, config in configs_of(backbone).items()}
    language = {"settings": settings.pop(LANGUAGE)}
    return language | ({"part_settings": settings} if settings else {})


def check_settings(source: Source, configs: Mapping[str, Any], part: str | None = None) -> None:
    """Refuses a checkpoint that states another network than the model's where shapes would not show it.

    Args:
      source: the checkpoint.
      configs: part of the model -> its configuration (`configs_of`).
      part: the part to compare; None means all parts.

    Raises:
      CheckpointError: names the settings that differ.
    """
    for stated_part, settings in source.settings.items():
        if stated_part not in configs or part not in (None, stated_part):
            continue
        config = configs[stated_part]
        if unknown := [field for field in settings if not hasattr(config, field)]:
            raise CheckpointError(
                f"{source.path} states {unknown[0]}, which {type(config).__name__} does not have; update adalink-jax."
            )
        off = [field for field in family_of_config(config).may_be_off if getattr(config, field) is None]
        different = [(field, x) for field, x in settings.items() if getattr(config, field) != x and field not in off]
        if different:
            (field, value), *others = different
            also = "".join(f", and {name} = {other!r}" for name, other in others)
            raise CheckpointError(
                f"{source.path} has {field} = {value!r}, but the model has {getattr(config, field)!r}; set "
                f"{type(config).__name__}.{field}{also}."
            )


def check_fit(checkpoint: Shapes, model: Shapes, path: str) -> None:
    """Refuses leaves that are missing, left over or of another shape.

    Args:
      checkpoint: unscanned name -> shape in the checkpoint.
      model: unscanned name -> shape in the model.
      path: the checkpoint, for the error.

    Raises:
      CheckpointError: names the sizes that differ, where one family knows both, and the leaves.
    """
    family = family_of_shapes(model)
    model_sizes = family.sizes(model) if family else {}
    checkpoint_sizes = family.sizes(checkpoint) if family else {}
    sizes = [
        f"{key} {checkpoint_sizes[key]} (model: {value})"
        for key, value in model_sizes.items()
        if checkpoint_sizes and checkpoint_sizes[key] != value
    ]
    misshapen = [
        f"{name} {tuple(checkpoint[name])} (model: {tuple(model[name])})"
        for name in sorted(model.keys() & checkpoint.keys())
        if tuple(checkpoint[name]) != tuple(model[name])
    ]
    differences = [f"it has {', '.join(sizes)}"] if sizes else []
    for problem, names in (
        ("lacks", sorted(model.keys() - checkpoint.keys())),
        ("has, and the model does not,", sorted(checkpoint.keys() - model.keys())),
        ("has in another shape", misshapen),
    ):
        if names:
            listed = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
            differences.append(f"it {problem} {len(names)}: {listed}")
    if differences:
        raise CheckpointError(f"{path} does not fit this model: {'; '.join(differences)}.")
