"""The tokenizers of Hugging Face folders. Invariant: ids and text equal those of `transformers`, which reads the files."""

import abc
import contextlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import gin
import pydantic
from etils import epath

from adalink_jax.errors import UserError
from adalink_jax.files.places import is_remote, path_of
from adalink_jax.files.typed_json import Form, as_form, find_form, find_object

PAD, EOS, UNK = 0, 1, 2
LAST_BYTE = 258
SENTENCEPIECE_FILE, TOKENIZER_FILE, CONFIG_FILE = "spiece.model", "tokenizer.json", "tokenizer_config.json"
ADDED_FILE, MODEL_FILE, PROCESSOR_FILE = "added_tokens.json", "config.json", "processor_config.json"
SETTINGS = (TOKENIZER_FILE, CONFIG_FILE, ADDED_FILE, "special_tokens_map.json")
FILES = (*SETTINGS, PROCESSOR_FILE, SENTENCEPIECE_FILE, "chat_template.jinja")
CHAT = "chat:"  # before a folder's path: with its chat template
QFORMER_FOLDER, QFORMER_WORDS = "qformer_tokenizer", "vocab.txt"
_BYT5 = "ByT5Tokenizer"
_PALIGEMMA, _PLACEHOLDER, _NEWLINE = ("paligemma", "PaliGemmaProcessor"), "<image>", "\n"
_T5GEMMA2 = "t5gemma2", "Gemma3Processor"
_IMAGE_TOKENS = {"boi_token": "<start_of_image>", "image_token": "<image_soft_token>", "eoi_token": "<end_of_image>"}
_FIRST_SENTINELS = ("<extra_id_0>", "\u2581<extra_id_0>")
# Texts that a chat template and a tokenizer may change, which every input could hold.
_TRIED = ("", "Hello", " two  spaces ", "\n\nlines\n", "(a) - 1.", "{x}", "caf\u00e9")
_MARK = "3141592653"  # a text that no template has
_Id = Annotated[int, pydantic.Field(ge=0, lt=2**31)]


class _Token(Form):
    content: str


class _Settings(Form):
    """`tokenizer_config.json`; `config.json` may name the class too."""

    tokenizer_class: str | None = None
    processor_class: str | None = None
    model_type: str | None = None
    added_tokens_decoder: dict[Annotated[str, pydantic.Field(pattern=r"^[0-9]{1,9}$")], _Token] = {}


class _Processor(Form):
    """`processor_config.json`."""

    image_seq_length: Annotated[int, pydantic.Field(ge=1, lt=2**16)] | None = None

    @property
    def image_tokens(self) -> int | None:
        """The number of an image's tokens."""
        return self.image_seq_length


class _Encoder(Form):
    mm_tokens_per_image: Annotated[int, pydantic.Field(ge=1, lt=2**16)] | None = None


class _Model(Form):
    """`config.json`."""

    encoder: _Encoder = _Encoder()

    @property
    def image_tokens(self) -> int | None:
        """The number of an image's tokens."""
        return self.encoder.mm_tokens_per_image


class _Added(Form):
    """`added_tokens.json`."""

    ids: dict[str, _Id]


class _TokenWithId(_Token):
    id: _Id


class _Tokenizer(Form):
    """`tokenizer.json`."""

    added_tokens: list[_TokenWithId]


