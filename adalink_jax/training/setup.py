"""From a configuration to arrays in their places: which model, which leaves are trained, where each value comes from.

Invariant: every leaf has one stated source - a checkpoint, an adapter file, or random initialisation that was asked for -
and a frozen leaf is never random.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import gin
import jax

from adalink_jax import checkpoints, parallel
from adalink_jax.adapters import AdaptedModel, abstract_params, describe_adapter, fresh_params
from adalink_jax.data import INSTRUCTION, DatasetConfig, FeatureConverter, VisionCache, WordPieceVocabulary
from adalink_jax.errors import UserError
from adalink_jax.models import paths
from adalink_jax.models.decoding import Decoding, Sampling
from adalink_jax.training import partition
from adalink_jax.training.abstract import abstract_leaves
from adalink_jax.training.prompt_start import Start


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Setup:
    """What training, evaluation and planning share.

    Attributes:
      model: backbone and adapter.
      trainable: expressions for whole paths of the leaves to train (`adapter/.*`); all others are frozen.
      dataset: the data; None where the caller brings batches.
      initial_checkpoint_path: the base model: a folder (native, Hugging Face, t5x), `hf://OWNER/NAME[@revision]` or
        `bundled:NAME`; or a mapping from parts of the model to such, see `checkpoints.load_base`. None starts from random
        weights, which only a run that trains the whole backbone may.
      checkpoint_renames: `(regular expression, replacement)` for the names of a base that is none of ours.
      initial_adapter_path: an adapter folder to start from; None starts a fresh one.
      adapter_start: first values of a fresh prompt (`prompt_start.from_vocabulary`, `from_class_labels`); None for random ones.
      allow_other_base: take an adapter that was trained on another base.
      frozen_dtype: dtype in which frozen leaves are stored, "float32" or "bfloat16".
      random_seed: seed of fresh leaves and of dropout.
      vision_cache: a folder for what the frozen vision tower makes of each image, computed once (`vision_cache.py`); None computes
        it in every step.
      qformer_vocabulary: of a Q-Former that reads the instruction: a `tokenizer.json`, or a checkpoint's folder that has one.
      decoding: how outputs are made in evaluation: `Sampling` (by default greedy) or `BeamSearch`.
    """

    model: AdaptedModel
    trainable: tuple[str, ...] = ()
    dataset: DatasetConfig | None = None
    initial_checkpoint_path: str | Mapping[str, str | None] | None = None
    checkpoint_renames: tuple[tuple[str, str | None], ...] = ()
    initial_adapter_path: str | None = None
    adapter_start: Start | None = None
    allow_other_base: bool = False
    frozen_dtype: str = "float32"
    random_seed: int = 0
    vision_cache: str | None = None
    qformer_vocabulary: str | None = None
    decoding: Decoding = Sampling()  # noqa: RUF009

    def __post_init__(self):
        if self.frozen_dtype not in ("float32", "bfloat16"):
            raise UserError(f"FROZEN_DTYPE is {self.frozen_dtype!r}; it must be 'float32' or 'bfloat16'.")

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(height, width, channels) of the images that the model takes; None if it takes none."""
        images = self.model.backbone.abstract_batch(1, 1, 1).get("images")
        return None if images is None else images.shape[1:]

    def converter(self, task_feature_lengths: Mapping[str, int], cache: VisionCache | None = None) -> FeatureConverter:
        """Makes the features that the model takes, of `cache` where it is given.

        Raises:
          UserError: for a Q-Former that reads the instruction and has no vocabulary, or another's; a vocabulary for none.
        """
        wanted = INSTRUCTION in self.model.backbone.abstract_batch(1, 1, 1)
        if wanted != (self.qformer_vocabulary is not None):
            raise UserError(
                "The Q-Former reads the instruction too: set QFORMER_VOCABULARY to the base model's folder."
                if wanted
                else "QFORMER_VOCABULARY is set, but the model has no Q-Former that reads the instruction."
            )
        words = WordPieceVocabulary(self.qformer_vocabulary) if wanted else None
        if words is not None and words.vocab_size > (rows := self.model.backbone.qformer_config.vocab_size):
            raise UserError(f"QFORMER_VOCABULARY has {words.vocab_size} ids and the Q-Former's embedding {rows} rows.")
        return FeatureConverter(task_feature_lengths, self.image_shape, instructions=words, cache=cache)


def split_abstract(model: AdaptedModel, trainable: tuple[str, ...]):
    """`(trainable, frozen)` trees of shapes. An empty `trainable` freezes everything."""
    tree = parallel.unbox(abstract_params(model))
    return partition.split(tree, trainable) if trainable else ({}, tree)


