"""A base model with an adapter folded into it, as files."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np

from adalink_jax import checkpoints, parallel
from adalink_jax.adapters import AdaptedModel, abstract_params, fold_adapter, make_adapter
from adalink_jax.adapters.folding import ENCODER_TABLE
from adalink_jax.errors import UserError
from adalink_jax.models import paths
from adalink_jax.training.setup import Setup, load_parameters

_SHAPE = 4, 16, 8  # rows, input and target tokens of the batch that is compared


@dataclasses.dataclass(frozen=True)
class Folded:
    """What was written.

    Attributes:
      fingerprint: of the folded base.
      encoder_embedding: whether its encoder has a table of its own.
      adapter: the largest change of the logits by the adapter, as a share of their spread.
      folding: the largest difference between the adapter and what it was folded into, as such a share.
    """

    fingerprint: str
    encoder_embedding: bool
    adapter: float
    folding: float


def fold_base(folder: str, backbone: nn.Module, base: str, destination: str) -> Folded:
    """Writes a native base model.

    Args:
      folder: the adapter's.
      backbone: the base's module.
      base: the base that the adapter was trained on.
      destination: a new or an empty folder.

    Raises:
      UserError, CheckpointError: for an adapter that cannot be folded, files that do not fit, a folder that is not empty.
    """
    target = checkpoints.check_destination(destination)
    _, about = checkpoints.open_adapter(folder)
    module = make_adapter(about["method"], about["settings"])
    setup = Setup(AdaptedModel(backbone, module), initial_checkpoint_path=base, initial_adapter_path=folder)
    params = load_parameters(setup, parallel.make_mesh(), parallel.logical_axis_rules())
    whole = params.frozen
    folded = fold_adapter(module, whole["adapter"], whole["backbone"])
    own = ENCODER_TABLE in paths.flatten(folded)
    config = dataclasses.replace(backbone.config, encoder_embedding=own)
    plain = AdaptedModel(backbone.clone(config=config))
    wanted = paths.flatten(parallel.unbox(abstract_params(plain))["backbone"])
    if {name: leaf.shape for name, leaf in wanted.items()} != {n: x.shape for n, x in paths.flatten(folded).items()}:
        raise UserError(f"{folder} does not fold into {type(backbone).__name__}; keep it as an adapter.")
    batch = _batch(backbone)
    with jax.default_matmul_precision("highest"):
        logits = lambda model, params: np.asarray(jax.jit(model.apply)({"params": params}, batch))
        before = logits(AdaptedModel(backbone), {"backbone": whole["backbone"]})
        adapted, after = logits(setup.model, whole), logits(plain, {"backbone": folded})
    away = lambda other: float(np.abs(adapted - other).max() / adapted.std())
    facts = {"folded": {"adapter": about["method"], "base": params.base}} | checkpoints.stated_settings(plain.backbone)
    written = checkpoints.save_base(str(target), folded, name=target.name, about=facts)
    return Folded(written["fingerprint"], own, away(before), away(after))


def _batch(backbone) -> dict[str, np.ndarray]:
    """Random features of every input."""
    rng = np.random.default_rng(0)
    ids = min(
        config.vocab_size for config in checkpoints.configs_of(backbone).values() if getattr(config, "vocab_size", 0)
    )
    make = lambda leaf: (
        rng.integers(3, ids, leaf.shape).astype(np.int32)
        if leaf.dtype == np.int32
        else rng.uniform(-1, 1, leaf.shape).astype(np.float32)
    )
    return {name: make(leaf) for name, leaf in backbone.abstract_batch(*_SHAPE).items()}
