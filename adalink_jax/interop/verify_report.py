"""The page of `adalink verify-base --report`: every difference from `transformers`, a short training and its exports, versions."""

import dataclasses
import os
import platform
import runpy
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adalink_jax import parallel
from adalink_jax.adapters import AdaLinkAdapter, AdaptedModel, describe_adapter
from adalink_jax.checkpoints import Source, fingerprint_of_source, save_adapter
from adalink_jax.checkpoints.families.family import VISION
from adalink_jax.data.vocabularies import Vocabulary
from adalink_jax.interop.folded import export_folded
from adalink_jax.interop.hook import MODULE, export_hook
from adalink_jax.interop.language_model import backbone_of
from adalink_jax.interop.verify import PROMPTS, TOLERANCE, Check, Verification
from adalink_jax.reports.page import Part, Report, Table
from adalink_jax.training.segments import versions
from adalink_jax.training.setup import Setup, load_parameters
from adalink_jax.training.step import TrainState, make_train_step

_STEPS, _RANK, _RATE, _LENGTHS = 20, 8, 0.01, {"inputs": 96, "targets": 12}
_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "numpy",
    "torch",
    "transformers",
    "tokenizers",
    "sentencepiece",
    "safetensors",
    "pillow",
)


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """An adapter that was trained for a few steps and exported: its losses by step, and checks of the exports."""

    losses: list[float]
    checks: list[Check]


def adapt(source: Source, reference: str, vocabulary: Vocabulary) -> Adaptation:
    """Trains an adapter to repeat the beginnings of the prompts, exports it both ways, and compares with `transformers`.

    Args:
      source: a language model; its settings state every deciding field of its family.
      reference: its Hugging Face folder, or `hf://OWNER/NAME`.
      vocabulary: its vocabulary.
    """
    adapter = AdaLinkAdapter(_RANK, kinds=("text",))
    setup = Setup(AdaptedModel(backbone_of(source), adapter), ("adapter/.*",), initial_checkpoint_path=source.path)
    most = _LENGTHS["targets"] - 1
    examples = [
        {
            "inputs": vocabulary.input_ids(x, _LENGTHS["inputs"]),
            "targets": [*vocabulary.encode(x)[:most], vocabulary.eos],
        }
        for x in PROMPTS
    ]
    mesh, rules = parallel.make_mesh(), parallel.logical_axis_rules()
    with parallel.use_mesh(mesh, rules), jax.default_matmul_precision("highest"):
        loaded = load_parameters(setup, mesh, rules)
        batch = {name: jnp.asarray(x) for name, x in setup.converter(_LENGTHS)(examples).items()}
        optimizer = optax.adam(_RATE)
        step = jax.jit(make_train_step(setup.model, optimizer))
        state = TrainState(jnp.int32(0), loaded.trainable, optimizer.init(loaded.trainable))
        losses = []
        for _ in range(_STEPS):
            state, metrics = step(state, loaded.frozen, batch)
            losses.append(float(metrics["loss"]))
        loaded = dataclasses.replace(loaded, trainable=dict(state.trainable))
        logits = np.asarray(jax.jit(setup.model.apply)({"params": loaded.tree()}, batch))
    learned = Check(
        "training", f"loss {losses[0]:.3f} at step 1, {losses[-1]:.3f} at step {_STEPS}", losses[-1] < losses[0]
    )
    base: Any = loaded.base
    facts = {**describe_adapter(adapter), "base": dataclasses.asdict(base), "step": _STEPS}
    with tempfile.TemporaryDirectory() as folder:
        place = lambda name: os.path.join(folder, name)
        save_adapter(place("adapter"), loaded.tree()["adapter"], facts)
        export_folded(place("adapter"), source, place("folded"))
        export_hook(place("adapter"), place("hook"))
        exports = {
            "export --to hf": _logits(place("folded"), batch),
            "export --to torch": _logits(reference, batch, place("hook")),
        }
    far = {name: float(np.abs(reached - logits).max() / reached.std()) for name, reached in exports.items()}
    return Adaptation(losses, [learned, *(_export(name, value) for name, value in far.items())])


def _export(name: str, difference: float) -> Check:
    finding = f"largest difference of the adapted logits {difference:.1e} of their spread (allowed: {TOLERANCE:.0e})"
    return Check(name, finding, difference <= TOLERANCE)


