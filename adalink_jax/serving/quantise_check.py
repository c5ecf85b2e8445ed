"""How far a quantised base is from the exact one, on given inputs, before anyone trains on it.

The exact model decodes each input greedily. Both models then read the inputs with these outputs, and their layers and logits are compared:

    error of a layer = rms(quantised - exact) / std(exact)          of the layer's outputs, errors of the layers before it included
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from adalink_jax import parallel
from adalink_jax.data import load_vocabulary
from adalink_jax.errors import UserError
from adalink_jax.models.decoding import Sampling
from adalink_jax.models.quantised import Storage, bits_of, precision_of
from adalink_jax.serving.model_inputs import bucket_lengths
from adalink_jax.serving.opening import Opened
from adalink_jax.serving.rows import Ask
from adalink_jax.training import partition

LOGITS = "logits"
_LAYER = re.compile(r"layers_\d+")


@dataclasses.dataclass(frozen=True)
class QuantiseCheck:
    """One quantised form of a base beside the exact one.

    Attributes:
      precision: how the kernels are stored, such as "int4/64".
      nbytes: of all leaves, scales included.
      errors: stack and number of each layer ("encoder/layers_0"), and "logits", -> its error.
      tokens: share of output tokens that are the quantised model's most likely ones, after the exact model's tokens before them.
      outputs: share of inputs whose greedy output is the same.
    """

    precision: str
    nbytes: int
    errors: Mapping[str, float]
    tokens: float
    outputs: float


def quantise_check(
    base: Opened, asks: Sequence[Ask], storages: Sequence[Storage], batch_size: int, show: Callable[..., None]
) -> list[QuantiseCheck]:
    """Compares a base with its quantised forms; two are in memory at a time.

    Args:
      base: the exact base, loaded, with unrolled layers.
      asks: the inputs.
      storages: the forms.
      batch_size: inputs that are computed together.
      show: called with a text and the share of the work that is done.
    """
    assert base.loaded is not None
    comparison = _Comparison(base, asks, batch_size)
    exact = base.loaded.parameters.frozen
    checks = []
    with parallel.use_mesh(base.loaded.mesh, base.loaded.rules):
        for number, storage in enumerate(storages):
            progress = lambda share, n=number, storage=storage: show(storage.dtype, (n + share) / len(storages))
            checks.append(comparison.of(exact, storage.of(exact), progress))
    return checks


class _Comparison:
    """The inputs as batches, and what the exact model makes of them, computed once."""

    def __init__(self, base: Opened, asks: Sequence[Ask], batch_size: int):
        setup = base.setup
        vocabulary = load_vocabulary(base.vocabulary)
        rows = [_row(ask, vocabulary, base) for ask in asks]
        lengths = bucket_lengths(rows, base.task_feature_lengths)
        lengths["targets"] = base.task_feature_lengths["targets"]
        self._converter = dataclasses.replace(setup.converter(lengths), task_name="the inputs")
        self._rows, self._size, self._model = rows, min(batch_size, len(rows)), setup.model
        self._ends = setup.model.backbone.token_ids
        self._outputs: list[list[int]] | None = None
        generate = lambda params, batch: self._model.apply(
            {"params": params}, batch, lengths["targets"], Sampling(), method="generate"
        )
        self._generate = jax.jit(lambda params, batch: cast(Any, generate(params, batch)).ids[:, 0])
        self._compare = jax.jit(self._differences)

    def of(
        self, exact: partition.Leaves, quantised: Mapping[str, Any], progress: Callable[[float], None]
    ) -> QuantiseCheck:
        """Compares the quantised leaves with the exact ones."""
        if self._outputs is None:
            self._outputs = self._decode(exact, lambda share: None)
        outputs = self._decode(quantised, lambda share: progress(share / 2))
        params = partition.merge({}, exact), partition.merge({}, quantised)
        sums: dict[str, np.ndarray] = {}
        same = tokens = 0.0
        rows = [row | {"targets": output} for row, output in zip(self._rows, self._outputs)]
        for start in range(0, len(rows), self._size):
            chunk = rows[start : start + self._size]
            layers, hits, count = jax.device_get(self._compare(*params, self._batch(chunk)))
            for name, pair in layers.items():
                sums[name] = sums.get(name, 0) + np.asarray(pair, np.float64)
            same, tokens = same + float(hits), tokens + float(count)
            progress((1 + (start + len(chunk)) / len(rows)) / 2)
        in_order = sorted(sums, key=lambda name: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", name)])
        errors = {name: float(np.sqrt(sums[name][0] / max(sums[name][1], 1e-30))) for name in in_order}
        equal = np.mean([one == other for one, other in zip(self._outputs, outputs)])
        nbytes = sum(bits_of(x.dtype) * x.size // 8 for x in jax.tree.leaves(quantised))
        return QuantiseCheck(precision_of(quantised.values()) or "exact", nbytes, errors, same / tokens, float(equal))

    def _decode(self, leaves: Mapping[str, Any], progress: Callable[[float], None]) -> list[list[int]]:
        """The greedy output of each input, with its end."""
        params, outputs = partition.merge({}, leaves), []
        for start in range(0, len(self._rows), self._size):
            chunk = self._rows[start : start + self._size]
            batch = {name: x for name, x in self._batch(chunk).items() if not name.startswith("decoder_")}
            for ids in jax.device_get(self._generate(params, batch))[: len(chunk)]:
                outputs.append(ids[: len(self._ends.before_end(ids)) + 1].tolist())
            progress((start + len(chunk)) / len(self._rows))
        return outputs

    def _batch(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return self._converter(rows, self._size)

    def _differences(self, exact: Any, quantised: Any, batch: Mapping[str, Any]) -> tuple[dict[str, Any], Any, Any]:
        """Per layer the sums of squares of the difference and of the exact values about their mean; hits and number of tokens."""
        (one, logits), (other, other_logits) = (self._layers(params, batch) for params in (exact, quantised))
        counted = batch["decoder_loss_weights"] > 0
        rows = jnp.any(counted, axis=1)  # the last batch is filled up
        of_row = lambda x: jnp.repeat(rows, x.shape[0] // len(rows))
        pairs = {name: _squares(x, other[name], of_row(x)) for name, x in one.items()}
        pairs[LOGITS] = _squares(logits, other_logits, counted)
        hits = (jnp.argmax(other_logits, axis=-1) == batch["decoder_target_tokens"]) & counted
        return pairs, jnp.sum(hits), jnp.sum(counted)

    def _layers(self, params: Any, batch: Mapping[str, Any]) -> tuple[dict[str, jax.Array], jax.Array]:
        """The outputs of the layers, by the names of their leaves, and the logits."""
        is_layer = lambda module, method: method == "__call__" and bool(_LAYER.fullmatch(module.name or ""))
        logits, state = self._model.apply(
            {"params": params}, batch, capture_intermediates=is_layer, mutable=["intermediates"]
        )
        outputs = jax.tree_util.tree_flatten_with_path(state["intermediates"], is_leaf=lambda x: isinstance(x, tuple))[
            0
        ]
        names = ("/".join(key.key for key in path if key.key not in ("backbone", "__call__")) for path, _ in outputs)
        return {name: jax.tree.leaves(call[0])[0] for name, (_, call) in zip(names, outputs)}, logits


def _row(ask: Ask, vocabulary: Any, base: Opened) -> dict[str, Any]:
    setup = base.setup
    row = {"inputs": vocabulary.input_ids(ask.text, base.task_feature_lengths["inputs"]), "targets": []}
    if setup.image_shape is not None and ask.picture is not None:
        row["image"] = ask.picture(setup.image_shape, setup.preparation.for_text(ask.text))
    elif setup.needs_images:
        raise UserError("The model takes images; name them with --image, or give a table with a column `image`.")
    return row | {"inputs_pretokenized": ask.text}


def _squares(exact: jax.Array, quantised: jax.Array, where: jax.Array) -> jax.Array:
    """[2]: the sums of squares of the difference, and of `exact` about its mean, where `where` (its leading axes) is set."""
    exact, quantised = exact.astype(jnp.float32), quantised.astype(jnp.float32)
    where = where.reshape(*where.shape, *(1,) * (exact.ndim - where.ndim))
    center = jnp.mean(exact, where=jnp.broadcast_to(where, exact.shape))
    return jnp.stack([jnp.sum(jnp.square(x) * where) for x in (quantised - exact, exact - center)])
