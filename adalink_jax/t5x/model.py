"""An `AdaptedModel` as a t5x model (`BaseTransformerModel`)."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.core import FrozenDict, freeze, unfreeze
from flax.linen.partitioning import AxisMetadata
from t5x import losses, models  # pyright: ignore[reportAttributeAccessIssue]  # t5x is optional; this package shadows its name

from adalink_jax import configuration, parallel
from adalink_jax.adapters import AdaptedModel, abstract_params
from adalink_jax.configuration.gin_checks import macros_set
from adalink_jax.data.seqio_features import EncDecFeatureConverter, ImageFeatureConverter, Vocabulary, check_task
from adalink_jax.data.seqio_source import SHIPPED_TASKS
from adalink_jax.data.seqio_vocabulary import seqio_vocabulary
from adalink_jax.data.vocabularies import check_rows
from adalink_jax.errors import UserError
from adalink_jax.files.base_formats import QUANTISED
from adalink_jax.models import paths
from adalink_jax.models.blip2 import INSTRUCTION
from adalink_jax.models.decoding import Decoding, Sampling
from adalink_jax.t5x.optimizer import AdapterOptimizer
from adalink_jax.token_ids import T5_IDS
from adalink_jax.training import partition

PACKED = "encoder_segment_ids"
# Settings of `adalink train` that t5x cannot apply -> what to do instead.
_NOT_IN_T5X = {
    "Setup.decoding": "bind AdaptedEncoderDecoderModel.decoding",
    "Setup.adapter_start": "start the prompt at random (PROMPT_START = None), or from a file (INITIAL_ADAPTER_PATH)",
    "Setup.vision_cache": "leave VISION_CACHE out",
}


def vocabulary(name: str) -> Vocabulary:
    """The seqio vocabulary of VOCABULARY: "bytes", a SentencePiece model, or a checkpoint's folder that has one."""
    return seqio_vocabulary(name)


