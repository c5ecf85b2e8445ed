"""Which T5 a set of leaves is: its sizes, read off the shapes, in `T5Config`'s terms."""

import re
from collections.abc import Mapping

from adalink_jax.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]


def is_t5(names) -> bool:
    """Whether the names are those of a T5 (with or without a vision tower)."""
    return "token_embedder/embedding" in names and any(name.startswith("encoder/layers_0/") for name in names)


def t5_sizes(shapes: Shapes) -> dict:
    """`T5Config`'s sizes, and `gated` (whether the MLP has two activations), of unscanned leaves.

    Returns:
      {} where the leaves are no T5's.
    """
    if not is_t5(shapes):
        return {}
    layers = lambda stack: len({m[0] for name in shapes if (m := re.match(rf"{stack}/layers_\d+/", name))})
    mlp = "encoder/layers_0/mlp/"
    gated = f"{mlp}wi_0/kernel" in shapes
    per_layer = "encoder/layers_0/relpos_bias/rel_embedding"
    table = shapes.get("encoder/relpos_bias/rel_embedding") or shapes.get(per_layer)
    query = shapes.get("encoder/layers_0/attention/query/kernel")
    wide = shapes.get(f"{mlp}wi_0/kernel" if gated else f"{mlp}wi/kernel")
    if table is None or query is None or wide is None:
        return {}
    vocab_size, emb_dim = shapes["token_embedder/embedding"]
    return {
        "vocab_size": vocab_size,
        "emb_dim": emb_dim,
        "num_heads": table[0],
        "head_dim": query[1] // table[0],
        "mlp_dim": wide[1],
        "num_encoder_layers": layers("encoder"),
        "num_decoder_layers": layers("decoder"),
        "logits_via_embedding": "decoder/logits_dense/kernel" not in shapes,
        "encoder_embedding": "encoder/token_embedder/embedding" in shapes,
        "relpos_num_buckets": table[1],
        "relpos_per_layer": per_layer in shapes,
        "gated": gated,
    }


def t5_fields(source) -> dict:
    """The fields of the `T5Config` of an opened checkpoint; `mlp_activations` is missing where the format says nothing."""
    sizes = t5_sizes(source.shapes)
    sizes.pop("gated", None)
    return sizes | source.settings


LANGUAGE, VISION, QFORMER = "language", "vision", "qformer"
# Fields of each part's configuration that shapes do not show and that decide the numbers.
_DECIDING = {
    LANGUAGE: ("mlp_activations", "relpos_max_distance"),
    VISION: ("num_heads", "activation", "layer_norm_epsilon", "pixel_mean", "pixel_std"),
    QFORMER: ("num_heads", "cross_attention_frequency"),
}


def configs_of(backbone) -> dict:
    """The configurations of a backbone's parts: `language` (`T5Config`), and, where it has them, `vision` and `qformer`."""
    names = {LANGUAGE: "config", VISION: "vision_config", QFORMER: "qformer_config"}
    return {part: getattr(backbone, name) for part, name in names.items() if hasattr(backbone, name)}


def settings_of(config, part: str = LANGUAGE) -> dict:
    """The fields of a part's configuration that shapes do not show and that decide the numbers."""
    plain = lambda value: tuple(value) if isinstance(value, list) else value
    return {field: plain(getattr(config, field)) for field in _DECIDING[part]}


def stated_settings(backbone) -> dict[str, dict]:
    """What a native base model's file says of `backbone`: `settings` of its language model, `part_settings` of the others."""
    each = {part: settings_of(config, part) for part, config in configs_of(backbone).items()}
    language = {"settings": each.pop(LANGUAGE)}
    return language | ({"part_settings": each} if each else {})


def check_settings(stated: Mapping, config, path: str) -> None:
    """Refuses a checkpoint that states another network than the model's, where shapes would not show it.

    Args:
      stated: by the checkpoint: fields of `config`.
      config: the configuration of that part of the model.
      path: for the error.
    """
    for field, value in stated.items():
        mine = getattr(config, field)
        if mine != value:
            raise CheckpointError(
                f"{path} has {field} = {value!r} and the model {mine!r}; set {type(config).__name__}.{field}."
            )


def check_part_settings(source, configs: Mapping, parts=None) -> None:
    """`check_settings` of the parts beside the language model; of those in `parts`, where it is given."""
    for part, stated in source.part_settings.items():
        if part in configs and (parts is None or part in parts):
            check_settings(stated, configs[part], source.path)


def check_fit(found: Shapes, wanted: Shapes, path: str) -> None:
    """Refuses leaves that are missing, left over or of another shape.

    Raises:
      CheckpointError: names the sizes that differ, where both are a T5, and the leaves.
    """
    ours, theirs = t5_sizes(wanted), t5_sizes(found)
    sizes = [
        f"{key} {theirs[key]} (model: {ours[key]})" for key in ours if theirs and theirs[key] != ours[key]
    ]  # fmt: skip
    problems = [
        ("lacks", sorted(wanted.keys() - found.keys())),
        ("has, and the model does not,", sorted(found.keys() - wanted.keys())),
        ("has in another shape", [
            f"{key} {tuple(found[key])} (model: {tuple(wanted[key])})"
            for key in sorted(wanted.keys() & found.keys()) if tuple(found[key]) != tuple(wanted[key])
        ]),
    ]  # fmt: skip
    told = [f"it has {', '.join(sizes)}"] if sizes else []
    told += [
        f"it {verb} {len(names)}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
        for verb, names in problems
        if names
    ]
    if told:
        raise CheckpointError(f"{path} does not fit this model: {'; '.join(told)}.")
