"""One method on one tiny backbone; arrays, outputs and compiled programs are made once and shared by the checks."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from adalink_jax.adapters import AdaptedModel, NamedAdapters, fresh_params
from adalink_jax.contract.tiny import BACKBONES, init, random_batch
from adalink_jax.data import FeatureConverter
from adalink_jax.models import paths
from adalink_jax.parallel import unbox
from adalink_jax.training import partition
from adalink_jax.training.step import TrainState, make_train_step

ROWS, INPUTS, TARGETS = 4, 6, 5
# For programs whose results are compared with a tolerance; those compared bit for bit are compiled as usual.
_QUICKLY = {"xla_backend_optimization_level": 0}
_OPTIMIZER = optax.sgd(1.0)
_SIDES = {"inputs": "encoder_input_tokens", "targets": "decoder_target_tokens"}


class Base:
    """A tiny backbone without a method; layers are scanned.

    Attributes:
      backbone: the module.
      batch: features of `ROWS` rows, with padding.
      params: the backbone's parameters, random.
      plain: the backbone's logits [B, T, V].
    """

    def __init__(self, name: str):
        self.backbone = BACKBONES[name](scan_layers=True)
        self.batch = random_batch(self.backbone, ROWS, INPUTS, TARGETS, seed=0)
        model = AdaptedModel(self.backbone, None)
        self.params = init(model, self.batch)["backbone"]
        self._apply = jax.jit(model.apply)
        self.plain = self.logits(self.params)

    def logits(self, params: dict) -> np.ndarray:
        """Logits [B, T, V] of the batch, with the backbone's `params`."""
        return np.asarray(self._apply({"params": {"backbone": params}}, self.batch))


base = functools.cache(Base)


