"""An `AdaptedModel` as a model of t5x (`BaseTransformerModel`)."""

import functools
import importlib
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import seqio
from flax.core import freeze, unfreeze
from flax.linen.partitioning import AxisMetadata
from t5x import losses, models

from adalink_jax import configuration, parallel
from adalink_jax.adapters import AdaptedModel, abstract_params
from adalink_jax.data.published.registration import seqio_vocabulary
from adalink_jax.data.seqio_source import SHIPPED_TASKS
from adalink_jax.errors import UserError
from adalink_jax.models import paths
from adalink_jax.models.blip2 import INSTRUCTION
from adalink_jax.models.decoding import Decoding, Sampling
from adalink_jax.t5x.features import ImageFeatureConverter
from adalink_jax.t5x.optimizer import AdapterOptimizer
from adalink_jax.training import partition

PACKED = "encoder_segment_ids"
_IMAGES = ("image", "image_file")
_WITHOUT_PLACE = {
    "Setup.decoding": "bind AdaptedEncoderDecoderModel.decoding",
    "Setup.adapter_start": "start the prompt at random (PROMPT_START = None), or from a file (INITIAL_ADAPTER_PATH)",
    "Setup.vision_cache": "leave VISION_CACHE out",
}


def vocabulary(name: str) -> seqio.Vocabulary:
    """The vocabulary of our task files: "bytes", a SentencePiece model, or a checkpoint's folder that holds one."""
    return seqio_vocabulary(name)


def _check_task(name: str, takes_images: bool) -> None:
    known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
    if name not in known:
        raise UserError(
            f"There is no task or mixture {name!r} (MIXTURE_OR_TASK_NAME); name the module that declares it in MIXTURE_OR_TASK_MODULE. "
            f"Files of one's own (gin/tasks/files.gin) are read by `adalink train` alone."
        )
    for task in seqio.get_subtasks(seqio.get_mixture_or_task(name)):
        image = next((task.output_features[key] for key in _IMAGES if key in task.output_features), None)
        if (image is not None) != takes_images:
            has, takes = ("images", "none") if image else ("no images", "them")
            raise UserError(f"{task.name} has {has}, and the model takes {takes}; use another task, or another model.")
        if image is not None and image.rank == 0:
            raise UserError(
                f"The images of {task.name} are files, which seqio's evaluator cannot measure; under t5x a task's `image` is an "
                f"array of the model's size. `adalink train` reads files."
            )


