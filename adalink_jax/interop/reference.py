"""transformers' side of a comparison: a folder with its own tokenizer, image processor, ids and generation settings."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from adalink_jax.checkpoints import folder_of
from adalink_jax.checkpoints.families import image_processors
from adalink_jax.checkpoints.hugging_face import VOCABULARY_FILES
from adalink_jax.data.transformers_vocabulary import QFORMER_FOLDER
from adalink_jax.errors import UserError
from adalink_jax.files.places import path_of
from adalink_jax.files.typed_json import find_object

ENDED = -1  # fills up rows of outputs
_FILLED = 64  # at most, rows of a PaliGemma's table behind its vocabulary: the placeholder's, and filling
_PATCHES = "flattened_patches"  # the argument of models that read a picture's patches, and no text
PREFIX_LM, _PLACEHOLDER = "paligemma", "<image>"  # a model_type whose model reads [images ; text] and continues it


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What a model computes on the prompts.

    Attributes:
      greedy, beams: outputs without the start, int32 [B, T], with `ENDED` after their end.
      logits: along `transformers`' greedy outputs, float32 [B, T, V].
      likelihoods: of these outputs, in nats, float32 [B].
    """

    greedy: np.ndarray
    beams: np.ndarray
    logits: np.ndarray
    likelihoods: np.ndarray