class Case:
    """`adapter` on the backbone called `name`. The default arguments of its methods are those of the trained adapter.

    Attributes:
      adapter: the method's module.
      name: of a backbone in `tiny.BACKBONES`.
      model: the backbone with the adapter.
    """

    def __init__(self, adapter: nn.Module, name: str):
        self.adapter, self.name, self.base = adapter, name, base(name)
        self.model = AdaptedModel(self.base.backbone, adapter)
        self.batch = self.base.batch

    @functools.cached_property
    def fresh(self) -> dict:
        """The adapter's initial parameters."""
        return jax.jit(lambda: unbox(fresh_params(self.model, 1)).get("adapter", {}))()

    @functools.cached_property
    def trained(self) -> dict:
        """Parameters as after some training: every entry differs from `fresh`."""
        return self.moved(1.0)

    def moved(self, sign: float) -> dict:
        """`fresh` plus a sine wave, times `sign`."""
        wave = lambda x: sign * 0.3 * jnp.sin(jnp.arange(x.size)).reshape(x.shape)
        return jax.tree.map(lambda x: x + wave(x), self.fresh)

    @functools.cached_property
    def outputs(self) -> np.ndarray:
        """Logits [B, T, V] of the trained adapter."""
        return self.logits()

    def program(self, adapter: nn.Module) -> str:
        """The text of the program that computes the logits with `adapter` in place of the method."""
        apply = jax.jit(AdaptedModel(self.base.backbone, adapter).apply)
        return apply.lower({"params": self.params()}, self.batch).as_text()

    @property
    def longer(self) -> bool:
        """Whether the method lengthens the encoder's input, as a prompt does."""
        encode = lambda model, params: model.apply({"params": params}, self.batch, method="encode").mask
        length = lambda model, params: jax.eval_shape(functools.partial(encode, model), params).shape[1]
        plain = length(AdaptedModel(self.base.backbone, None), {"backbone": self.base.params})
        return length(self.model, self.params()) > plain

    def logits(self, adapter: dict | None = None, batch: dict | None = None) -> np.ndarray:
        """Logits [B, T, V]; all calls share one compiled program."""
        return self._logits(self.params(adapter), batch or self.batch)

    def params(self, adapter: dict | None = None) -> dict:
        """The parameters of the whole model."""
        return {"backbone": self.base.params, "adapter": self.trained if adapter is None else adapter}

    @functools.cached_property
    def _logits(self) -> Callable:
        return compiled(self.model)

    @functools.cached_property
    def greedy(self) -> np.ndarray:
        """Ids [B, INPUTS] of greedy decoding."""
        apply: Callable = self.model.apply  # its result is that of `method`
        generate = lambda params: apply({"params": params}, self.batch, INPUTS, method="generate").ids
        return np.asarray(jax.jit(generate, compiler_options=_QUICKLY)(self.params()))[:, 0]

    @functools.cached_property
    def unrolled(self) -> np.ndarray:
        """Logits [B, T, V] of the same parameters in a model with unrolled layers."""
        model = AdaptedModel(BACKBONES[self.name](scan_layers=False), self.adapter)
        params = paths.unflatten(paths.unscan(paths.flatten(self.params())))
        return np.asarray(jax.jit(model.apply, compiler_options=_QUICKLY)({"params": params}, self.batch))

    @functools.cached_property
    def packed(self) -> tuple[np.ndarray, np.ndarray]:
        """Logits of all target tokens [tokens, V] where two rows of the batch share one row, and where they do not."""
        rows = [{side: self._ids(name, row) for side, name in _SIDES.items()} for row in range(ROWS)]
        lengths = {"inputs": 2 * INPUTS, "targets": 2 * TARGETS}
        converter = FeatureConverter(lengths, token_ids=self.model.backbone.token_ids)
        batch = converter.packed(list(zip(rows[::2], rows[1::2])))
        together = np.asarray(jax.jit(self.model.apply, compiler_options=_QUICKLY)({"params": self.params()}, batch))
        weights = [x["decoder_loss_weights"] > 0 for x in (batch, self.batch)]
        return together[weights[0]], self.outputs[weights[1]]

    def _ids(self, feature: str, row: int) -> np.ndarray:
        ids = self.batch[feature][row]
        return ids[ids > 0]

    @functools.cached_property
    def train_step(self) -> Callable:
        """The training step, plain gradient descent: `(state, frozen, batch) -> (state, metrics)`."""
        return jax.jit(make_train_step(self.model, _OPTIMIZER), compiler_options=_QUICKLY)

    @functools.cached_property
    def stepped(self) -> tuple[dict, float]:
        """All parameters after one training step, by name, and the step's loss."""
        return self.step(self.params(), self.batch)

    def step(self, params: dict, batch: dict) -> tuple[dict, float]:
        """As `stepped`, from arrays that may be on a mesh."""
        trainable, frozen = partition.split(params, ("adapter/.*",))
        state = TrainState(jnp.int32(0), trainable, _OPTIMIZER.init(trainable))
        state, metrics = jax.block_until_ready(self.train_step(state, frozen, batch))
        return paths.flatten(partition.merge(state.trainable, frozen)), float(metrics["loss"])

    def bank(self) -> NamedAdapters:
        """An empty bank for two adapters of the method.

        Raises:
          UserError: if no bank can hold the method.
        """
        return NamedAdapters(self.base.backbone, self.adapter, capacity=2)

    def served(self, bank: NamedAdapters, rows: int | list[str] = ROWS) -> np.ndarray:
        """Logits [B, T, V] from a bank; all calls share one compiled program.

        Args:
          bank: the bank.
          rows: the names of each row's adapter, or the number of rows, which then use the active adapter.
        """
        batch = self.batch | {"adapter_index": bank.rows(rows)}
        return self._served({"backbone": self.base.params, "adapter": bank.params}, batch)

    @functools.cached_property
    def _served(self) -> Callable:
        return compiled(AdaptedModel(self.base.backbone, self.bank().bank))


def compiled(model: AdaptedModel) -> Callable[[dict, dict], np.ndarray]:
    """Compiles a model: `(params, batch) -> logits`."""
    apply = jax.jit(model.apply)
    return lambda params, batch: np.asarray(apply({"params": params}, batch))