class AdaptedEncoderDecoderModel(models.BaseTransformerModel):
    """A frozen encoder-decoder with an adapter, under t5x.

    Parameters are `{"backbone": ..., "adapter": ...}`, unscanned and with t5x's names; gradients of what `trainable` does not
    match are zeros that are never computed.
    """

    def __init__(
        self,
        module: AdaptedModel,
        input_vocabulary: seqio.Vocabulary,
        output_vocabulary: seqio.Vocabulary,
        optimizer: optax.GradientTransformation | None = None,
        trainable: Sequence[str] = ("adapter/.*",),
        decoding: Decoding = Sampling(),  # noqa: B008
        mixture_or_task_module: str | None = None,
        mixture_or_task_name: str | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        loss_normalizing_factor: float | int | str | losses.SpecialLossNormalizingFactor | None = None,
    ):
        """Args:
          module: with `scan_layers` False, as t5x's `examples/t5` has it.
          input_vocabulary, output_vocabulary: those of the task.
          optimizer: of the trainable leaves; None where nothing is trained.
          trainable: expressions for whole paths.
          decoding: how `predict_batch` decodes.
          mixture_or_task_module: a module that declares its tasks, at import or by a function `register`, which is called here; None for the
            scenes of digits.
          mixture_or_task_name: the task, to be looked at before anything is read; None: not looked at.
          label_smoothing, z_loss, loss_normalizing_factor: as in t5x.

        Raises:
          UserError: for stacked layers, a Q-Former that reads the instruction, a bound setting of ours that has no place here, an optimizer
            without an adapter, and a task that is not declared, has images where the model takes none (or the other way round), or has files for them.
        """
        if module.backbone.config.scan_layers:
            raise UserError(
                "SCAN_LAYERS is True, and the checkpoints of t5x's networks hold each layer by itself; add "
                "--gin.SCAN_LAYERS=False."
            )
        if optimizer is not None and module.adapter is None:
            raise UserError(
                "There is no adapter to train; add --gin_file=gin/adapters/adalink.gin. Whole models are t5x's own to train."
            )
        bound = configuration.bindings()
        for name, remedy in _WITHOUT_PLACE.items():
            if bound.get(name, "None") != "None":
                raise UserError(f"{name} is {bound[name]}, which has no place under t5x; {remedy}.")
        declared = importlib.import_module(mixture_or_task_module or SHIPPED_TASKS)
        if hasattr(declared, "register"):
            declared.register()
        self._decoding, self._trainable = decoding, tuple(trainable)
        self._features = module.backbone.abstract_batch(1, 1, 1)
        self.FEATURE_CONVERTER_CLS = seqio.EncDecFeatureConverter
        if INSTRUCTION in self._features:
            raise UserError(
                "The Q-Former reads the instruction in a vocabulary of its own, which t5x's features lack; use `adalink train`."
            )
        if mixture_or_task_name is not None:
            _check_task(mixture_or_task_name, "images" in self._features)
        if "images" in self._features:
            shape = self._features["images"].shape[1:]
            self.FEATURE_CONVERTER_CLS = functools.partial(ImageFeatureConverter, image_shape=shape)
        super().__init__(
            module=module,
            input_vocabulary=input_vocabulary,
            output_vocabulary=output_vocabulary,
            optimizer_def=None if optimizer is None else AdapterOptimizer(optimizer, trainable),
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            loss_normalizing_factor=loss_normalizing_factor,
        )

    def get_initial_variables(
        self, rng: jax.Array, input_shapes: Mapping[str, tuple], input_types: Mapping | None = None
    ):
        """`params`, from scratch, and `params_axes`, the logical axes of each.

        Raises:
          UserError: for packed features, and for a vocabulary that the embedding table cannot hold.
        """
        if PACKED in input_shapes:
            raise UserError(
                "The features are packed, which an adapted model does not read; set utils.DatasetConfig.pack = False."
            )
        rows = self.module.backbone.config.vocab_size
        if self.input_vocabulary.vocab_size > rows:
            raise UserError(
                f"The vocabulary has {self.input_vocabulary.vocab_size} ids and the model {rows}; use the model's own."
            )
        batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self._features)
        params = parallel.unbox(self.module.init(rng, batch)["params"])
        boxes = jax.tree_util.tree_leaves_with_path(
            abstract_params(self.module), is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
        )
        axes = {"/".join(key.key for key in path) + "_axes": AxisMetadata(tuple(box.names)) for path, box in boxes}
        return freeze({"params": params, "params_axes": paths.unflatten(axes)})

    def loss_fn(self, params, batch, dropout_rng):
        """See `BaseModel`; differentiable in the trainable leaves."""
        return super().loss_fn(self._frozen(params), batch, dropout_rng)

    def _frozen(self, params) -> dict:
        trainable, frozen = partition.split(unfreeze(params), self._trainable)
        return partition.merge(trainable, jax.lax.stop_gradient(frozen))

    def _compute_logits(self, params, batch, dropout_rng=None):
        rngs = {} if dropout_rng is None else {"dropout": dropout_rng}
        return self.module.apply({"params": unfreeze(params)}, dict(batch), train=dropout_rng is not None, rngs=rngs)

    def predict_batch_with_aux(
        self, params, batch, rng=None, decoder_params=None, return_all_decodes: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Decoded ids int32 [B, T], and their scores [B]; with `return_all_decodes` [B, N, T] and [B, N], the best last.

        Raises:
          UserError: for `decoder_params`; `decoding` says how to decode.
        """
        if decoder_params:
            raise UserError(
                "An adapted model takes no decoder_params; bind Sampling or BeamSearch, and their settings."
            )
        length = batch["decoder_input_tokens"].shape[1]
        decoded = self.module.apply(
            {"params": unfreeze(params)}, dict(batch), length, self._decoding, rng, method="generate"
        )
        ids, scores = decoded.ids[:, ::-1], decoded.scores[:, ::-1]
        if return_all_decodes:
            return ids, {"scores": scores}
        return ids[:, -1], {"scores": scores[:, -1]}

    def score_batch(self, params, batch, return_intermediates: bool = False) -> jax.Array:
        """Log-likelihoods of the targets: float32 [B].

        Raises:
          UserError: for `return_intermediates`: our modules sow none.
        """
        if return_intermediates:
            raise UserError("An adapted model has no intermediates; leave return_intermediates False.")
        return self.module.apply({"params": unfreeze(params)}, dict(batch), method="score")
