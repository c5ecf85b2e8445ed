"""Vocabularies without TensorFlow. Invariant: ids and text equal those of the seqio vocabulary of the same name."""

import functools
import hashlib
import io
import itertools
import json
from collections.abc import Iterable
from typing import Any

import gin
from etils import epath

from adalink_jax.errors import UserError

PAD, EOS, UNK = 0, 1, 2
BYTES = "bytes"
SENTENCEPIECE_FILE = "spiece.model"
QFORMER_FOLDER, TOKENIZER_FILE = "qformer_tokenizer", "tokenizer.json"


def _until_eos(ids: Iterable[int]) -> Iterable[int]:
    return itertools.takewhile(lambda i: i != EOS, map(int, ids))


@gin.configurable
class ByteVocabulary:
    """UTF-8 bytes, as in ByT5 (Xue et al., 2022): pad 0, EOS 1, unknown 2, byte b is id b + 3; 259 ids."""

    vocab_size = 259

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
class SentencePieceVocabulary:
    """A SentencePiece model with T5's extra ids at its end (Raffel et al., 2020): `<extra_id_0>` is the last id.

    Attributes:
      vocab_size: number of pieces and extra ids; T5's is 32,100, which its models pad to 32,128 rows.
    """

    def __init__(self, path: epath.PathLike, extra_ids: int = 100):
        """Args:
          path: a SentencePiece model (`spiece.model`), local or remote.
          extra_ids: number of sentinels to append; none if the model has them as pieces already, as mT5's does.

        Raises:
          UserError: if there is no such file, or it is not a SentencePiece model.
        """
        self._model = _load_sentencepiece(str(path), extra_ids)
        self.vocab_size = self._model.GetPieceSize()

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


Vocabulary = ByteVocabulary | SentencePieceVocabulary


class WordPieceVocabulary:
    """BERT's vocabulary, in which the Q-Former of an InstructBLIP reads instructions: `[CLS] words [SEP]`; pad is 0."""

    def __init__(self, path: str):
        """Args:
          path: a `tokenizer.json`, or a checkpoint's folder (also `hf://OWNER/NAME`) that has one in `qformer_tokenizer/`.

        Raises:
          UserError: if it is missing or damaged, or `tokenizers` is not installed.
        """
        try:
            import tokenizers
        except ModuleNotFoundError as e:
            raise UserError("QFORMER_VOCABULARY needs `tokenizers`: pip install 'adalink-jax[hf]'.") from e
        from adalink_jax.checkpoints import folder_of  # brings JAX, which worker processes do without

        file = folder_of(path)
        file = file if file.is_file() else file / QFORMER_FOLDER / TOKENIZER_FILE
        if not file.is_file():
            raise UserError(
                f"{path} holds no {QFORMER_FOLDER}/{TOKENIZER_FILE}; give QFORMER_VOCABULARY the file's path."
            )
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(file.read_text())
        except Exception as e:  # the library raises plain Exception
            raise UserError(f"{file} is damaged, or not a tokenizer ({str(e)[:100]}).") from e
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.vocab_size = self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Converts text to ids, with [CLS] and [SEP]."""
        return self._tokenizer.encode(text).ids


@functools.cache
def _load_sentencepiece(path: str, extra_ids: int) -> Any:
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    if not epath.Path(path).is_file():
        raise UserError(f"There is no SentencePiece model {path}.")
    try:
        model_proto = sentencepiece_model_pb2.ModelProto  # pyright: ignore[reportAttributeAccessIssue]  # made at import
        proto = model_proto.FromString(epath.Path(path).read_bytes())
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
      path: "bytes"; a SentencePiece model; or a checkpoint's folder (also `hf://OWNER/NAME`) that holds one.

    Raises:
      UserError: if there is no vocabulary.
    """
    file = find_vocabulary(path)
    return ByteVocabulary() if file is None else SentencePieceVocabulary(file)


def find_vocabulary(path: epath.PathLike) -> epath.Path | None:
    """Returns the SentencePiece model that `load_vocabulary` would load; None for UTF-8 bytes.

    Raises:
      UserError: if there is no vocabulary.
    """
    path = str(path)
    if path == BYTES:
        return None
    from adalink_jax.checkpoints import folder_of  # brings JAX, which worker processes do without

    folder = folder_of(path)
    if folder.is_file():
        return folder
    if not folder.is_dir():
        raise UserError(f"There is no folder or SentencePiece model {path}.")
    if (folder / SENTENCEPIECE_FILE).exists():
        return folder / SENTENCEPIECE_FILE
    config = folder / "tokenizer_config.json"
    try:
        if config.exists() and json.loads(config.read_text()).get("tokenizer_class") == "ByT5Tokenizer":
            return None
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"{config} is damaged or cut short ({e}); copy it again.") from e
    raise UserError(f"{path} holds no {SENTENCEPIECE_FILE}; give the vocabulary's path, or {BYTES!r} for UTF-8 bytes.")


def fingerprint(path: epath.PathLike) -> str:
    """The first 16 hex digits of the SHA-256 of a vocabulary's file; "bytes" for UTF-8 bytes.

    Args:
      path: see `load_vocabulary`.

    Raises:
      UserError: if there is no vocabulary.
    """
    file = find_vocabulary(path)
    return BYTES if file is None else hashlib.sha256(file.read_bytes()).hexdigest()[:16]


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
    path = epath.Path(folder) / SENTENCEPIECE_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())
    return path
