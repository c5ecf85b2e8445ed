"""BERT's vocabulary, in which the Q-Former of an InstructBLIP reads instructions. Invariant: the ids equal those of `transformers`."""

from adalink_jax.data.transformers_vocabulary import PAD, QFORMER_FOLDER, QFORMER_WORDS, TOKENIZER_FILE, load_tokenizer
from adalink_jax.errors import UserError


class WordPieceVocabulary:
    """BERT's vocabulary, in which the Q-Former of an InstructBLIP reads instructions: `[CLS] words [SEP]`; pad is 0."""

    def __init__(self, path: str):
        """Args:
          path: a `tokenizer.json`, or a checkpoint's folder (also `hf://OWNER/NAME`) with a tokenizer in `qformer_tokenizer/`.

        Raises:
          UserError: if it is missing or damaged, or `transformers` is not installed.
        """
        from adalink_jax.checkpoints import folder_of  # brings JAX, which worker processes do without

        folder = folder_of(path)
        folder = folder.parent if folder.is_file() else folder / QFORMER_FOLDER
        if not any((folder / name).is_file() for name in (TOKENIZER_FILE, QFORMER_WORDS)):
            raise UserError(
                f"{path} holds no {QFORMER_FOLDER}/{TOKENIZER_FILE}; give QFORMER_VOCABULARY the file's path."
            )
        self._tokenizer = load_tokenizer(folder)
        if self._tokenizer.pad_token_id not in (PAD, None):
            raise UserError(f"{folder} pads with id {self._tokenizer.pad_token_id}, and a Q-Former's padding is {PAD}.")
        self.vocab_size = max(self._tokenizer.get_vocab().values()) + 1

    def encode(self, text: str, length: int | None = None) -> list[int]:
        """Converts text to ids, with [CLS] and [SEP], which a text that is cut to `length` ids keeps."""
        return self._tokenizer.encode(text, truncation=length is not None, max_length=length, verbose=False)
