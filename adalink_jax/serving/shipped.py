"""Which of the shipped model files a checkpoint fits."""

from adalink_jax import configuration, parallel
from adalink_jax.adapters import AdaptedModel, abstract_params
from adalink_jax.checkpoints import check_fit, check_part_settings, check_settings, configs_of, settings_of, t5_sizes
from adalink_jax.checkpoints.source import Source
from adalink_jax.errors import CheckpointError
from adalink_jax.models import paths


def configured_backbone(flags: configuration.GinFlags):
    """The backbone that gin files and flags describe."""
    configuration.load(flags, require_all=False)
    configuration.require({"Setup.model": "a model's file, such as --gin_file=gin/models/t5_1_1_small.gin"})
    return AdaptedModel().backbone


def check_model(source: Source, backbone) -> None:
    """Refuses a checkpoint whose leaves or settings are not `backbone`'s."""
    tree = parallel.unbox(abstract_params(AdaptedModel(backbone)))["backbone"]
    check_fit(source.shapes, paths.unscanned_shapes(paths.flatten(tree)), source.path)
    check_settings(source.settings, backbone.config, source.path)
    check_part_settings(source, configs_of(backbone))


def fitting_models(source: Source) -> dict[str, dict]:
    """Shipped model files that `source` fits -> the settings that they add to its shapes."""
    sizes, out = t5_sizes(source.shapes), {}
    if not sizes:
        return out
    for file in sorted((configuration.gin_root() / "models").glob("*.gin")):
        name = f"gin/models/{file.name}"
        flags, _ = configuration.parse_flags([f"--gin_file={name}"])
        configuration.load(flags, require_all=False)
        if "T5Config.emb_dim" not in configuration.bindings():
            continue  # a family's file, without sizes
        backbone = AdaptedModel().backbone
        if any(getattr(backbone.config, key) != value for key, value in sizes.items() if key != "gated"):
            continue  # most end here; the rest are compared leaf by leaf
        try:
            check_model(source, backbone)
        except CheckpointError:
            continue
        out[name] = settings_of(backbone.config)
    return out


def completed_settings(source: Source, flags: configuration.GinFlags) -> dict:
    """The settings that shapes do not show: by gin files, else stated by the checkpoint, else by the shipped model it fits.

    Raises:
      CheckpointError: if none of them tells, or the gin files are another model's.
    """
    if flags.files:
        backbone = configured_backbone(flags)
        check_model(source, backbone)
        return settings_of(backbone.config)
    if "mlp_activations" in source.settings:
        return source.settings
    found = {tuple(sorted(settings.items())) for settings in fitting_models(source).values()}
    if len(found) != 1:
        raise CheckpointError(
            f"{source.path} does not say which activations its MLP has, and {'no' if not found else 'more than one'} "
            f"shipped model fits it; give its own with --gin_file."
        )
    return dict(found.pop())