class AdaptedEncoderDecoderModel(models.BaseTransformerModel):  # pyright: ignore[reportAttributeAccessIssue]  # as above
    """A frozen encoder-decoder with an adapter, as a t5x model.

    Parameters are `{"backbone": ..., "adapter": ...}`, unscanned and with t5x's names. Gradients of frozen leaves are zeros that are
    never computed.
    """

    def __init__(
        self,
        module: AdaptedModel,
        input_vocabulary: Vocabulary,
        output_vocabulary: Vocabulary,
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
          module: the model, with `scan_layers` False, as in t5x's `examples/t5`.
          input_vocabulary: the vocabulary of the task's inputs.
          output_vocabulary: the vocabulary of the task's targets.
          optimizer: updates the trainable leaves; None if nothing is trained.
          trainable: regular expressions for whole paths.
          decoding: how `predict_batch` decodes.
          mixture_or_task_module: module that declares the task, when it is imported or by its function `register`, which is called here;
            None for the module of the digit scenes.
          mixture_or_task_name: the task, which is checked before any data is read; None skips the check.
          label_smoothing, z_loss, loss_normalizing_factor: see t5x.

        Raises:
          UserError: for stacked layers, other special ids than T5's, a Q-Former that reads the instruction, a setting of `adalink train`
            that t5x cannot apply, an optimizer without an adapter, and a task that is not declared, that has images if the model takes
            none or the other way round, or whose images are files.
        """
        if module.backbone.config.scan_layers:
            raise UserError(
                "SCAN_LAYERS is True, but t5x's checkpoints have each layer separately; add --gin.SCAN_LAYERS=False."
            )
        if optimizer is not None and module.adapter is None:
            raise UserError(
                "There is no adapter to train; add --gin_file=gin/adapters/adalink.gin, or train a whole model with t5x alone."
            )
        if module.backbone.token_ids != T5_IDS:
            raise UserError(
                f"The model has {module.backbone.token_ids}, but t5x starts with 0, pads with 0 and ends with 1; use `adalink train`."
            )
        bound = configuration.bindings()
        if (stored := macros_set().get("FROZEN_DTYPE")) in QUANTISED:
            raise UserError(
                f"FROZEN_DTYPE is {stored!r}, and t5x keeps every leaf as it trains it; leave it out, or use `adalink train`."
            )
        for name, remedy in _NOT_IN_T5X.items():
            if bound.get(name, "None") != "None":
                raise UserError(f"{name} is {bound[name]}, which t5x cannot apply; {remedy}.")
        declared = configuration.import_module(mixture_or_task_module or SHIPPED_TASKS, "MIXTURE_OR_TASK_MODULE")
        if hasattr(declared, "register"):
            declared.register()
        self._decoding, self._trainable = decoding, tuple(trainable)
        self._features = module.backbone.abstract_batch(1, 1, 1)
        self.FEATURE_CONVERTER_CLS = EncDecFeatureConverter
        if INSTRUCTION in self._features:
            raise UserError(
                "The Q-Former reads the instruction in its own vocabulary, which t5x's features lack; use `adalink train`."
            )
        if not module.backbone.reads_text:
            raise UserError(
                "The model reads texts that are drawn above pictures, which t5x cannot do; use `adalink train`."
            )
        if mixture_or_task_name is not None:
            check_task(mixture_or_task_name, "images" in self._features)
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
    ) -> FrozenDict:
        """Initial `params`, and `params_axes`, their logical axes.

        Raises:
          UserError: for packed features, and for a vocabulary that the embedding table cannot hold.
        """
        if PACKED in input_shapes:
            raise UserError(
                "The features are packed, which an adapted model does not support; set utils.DatasetConfig.pack = False."
            )
        for side, vocabulary in (("inputs", self.input_vocabulary), ("targets", self.output_vocabulary)):
            check_rows(f"The vocabulary of {side}", vocabulary.vocab_size, self.module.backbone.config.vocab_size)
        batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self._features)
        params = parallel.unbox(self.module.init(rng, batch)["params"])
        boxes = jax.tree_util.tree_leaves_with_path(
            abstract_params(self.module), is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
        )
        axes = {"/".join(key.key for key in path) + "_axes": AxisMetadata(tuple(box.names)) for path, box in boxes}
        return freeze({"params": params, "params_axes": paths.unflatten(axes)})

    def loss_fn(self, params: Any, batch: Mapping[str, jax.Array], dropout_rng: jax.Array | None) -> Any:
        """See `BaseModel`; differentiable with respect to the trainable leaves."""
        return super().loss_fn(self._frozen(params), batch, dropout_rng)

    def _frozen(self, params: Any) -> dict:
        trainable, frozen = partition.split(unfreeze(params), self._trainable)
        return partition.merge(trainable, jax.lax.stop_gradient(frozen))

    def _compute_logits(self, params, batch, dropout_rng=None):
        rngs = {} if dropout_rng is None else {"dropout": dropout_rng}
        return self.module.apply({"params": unfreeze(params)}, dict(batch), train=dropout_rng is not None, rngs=rngs)

    def predict_batch_with_aux(
        self,
        params: Any,
        batch: Mapping[str, jax.Array],
        rng: jax.Array | None = None,
        decoder_params: Mapping | None = None,
        return_all_decodes: bool = False,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Decoded ids int32 [B, T], and their scores [B]; with `return_all_decodes` [B, N, T] and [B, N], the best last.

        Raises:
          UserError: for `decoder_params`, since `decoding` configures it.
        """
        if decoder_params:
            raise UserError(
                "An adapted model takes no decoder_params; bind AdaptedEncoderDecoderModel.decoding to Sampling or BeamSearch."
            )
        length = batch["decoder_input_tokens"].shape[1]
        keys = None if rng is None else jax.random.split(rng, len(batch["decoder_input_tokens"]))
        decoded = self.module.apply(
            {"params": unfreeze(params)}, dict(batch), length, self._decoding, keys, method="generate"
        )
        ids, scores = decoded.ids[:, ::-1], decoded.scores[:, ::-1]
        if return_all_decodes:
            return ids, {"scores": scores}
        return ids[:, -1], {"scores": scores[:, -1]}

    def score_batch(self, params: Any, batch: Mapping[str, jax.Array], return_intermediates: bool = False) -> jax.Array:
        """Log-likelihoods of the targets: float32 [B].

        Raises:
          UserError: for `return_intermediates`, since the modules sow none.
        """
        if return_intermediates:
            raise UserError("An adapted model has no intermediates; leave return_intermediates False.")
        return self.module.apply({"params": unfreeze(params)}, dict(batch), method="score")
