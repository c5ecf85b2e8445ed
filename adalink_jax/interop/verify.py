"""Compares a base model with `transformers`: tokens, pixels, logits, likelihoods, greedy and beam outputs on twenty prompts.

The reference gets nothing from this package: it uses the folder's own tokenizer, image processor, ids and generation settings.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np
from PIL import Image

from adalink_jax.adapters import AdaptedModel
from adalink_jax.checkpoints import Source, check_fit, open_source
from adalink_jax.data import INSTRUCTION, Vocabulary, WordPieceVocabulary, check_rows
from adalink_jax.data.images import picture_array
from adalink_jax.errors import CheckpointError
from adalink_jax.interop.language_model import backbone_of, load_weights
from adalink_jax.interop.reference import ENDED, Outputs, Reference, ended, likelihoods
from adalink_jax.models.backbone import Backbone
from adalink_jax.models.blip2 import BLIP2
from adalink_jax.models.decoding import BeamSearch, Decoding, Sampling
from adalink_jax.training.setup import Setup

TOLERANCE = 1e-3  # largest difference of the logits, as a share of their spread
TIE = 1e-5  # share by which the scores of equally good outputs of beam search may differ
ROUNDED = 3.0  # most that bfloat16 may change the logits here, in multiples of what it changes in `transformers`
# Prompts of every kind that some T5 was trained on, of very different lengths.
PROMPTS = (
    "translate English to German: The house is wonderful.",
    "translate English to French: Where is the nearest train station?",
    "translate English to Romanian: She has not read the letter yet.",
    "cola sentence: The book that I read it was long.",
    "sst2 sentence: a warm, funny film that never once overstays its welcome",
    "mnli hypothesis: Nobody was at home. premise: All the windows were lit and music came from the kitchen.",
    "stsb sentence1: A man is playing a guitar. sentence2: Somebody plays an instrument.",
    "question: Who wrote the letter? context: Anna found the letter that her brother had written before he left.",
    "summarize: The river rose overnight after three days of rain. By the morning two bridges were closed, and the "
    "school on the north bank sent its pupils home. The water is expected to fall again on Thursday.",
    "The <extra_id_0> walks in <extra_id_1> park.",
    "Thank you <extra_id_0> me to your party <extra_id_1> week.",
    "Answer the following question. What is the capital of Norway?",
    "Answer the following yes/no question by reasoning step by step. Can a dog drive a car?",
    "Q: Tom has three apples, buys five more and eats two. How many are left? A:",
    "Is this review positive or negative? The battery died after a week and nobody answered my mails.",
    "Name three things that float on water.",
    "Write the opposite of each word: hot, early, empty, generous",
    "What comes next? Monday, Tuesday, Wednesday,",
    "Übersetze ins Englische: Der Zug nach Zürich hat fünf Minuten Verspätung.",
    "Hello",
)
_INPUT_LENGTH, _OUTPUT_LENGTH, _BEAMS = 96, 24, 4
_MOST_PATCHES = 256  # of a picture, for models that take any number
_SIZES = ((640, 480), (300, 500), (224, 224), (97, 61), (512, 128))  # of the pictures, width and height in pixels


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The comparison on one prompt.

    Attributes:
      prompt: the text.
      reference: the greedy output of `transformers`.
      output: this package's greedy output.
      same: whether both outputs have the same ids, up to EOS.
      difference: the largest difference of the logits along the reference's output, as a share of all logits' standard
        deviation.
      same_beams: whether both outputs of beam search have the same ids, or this package's scores as well.
      likelihood: the log-likelihood of the reference's output by `transformers`, in nats.
      likelihood_difference: that by this package, less `likelihood`.
    """

    prompt: str
    reference: str
    output: str
    same: bool
    difference: float
    same_beams: bool
    likelihood: float
    likelihood_difference: float


@dataclasses.dataclass(frozen=True)
class Check:
    """One of the things that are compared.

    Attributes:
      name: what is compared.
      finding: the result, for people.
      passed: whether both are the same; None if the folder lacks what they could be compared by.
    """

    name: str
    finding: str
    passed: bool | None


@dataclasses.dataclass(frozen=True)
class Verification:
    """A comparison with `transformers`: `checks`, and `rows` with one entry per prompt."""

    checks: list[Check]
    rows: list[Comparison]

    @property
    def agrees(self) -> bool:
        """Whether no check failed."""
        return all(check.passed is not False for check in self.checks)


