"""Train, validation and test splits as parts of published splits, by a digest of an example's identity, in any order of the file.

Selection is not reporting: choices are made on `validation`, and reported results are measured on `test`. The test splits of
GLUE, SuperGLUE and most image sets have no public labels, so their published validation split is halved. Examples with the
same identity, such as all questions about an image, are in the same part.
"""

import dataclasses
import hashlib
from collections.abc import Mapping


def position(identity: str) -> float:
    """The position of `identity` in [0, 1) by its digest: uniformly distributed, the same on every machine."""
    return position_of(int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "big"))


def position_of(digest: int) -> float:
    """The position in [0, 1) of a digest of 64 bits."""
    return (digest >> 11) / 2**53  # 53 bits: exact as a float


@dataclasses.dataclass(frozen=True)
class Part:
    """The examples of a published split whose position is in [low, high)."""

    split: str
    low: float = 0.0
    high: float = 1.0

    def holds(self, identity: str) -> bool:
        """Whether an example of `split` belongs to this part."""
        return (self.low, self.high) == (0.0, 1.0) or self.low <= position(identity) < self.high


Splits = Mapping[str, Part]  # train, validation or test -> the part of a published split


def halved(train: str = "train", validation: str = "validation") -> Splits:
    """Splits with the published `validation` halved into validation and test."""
    return {"train": Part(train), "validation": Part(validation, 0.0, 0.5), "test": Part(validation, 0.5, 1.0)}


def carved(share: float, train: str = "train", test: str | None = "test", test_share: float | None = None) -> Splits:
    """Splits with `share` of the published `train` as validation and, if `test` is None, `test_share` of it (or as much) as test."""
    if test is not None:
        return {"train": Part(train, share, 1.0), "validation": Part(train, 0.0, share), "test": Part(test)}
    end = share + (share if test_share is None else test_share)
    return {"train": Part(train, end, 1.0), "validation": Part(train, 0.0, share), "test": Part(train, share, end)}


def as_published(train: str = "train", validation: str = "validation", test: str = "test") -> Splits:
    """The three published splits, unchanged."""
    return {"train": Part(train), "validation": Part(validation), "test": Part(test)}
