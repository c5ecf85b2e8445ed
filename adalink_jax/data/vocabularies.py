"""Vocabularies without TensorFlow; ids equal those of the seqio vocabulary of the same name."""

from collections.abc import Iterable

PAD, EOS, UNK = 0, 1, 2


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
