"""Vocabularies without TensorFlow: UTF-8 bytes, SentencePiece models, and the tokenizers of Hugging Face folders.

Invariant: ids and text of the first two equal those of the seqio vocabulary of the same name; those of a Hugging Face folder
equal those of `transformers`.
"""

import functools
import hashlib
import io
import itertools
from collections.abc import Iterable
from typing import Any

import gin
from etils import epath

from adalink_jax.data.transformers_vocabulary import (
    CHAT,
    EOS,
    FILES,
    LAST_BYTE,
    PAD,
    SENTENCEPIECE_FILE,
    TOKENIZER_FILE,
    UNK,
    Framed,
    TransformersVocabulary,
    holds_tokenizer,
)
from adalink_jax.errors import UserError
from adalink_jax.files.places import path_of
from adalink_jax.files.whole_file import write_bytes
from adalink_jax.near_names import did_you_mean, near, near_paths
from adalink_jax.typed_values import NonNegativeInt

BYTES = "bytes"


def _until_eos(ids: Iterable[int]) -> Iterable[int]:
    return itertools.takewhile(lambda i: i != EOS, map(int, ids))


@gin.configurable
class ByteVocabulary(Framed):
    """UTF-8 bytes, as in ByT5 (Xue et al., 2022): pad 0, EOS 1, unknown 2, byte b is id b + 3; 259 ids."""

    vocab_size = 259
    first_sentinel = LAST_BYTE

    def encode(self, text: str) -> list[int]:
        """Converts text to ids, without EOS."""
        return [byte + 3 for byte in text.encode("utf-8")]

    def decode(self, ids: Iterable[int]) -> str:
        """Converts ids up to the first EOS to text; ids that are not bytes, and bytes that are not UTF-8, are skipped."""
        return bytes(i - 3 for i in _until_eos(ids) if 3 <= i < 259).decode("utf-8", errors="ignore")

    def token_bytes(self) -> list[bytes]:
        """The UTF-8 bytes that each id adds to an output."""
        return [bytes([i - 3]) if i >= 3 else b"" for i in range(self.vocab_size)]


