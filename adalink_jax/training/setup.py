"""From a configuration to arrays on the mesh: the model, its trainable leaves, and the source of every value.

Invariant: every leaf has exactly one stated source (a checkpoint, an adapter file, or a requested random initialisation), and
a frozen leaf of the backbone is never random.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import gin
import jax
from jax.sharding import Mesh

from adalink_jax import checkpoints, parallel, timings
from adalink_jax.adapters import AdaptedModel, abstract_params, describe_adapter, fresh_params
from adalink_jax.data import INSTRUCTION, DatasetConfig, FeatureConverter, VisionCache, WordPieceVocabulary, check_rows
from adalink_jax.data.images import Preparation, Preparing
from adalink_jax.data.patches import Patches
from adalink_jax.errors import UserError
from adalink_jax.models import paths
from adalink_jax.models.decoding import Decoding, Sampling
from adalink_jax.models.quantised import TABLE, Matmul, Quantised, Storage, StoredDType, dequantised
from adalink_jax.training import partition
from adalink_jax.training.abstract import abstract_leaves
from adalink_jax.training.partition import Leaves, Shapes
from adalink_jax.training.prompt_start import Start
from adalink_jax.typed_values import PositiveInt, Seed


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Setup:
    """What training, evaluation and planning share.

    Attributes:
      model: backbone and adapter.
      trainable: regular expressions that match the whole paths of the trainable leaves (`adapter/.*`); all others are frozen.
      dataset: the data; None where the caller supplies batches.
      initial_checkpoint_path: the base model: a folder (native, Hugging Face, t5x), `hf://OWNER/NAME[@revision]` or
        `bundled:NAME`; or a mapping from parts of the model to such paths, see `checkpoints.load_base`. None starts from
        random weights, which only a run that trains the whole backbone may do.
      checkpoint_renames: `(regular expression, replacement)` pairs for the leaf names of a base in an unknown format.
      initial_adapter_path: an adapter to start from, a folder or `hf://OWNER/NAME[@revision]`; None starts a fresh adapter.
      adapter_start: initial values of a fresh prompt (`prompt_start.from_vocabulary`, `from_class_labels`); None for random
        values.
      allow_other_base: accept an adapter that was trained on another base.
      allow_other_precision: accept an adapter that was trained on the same base in another precision (int8, ...).
      frozen_dtype: how the backbone's frozen leaves are stored: "float32", "bfloat16", or the kernels as "int8", "fp8", "int4" or "nf4".
      quantised_block, quantised_exact, frozen_matmul: see `Storage`.
      random_seed: seed of fresh leaves and of dropout.
      vision_cache: a folder for the frozen vision tower's outputs, computed once per image (`fill_vision_cache`); None
        computes them in every step.
      qformer_vocabulary: for a Q-Former that reads the instruction: a `tokenizer.json`, or a checkpoint folder with one.
      decoding: how evaluation decodes: `Sampling` (greedy by default) or `BeamSearch`.
    """

    model: AdaptedModel
    trainable: tuple[str, ...] = ()
    dataset: DatasetConfig | None = None
    initial_checkpoint_path: str | Mapping[str, str | None] | None = None
    checkpoint_renames: tuple[tuple[str, str | None], ...] = ()
    initial_adapter_path: str | None = None
    adapter_start: Start | None = None
    allow_other_base: bool = False
    allow_other_precision: bool = False
    frozen_dtype: StoredDType = "float32"
    quantised_block: PositiveInt | None = None
    quantised_exact: tuple[str, ...] = TABLE
    frozen_matmul: Matmul = None
    random_seed: Seed = 0
    vision_cache: str | None = None
    qformer_vocabulary: str | None = None
    decoding: Decoding = Sampling()  # noqa: RUF009

    @property
    def data(self) -> DatasetConfig:
        """`dataset`, for those that need one.

        Raises:
          UserError: if it is not set.
        """
        if self.dataset is None:
            raise UserError("Setup.dataset is not set; add a task's file, such as --gin_file=gin/tasks/digits.gin.")
        return self.dataset

    @property
    def storage(self) -> Storage:
        """How the frozen leaves are stored."""
        activations = self.model.backbone.config.dtype
        return Storage(self.frozen_dtype, self.quantised_block, self.quantised_exact, self.frozen_matmul, activations)

    def train_batch(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of the features of `rows` training rows, of packed examples where the data say so (PACK_EXAMPLES)."""
        backbone, lengths = self.model.backbone, self.data.task_feature_lengths
        features = backbone.abstract_packed_batch if self.data.pack else backbone.abstract_batch
        return features(rows, lengths["inputs"], lengths["targets"])

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """(height, width, channels) of the model's images, or (patches, numbers of a patch); None if it takes none."""
        images = self.model.backbone.abstract_batch(1, 1, 1).get("images")
        return None if images is None else images.shape[1:]

    @property
    def needs_images(self) -> bool:
        """Whether each example needs an image: not where images take places in the text, since a text may have none."""
        return self.image_shape is not None and self.model.backbone.image_places is None

    @property
    def preparation(self) -> Preparing:
        """How files of images become the vision tower's images, or the patches of a model without a tower."""
        backbone = self.model.backbone
        config = getattr(backbone, "vision_config", getattr(backbone, "config", None))
        kind = Patches if hasattr(config, "max_patches") else Preparation
        fields = [field.name for field in dataclasses.fields(kind) if hasattr(config, field.name)]
        return kind(**{name: getattr(config, name) for name in fields})

    def converter(self, task_feature_lengths: Mapping[str, int], cache: VisionCache | None = None) -> FeatureConverter:
        """The converter from examples to the model's features; images are read from `cache` if one is given.

        Raises:
          UserError: for a Q-Former that reads the instruction without a vocabulary or with an unsuitable one, and for a
            vocabulary that no Q-Former reads.
        """
        reads_instruction = INSTRUCTION in self.model.backbone.abstract_batch(1, 1, 1)
        if reads_instruction != (self.qformer_vocabulary is not None):
            raise UserError(
                "The Q-Former reads the instruction too: set QFORMER_VOCABULARY to the base model's folder."
                if reads_instruction
                else "QFORMER_VOCABULARY is set, but the model has no Q-Former that reads the instruction; leave it out."
            )
        words = None if self.qformer_vocabulary is None else WordPieceVocabulary(self.qformer_vocabulary)
        if words is not None:
            check_rows("QFORMER_VOCABULARY", words.vocab_size, self.model.backbone.qformer_config.vocab_size)
        return FeatureConverter(
            task_feature_lengths,
            self.image_shape,
            instructions=words,
            cache=cache,
            preparation=self.preparation,
            token_ids=self.model.backbone.token_ids,
            reads_text=self.model.backbone.reads_text,
            image_places=self.model.backbone.image_places,
        )