@dataclasses.dataclass(frozen=True)
class _Features:
    """What both models read: the reference's tokens and pixels where it has any, ours else.

    Attributes:
      texts: ids of the prompts, with their beginning and end.
      images: float32 [B, height, width, 3] in [-1, 1], for this package; or patches [B, N, 2 + pixels].
      pixels: the same, normalised, for `transformers`.
      words: ids of the instructions, for a Q-Former that reads them.
    """

    texts: list[list[int]]
    images: np.ndarray | None = None
    pixels: np.ndarray | None = None
    words: list[list[int]] | None = None


def verify_base(source: Source, reference: str, vocabulary: Vocabulary, bfloat16: bool = False) -> Verification:
    """Compares a base model with the Hugging Face folder of the same model; one of the two is in memory at a time.

    Args:
      source: the base model; its settings state every deciding field of its family.
      reference: a Hugging Face folder or `hf://OWNER/NAME`.
      vocabulary: the vocabulary of the base model.
      bfloat16: also compare what the logits lose in bfloat16.

    Raises:
      CheckpointError: if the reference is damaged, not a Hugging Face folder, or of another shape.
      UserError: for another model's vocabulary, and if `transformers` or PyTorch is missing.
    """
    rows = source.leaves["token_embedder/embedding"].shape[0]
    check_rows("The vocabulary", vocabulary.vocab_size, rows)
    opened = open_source(reference)
    if not opened.config:
        raise CheckpointError(
            f"The reference {reference} is a {opened.kind}; give a Hugging Face folder of the same model."
        )
    check_fit(source.shapes, opened.shapes, source.path)
    transformers, model = Reference(reference), AdaptedModel(_backbone(source))
    features, checks = _features(model, transformers, vocabulary)
    checks = [_settings(source, opened), _end(model, vocabulary), *checks]
    shared = (features.texts, _OUTPUT_LENGTH, _BEAMS, features.pixels, features.words)
    expected = transformers.run("float32", *shared)
    others = transformers.other_settings()
    outputs = _run(model, load_weights(model, source), features, expected, ties=not others)
    checks += _numbers(expected, outputs)
    if bfloat16:
        rounded = transformers.run("bfloat16", *shared, outputs=expected.greedy)
        model = AdaptedModel(_backbone(source, "bfloat16"))
        outputs_bfloat16 = _run(model, load_weights(model, source, "bfloat16"), features, expected, decode=False)
        checks.append(_rounding(expected, rounded, outputs_bfloat16))
    if others:
        finding = f"{', '.join(others)}: applied by transformers' generate, and not by this package"
        checks.append(Check("generation settings", finding, None))
    return Verification(checks, _rows(expected, outputs, vocabulary))


def _backbone(source: Source, dtype: str = "float32") -> Backbone:
    """The backbone; one that reads any number of patches gets few, so that twenty pictures take minutes."""
    backbone = backbone_of(source, dtype)
    config: Any = backbone.config
    if not hasattr(config, "max_patches"):
        return backbone
    return backbone.clone(config=dataclasses.replace(config, max_patches=min(config.max_patches, _MOST_PATCHES)))


def _settings(source: Source, reference: Source) -> Check:
    """Whether the base model states the settings of the reference that shapes do not show."""
    different = [
        f"{field} {settings[field]!r} (reference: {value!r})"
        for part, fields in reference.settings.items()
        for field, value in fields.items()
        if (settings := source.settings.get(part, {})).get(field, value) != value
    ]
    return Check("settings", ", ".join(different) or "the same", not different)


def _end(model: AdaptedModel, vocabulary: Vocabulary) -> Check:
    """Whether texts end and are padded with the ids of the model."""
    ids = model.backbone.token_ids
    finding = f"start {ids.start}, padding {ids.pad}, end {', '.join(map(str, ids.ends))}"
    if ids.eos == vocabulary.eos and ids.pad not in vocabulary.encode(" ".join(PROMPTS)):
        return Check("special ids", finding, True)
    return Check(
        "special ids",
        f"{finding}, but the vocabulary ends texts with {vocabulary.eos}, or uses the padding's id",
        False,
    )