class Framed(abc.ABC):
    """Base of vocabularies: how an input of a model begins and ends.

    Attributes:
      eos: ends a target.
      before, after: ids at an input's beginning and end: T5's end with EOS.
      chat: whether an input is one message of a user, in a chat template.
      strips: whether white space around an input is dropped, as most chat templates do.
    """

    eos: int = EOS
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = (EOS,)
    chat: bool = False
    strips: bool = False

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Converts text to ids, without EOS."""

    def input_ids(self, text: str, length: int | None = None) -> list[int]:
        """The ids of an input with its beginning and end, the text cut so that there are at most `length`; None cuts nothing.

        Raises:
          UserError: if the beginning and the end alone are longer.
        """
        ids, frame = self.encode(text.strip() if self.strips else text), len(self.before) + len(self.after)
        if length is not None and length < frame:
            raise UserError(
                f"Inputs begin and end with {frame} tokens of the vocabulary's own, and TASK_FEATURE_LENGTHS gives them {length}; raise it."
            )
        most = None if length is None else length - frame
        return [*self.before, *ids[:most], *self.after]


@gin.configurable
class TransformersVocabulary(Framed):
    """The tokenizer of a Hugging Face folder, with its added tokens; special tokens in a text become their ids.

    In a text for T5Gemma 2, `<start_of_image>` stands for an image: it becomes the processor's text around it, and a placeholder for
    each of its tokens.

    Attributes:
      vocab_size: one more than the largest id; PaliGemma's placeholder of images, which is the last, is not counted.
      eos: as the tokenizer has it: 1 in T5's and Gemma's, 2 in MADLAD's and CodeT5's.
      before, after: as the tokenizer has them: Gemma's inputs begin with BOS, and have no EOS. PaliGemma's end with a newline, which its
        processor adds, and which is a piece of its own, as in big_vision. With `chat`, the chat template's text around a message.
    """

    def __init__(self, path: epath.PathLike, chat: bool = False):
        """Args:
          path: a checkpoint's folder, local or remote.
          chat: read each input as one message of a user, in the folder's chat template, which the model answers.

        Raises:
          UserError: if `transformers` is missing or cannot read the folder, or if it reads an id that a file contradicts; with `chat`,
            if there is no chat template, or it is not a fixed text around a message.
        """
        folder = path_of(path)
        self._tokenizer = load_tokenizer(folder)
        if self._tokenizer.eos_token_id is None:
            raise UserError(
                f"transformers reads the tokenizer of {folder} as a {type(self._tokenizer).__name__} without an id that ends texts; add "
                f"the {CONFIG_FILE} of the model, or give another vocabulary."
            )
        self.eos = int(self._tokenizer.eos_token_id)
        self._is_paligemma = not _names(folder, "model_type", "processor_class").isdisjoint(_PALIGEMMA)
        self._image = (
            None if _names(folder, "model_type", "processor_class").isdisjoint(_T5GEMMA2) else self._image_text(folder)
        )
        words = self._tokenizer.get_vocab()
        self.vocab_size = max(i for word, i in words.items() if not (self._is_paligemma and word == _PLACEHOLDER)) + 1
        if chat and not self._tokenizer.chat_template:
            raise UserError(f"{folder} has no chat template; leave out {CHAT!r} before the vocabulary's path.")
        self.chat = chat
        self._set_frame(folder)

    def _image_text(self, folder: epath.Path) -> tuple[str, str]:
        """What stands for an image in a text, and the text that the processor makes of it."""
        begin, place, end = (getattr(self._tokenizer, name, None) or usual for name, usual in _IMAGE_TOKENS.items())
        forms = find_form(folder / PROCESSOR_FILE, _Processor), find_form(folder / MODEL_FILE, _Model)
        numbers = [form.image_tokens for form in forms if form is not None and form.image_tokens]
        return begin, f"\n\n{begin}{place * (numbers[0] if numbers else 256)}{end}\n\n"

    def _set_frame(self, folder: epath.Path) -> None:
        if self._is_paligemma and not self.chat:
            self.before, self.after = (self._tokenizer.bos_token_id,), tuple(self.encode(_NEWLINE))
            return
        try:
            plain, whole = self._tokenizer(_MARK, add_special_tokens=False).input_ids, self._reference_ids(_MARK)
            stripped = self._reference_ids(f" {_MARK} ") == whole
        except Exception as e:  # the template's own, or jinja2's
            reason = str(e).strip().split("\n")[0][:120]
            raise UserError(f"The chat template of {folder} takes no message of a user alone ({reason}).") from e
        at = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), None)
        if at is None:
            what = "chat template" if self.chat else "tokenizer"
            raise UserError(f"The {what} of {folder} changes a text that it frames; give another vocabulary.")
        self.before, self.after = tuple(whole[:at]), tuple(whole[at + len(plain) :])
        self.strips = self.chat and stripped
        changed = next((x for x in _TRIED if self.chat and self.input_ids(x) != self._reference_ids(x)), None)
        if changed is not None:
            raise UserError(
                f"In the chat template of {folder}, {changed!r} has other ids than alone; leave out {CHAT!r} before the vocabulary's path, "
                f"and write the template's text into your own."
            )

    def _reference_ids(self, text: str) -> list[int]:
        """The ids of an input as `transformers` computes them; slower than `input_ids`, which equal them."""
        if not self.chat:
            return self._tokenizer(text).input_ids
        message = [{"role": "user", "content": text}]
        return self._tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)

    @property
    def first_sentinel(self) -> int:
        """The id of the first dropped span in span corruption; the following spans count down."""
        if type(self._tokenizer).__name__ == _BYT5:
            # ByT5 was trained with its last bytes as sentinels (Xue et al., 2022), not with its extra ids.
            return LAST_BYTE
        ids = map(self._tokenizer.convert_tokens_to_ids, _FIRST_SENTINELS)
        sentinel = next((i for i in ids if i not in (None, self._tokenizer.unk_token_id)), None)
        if sentinel is None:
            raise UserError("Span corruption needs a vocabulary with T5's extra ids, and this one has no <extra_id_0>.")
        return sentinel

    def encode(self, text: str) -> list[int]:
        """Converts text to ids, without EOS.

        Raises:
          UserError: for PaliGemma's placeholder of images in the text.
        """
        if self._is_paligemma and _PLACEHOLDER in text:
            raise UserError(
                f"{text[:60]!r} has {_PLACEHOLDER}; leave it out: the model reads the example's image before the text."
            )
        if self._image is not None:
            text = text.replace(*self._image)
        if not self._tokenizer.is_fast:
            return self._tokenizer.encode(text, add_special_tokens=False, verbose=False)
        # Several times faster than the tokenizer's own method.
        return self._tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Converts ids up to the first EOS to text, special tokens included; ids beyond the vocabulary are skipped."""
        tokens = list(map(int, ids))
        end = tokens.index(self.eos) if self.eos in tokens else len(tokens)
        return self._tokenizer.decode([i for i in tokens[:end] if i < self.vocab_size])

    def token_bytes(self) -> list[bytes]:
        """The UTF-8 bytes that each id adds to an output, including a space before the first word, which `decode` drops."""
        added, is_bytes = self._tokenizer.added_tokens_decoder, type(self._tokenizer).__name__ == _BYT5
        by_byte = _bytes_of_characters(self._tokenizer)

        def text(i: int) -> bytes:
            token = self._tokenizer.convert_ids_to_tokens(i) or ""
            if i in (self._tokenizer.pad_token_id, self.eos):
                return b""
            if by_byte and i not in added:
                return bytes(by_byte[character] for character in token)
            if i not in added and (byte := re.fullmatch("<0x([0-9A-F]{2})>", token)):
                return bytes.fromhex(byte[1])
            return bytes([ord(token)]) if is_bytes and i not in added else token.replace("\u2581", " ").encode()

        return [text(i) for i in range(self.vocab_size)]


