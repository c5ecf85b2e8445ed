"""Compares a base model with `transformers`: logits and greedy outputs on twenty prompts, in float32."""

import dataclasses

import jax
import numpy as np

from adalink_jax.checkpoints import Source, check_fit, folder_of, open_source
from adalink_jax.data.vocabularies import EOS, PAD, Vocabulary, check_rows
from adalink_jax.errors import CheckpointError, UserError
from adalink_jax.interop.language_model import load_language_model
from adalink_jax.models.decoding import Sampling

TOLERANCE = 1e-3  # largest difference of the logits, as a share of their spread
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
_INPUT_LENGTH, _OUTPUT_LENGTH = 96, 24


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
    """

    prompt: str
    reference: str
    output: str
    same: bool
    difference: float


def verify_base(source: Source, reference: str, vocabulary: Vocabulary) -> list[Comparison]:
    """Compares a base model with the Hugging Face folder of the same model; one of the two is in memory at a time.

    Args:
      source: the base model; its settings state every deciding field of its family.
      reference: a Hugging Face folder or `hf://OWNER/NAME`.
      vocabulary: the vocabulary of both.

    Raises:
      CheckpointError: if the reference is damaged, not a Hugging Face folder, or of another shape.
      UserError: for another model's vocabulary, and if `transformers` or PyTorch is missing.
    """
    check_rows("The vocabulary", vocabulary.vocab_size, source.leaves["token_embedder/embedding"].shape[0])
    ids = _encode(vocabulary)
    opened = open_source(reference)
    if not opened.config:
        raise CheckpointError(
            f"The reference {reference} is a {opened.kind}; give a Hugging Face folder of the same model."
        )
    check_fit(source.shapes, opened.shapes, source.path)
    reference_ids, reference_logits = _reference(reference, ids)
    model, params = load_language_model(source)
    batch = {"encoder_input_tokens": ids}
    shifted = np.pad(reference_ids[:, :-1], ((0, 0), (1, 0)))
    with jax.default_matmul_precision("highest"):
        logits = jax.jit(model.apply)({"params": params}, batch | {"decoder_input_tokens": shifted})
        generate = jax.jit(lambda p: model.apply({"params": p}, batch, _OUTPUT_LENGTH, Sampling(), method="generate"))
        output_ids = np.asarray(generate(params).ids)[:, 0]
    is_output = reference_ids != PAD  # positions up to the output's end
    distances = np.abs(np.asarray(logits) - reference_logits).max(-1)
    differences = np.where(is_output, distances, 0).max(-1) / reference_logits[is_output].std()
    same = (reference_ids == output_ids).all(-1)
    return [
        Comparison(
            PROMPTS[i],
            vocabulary.decode(reference_ids[i]),
            vocabulary.decode(output_ids[i]),
            bool(same[i]),
            float(differences[i]),
        )
        for i in range(len(PROMPTS))
    ]


def _encode(vocabulary: Vocabulary) -> np.ndarray:
    """Ids of the prompts, int32 [20, L], padded after EOS."""
    ids = np.zeros((len(PROMPTS), _INPUT_LENGTH), np.int32)
    for row, prompt in zip(ids, PROMPTS):
        tokens = [*vocabulary.encode(prompt)[: _INPUT_LENGTH - 1], EOS]
        row[: len(tokens)] = tokens
    return ids


def _reference(path: str, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Greedy outputs of `transformers`, int32 [20, T] padded after EOS, and the logits along them [20, T, V]."""
    try:
        import torch  # pyright: ignore[reportMissingImports]  # optional
        import transformers  # pyright: ignore[reportMissingImports]  # optional
    except ModuleNotFoundError as e:
        raise UserError(f"verify-base needs {e.name}: pip install 'adalink-jax[hf]' torch.") from e
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder_of(path), dtype=torch.float32).eval()
    except (OSError, ValueError) as e:
        raise UserError(f"transformers cannot load {path}: {str(e).splitlines()[0]}") from e
    inputs = {"input_ids": torch.tensor(ids, dtype=torch.long), "attention_mask": torch.tensor(ids != PAD)}
    settings = transformers.GenerationConfig(
        max_new_tokens=_OUTPUT_LENGTH, do_sample=False, num_beams=1, decoder_start_token_id=PAD, pad_token_id=PAD,
        eos_token_id=EOS,
    )  # fmt: skip
    with torch.no_grad():
        generated = model.generate(**inputs, generation_config=settings)[:, 1:].numpy().astype(np.int32)
        outputs = np.pad(generated, ((0, 0), (0, _OUTPUT_LENGTH - generated.shape[1])))
        shifted = torch.tensor(np.pad(outputs[:, :-1], ((0, 0), (1, 0))), dtype=torch.long)
        logits = model(**inputs, decoder_input_ids=shifted).logits.numpy()
    return outputs, logits