def _features(model: AdaptedModel, transformers: Reference, vocabulary: Vocabulary) -> tuple[_Features, list[Check]]:
    checks, setup = [], Setup(model)
    length = None if vocabulary.chat else _INPUT_LENGTH  # transformers would cut the template's end
    encode = lambda text: vocabulary.input_ids(text, length)
    texts = [encode(prompt) for prompt in PROMPTS]
    if transformers.tokenizer is None:
        checks.append(Check("tokens", "not compared: the reference has no tokenizer", None))
    else:
        added = [f"a {token} b{token}c" for token in transformers.added_tokens()]
        read = lambda text: transformers.ids(text, length, vocabulary.chat)
        same = [read(text) == encode(text) for text in (*PROMPTS, *added)]
        finding = f"{sum(same[:20])} of 20 prompts and {sum(same[20:])} of {len(added)} added tokens have the same ids"
        checks.append(Check("tokens", finding, all(same)))
        texts = [read(prompt) for prompt in PROMPTS]
    if setup.image_shape is None:
        return _Features(texts), checks
    if model.backbone.image_places is not None:
        placeholder, number = model.backbone.image_places
        texts = [[*text[:1], *[placeholder] * number, *text[1:]] for text in texts]
    words, backbone = None, cast(BLIP2, model.backbone)
    images, pixels, check = _pixels(setup, transformers, backbone)
    checks.append(check)
    if INSTRUCTION in backbone.abstract_batch(1, 1, 1):
        words, check = _words(transformers, texts, backbone.qformer_config.vocab_size)
        checks.append(check)
    return _Features(texts, images, pixels, words), checks


def _pixels(setup: Setup, transformers: Reference, backbone: BLIP2) -> tuple[np.ndarray, np.ndarray, Check]:
    """Images for this package, pixels for `transformers`, and their comparison."""
    different = len(_SIZES) if backbone.reads_text else len(PROMPTS)
    drawn = [_picture(*_SIZES[seed % len(_SIZES)], seed) for seed in range(different)]
    pictures = [drawn[i % different] for i in range(len(PROMPTS))]
    shape = cast(tuple[int, ...], setup.image_shape)
    images = np.stack(
        [picture_array(picture, shape, f"Picture {i}", setup.preparation) for i, picture in enumerate(pictures)]
    )
    tower = getattr(backbone, "vision_config", None)
    pixels = images if tower is None else np.asarray(tower.normalized(images))
    expected = transformers.pixels(pictures, shape[0])
    if expected is None:
        return images, pixels, Check("pixels", "not compared: the reference has no image processor", None)
    if expected.shape != pixels.shape:
        return images, pixels, Check("pixels", f"their shape is {pixels.shape[1:]}, not {expected.shape[1:]}", False)
    largest = float(np.abs(pixels - expected).max() / expected.std())
    finding = f"largest difference {largest:.1e} of their spread (allowed: {TOLERANCE:.0e})"
    return images, expected, Check("pixels", finding, largest <= TOLERANCE)


def _words(transformers: Reference, texts: list[list[int]], rows: int) -> tuple[list[list[int]], Check]:
    """The instructions' ids in the Q-Former's vocabulary; without one, the texts' ids as far as they have rows."""
    if transformers.words is None:
        finding = "not compared: the reference has no tokenizer of the Q-Former"
        return [[min(i, rows - 1) for i in text] for text in texts], Check("Q-Former's tokens", finding, None)
    read = [transformers.words(prompt, truncation=True, max_length=_INPUT_LENGTH).input_ids for prompt in PROMPTS]
    vocabulary = WordPieceVocabulary(transformers.path)
    same = sum(vocabulary.encode(prompt, _INPUT_LENGTH) == ids for prompt, ids in zip(PROMPTS, read))
    return read, Check("Q-Former's tokens", f"{same} of 20 prompts have the same ids", same == len(PROMPTS))