def split_abstract(model: AdaptedModel, trainable: tuple[str, ...]) -> tuple[Shapes, Shapes]:
    """Shapes of the trainable and of the frozen leaves by name. An empty `trainable` freezes everything."""
    leaves = paths.flatten(parallel.unbox(abstract_params(model)))
    return partition.split(leaves, trainable) if trainable else ({}, leaves)


@dataclasses.dataclass
class Parameters:
    """A model's parameters on the mesh.

    Attributes:
      trainable, frozen: the leaves by name (`backbone/...`, `adapter/...`).
      base: name and fingerprint of the backbone; None when it starts from random weights.
      sources: part of the model (the first two folders of its leaves' names) -> where its values came from, for display.
      adapter_facts: what the file of the initial adapter states; None for a fresh adapter.
    """

    trainable: dict[str, jax.Array]
    frozen: dict[str, jax.Array]
    base: checkpoints.BaseReference | None
    sources: dict[str, str]
    adapter_facts: checkpoints.AdapterFacts | None = None

    def tree(self) -> dict[str, Any]:
        """All leaves as the nested dict that Flax reads: `{"backbone": ..., "adapter": ...}`."""
        return partition.merge(self.trainable, self.frozen)


@timings.phase("parameters")
def load_parameters(
    setup: Setup, mesh: Mesh, rules: parallel.LogicalRules, loaded_base: Parameters | None = None
) -> Parameters:
    """Loads or initialises every leaf of `setup.model` on `mesh`.

    Args:
      setup: the model, and the sources of its parameters.
      mesh, rules: where they are placed.
      loaded_base: the backbone's leaves, if they were loaded before under equal settings and all of them are frozen: they are used as
        they are, and not read again.

    Raises:
      UserError: for expressions that match nothing, a frozen backbone without a checkpoint, and a method whose settings
        cannot be stored in a file.
      CheckpointError: for files that do not fit.
    """
    if setup.adapter_start is not None and setup.initial_adapter_path is not None:
        raise UserError(
            "PROMPT_START and INITIAL_ADAPTER_PATH are both set; a prompt has one start, so set one of them."
        )
    if setup.model.adapter is not None:
        describe_adapter(setup.model.adapter)  # fails now rather than when the adapter is written
    trainable_names = split_abstract(setup.model, setup.trainable)[0].keys()
    wanted = setup.storage.stored(abstract_leaves(setup.model, mesh, rules), trainable_names)
    if any(name.startswith("backbone/") for name in trainable_names):
        checkpoints.stated_settings(setup.model.backbone)  # likewise for the base model's file
    if loaded_base is None:
        values, sources, base = _load_backbone(setup, wanted, trainable_names)
    else:
        values, sources, base = dict(loaded_base.frozen), dict(loaded_base.sources), loaded_base.base
    adapter, facts = partition.below(wanted, "adapter"), None
    if adapter and setup.initial_adapter_path is not None:
        if base is None or base.fingerprint is None:
            raise UserError("INITIAL_ADAPTER_PATH is set, but there is no base; set INITIAL_CHECKPOINT_PATH as well.")
        loaded, facts = checkpoints.load_adapter(
            setup.initial_adapter_path, adapter, base, setup.allow_other_base, setup.allow_other_precision, setup.model.adapter,
            setup.model.backbone.inputs_embeds_scale,
        )  # fmt: skip
        check_adapter(setup, setup.initial_adapter_path, facts)
        values |= {f"adapter/{name}": leaf for name, leaf in loaded.items()}
        unchecked = "" if facts.base.fingerprint else ", which does not name the base it was trained on"
        sources["adapter"] = setup.initial_adapter_path + unchecked
    elif adapter:
        sources["adapter"] = f"fresh, seed {setup.random_seed}"
    values |= _initialise(setup, {name: leaf for name, leaf in wanted.items() if name not in values})
    if setup.adapter_start is not None:
        for name, leaf in apply_adapter_start(setup, partition.below(values, "adapter"), values).items():
            values[f"adapter/{name}"] = jax.device_put(leaf, wanted[f"adapter/{name}"].sharding)
        sources["adapter"] += ", its prompt by PROMPT_START"
    trainable, frozen = (
        partition.select(values, names) for names in (trainable_names, values.keys() - trainable_names)
    )
    return Parameters(trainable, frozen, base, sources, facts)