@gin.configurable
class SentencePieceVocabulary(Framed):
    """A SentencePiece model with T5's extra ids at its end (Raffel et al., 2020): `<extra_id_0>` is the last id.

    Attributes:
      vocab_size: number of pieces and extra ids; T5's is 32,100, which its models pad to 32,128 rows.
    """

    def __init__(self, path: epath.PathLike, extra_ids: NonNegativeInt = 100):
        """Args:
          path: a SentencePiece model (`spiece.model`), local or remote.
          extra_ids: number of sentinels to append; none if the model has them as pieces already, as mT5's does.

        Raises:
          UserError: if there is no such file, or it is not a SentencePiece model.
        """
        self._model = _load_sentencepiece(str(path), extra_ids)
        self.vocab_size = self._model.GetPieceSize()
        self.first_sentinel = self.vocab_size - 1

    def encode(self, text: str) -> list[int]:
        """Converts text to ids, without EOS."""
        return self._model.EncodeAsIds(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Converts ids up to the first EOS to text; ids beyond the vocabulary are read as unknown."""
        return self._model.DecodeIds([i if i < self.vocab_size else UNK for i in _until_eos(ids)])

    def token_bytes(self) -> list[bytes]:
        """The UTF-8 bytes that each id adds to an output, including a space before the first word, which `decode` drops."""
        model = self._model

        def added(i: int) -> bytes:
            if model.IsControl(i):
                return b""
            if model.IsByte(i):
                return bytes([int(model.IdToPiece(i)[3:5], 16)])  # <0x41>
            text = " \u2047 " if model.IsUnknown(i) else model.IdToPiece(i).replace("\u2581", " ")
            return text.encode()

        return [added(i) for i in range(self.vocab_size)]


Vocabulary = ByteVocabulary | SentencePieceVocabulary | TransformersVocabulary


@functools.cache
def _load_sentencepiece(path: str, extra_ids: int) -> Any:
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    if not path_of(path).is_file():
        raise UserError(f"There is no SentencePiece model {path}{did_you_mean(near_paths(path))}")
    try:
        model_proto = sentencepiece_model_pb2.ModelProto  # pyright: ignore[reportAttributeAccessIssue]  # made at import
        proto = model_proto.FromString(path_of(path).read_bytes())
        if "<extra_id_0>" not in {piece.piece.removeprefix("\u2581") for piece in proto.pieces}:
            for i in reversed(range(extra_ids)):
                proto.pieces.add(piece=f"\u2581<extra_id_{i}>", score=0.0, type=proto.SentencePiece.USER_DEFINED)
        model = sentencepiece.SentencePieceProcessor()
        model.LoadFromSerializedProto(proto.SerializeToString())
    except Exception as e:  # a RuntimeError, or protobuf's error, whose class depends on its implementation
        raise UserError(f"{path} is damaged, or not a SentencePiece model.") from e
    if (model.pad_id(), model.eos_id(), model.unk_id()) != (PAD, EOS, UNK):
        raise UserError(f"{path} is not in T5's form: pad, EOS and unknown must be 0, 1 and 2.")
    return model


def load_vocabulary(path: epath.PathLike) -> Vocabulary:
    """Loads a vocabulary.

    Args:
      path: "bytes"; a SentencePiece model, which is read as seqio reads it; or a checkpoint's folder (also `hf://OWNER/NAME`):
        a tokenizer in it is read as `transformers` reads it, a SentencePiece model alone as seqio does. "chat:" before a folder
        reads each input as one message of a user, in the folder's chat template.

    Raises:
      UserError: if there is no vocabulary, it is damaged, or it has no chat template for "chat:".
    """
    location, chat = find_vocabulary(path), str(path).startswith(CHAT)
    if location is not None and location.is_dir():
        return TransformersVocabulary(location, chat)
    if chat:
        raise UserError(
            f"{str(path)!r} is not a Hugging Face folder, which alone have chat templates; leave out {CHAT!r}."
        )
    return ByteVocabulary() if location is None else SentencePieceVocabulary(location)


def find_vocabulary(path: epath.PathLike) -> epath.Path | None:
    """What `load_vocabulary` would load: a SentencePiece model, or the folder of a tokenizer; None for UTF-8 bytes.

    Raises:
      UserError: if there is no vocabulary.
    """
    path = str(path).removeprefix(CHAT)
    if path == BYTES:
        return None
    from adalink_jax.checkpoints import folder_of  # brings JAX, which worker processes do without

    folder = folder_of(path, weights=False)
    if folder.is_file():
        return folder
    if not folder.is_dir():
        raise UserError(
            f"There is no folder or SentencePiece model {path}{did_you_mean(near(path, [BYTES]) or near_paths(path))}"
        )
    if holds_tokenizer(folder):
        return folder
    if (folder / SENTENCEPIECE_FILE).exists():
        return folder / SENTENCEPIECE_FILE
    raise UserError(
        f"{path} holds no {SENTENCEPIECE_FILE} or {TOKENIZER_FILE}; give the vocabulary's path, or {BYTES!r} for UTF-8 bytes."
    )


def fingerprint(path: epath.PathLike) -> str:
    """The first 16 hex digits of the SHA-256 of a vocabulary's files, after "chat:" where it has that; "bytes" for UTF-8 bytes.

    Args:
      path: see `load_vocabulary`.

    Raises:
      UserError: if there is no vocabulary.
    """
    location = find_vocabulary(path)
    if location is None:
        return BYTES
    files = [location / name for name in FILES if (location / name).is_file()] if location.is_dir() else [location]
    chat = CHAT if str(path).startswith(CHAT) else ""
    return chat + hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def check_rows(vocabulary: str, ids: int, rows: int) -> None:
    """Checks that an embedding table has a row for each id of a vocabulary.

    Args:
      vocabulary: what has the ids, for the error message.
      ids: one more than the largest id.
      rows: rows of the table.

    Raises:
      UserError: if there are more ids than rows.
    """
    if ids > rows:
        raise UserError(
            f"{vocabulary} has {ids} ids and the model's embedding only {rows} rows; use the model's own vocabulary."
        )


def train_sentencepiece(sentences: Iterable[str], pieces: int, folder: str) -> epath.Path:
    """Trains a vocabulary in T5's form (SentencePiece unigrams; Kudo, 2018) and writes it.

    Pad is 0, EOS 1, unknown 2; unknown characters become bytes, and each digit is a piece. The same text gives the same file.

    Args:
      sentences: the text; the first 200,000 sentences are used, except those longer than 65,536 bytes.
      pieces: number of pieces including the 256 bytes; extra ids are added on top (see `SentencePieceVocabulary`).
      folder: folder to write `spiece.model` to.

    Returns:
      The file.

    Raises:
      UserError: if there is too little text for this number of pieces.
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences), model_writer=model, vocab_size=pieces, model_type="unigram",
            pad_id=PAD, eos_id=EOS, unk_id=UNK, bos_id=-1, byte_fallback=True, split_digits=True, num_threads=1,
            input_sentence_size=200_000, shuffle_input_sentence=False, max_sentence_length=65_536, minloglevel=2,
        )  # fmt: skip
    except RuntimeError as e:
        reason = str(e).strip().split("\n")[-1]
        raise UserError(f"No vocabulary of {pieces} pieces can be trained on this text: {reason}") from e
    path = path_of(folder) / SENTENCEPIECE_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, model.getvalue())
    return path
