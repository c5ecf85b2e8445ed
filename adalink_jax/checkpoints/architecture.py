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


def settings_of(config) -> dict:
    """The fields of a `T5Config` that shapes do not show and that decide the numbers."""
    return {"mlp_activations": tuple(config.mlp_activations), "relpos_max_distance": config.relpos_max_distance}


def check_settings(stated: Mapping, config, path: str) -> None:
    """Refuses a checkpoint that states another network than the model's, where shapes would not show it.

    Args:
      stated: by the checkpoint, some of `settings_of`.
      config: the model's `T5Config`.
      path: for the error.
    """
    mine = settings_of(config)
    for field, value in stated.items():
        if mine[field] != value:
            raise CheckpointError(
                f"{path} has {field} = {value!r} and the model {mine[field]!r}; set T5Config.{field}."
            )


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
