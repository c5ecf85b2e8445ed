"""Exports a base with a folded text adapter as an ordinary Hugging Face folder, with a check that a reader uses the adapter.

shared.weight                  the base's table, for the decoder (and for tied logits); T5Gemma: decoder.embed_tokens.weight
encoder.embed_tokens.weight    the folded table

In a T5Gemma 2, whose sides share their embeddings, `config.json` says that they are no longer tied.
"""

import pathlib
import string
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from adalink_jax.adapters import AdaptedModel, fold_embeddings
from adalink_jax.adapters.folding import ENCODER_TABLE, TABLE
from adalink_jax.checkpoints import AdapterFacts, Source, counted, hugging_face, reference_of_source
from adalink_jax.checkpoints.adapter_files import check_base, check_base_settings, own_base
from adalink_jax.checkpoints.convert import LAST, check_destination
from adalink_jax.errors import UserError
from adalink_jax.files import safetensors_file
from adalink_jax.files.leaves import from_array
from adalink_jax.files.whole_file import writing_folder
from adalink_jax.interop.exported_adapter import read_exported_adapter
from adalink_jax.interop.language_model import backbone_of, load_language_model
from adalink_jax.models import Inputs

TEMPLATES = pathlib.Path(__file__).parent / "templates"
_LENGTHS = 12, 6  # tokens of the self-check's input and target, which are random


def export_folded(
    adapter: str,
    source: Source,
    folder: str,
    dtype: str | None = None,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> dict[str, float]:
    """Writes the folder.

    Args:
      adapter: the adapter's folder.
      source: its base; its settings state every deciding field of its family.
      folder: a new or an empty folder.
      dtype: "float32" or "bfloat16", the dtype of all values; None keeps the base's, and stores the folded table in the
        dtype of the base's table.
      on_bytes: called with the number of bytes of each read; they add up to twice the source's.

    Returns:
      Largest changes of one input's logits, as shares of their spread: `rounding`, by rounding the stored table, and
      `adapter`, by the adapter.

    Raises:
      CheckpointError: for files that do not fit each other, and a folder that is not empty.
      UserError: for an adapter that cannot be folded, or whose effect is lost when the table is rounded.
    """
    path = check_destination(folder)
    module, params, facts = read_exported_adapter(adapter)
    if "shared" in params and module.kinds is None and any(name.startswith("projection/") for name in source.leaves):
        raise UserError(
            f"The adapter {adapter} has one pair for all kinds of input and adapts images too; fold it into a native base with "
            f"`adalink adapters fold`, or train it with KINDS = ('text',)."
        )
    embeddings = {name: leaf.whole() for name, leaf in source.leaves.items() if "token_embedder/" in name}
    table, backbone = embeddings.get(ENCODER_TABLE, embeddings[TABLE]), backbone_of(source)
    stored = np.dtype(dtype) if dtype else table.dtype
    source_read = counted(source, on_bytes)
    base = reference_of_source(source_read)
    check_base(adapter, facts, base, "give its own base with --base", precision_remedy=own_base(facts.base))
    check_base_settings(adapter, facts, source.settings, "fold it into a native base (`adalink adapters fold`)")
    adapted = fold_embeddings(module, params, embeddings, backbone.embedding_scale, backbone.replaced_ids)
    exact = adapted[ENCODER_TABLE]
    if np.array_equal(exact, table):
        raise UserError(f"The adapter {adapter} changes nothing, like a fresh one; export a trained adapter.")
    leaves = {name: from_array(values.astype(stored), name) for name, values in adapted.items()}
    family = hugging_face.family_of(source)
    written, extra = family.folded(source_read, leaves)
    config = hugging_face.config_of(written, stored.name)
    folded = exact.astype(stored)
    check, changes = _self_check(source, dtype, table.astype(stored), folded, exact)
    if changes["rounding"] > 0.1 * changes["adapter"]:
        raise UserError(
            f"Stored as {stored.name}, the folded table rounds away what the adapter {adapter} does; give --dtype float32."
        )
    tensors = {name: from_array(value, name) for name, value in check.items()}
    dtypes = {name: leaf.dtype for name, leaf in tensors.items()}
    with writing_folder(path, LAST) as new:
        hugging_face.write(new, written, config, dtype, extra)
        safetensors_file.write_leaves(new / "self_check.safetensors", tensors, dtypes)
        (new / "self_check.py").write_text((TEMPLATES / "self_check.py").read_text())
        card = {"adapter": f"{changes['adapter']:.2g}", "dtype": stored.name}
        fill_template("folded_README.md", new / "README.md", facts, **card)
    return changes


def _self_check(
    source: Source, dtype: str | None, table: np.ndarray, folded: np.ndarray, exact: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """The tensors of the self-check, and what `export_folded` returns."""
    rng = np.random.default_rng(0)
    inputs, targets = (rng.integers(3, len(table), (1, length)) for length in _LENGTHS)
    all_bfloat16 = all(leaf.dtype.name == "bfloat16" for leaf in source.leaves.values())
    weights_dtype = "bfloat16" if dtype == "bfloat16" or (dtype is None and all_bfloat16) else "float32"
    model, weights = load_language_model(source, weights_dtype)
    inputs[np.isin(inputs, model.backbone.replaced_ids)] = 3
    inputs[:, -1], targets[:, 0] = model.backbone.token_ids.eos, model.backbone.token_ids.start
    scale = np.float32(model.backbone.embedding_scale)
    logits = lambda rows: _logits(model, weights, scale * rows[inputs].astype(np.float32), targets)
    expected, unrounded, plain = logits(folded), logits(exact), logits(table)
    distance = lambda logits: float(np.abs(logits - expected).max() / expected.std())
    check = {"input_ids": inputs, "decoder_input_ids": targets, "logits": expected, "base_logits": plain}
    return check, {"rounding": distance(unrounded), "adapter": distance(plain)}


def fill_template(name: str, path: epath.Path, facts: AdapterFacts, **further: str) -> None:
    """Writes a model card.

    Args:
      name: a file in `TEMPLATES`, with `$name`s for the adapter's facts.
      path: the file to write.
      facts: the adapter's facts.
      **further: values for the template's other names.
    """
    metrics = {k: v for k, v in (facts.metrics or {}).items() if isinstance(v, (int, float))}
    score = ", ".join(f"{metric} {value:.3f}" for metric, value in sorted(metrics.items()))
    text = string.Template((TEMPLATES / name).read_text()).substitute(
        base=facts.base.name,
        fingerprint=(facts.base.fingerprint or "unknown")[:12],
        method=facts.method,
        settings=", ".join(f"{k} {v}" for k, v in facts.settings.items()),
        task=facts.task or "unknown",
        score=score or "no score recorded",
        **further,
    )
    path.write_text(text)


def _logits(model: AdaptedModel, weights: dict[str, Any], text: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Logits, float32 [1, T, V], of embedded inputs [1, L, D]."""

    def run(weights: dict[str, Any], text: jax.Array) -> jax.Array:
        backbone = model.backbone.bind({"params": weights["backbone"]})
        encoded = backbone.encode(Inputs(text=text, text_mask=jnp.ones(text.shape[:2], bool)))
        return backbone.decode(encoded, backbone.embed_target(targets))[0]

    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(run)(weights, text))
