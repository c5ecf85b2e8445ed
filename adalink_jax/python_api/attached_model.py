"""A frozen base with one trainable adapter: train it, by `fit` or a loop of your own, predict, save."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from adalink_jax import checkpoints, configuration, parallel
from adalink_jax.adapters import AdaptedModel, make_adapter
from adalink_jax.data import load_vocabulary
from adalink_jax.errors import CheckpointError, UserError, sentence
from adalink_jax.files.places import path_of
from adalink_jax.models import paths
from adalink_jax.python_api import fitting
from adalink_jax.python_api.given_rows import IMAGE, INPUTS, TARGETS, checked_rows
from adalink_jax.python_api.loaded_base import LoadedBase, Settings
from adalink_jax.serving.model_inputs import bucket_lengths
from adalink_jax.serving.predictor import ONLY, Names, Predictor
from adalink_jax.training import outputs, parameter_tables, partition
from adalink_jax.training.partition import Leaves
from adalink_jax.training.step import make_loss
from adalink_jax.typed_values import PositiveFloat, PositiveInt, Seed

ADAPTER = "adapter"


class AttachedModel:
    """A frozen base with one adapter; `attach` and `load_adapter` make it.

    Attributes:
      base: the base, which several models may share.
      adapter: the adapter's module.
    """

    def __init__(self, base: LoadedBase, adapter: nn.Module, seed: int, folder: str | None = None):
        parameters = base.with_adapter(adapter, seed, folder)
        self.base, self.adapter, self._lengths = base, adapter, dict(base.opened.task_feature_lengths)
        self._seed, self._fresh, self._facts = seed, folder is None, parameters.adapter_facts
        self._trainable: Leaves = parameters.trainable
        self._without_images = base.setup.needs_images  # until rows with images are given
        self._vocabulary = load_vocabulary(base.opened.vocabulary)
        self._model = AdaptedModel(base.setup.model.backbone, adapter)
        self._predictor: Predictor | None = None
        self._loss = jax.jit(self._mean_loss)

    @property
    def trainable(self) -> Leaves:
        """The adapter's leaves by name (`adapter/...`), float32. Set it to what a loop of your own has trained.

        Raises:
          UserError: from setting it, for other names or shapes.
        """
        return self._trainable

    @trainable.setter
    def trainable(self, leaves: Leaves) -> None:
        configuration.check_argument("trainable", leaves, Mapping[str, Any])
        shapes = lambda leaves: {name: np.shape(leaf) for name, leaf in leaves.items()}
        wanted, trained = shapes(self._trainable), shapes(leaves)
        if odd := sorted(name for name in wanted.keys() | trained.keys() if wanted.get(name) != trained.get(name)):
            raise UserError(
                f"`trainable` has {odd[0]} {trained.get(odd[0], '(missing)')}, and the model {wanted.get(odd[0], '(none)')}; give the leaves of "
                f"`model.trainable`, trained."
            )
        self._set(dict(leaves), None)

    @property
    def lengths(self) -> dict[str, int]:
        """The most tokens of a text, `{"inputs": L, "targets": T}`: 512 and 64 until `fit` chooses others, or you set them.

        Longer texts are cut.
        """
        return dict(self._lengths)

    @lengths.setter
    def lengths(self, lengths: Mapping[str, PositiveInt]) -> None:
        configuration.check_argument("lengths", lengths, Mapping[str, PositiveInt])
        if lengths.keys() != self._lengths.keys():
            raise UserError(f"`lengths` has {', '.join(map(repr, lengths)) or 'nothing'}; give 'inputs' and 'targets'.")
        self._lengths, self._predictor = dict(lengths), None

    @property
    def frozen(self) -> Leaves:
        """The base's leaves by name (`backbone/...`)."""
        return self.base.parameters.frozen

    def __repr__(self) -> str:
        trained, frozen = map(parameter_tables.count, (self.trainable, self.frozen))
        share = trained / (trained + frozen)
        name = type(self.adapter).__name__
        return f"AttachedModel({self.base.path!r}, {name}): {trained:,} parameters trainable ({share:.2%}), {frozen:,} frozen"

    # --- training ---

    def fit(
        self,
        train: Any,
        validation: Any = None,
        test: Any = None,
        *,
        steps: PositiveInt,
        batch_size: PositiveInt = 32,
        learning_rate: PositiveFloat | None = None,
        metrics: Sequence[str] | None = None,
        lengths: Mapping[str, PositiveInt] | None = None,
        model_dir: str | os.PathLike[str] | None = None,
        settings: Settings | None = None,
    ) -> dict[str, Any]:
        """Trains the adapter as `adalink train` does, and keeps the step that is best on `validation`.

        Rows are a list of dicts, a dict of columns, or a data set, with `inputs`, `targets` (a text, or a list, with `LISTS` in `settings`) and,
        if the model takes images, `image` (a path, a PIL image, or uint8 [height, width, channels]).

        Args:
          train: the rows to train on; or an iterator with the batch of each step (`model.batch`), which then needs `validation`.
          validation: rows that choose the best step. None: a tenth of `train`, by a hash of the inputs, and another tenth for `test`.
          test: rows that are scored once, before and after. None: half of `validation`, by a hash.
          steps: steps to train. 50 of them, and at most half, warm the learning rate up (`settings={"WARMUP_STEPS": ...}`).
          batch_size: rows of a batch.
          learning_rate: the largest; None for the usual one of the method (gin/adapters).
          metrics: names such as "accuracy", "squad" (`FileTask`); the first chooses the best step. None: by what the targets look like.
          lengths: `{"inputs": L, "targets": T}`, in tokens; None: what 99 of 100 rows do not exceed.
          model_dir: folder of the run, with the files that `adalink train` writes. Call again with equal arguments to resume a run that
            was stopped. None keeps no files.
          settings: further settings by their names in gin files, such as `{"EVAL_PERIOD": 100, "adamw.weight_decay": 0.01}`.

        Returns:
          The contents of the run's `summary.json`: scores, steps, seconds.

        Raises:
          UserError, CheckpointError: for arguments, rows and files that cannot be used, before anything is compiled.
          NotFinite: if the loss or the gradient of a step is NaN or infinite.
          Stopped: after Ctrl-C or a notice; with `model_dir` the state was saved.
        """
        arguments = fitting.FitArguments(steps, batch_size, learning_rate, metrics, lengths, settings)
        start = None if self._fresh else self._write
        splits = {"train": train, "validation": validation, "test": test}
        with configuration.named_as(fitting.SHOWN):
            try:
                done = fitting.fit(self.base, self.adapter, self._seed, start, splits, arguments, model_dir)
            except UserError as e:  # without the lines that gin adds
                kind = CheckpointError if isinstance(e, CheckpointError) else UserError
                raise kind(configuration.as_named(sentence(e))) from e
        self.lengths, self._without_images = done.lengths, done.without_images
        self._set(done.parameters.trainable, done.parameters.adapter_facts)
        return done.summary

    def loss(self, trainable: Leaves, frozen: Leaves, batch: Leaves, key: jax.Array | None = None) -> jax.Array:
        """The mean cross-entropy over the tokens of a batch, to differentiate with respect to `trainable`.

        It may be called inside `jax.jit` and `jax.grad`, on any mesh.

        Args:
          trainable, frozen: as `model.trainable` and `model.frozen`.
          batch: of `model.batch`.
          key: a key for dropout, another one in each step; None drops nothing.

        Returns:
          A float32 scalar.
        """
        return self._loss(trainable, frozen, batch, key)

    def _mean_loss(self, trainable: Leaves, frozen: Leaves, batch: Leaves, key: jax.Array | None) -> jax.Array:
        with parallel.traced_on(self.base.mesh, self.base.rules):
            total, weights = make_loss(self._model)(trainable, frozen, batch, key)
        return total / jnp.maximum(weights, 1.0)

    def batch(self, rows: Any) -> dict[str, jax.Array]:
        """Rows as the model's features, on the mesh.

        Lengths are powers of two, so that there are few shapes to compile; rows of weight 0 are added if the mesh splits rows over more
        devices than there are.

        Args:
          rows: as for `fit`.

        Returns:
          `encoder_input_tokens` int32 [B, L], `decoder_target_tokens`, `decoder_input_tokens` int32 and `decoder_loss_weights` float32
          [B, T]; `images` float32 [B, height, width, channels] if the model takes them.

        Raises:
          UserError: for rows that cannot be used.
        """
        checked, setup = checked_rows(rows, "rows"), self.base.setup
        if IMAGE in checked[0] and setup.image_shape is None:
            raise UserError("The rows have images, and the model takes none; leave `image` out, or load another base.")
        without_images = IMAGE not in checked[0] and setup.needs_images
        if without_images != self._without_images:
            self._without_images, self._predictor = without_images, None
        examples = [self._example(row) for row in checked]
        devices = parallel.data_axis_size(self.base.mesh)
        size = -(-len(examples) // devices) * devices
        converter = setup.converter(bucket_lengths(examples, self.lengths))
        features = dataclasses.replace(converter, task_name="the batch")(examples, size)
        local_rows = parallel.local_rows(size, self.base.mesh)
        return parallel.put_batch({name: x[local_rows] for name, x in features.items()}, self.base.mesh)

    def _example(self, row: Mapping[str, Any]) -> dict[str, Any]:
        target = row[TARGETS] if isinstance(row[TARGETS], str) else row[TARGETS][0]
        vocabulary, most = self._vocabulary, self.lengths
        image = {IMAGE: row.get(IMAGE, b"")} if IMAGE in row or self._without_images else {}
        return {
            "inputs": vocabulary.input_ids(row[INPUTS], most["inputs"]),
            "targets": [*vocabulary.encode(target)[: most["targets"] - 1], vocabulary.eos],
            "inputs_pretokenized": row[INPUTS],
            **image,
        }

    # --- predictions ---

    def __call__(
        self,
        inputs: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]],
        images: Any = None,
        adapters: Names = ONLY,
        *,
        scores: bool = False,
        choices: Sequence[str | Sequence[str]] | None = None,
    ) -> Any:
        """Predicts outputs; see `Predictor.__call__`. `adapters=None` is the plain base."""
        if not isinstance(inputs, str | Mapping | Sequence):
            raise UserError(f"`inputs` is {inputs!r}; give a text, a row, or a list of them.")
        if self._predictor is None:
            opened = dataclasses.replace(
                self.base.opened,
                adapters={ADAPTER: (self.adapter, self._nested)},
                task_feature_lengths=self.lengths,
                without_images=self._without_images,
                rows={INPUTS: f"{{{INPUTS}}}"},
            )
            with configuration.isolated():
                configuration.load(self.base.flags, require_all=False)
                self._predictor = Predictor(opened)
        return self._predictor(inputs, images, adapters, scores=scores, choices=choices)

    # --- files ---

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the adapter's folder, as `adalink train` does; `load_adapter`, `Predictor` and every command read it."""
        configuration.check_argument("folder", folder, str | os.PathLike)
        if path_of(folder).is_file():
            raise UserError(f"{folder} is a file; give a folder for the adapter.")
        self._write(os.fspath(folder))

    def _write(self, folder: str) -> None:
        about = {"empty_input": self._vocabulary.input_ids(""), "versions": outputs.library_versions()}
        reference = self.base.parameters.base
        assert reference is not None  # a base is loaded from files
        facts = self._facts or outputs.adapter_facts(self._model, reference, **about)
        checkpoints.save_adapter(folder, partition.below(self.trainable, "adapter"), facts)

    @property
    def _nested(self) -> dict[str, Any]:
        return paths.unflatten(partition.below(self.trainable, "adapter"))

    def _set(self, leaves: Leaves, facts: checkpoints.AdapterFacts | None) -> None:
        self._trainable, self._facts, self._fresh = leaves, facts, False
        if self._predictor is not None:
            self._predictor.replace(ADAPTER, self._nested)