@dataclasses.dataclass
class Parameters:
    """Arrays in their places.

    Attributes:
      trainable, frozen: the two trees.
      base: `name` and `fingerprint` of the backbone; None when it starts from random weights.
      sources: part of the model (the first two folders of the leaves' names) -> where its values came from, for people.
    """

    trainable: dict
    frozen: dict
    base: dict | None
    sources: dict[str, str]


def load_parameters(setup: Setup, mesh, rules) -> Parameters:
    """Reads or makes every leaf of `setup.model`, on `mesh`.

    Raises:
      UserError: for expressions that match nothing, a frozen backbone without a checkpoint, and a method whose settings
        no file can hold.
      CheckpointError: for files that do not fit.
    """
    if setup.adapter_start is not None and setup.initial_adapter_path is not None:
        raise UserError(
            "PROMPT_START and INITIAL_ADAPTER_PATH are both set; a prompt has one start, so set one of them."
        )
    if setup.model.adapter is not None:
        describe_adapter(setup.model.adapter)  # refuses now what its file could not hold
    wanted = abstract_leaves(setup.model, mesh, rules)
    trainable, _ = split_abstract(setup.model, setup.trainable)
    trained = paths.flatten(trainable).keys()
    backbone = {k for k in wanted if k.startswith("backbone/")}
    adapter = wanted.keys() - backbone

    values: dict[str, Any] = {}
    sources, base = {}, None
    if setup.initial_checkpoint_path is not None:
        loaded = checkpoints.load_base(
            setup.initial_checkpoint_path,
            partition.select(wanted, backbone)["backbone"],
            dtype=lambda name: "float32" if f"backbone/{name}" in trained else setup.frozen_dtype,
            renames=setup.checkpoint_renames,
            configs=checkpoints.configs_of(setup.model.backbone),
        )
        values |= paths.flatten({"backbone": loaded.params})
        base = {"name": loaded.name, "fingerprint": loaded.fingerprint}
        sources |= {f"backbone/{part}": where for part, where in loaded.sources.items()}
    elif setup.checkpoint_renames:
        raise UserError("CHECKPOINT_RENAMES is set, but there is no base; set INITIAL_CHECKPOINT_PATH as well.")
    fresh = backbone - values.keys()
    if fresh - trained:
        raise UserError(
            f"{len(fresh - trained)} backbone parameters, such as {min(fresh - trained)}, are frozen but there is no base "
            f"model to take them from; set INITIAL_CHECKPOINT_PATH, or train them (TRAINABLE)."
        )
    sources |= {"/".join(name.split("/")[:2]): f"random initialisation, seed {setup.random_seed}" for name in fresh}
    if adapter and setup.initial_adapter_path is not None:
        if base is None or base["fingerprint"] is None:
            raise UserError("INITIAL_ADAPTER_PATH is set, but there is no base; set INITIAL_CHECKPOINT_PATH as well.")
        tree, about = checkpoints.load_adapter(
            setup.initial_adapter_path, partition.select(wanted, adapter)["adapter"],
            base["fingerprint"], setup.allow_other_base, setup.model.adapter,
        )  # fmt: skip
        values |= paths.flatten({"adapter": tree})
        unchecked = "" if about["base"]["fingerprint"] else ", which does not say which base it was trained on"
        sources["adapter"] = setup.initial_adapter_path + unchecked
    elif adapter:
        sources["adapter"] = f"fresh, seed {setup.random_seed}"
    values |= _initialise(setup, {k: wanted[k] for k in wanted.keys() - values.keys()})
    if setup.adapter_start is not None:
        tree = started(setup, partition.select(values, adapter).get("adapter", {}), values)
        placed = {f"adapter/{name}": leaf for name, leaf in paths.flatten(tree).items()}
        values |= {name: jax.device_put(leaf, wanted[name].sharding) for name, leaf in placed.items()}
        sources["adapter"] += ", its prompt by PROMPT_START"
    return Parameters(
        partition.select(values, trained), partition.select(values, values.keys() - trained), base, sources
    )


def started(setup: Setup, adapter: dict, leaves: Mapping[str, jax.Array]) -> dict:
    """A fresh adapter after `setup.adapter_start`; `leaves` are the model's, by name."""
    if setup.adapter_start is None:
        return adapter
    table = leaves["backbone/token_embedder/embedding"]
    return setup.adapter_start(adapter, table, jax.random.key(setup.random_seed))


def _initialise(setup: Setup, wanted: dict) -> dict:
    """Random values for `wanted` only; the compiler drops the rest of the model's initialisation."""
    if not wanted:
        return {}

    def fresh():
        leaves = paths.flatten(parallel.unbox(fresh_params(setup.model, setup.random_seed)))
        return {name: leaves[name] for name in wanted}

    return jax.jit(fresh, out_shardings={name: leaf.sharding for name, leaf in wanted.items()})()