def _bytes_of_characters(tokenizer: Any) -> dict[str, int]:
    """The byte that each character of a token stands for, in vocabularies of pairs of bytes (GPT-2's, CodeT5's); {} in others."""
    if not tokenizer.is_fast or type(tokenizer.backend_tokenizer.decoder).__name__ != "ByteLevel":
        return {}
    from transformers.convert_slow_tokenizer import bytes_to_unicode  # pyright: ignore[reportMissingImports]  # optional

    return {character: byte for byte, character in bytes_to_unicode().items()}


def holds_tokenizer(folder: epath.Path) -> bool:
    """Whether a folder has a tokenizer that `transformers` reads, rather than a SentencePiece model alone.

    Raises:
      UserError: if a file is damaged.
    """
    files = [name for name in (MODEL_FILE, *SETTINGS) if (folder / name).is_file()]
    pieces = any((folder / name).is_file() for name in (SENTENCEPIECE_FILE, TOKENIZER_FILE))
    return bool(files) and (pieces or _class_name(folder) == _BYT5)


def _class_name(folder: epath.Path) -> str | None:
    """The tokenizer's class, as the folder's files name it."""
    named = (find_form(folder / file, _Settings) for file in (CONFIG_FILE, MODEL_FILE))
    return next((form.tokenizer_class for form in named if form and form.tokenizer_class), None)