def _picture(width: int, height: int, seed: int) -> Image.Image:
    """A picture with smooth parts, edges and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 50.0
    waves = [np.sin(a * x + b * y + c) for a, b, c in rng.normal(size=(3, 3)) * 3]
    values = np.stack(waves, -1) * 90 + 128 + rng.normal(size=(height, width, 3)) * 12
    values[height // 4 : height // 2, width // 3 : width // 2] = rng.integers(0, 255, 3)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def _run(
    model: AdaptedModel,
    params: Mapping[str, Any],
    features: _Features,
    expected: Outputs,
    decode: bool = True,
    ties: bool = False,
) -> Outputs:
    """This package's outputs, and its logits along `expected.greedy`.

    With `ties` and the same logits, an output of beam search that scores as well as the expected one counts as the same.
    """
    ids = model.backbone.token_ids
    batch: dict[str, np.ndarray] = {}
    if model.backbone.reads_text:
        batch["encoder_input_tokens"] = _padded(features.texts, ids.pad)
    if features.images is not None:
        batch["images"] = features.images
    if features.words is not None:
        batch[INSTRUCTION] = _padded(features.words, 0)
    apply = jax.jit(model.apply)

    def logits_along(outputs: np.ndarray) -> np.ndarray:
        forced = np.where(outputs == ENDED, ids.pad, outputs)
        forced = np.pad(forced[:, :-1], ((0, 0), (1, 0)), constant_values=ids.start)
        return np.asarray(apply({"params": params}, batch | {"decoder_input_tokens": forced}))

    def generate(decoding: Decoding) -> np.ndarray:
        run = jax.jit(lambda p: model.apply({"params": p}, batch, _OUTPUT_LENGTH, decoding, method="generate"))
        return ended(np.asarray(run(params).ids)[:, 0], list(ids.ends), _OUTPUT_LENGTH)

    def score(outputs: np.ndarray) -> np.ndarray:
        return likelihoods(logits_along(outputs), outputs) / (outputs != ENDED).sum(1)

    with jax.default_matmul_precision("highest"):
        logits, greedy, beams = logits_along(expected.greedy), expected.greedy, expected.beams
        if decode:
            greedy, beams = generate(Sampling()), generate(BeamSearch(_BEAMS, 1.0, "transformers"))
        outputs = Outputs(greedy, beams, logits, likelihoods(logits, expected.greedy))
        if ties and _differences(expected, outputs).max() <= TOLERANCE:
            # Which of two prefixes with equal scores is kept depends on rounding; the other may lead to a better output.
            as_good = score(beams) >= (1 + TIE) * score(expected.beams)
            outputs = dataclasses.replace(outputs, beams=np.where(as_good[:, None], expected.beams, beams))
    return outputs


def _padded(rows: Sequence[Sequence[int]], pad: int) -> np.ndarray:
    out = np.full((len(rows), max(map(len, rows))), pad, np.int32)
    for row, ids in zip(out, rows):
        row[: len(ids)] = ids
    return out


def _differences(expected: Outputs, outputs: Outputs) -> np.ndarray:
    """Largest difference of the logits per prompt, as a share of their spread: [B]."""
    is_output = expected.greedy != ENDED
    distances = np.abs(outputs.logits - expected.logits).max(-1)
    return np.where(is_output, distances, 0).max(-1) / expected.logits[is_output].std()


def _numbers(expected: Outputs, outputs: Outputs) -> list[Check]:
    largest = float(np.max(_differences(expected, outputs)))
    # As a share of at least one nat: a certain output has a likelihood near 0, which is rounding alone.
    nats = np.abs(outputs.likelihoods - expected.likelihoods) / np.maximum(np.abs(expected.likelihoods), 1.0)
    nats = float(nats.max())
    same = lambda name: int((getattr(expected, name) == getattr(outputs, name)).all(-1).sum())
    count = len(PROMPTS)
    return [
        Check("logits", f"largest difference {largest:.1e} of their spread (allowed: {TOLERANCE:.0e})", largest <= TOLERANCE),
        Check("likelihoods", f"largest difference {nats:.1e} of the value (allowed: {TOLERANCE:.0e})", nats <= TOLERANCE),
        Check("outputs", f"{same('greedy')} of {count} greedy outputs are the same", same("greedy") == count),
        Check("beam search", f"{same('beams')} of {count} outputs of {_BEAMS} beams are the same, or score as well", same("beams") == count),
    ]  # fmt: skip


def _rounding(expected: Outputs, rounded: Outputs, outputs: Outputs) -> Check:
    """Compares what bfloat16 changes here with what it changes in `transformers`, both against float32."""
    is_output = expected.greedy != ENDED
    exact = expected.logits[is_output]
    here, there = (
        float(np.sqrt(np.mean((x.logits[is_output] - exact) ** 2)) / exact.std()) for x in (outputs, rounded)
    )
    finding = f"bfloat16 changes the logits by {here:.1e} of their spread, and those of transformers by {there:.1e}"
    return Check("bfloat16", f"{finding} (allowed: {ROUNDED:g} times as much)", here <= ROUNDED * there)


def _rows(expected: Outputs, outputs: Outputs, vocabulary: Vocabulary) -> list[Comparison]:
    same, same_beams = ((getattr(expected, x) == getattr(outputs, x)).all(-1) for x in ("greedy", "beams"))
    text = lambda ids: vocabulary.decode([i for i in ids.tolist() if i != ENDED])
    more = zip(same, _differences(expected, outputs), same_beams, expected.likelihoods, outputs.likelihoods)
    return [
        Comparison(prompt, text(ids), text(other), bool(one), float(far), bool(beams), float(a), float(b - a))
        for prompt, ids, other, (one, far, beams, a, b) in zip(PROMPTS, expected.greedy, outputs.greedy, more)
    ]