def _logits(path: str, batch: dict[str, jax.Array], hook: str | None = None) -> np.ndarray:
    """Logits of `transformers`' model in `path`, with the adapter of the exported folder `hook` if there is one."""
    import torch  # pyright: ignore[reportMissingImports]  # optional
    import transformers  # pyright: ignore[reportMissingImports]  # optional

    from adalink_jax.checkpoints import folder_of

    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder_of(path), dtype=torch.float32).eval()
    if hook is not None:
        links = runpy.run_path(os.path.join(hook, MODULE))["AdaLinks"](model)
        links.load("adapter", hook)
        links.switch("adapter")
    tensor = lambda name: torch.tensor(np.asarray(batch[name]), dtype=torch.long)
    inputs = tensor("encoder_input_tokens")
    mask = inputs != model.config.pad_token_id
    with torch.no_grad():
        out = model(input_ids=inputs, attention_mask=mask, decoder_input_ids=tensor("decoder_input_tokens"))
    return out.logits.numpy()


def make(
    source: Source, reference: str, verification: Verification, adaptation: Adaptation | None, command: str
) -> Report:
    """The page.

    Args:
      source: the base model.
      reference: its Hugging Face folder.
      verification: the comparison.
      adaptation: the short training; None for a model with images, whose adapters are not exported.
      command: the command that makes the page.
    """
    checks = [*verification.checks, *(adaptation.checks if adaptation else ())]
    verdicts = {True: "same", False: "DIFFERENT", None: "not compared"}
    failed = [check.name for check in checks if check.passed is False]
    rows = [[check.name, verdicts[check.passed], check.finding] for check in checks]
    summary = (
        f"{source.name}: {'every number compared is that of transformers' if not failed else 'DIFFERENT in ' + ', '.join(failed)}. "
        f"Please send this page to the project, whatever it says: attach it to an issue."
    )
    parts = [Part("Checks", data=Table(["check", "result", "finding"], rows)), _prompts(verification)]
    if adaptation:
        text = f"AdaLink of rank {_RANK}, Adam at {_RATE}, to repeat the first {_LENGTHS['targets'] - 1} tokens of each prompt."
        losses = [[i + 1, loss] for i, loss in enumerate(adaptation.losses)]
        parts.append(Part("Training", text, Table(["step", "loss"], losses)))
    stated = {f"{part}.{name}": value for part, fields in source.settings.items() for name, value in fields.items()}
    settings = [[name, str(value)] for name, value in stated.items()]
    parts += [
        Part("Settings", "Settings of the base that shapes do not show.", Table(["setting", "value"], settings)),
        Part("Origin", "", Table(["what", "value"], _origin(source, reference))),
    ]
    return Report(f"{source.name} against transformers", command, summary, parts)


def _prompts(verification: Verification) -> Part:
    columns = ["prompt", "transformers", "adalink-jax", "beam search", "logits", "log-likelihood", "its difference"]
    text = (
        "Greedy outputs, beam search, the largest difference of the logits as a share of their spread, and the log-likelihood, in "
        "nats, of transformers' greedy output."
    )
    rows = [
        [row.prompt, row.reference, "the same" if row.same else row.output, "the same" if row.same_beams else "DIFFERENT",
         row.difference, row.likelihood, row.likelihood_difference]
        for row in verification.rows
    ]  # fmt: skip
    return Part("Prompts", text, Table(columns, rows))


def _origin(source: Source, reference: str) -> list[list[str]]:
    device = jax.devices()[0]
    leaves = f"{len(source.leaves):,} leaves, {source.parameters:,} parameters"
    kind = f"{source.kind}, {'with' if VISION in source.settings else 'without'} images"
    facts = {"base": source.path, "reference": reference, "kind": kind, "size": leaves}
    facts |= {"fingerprint": fingerprint_of_source(source), "device": f"{jax.device_count()} x {device.device_kind}"}
    return [[name, value] for name, value in (facts | {"python": platform.python_version()} | _installed()).items()]


def _installed() -> dict[str, str]:
    installed = {}
    for package in _PACKAGES:
        try:
            installed |= versions(package)
        except ModuleNotFoundError:  # importlib's error for a package that is not installed
            installed[package] = "not installed"
    return installed