def _names(folder: epath.Path, *fields: str) -> set[str | None]:
    """What the folder's files name in these fields of `_Settings`."""
    forms = [find_form(folder / file, _Settings) for file in (CONFIG_FILE, MODEL_FILE)]
    return {getattr(form, field) for form in forms if form for field in fields}


def load_tokenizer(folder: epath.Path) -> Any:
    """The folder's tokenizer; T5's for a SentencePiece model of which no file names the class.

    Raises:
      UserError: see `TransformersVocabulary`.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # which would be about PyTorch
    try:
        import transformers  # pyright: ignore[reportMissingImports]  # optional
    except ModuleNotFoundError as e:
        raise UserError(f"The tokenizer of {folder} needs {e.name}: pip install 'adalink-jax[hf]'.") from e
    is_t5 = _class_name(folder) is None and (folder / SENTENCEPIECE_FILE).is_file()
    kind, log = transformers.T5Tokenizer if is_t5 else transformers.AutoTokenizer, transformers.utils.logging
    verbosity = log.get_verbosity()
    log.set_verbosity_error()
    try:
        stated = list(_stated_tokens(folder))
        with _local(folder) as path:
            tokenizer = kind.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except UserError:
        raise
    except Exception as e:  # of many types, some plain Exception
        reason = str(e).strip().split("\n")[0][:120]
        raise UserError(f"transformers cannot read the tokenizer of {folder}; copy it again ({reason}).") from e
    finally:
        log.set_verbosity(verbosity)
    for file, token, i in stated:
        if (read := tokenizer.convert_tokens_to_ids(token)) != i:
            raise UserError(
                f"{folder / file} gives the added token {token!r} the id {i}, and transformers reads {read}; save the "
                f"tokenizer again with transformers."
            )
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
    return tokenizer


@contextlib.contextmanager
def _local(folder: epath.Path) -> Iterator[str]:
    """The path of a local folder with the tokenizer's files."""
    if not is_remote(folder):
        yield os.fspath(folder)
        return
    with tempfile.TemporaryDirectory() as copy:
        for name in (*FILES, MODEL_FILE, QFORMER_WORDS):
            if (folder / name).is_file():
                (folder / name).copy(path_of(copy) / name)
        yield copy


def _stated_tokens(folder: epath.Path) -> Iterator[tuple[str, str, int]]:
    """`(file, token, id)` of each added token that a file of the folder names."""
    added = find_object(folder / ADDED_FILE) or {}
    for token, i in as_form({"ids": added}, _Added, os.fspath(folder / ADDED_FILE)).ids.items():
        yield ADDED_FILE, token, i
    if settings := find_form(folder / CONFIG_FILE, _Settings):
        for i, token in settings.added_tokens_decoder.items():
            yield CONFIG_FILE, token.content, int(i)
    tokens = (find_object(folder / TOKENIZER_FILE) or {}).get("added_tokens", [])
    for token in as_form({"added_tokens": tokens}, _Tokenizer, os.fspath(folder / TOKENIZER_FILE)).added_tokens:
        yield TOKENIZER_FILE, token.content, token.id
