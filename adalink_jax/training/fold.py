"""Writes a base model with an adapter folded into it."""

import dataclasses

import jax
import numpy as np

from adalink_jax import checkpoints, parallel
from adalink_jax.adapters import AdaptedModel, abstract_params, fold_adapter, folded_backbone, make_adapter
from adalink_jax.errors import UserError
from adalink_jax.models import paths
from adalink_jax.models.backbone import Backbone
from adalink_jax.training.setup import Setup, load_parameters

_SHAPE = 4, 16, 8  # rows, input tokens and target tokens of the batch for the comparison


@dataclasses.dataclass(frozen=True)
class Folded:
    """The result of a fold.

    Attributes:
      fingerprint: the folded base's fingerprint.
      encoder_embedding: whether its encoder has its own embedding table.
      adapter: the largest change of a logit by the adapter, relative to the logits' standard deviation.
      folding: the largest difference between the adapter's logits and the folded base's, relative to the same.
      precision: how the base is stored, if it is quantised; what is written are its dequantised values.
    """

    fingerprint: str
    encoder_embedding: bool
    adapter: float
    folding: float
    precision: str | None


def fold_base(folder: str, backbone: Backbone, base: str, destination: str) -> Folded:
    """Writes a native base model.

    Args:
      folder: the adapter's folder.
      backbone: the base's module.
      base: path of the base that the adapter was trained on.
      destination: a new or empty folder.

    Raises:
      UserError, CheckpointError: for an adapter that cannot be folded, files that do not fit, a folder that is not empty.
    """
    target = checkpoints.check_destination(destination)
    _, adapter_facts = checkpoints.open_adapter(folder)
    module = make_adapter(adapter_facts.method, adapter_facts.settings)
    setup = Setup(
        AdaptedModel(backbone, module),
        initial_checkpoint_path=base,
        initial_adapter_path=folder,
        allow_other_precision=True,
    )
    params = load_parameters(setup, parallel.make_mesh(), parallel.logical_axis_rules())
    assert params.base is not None  # its path is given
    remedy = checkpoints.own_base(adapter_facts.base)
    checkpoints.check_base(folder, adapter_facts, params.base, "give its own base", precision_remedy=remedy)
    tree = params.tree()
    facts_of_base = backbone.embedding_scale, backbone.replaced_ids, backbone.reads_text
    folded = fold_adapter(module, tree["adapter"], tree["backbone"], *facts_of_base)
    plain = AdaptedModel(folded_backbone(backbone, folded))
    wanted = paths.flatten(parallel.unbox(abstract_params(plain))["backbone"])
    if {name: leaf.shape for name, leaf in wanted.items()} != {n: x.shape for n, x in paths.flatten(folded).items()}:
        raise UserError(f"{folder} does not fold into {type(backbone).__name__}; keep it as an adapter.")
    batch = random_features(backbone, *_SHAPE)
    with jax.default_matmul_precision("highest"):
        logits = lambda model, params: np.asarray(jax.jit(model.apply)({"params": params}, batch))
        before = logits(AdaptedModel(backbone), {"backbone": tree["backbone"]})
        adapted, after = logits(setup.model, tree), logits(plain, {"backbone": folded})
    distance = lambda other: float(np.abs(adapted - other).max() / adapted.std())
    facts = {"folded": {"adapter": adapter_facts.method, "base": params.base.to_json()}} | checkpoints.stated_settings(
        plain.backbone
    )
    written = checkpoints.save_base(str(target), folded, name=target.name, about=facts)
    own_table, precision = plain.backbone.config.encoder_embedding, params.base.precision
    return Folded(written["fingerprint"], own_table, distance(before), distance(after), precision)


def random_features(backbone: Backbone, rows: int, inputs: int, targets: int) -> dict[str, np.ndarray]:
    """Random features for every input of a model: so many rows, input tokens and target tokens; always the same."""
    rng = np.random.default_rng(0)
    ids = min(
        config.vocab_size for config in checkpoints.configs_of(backbone).values() if getattr(config, "vocab_size", 0)
    )
    make = lambda leaf: (
        rng.integers(3, ids, leaf.shape).astype(np.int32)
        if leaf.dtype == np.int32
        else rng.uniform(-1, 1, leaf.shape).astype(np.float32)
    )
    batch = {name: make(leaf) for name, leaf in backbone.abstract_batch(rows, inputs, targets).items()}
    return batch | ({"images": backbone.as_images(batch["images"])} if "images" in batch else {})