class Reference:
    """A Hugging Face folder, as `transformers` reads it.

    Attributes:
      tokenizer: the folder's tokenizer; None if it has none.
      words: the tokenizer of an InstructBLIP's Q-Former; None if the folder has none.
      images: the folder's image processor; None if it has none.
    """

    def __init__(self, path: str):
        """Args:
          path: a folder or `hf://OWNER/NAME`.

        Raises:
          UserError: if `transformers` or PyTorch is missing, or cannot read a file of the folder.
        """
        try:
            import torch  # pyright: ignore[reportMissingImports]  # optional
            import transformers  # pyright: ignore[reportMissingImports]  # optional
        except ModuleNotFoundError as e:
            raise UserError(f"verify-base needs {e.name}: pip install 'adalink-jax[hf]' torch.") from e
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.path, self._folder, self._torch, self._transformers = path, folder_of(path), torch, transformers
        has = lambda names, folder=self._folder: any((folder / name).exists() for name in names)
        words = self._folder / QFORMER_FOLDER
        self.tokenizer: Any = self._read(transformers.AutoTokenizer, self._folder) if has(VOCABULARY_FILES) else None
        self.words = self._read(transformers.AutoTokenizer, words) if words.exists() else None
        self._is_prefix_lm = (find_object(self._folder / "config.json") or {}).get("model_type") == PREFIX_LM
        self.images = None
        if has(image_processors.FILES):
            self.images = self._read(transformers.AutoImageProcessor, self._folder, backend="pil")

    def added_tokens(self) -> list[str]:
        """The tokens that the folder adds to its vocabulary."""
        added = [] if self.tokenizer is None else sorted(self.tokenizer.get_added_vocab())
        of_images = _PLACEHOLDER if self._is_prefix_lm else getattr(self.tokenizer, "boi_token", None)
        return [token for token in added if token != of_images]  # which the processor replaces

    def ids(self, text: str, length: int | None, chat: bool) -> list[int]:
        """The tokenizer's ids of a text.

        Args:
          text: an input of the model.
          length: ids beyond it are cut; None cuts none.
          chat: whether the text is one message of a user, in the folder's chat template.

        Raises:
          UserError: if there is no chat template.
        """
        tokenizer: Any = self.tokenizer
        if self._is_prefix_lm and not chat:  # its processor adds BOS and a newline
            ids = tokenizer(f"{tokenizer.bos_token}{text}\n", add_special_tokens=False).input_ids
            return ids if length is None or len(ids) <= length else [*ids[: length - 1], ids[-1]]
        if not chat:
            return tokenizer(text, truncation=length is not None, max_length=length).input_ids
        if not tokenizer.chat_template:
            raise UserError(f"The vocabulary has a chat template, and {self.path} has none; leave out 'chat:'.")
        message = [{"role": "user", "content": text}]
        return tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)[:length]

    def pixels(self, pictures: Sequence[Image.Image], most: int) -> np.ndarray | None:
        """The image processor's pixels, float32 [B, height, width, 3]; or at most `most` patches [B, N, 2 + pixels], without headers."""
        if self.images is None:
            return None
        if _PATCHES in self.images.model_input_names:
            options = {"max_patches": most, "is_vqa": False, "return_tensors": "np"}
            return np.asarray(self.images(images=list(pictures), **options)[_PATCHES])
        return np.asarray(self.images(images=list(pictures), return_tensors="np")["pixel_values"]).transpose(0, 2, 3, 1)

    def run(
        self,
        dtype: str,
        texts: Sequence[Sequence[int]],
        length: int,
        beams: int,
        pixels: np.ndarray | None,
        words: Sequence[Sequence[int]] | None,
        outputs: np.ndarray | None = None,
    ) -> Outputs:
        """Loads the model and computes its outputs.

        Args:
          dtype: "float32" or "bfloat16".
          texts: ids of the texts, with their beginning and end.
          length: T.
          beams: beams of the beam search.
          pixels: float32 [B, height, width, 3], or patches [B, N, 2 + pixels], or None.
          words: ids of the instructions for a Q-Former, or None.
          outputs: outputs to compute the logits for, instead of decoding.
        """
        torch = self._torch
        seq2seq, with_images = self._transformers.AutoModelForSeq2SeqLM, self._transformers.AutoModelForImageTextToText
        options = {"attn_implementation": "eager"} if self._is_prefix_lm else {}
        kind = seq2seq if pixels is None else with_images
        model = self._read(kind, self._folder, dtype=getattr(torch, dtype), **options).eval()
        inputs = {}
        if pixels is not None and pixels.ndim == 3:
            inputs[_PATCHES] = torch.tensor(pixels).to(model.dtype)
            inputs["attention_mask"] = torch.tensor(pixels[..., 0] > 0).to(model.dtype)
        elif pixels is not None:
            if self._is_prefix_lm:
                number = model.config.text_config.num_image_tokens
            else:  # a T5Gemma 2's texts have the places already
                number = getattr(model.config, "num_query_tokens", 0)
            texts = [[*[model.config.image_token_id] * number, *text] for text in texts]
            inputs["pixel_values"] = torch.tensor(pixels.transpose(0, 3, 1, 2).copy()).to(model.dtype)
        if _PATCHES not in inputs:
            inputs["input_ids"], inputs["attention_mask"] = self._padded(texts, left=self._is_prefix_lm)
        if words is not None:
            inputs["qformer_input_ids"], inputs["qformer_attention_mask"] = self._padded(words)
        start, settings = 1, {"do_sample": False, "max_new_tokens": length, "use_cache": True}
        if self._is_prefix_lm:  # without token types its prefix is causal
            inputs["token_type_ids"], start = torch.zeros_like(inputs["input_ids"]), inputs["input_ids"].shape[1]
            behind = model.get_input_embeddings().weight.shape[0] - model.config.image_token_id
            if 0 < behind <= _FILLED:  # rows of no token, which would take part in the softmax
                model.resize_token_embeddings(model.config.image_token_id)
                model.model.vocab_size = model.config.image_token_id  # so that it does not look up the placeholder
        language = model if pixels is None or self._is_prefix_lm else getattr(model, "language_model", model)
        generate = lambda beams: ended(
            model.generate(**inputs, num_beams=beams, **settings).numpy()[:, start:],
            language.generation_config.eos_token_id,
            length,
        )
        with torch.no_grad():
            greedy, by_beams = (outputs, outputs) if outputs is not None else (generate(1), generate(beams))
            logits = self._logits(model, inputs, greedy).float().numpy()
        return Outputs(greedy, by_beams, logits, likelihoods(logits, greedy))

    def _logits(self, model: Any, inputs: dict[str, Any], outputs: np.ndarray) -> Any:
        """The logits along `outputs`."""
        torch = self._torch
        if not self._is_prefix_lm:
            labels = torch.tensor(np.where(outputs == ENDED, -100, outputs), dtype=torch.long)
            return model(**inputs, labels=labels).logits
        suffix = torch.tensor(np.where(outputs == ENDED, 0, outputs), dtype=torch.long)
        more = {
            "input_ids": suffix,
            "attention_mask": torch.ones_like(suffix),
            "token_type_ids": torch.ones_like(suffix),
        }
        joined = {name: torch.cat([inputs[name], value], dim=1) for name, value in more.items()}
        return model(**{**inputs, **joined}).logits[:, -1 - suffix.shape[1] : -1]

    def _padded(self, rows: Sequence[Sequence[int]], left: bool = False) -> tuple[Any, Any]:
        """Ids padded with 0, which the mask hides, and the mask."""
        longest = max(map(len, rows))
        join = lambda row, padding: [*padding, *row] if left else [*row, *padding]
        ids = [join(row, [0] * (longest - len(row))) for row in rows]
        mask = [join([1] * len(row), [0] * (longest - len(row))) for row in rows]
        return self._torch.tensor(ids), self._torch.tensor(mask)

    def _read(self, kind: Any, folder: Any, **options: Any) -> Any:
        try:
            return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
        except (OSError, ValueError, KeyError, json.JSONDecodeError) as e:
            raise UserError(f"transformers cannot load {self.path}: {str(e).splitlines()[0]}") from e

    def other_settings(self) -> list[str]:
        """Settings of `generation_config.json` that change `transformers`' outputs and that this package does not read."""
        stated = find_object(path_of(self._folder) / "generation_config.json") or {}
        usual = self._transformers.GenerationConfig().to_dict() | {"use_cache": True}
        without_effect = (
            "decoder_start_token_id",
            "pad_token_id",
            "eos_token_id",
            "bos_token_id",
            "transformers_version",
        )
        named = {key: value for key, value in stated.items() if key not in without_effect and not key.startswith("_")}
        return [
            f"{key} {value!r}" for key, value in named.items() if value not in (None, False) and value != usual.get(key)
        ]


def likelihoods(logits: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Log-likelihoods of `outputs` [B, T], in nats, from logits [B, T, V]; float32 [B]."""
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    picked = np.take_along_axis(log_p, np.maximum(outputs, 0)[..., None], -1)[..., 0]
    return np.where(outputs == ENDED, 0, picked).sum(-1)


def ended(ids: np.ndarray, eos: int | list[int] | None, length: int) -> np.ndarray:
    """Outputs, int32 [B, `length`], with `ENDED` after the first EOS."""
    ids = np.pad(ids[:, :length], ((0, 0), (0, length - ids[:, :length].shape[1])), constant_values=ENDED)
    is_eos = np.isin(ids, np.ravel([] if eos is None else eos))
    return np.where(np.cumsum(is_eos, 1) - is_eos > 0, ENDED, ids).astype(np.int32)
