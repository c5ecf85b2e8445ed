"""The shipped model files (gin/models) that a checkpoint fits."""

import dataclasses
from typing import Any

from adalink_jax import configuration, parallel
from adalink_jax.adapters import AdaptedModel, abstract_params
from adalink_jax.checkpoints import Source, check_fit, check_settings, configs_of, settings_of
from adalink_jax.checkpoints.families.family import LANGUAGE, Family, family_of_shapes
from adalink_jax.errors import CheckpointError
from adalink_jax.models import paths
from adalink_jax.models.backbone import Backbone


def configured_backbone(flags: configuration.GinFlags) -> Backbone:
    """The backbone that gin files and flags describe."""
    configuration.load(flags, require_all=False)
    configuration.require({"Setup.model": "a model's file, such as --gin_file=gin/models/t5_1_1_small.gin"})
    return AdaptedModel().backbone  # pyright: ignore[reportCallIssue]  # by gin


def check_model(source: Source, backbone: Backbone) -> None:
    """Refuses a checkpoint whose leaves or settings are not `backbone`'s."""
    tree = parallel.unbox(abstract_params(AdaptedModel(backbone)))["backbone"]
    check_fit(source.shapes, paths.unscanned_shapes(paths.flatten(tree)), source.path)
    check_settings(source, configs_of(backbone))


def fitting_models(source: Source) -> dict[str, dict[str, Any]]:
    """Shipped model files that `source` fits -> their language model's settings that shapes do not show."""
    family, models = family_of_shapes(source.shapes), {}
    if family is None:
        return models
    sizes = family.sizes(source.shapes).items()
    for file in sorted((configuration.gin_root() / "models").glob("*.gin")):
        name = f"gin/models/{file.name}"
        flags, _ = configuration.parse_flags([f"--gin_file={name}"])
        configuration.load(flags, require_all=False)
        if not _has_sizes(family):
            continue  # the file of a whole family, or of another one
        backbone = AdaptedModel().backbone  # pyright: ignore[reportCallIssue]  # by gin
        if any(getattr(backbone.config, key) != value for key, value in sizes if hasattr(backbone.config, key)):
            continue  # most files end here; the others are compared leaf by leaf
        try:
            check_model(source, backbone)
        except CheckpointError:
            continue
        models[name] = settings_of(backbone.config)
    return models


def _has_sizes(family: Family) -> bool:
    """Whether gin's state binds every field of the family's configuration that has no default."""
    fields = [field.name for field in dataclasses.fields(family.config) if field.default is dataclasses.MISSING]
    return configuration.bindings().keys() >= {f"{family.config.__name__}.{field}" for field in fields}


def completed_source(source: Source, flags: configuration.GinFlags) -> Source:
    """`source` with all settings of its language model that shapes do not show.

    They come from the gin files, else from the checkpoint, else from the shipped model that it fits.

    Raises:
      CheckpointError: if none of these states them, or the gin files are of another model.
    """
    if flags.files:
        backbone = configured_backbone(flags)
        check_model(source, backbone)
        return _with_settings(source, settings_of(backbone.config))
    family = family_of_shapes(source.shapes)
    stated = {**family.implied, **source.settings.get(LANGUAGE, {})} if family else {}
    missing = [name for name in family.deciding if name not in stated] if family else []
    if family and not missing:
        return _with_settings(source, stated)
    candidates = {tuple(sorted(settings.items())) for settings in fitting_models(source).values()}
    if len(candidates) != 1:
        raise CheckpointError(
            f"{source.path} does not state {', '.join(missing) or 'its architecture'}, and "
            f"{'more than one' if candidates else 'no'} shipped model fits it; give the model's own file with --gin_file."
        )
    return _with_settings(source, dict(candidates.pop()))


def _with_settings(source: Source, settings: dict[str, Any]) -> Source:
    return dataclasses.replace(source, settings={**source.settings, LANGUAGE: settings})