def attach(base: LoadedBase, adapter: nn.Module, *, seed: Seed | None = None) -> AttachedModel:
    """A model of a frozen base and a fresh adapter.

    Args:
      base: of `load_base`.
      adapter: its module, such as `AdaLinkAdapter(rank=16)`, `LoRA(rank=8)`, or your own.
      seed: of the adapter's random values, and of dropout in `fit`; None for RANDOM_SEED of the base's settings, 0.

    Raises:
      UserError: for another kind of argument, and an adapter that does not fit the base.
    """
    if not isinstance(base, LoadedBase):
        raise UserError(f"`base` is {base!r}; load it first: load_base({str(base)!r}).")
    if not isinstance(adapter, nn.Module):
        raise UserError(f"`adapter` is {adapter!r}; give an adapter, such as AdaLinkAdapter(rank=16) or LoRA(rank=8).")
    configuration.check_fields(adapter)
    configuration.check_argument("seed", seed, Seed | None)
    return AttachedModel(base, adapter, base.setup.random_seed if seed is None else seed)


def load_adapter(base: LoadedBase, folder: str | os.PathLike[str]) -> AttachedModel:
    """A model of a frozen base and a trained adapter.

    Args:
      base: the one that it was trained on.
      folder: what `AttachedModel.save`, `adalink train` or PEFT wrote, or `hf://OWNER/NAME[@revision]`.

    Raises:
      CheckpointError: for a folder that is not an adapter, and for one of another base.
      UserError: for an adapter whose inputs began or ended otherwise than the vocabulary's.
    """
    configuration.check_argument("base", base, LoadedBase)
    configuration.check_argument("folder", folder, str | os.PathLike)
    folder = os.fspath(folder)
    _, facts = checkpoints.open_adapter(folder)
    if problem := facts.other_inputs(folder, load_vocabulary(base.opened.vocabulary).input_ids("")):
        raise UserError(problem)
    return AttachedModel(base, make_adapter(facts.method, facts.settings), base.setup.random_seed, folder)
