"""Vocabularies without TensorFlow; ids and text equal those of the seqio vocabulary of the same name."""

import functools
import hashlib
import io
import json
from collections.abc import Iterable

import gin
from etils import epath

from adalink_jax.errors import UserError

PAD, EOS, UNK = 0, 1, 2
BYTES = "bytes"
SENTENCEPIECE_FILE = "spiece.model"
QFORMER_FOLDER, TOKENIZER_FILE = "qformer_tokenizer", "tokenizer.json"


@gin.configurable
class ByteVocabulary:
    """UTF-8 bytes, as ByT5 has them (Xue et al., 2022): pad 0, EOS 1, unknown 2, byte b is id b + 3. 259 ids."""

    vocab_size = 259

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without EOS."""
        return [byte + 3 for byte in text.encode("utf-8")]

    def decode(self, ids: Iterable[int]) -> str:
        """Text up to the first EOS; ids that are no byte, and bytes that are no UTF-8, are left out."""
        out = bytearray()
        for i in map(int, ids):
            if i == EOS:
                break
            if 3 <= i < 259:
                out.append(i - 3)
        return out.decode("utf-8", errors="ignore")

    def token_bytes(self) -> list[bytes]:
        """The UTF-8 that each id adds to an output."""
        return [bytes([i - 3]) if i >= 3 else b"" for i in range(self.vocab_size)]


@gin.configurable
class SentencePieceVocabulary:
    """A SentencePiece model with T5's extra ids at its end (Raffel et al., 2020): `<extra_id_0>` is the last id.

    Attributes:
      vocab_size: pieces and extra ids; T5's is 32,100, which its models pad to 32,128 rows.
    """

    def __init__(self, path: str, extra_ids: int = 100):
        """Args:
          path: a SentencePiece model (`spiece.model`), local or remote.
          extra_ids: sentinels to append; a model that has them as pieces already, as mT5's, gets none.

        Raises:
          UserError: if there is no such file, or it is no SentencePiece model.
        """
        self._model = _load_sentencepiece(str(path), extra_ids)
        self.vocab_size = self._model.GetPieceSize()

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without EOS."""
        return self._model.EncodeAsIds(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Text up to the first EOS; ids beyond the vocabulary read as unknown."""
        out = []
        for i in map(int, ids):
            if i == EOS:
                break
            out.append(i if i < self.vocab_size else UNK)
        return self._model.DecodeIds(out)

    def token_bytes(self) -> list[bytes]:
        """The UTF-8 that each id adds to an output; a space before the first word too, which `decode` leaves out."""
        model = self._model

        def added(i):
            if model.IsControl(i):
                return b""
            if model.IsByte(i):
                return bytes([int(model.IdToPiece(i)[3:5], 16)])  # <0x41>
            text = " \u2047 " if model.IsUnknown(i) else model.IdToPiece(i).replace("\u2581", " ")
            return text.encode()

        return [added(i) for i in range(self.vocab_size)]


Vocabulary = ByteVocabulary | SentencePieceVocabulary


class WordPieceVocabulary:
    """BERT's, as the Q-Former of an InstructBLIP reads instructions: `[CLS] words [SEP]`; pad is 0."""

    def __init__(self, path: str):
        """Args:
          path: a `tokenizer.json`, or a checkpoint's folder (`hf://OWNER/NAME` included) that has one in `qformer_tokenizer/`.

        Raises:
          UserError: if there is none, it is damaged, or `tokenizers` is not installed.
        """
        try:
            import tokenizers
        except ModuleNotFoundError as e:
            raise UserError("QFORMER_VOCABULARY needs `tokenizers`: pip install 'adalink-jax[hf]'.") from e
        file = _folder_of(path)
        file = file if file.is_file() else file / QFORMER_FOLDER / TOKENIZER_FILE
        if not file.is_file():
            raise UserError(
                f"{path} holds no {QFORMER_FOLDER}/{TOKENIZER_FILE}; give QFORMER_VOCABULARY the file's path."
            )
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(file.read_text())
        except Exception as e:  # the library has no class of its own
            raise UserError(f"{file} is damaged, or no tokenizer ({str(e)[:100]}).") from e
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.vocab_size = self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, with what BERT puts around it."""
        return self._tokenizer.encode(text).ids


@functools.cache
def _load_sentencepiece(path: str, extra_ids: int):
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    if not epath.Path(path).is_file():
        raise UserError(f"There is no SentencePiece model {path}.")
    try:
        proto = sentencepiece_model_pb2.ModelProto.FromString(epath.Path(path).read_bytes())
    except Exception as e:  # protobuf's error class depends on its implementation
        raise UserError(f"{path} is damaged, or no SentencePiece model.") from e
    pieces = {piece.piece.removeprefix("\u2581") for piece in proto.pieces}
    if "<extra_id_0>" not in pieces:
        for i in reversed(range(extra_ids)):
            proto.pieces.add(piece=f"\u2581<extra_id_{i}>", score=0.0, type=proto.SentencePiece.USER_DEFINED)
    model = sentencepiece.SentencePieceProcessor()
    try:
        model.LoadFromSerializedProto(proto.SerializeToString())
    except RuntimeError as e:
        raise UserError(f"{path} is damaged, or no SentencePiece model.") from e
    if (model.pad_id(), model.eos_id(), model.unk_id()) != (PAD, EOS, UNK):
        raise UserError(f"{path} is no T5's: pad, EOS and unknown must be 0, 1 and 2.")
    return model


def load_vocabulary(path: str) -> Vocabulary:
    """The vocabulary at `path`.

    Args:
      path: "bytes"; a SentencePiece model; or a checkpoint's folder, `hf://OWNER/NAME` included, that holds one.

    Raises:
      UserError: if there is none.
    """
    file = find_vocabulary(path)
    return ByteVocabulary() if file is None else SentencePieceVocabulary(file)


def find_vocabulary(path: str) -> epath.Path | None:
    """The SentencePiece model that `path`, as for `load_vocabulary`, names; None for UTF-8 bytes.

    Raises:
      UserError: if there is none.
    """
    path = str(path)
    if path == BYTES:
        return None
    folder = _folder_of(path)
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


def _folder_of(path: str) -> epath.Path:
    from adalink_jax.checkpoints import folder_of  # brings JAX, which worker processes do without

    return folder_of(path)


def fingerprint(path: str) -> str:
    """SHA-256 of a vocabulary's file, wherever it lies, in 16 digits; "bytes" of UTF-8.

    Args:
      path: as for `load_vocabulary`.

    Raises:
      UserError: if there is none.
    """
    file = find_vocabulary(path)
    return BYTES if file is None else hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def train_sentencepiece(sentences: Iterable[str], pieces: int, folder: str) -> epath.Path:
    """Makes a vocabulary in T5's form of text (SentencePiece's unigrams; Kudo, 2018): pad 0, EOS 1, unknown 2, unknown characters
    as bytes, each digit a piece of its own. The same text gives the same file.

    Args:
      sentences: the text, of which the first 200,000 are read, and none that is longer than 65,536 bytes.
      pieces: how many, the 256 bytes among them; extra ids come on top (see `SentencePieceVocabulary`).
      folder: where `spiece.model` is written.

    Returns:
      The file.

    Raises:
      UserError: if the text is too little for so many pieces.
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
        raise UserError(f"No vocabulary of {pieces} pieces can be made of this text: {reason}") from e
    path = epath.Path(folder) / SENTENCEPIECE_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())
    return path
