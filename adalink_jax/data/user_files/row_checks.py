"""What is wrong with the rows of a data set, counted, and how much of it stops a run."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from adalink_jax.errors import UserError

UNPARSED, EMPTY, SHARED, TRUNCATED, UNPRODUCIBLE, LONG = (
    "unparsed",
    "empty",
    "shared",
    "truncated",
    "unproducible",
    "long",
)
LIMITS = {UNPARSED: 0.01, EMPTY: 0.01, SHARED: 0.0, TRUNCATED: 0.05, UNPRODUCIBLE: 0.01, LONG: 1.0}
REMEDIES = {
    UNPARSED: "mend the file",
    EMPTY: "fill them",
    SHARED: "set DROP_SHARED = True to leave them out of the split that is trained on",
    TRUNCATED: "raise TASK_FEATURE_LENGTHS",
    UNPRODUCIBLE: "write them otherwise, or use a VOCABULARY that has them",
    LONG: "close their quotation marks",
}
TOLD = 3  # rows that are named


@dataclasses.dataclass(frozen=True)
class Finding:
    """So many rows of so many have something wrong.

    Attributes:
      kind: a key of `LIMITS`.
      what: the rows and what is wrong with them, in words that follow their number.
      count: how many.
      of: of how many.
      detail: which, for people.
    """

    kind: str
    what: str
    count: int
    of: int
    detail: str = ""

    def __str__(self):
        shown = f"{self.count:,} of {self.of:,} {self.what} ({self.count / max(self.of, 1):.2%})"
        return f"{shown}: {self.detail}" if self.detail else shown


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Of the texts of one side of a split, in tokens with EOS.

    Attributes:
      smallest, median, most, largest: `most` is what 99 of 100 do not exceed.
    """

    smallest: int
    median: int
    most: int
    largest: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> "Lengths":
        """Of a list that is not empty."""
        most = int(np.ceil(np.percentile(lengths, 99)))
        return cls(min(lengths), int(np.median(lengths)), most, max(lengths))


def check_limits(limits: Mapping[str, float]) -> dict[str, float]:
    """`LIMITS` with those of a task instead.

    Raises:
      UserError: for a kind that is none, or a share that is none.
    """
    for kind, share in limits.items():
        if kind not in LIMITS or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise UserError(f"LIMITS has {kind!r}: {share!r}; it takes shares from 0 to 1 of {', '.join(LIMITS)}.")
    return LIMITS | dict(limits)


def refuse(findings: Iterable[Finding], limits: Mapping[str, float], name: str) -> None:
    """Raises:
    UserError: for the first that is more than its limit, with the remedy.
    """
    for finding in findings:
        if finding.count > limits[finding.kind] * finding.of:
            raise UserError(
                f"{name}: {finding}. That is more than {limits[finding.kind]:.2%}; {REMEDIES[finding.kind]}, or allow more "
                f"(LIMITS = {{'{finding.kind}': ...}})."
            )


def named(rows: Sequence[str], count: int) -> str:
    """The first few of `count` things."""
    return "; ".join(rows[:TOLD]) + ("; ..." if count > TOLD else "")


def unproducible(vocabulary, text: str) -> str | None:
    """What the vocabulary cannot write of a text: characters, or "runs of spaces"; None if it can write all."""
    if vocabulary.decode(vocabulary.encode(text)) == text:
        return None
    lost = {c for c in text if vocabulary.decode(vocabulary.encode(f"a{c}a")) != f"a{c}a"}
    return "".join(sorted(lost)) or "runs of spaces"


def of_tokens(split: str, texts: Iterable[tuple[str, Sequence[str]]], vocabulary, lengths: Mapping[str, int]):
    """What the vocabulary makes of examples.

    Args:
      split: their name.
      texts: `(inputs, references)` of each.
      vocabulary: the model's.
      lengths: `{"inputs": L, "targets": T}`; longer ones are cut.

    Returns:
      `{"inputs": Lengths, "targets": Lengths}`, and the findings.
    """
    sizes = {"inputs": [], "targets": []}
    lost, signs, kept = 0, collections.Counter(), []
    for inputs, references in texts:
        sizes["inputs"].append(len(vocabulary.encode(inputs)) + 1)
        for target in references:
            sizes["targets"].append(len(vocabulary.encode(target)) + 1)
            if (cannot := unproducible(vocabulary, target)) is not None:
                lost += 1
                signs.update([cannot] if cannot == "runs of spaces" else cannot)
                kept.append(target)
    found = {side: Lengths.of(each) for side, each in sizes.items() if each}
    findings = [
        Finding(
            TRUNCATED, f"{side} of {split} are longer than {lengths[side]} tokens and will be cut",
            sum(size > lengths[side] for size in each), len(each),
        )
        for side, each in sizes.items()
    ]  # fmt: skip
    detail = f"it lacks {', '.join(repr(sign) for sign, _ in signs.most_common(12))}" if signs else ""
    findings.append(
        Finding(
            UNPRODUCIBLE,
            f"targets of {split} cannot be written with the vocabulary",
            lost,
            len(sizes["targets"]),
            detail,
        )
    )
    return found, findings