def check_adapter(setup: Setup, folder: str, facts: checkpoints.AdapterFacts) -> None:
    """Refuses an adapter that was trained on the base with other settings than the setup's, unless ALLOW_OTHER_BASE is set."""
    if not setup.allow_other_base:
        remedy = "use its run's model (config.gin), or set ALLOW_OTHER_BASE = True for a transfer experiment"
        settings = checkpoints.settings_by_part(setup.model.backbone)
        checkpoints.check_base_settings(folder, facts, settings, remedy)


def _load_backbone(setup: Setup, wanted: Shapes, trainable_names) -> tuple[dict[str, jax.Array], dict[str, str], Any]:
    """`(leaves, sources, base)` of the backbone's leaves that come from files; checks that the others are trainable."""
    values, sources, base = {}, {}, None
    if setup.initial_checkpoint_path is not None:
        loaded = checkpoints.load_base(
            setup.initial_checkpoint_path,
            partition.below(wanted, "backbone"),
            renames=setup.checkpoint_renames,
            configs=checkpoints.configs_of(setup.model.backbone),
        )
        values = {f"backbone/{name}": leaf for name, leaf in loaded.leaves.items()}
        base = loaded.reference
        sources = {f"backbone/{part}": source for part, source in loaded.sources.items()}
    elif setup.checkpoint_renames:
        raise UserError("CHECKPOINT_RENAMES is set, but there is no base; set INITIAL_CHECKPOINT_PATH as well.")
    fresh = {name for name in wanted if name.startswith("backbone/")} - values.keys()
    if frozen := fresh - trainable_names:
        raise UserError(
            f"{len(frozen)} backbone parameters, such as {min(frozen)}, are frozen but there is no base model to take them "
            f"from; set INITIAL_CHECKPOINT_PATH, or train them (TRAINABLE)."
        )
    sources |= {"/".join(name.split("/")[:2]): f"random initialisation, seed {setup.random_seed}" for name in fresh}
    return values, sources, base


def apply_adapter_start(setup: Setup, adapter: Leaves, leaves: Leaves) -> Leaves:
    """A fresh adapter's leaves after `setup.adapter_start`, if it is set.

    Args:
      setup: the run's settings.
      adapter: the adapter's leaves by name, without the leading `adapter/`.
      leaves: the model's leaves by name, with the embedding table.
    """
    if setup.adapter_start is None:
        return adapter
    if not setup.model.backbone.reads_text:
        raise UserError("PROMPT_START takes vectors of words, and the model's encoder reads no text; leave it out.")
    table = leaves.get("backbone/encoder/token_embedder/embedding", leaves["backbone/token_embedder/embedding"])
    table = (dequantised(table) if isinstance(table, Quantised) else table) * setup.model.backbone.embedding_scale
    return setup.adapter_start(adapter, table, jax.random.key(setup.random_seed))


@timings.phase("initialisation")
def _initialise(setup: Setup, wanted: Shapes) -> dict[str, jax.Array]:
    """Random values of `wanted` only; the compiler drops the rest of the model's initialisation."""
    if not wanted:
        return {}
    leaves = lambda: paths.flatten(parallel.unbox(fresh_params(setup.model, setup.random_seed)))
    fresh = lambda: partition.select(leaves(), wanted)
    return jax.jit(fresh, out_shardings={name: leaf.sharding for name, leaf in wanted.items()})()
