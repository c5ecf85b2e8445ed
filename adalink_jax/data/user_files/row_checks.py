"""What is wrong with the rows of a data set, counted, and how much of it stops a run."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from adalink_jax.data.vocabularies import Vocabulary
from adalink_jax.errors import UserError

UNPARSED, EMPTY, SHARED = "unparsed", "empty", "shared"
TRUNCATED, UNPRODUCIBLE, LONG = "truncated", "unproducible", "long"
LIMITS = {UNPARSED: 0.01, EMPTY: 0.01, SHARED: 0.0, TRUNCATED: 0.05, UNPRODUCIBLE: 0.01, LONG: 1.0}
REMEDIES = {
    UNPARSED: "mend the file",
    EMPTY: "fill them",
    SHARED: "set DROP_SHARED = True to leave them out of the split that is trained on",
    TRUNCATED: "raise TASK_FEATURE_LENGTHS",
    UNPRODUCIBLE: "write them otherwise, or use a VOCABULARY that has them",
    LONG: "close their quotation marks",
}
NAMED_ROWS = 3  # rows that a finding names


@dataclasses.dataclass(frozen=True)
class Finding:
    """A number of rows that have something wrong.

    Attributes:
      kind: a key of `LIMITS`.
      what: the rows and what is wrong with them, in words that follow their number.
      count: the number of these rows.
      of: the number of all rows.
      detail: the first of these rows.
    """

    kind: str
    what: str
    count: int
    of: int
    detail: str = ""

    def __str__(self):
        summary = f"{self.count:,} of {self.of:,} {self.what} ({self.count / max(self.of, 1):.2%})"
        return f"{summary}: {self.detail}" if self.detail else summary


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Lengths of the texts of one side of a split, in tokens with EOS.

    Attributes:
      smallest, median, most, largest: `most` is what 99 of 100 do not exceed.
    """

    smallest: int
    median: int
    most: int
    largest: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> "Lengths":
        """Summarises a list that is not empty."""
        most = int(np.ceil(np.percentile(lengths, 99)))
        return cls(min(lengths), int(np.median(lengths)), most, max(lengths))


def check_limits(limits: Mapping[str, float]) -> dict[str, float]:
    """Returns `LIMITS`, overridden by those of a task.

    Raises:
      UserError: for an unknown kind, or a value that is not a share.
    """
    for kind, share in limits.items():
        if kind not in LIMITS or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise UserError(f"LIMITS has {kind!r}: {share!r}; it takes shares from 0 to 1 of {', '.join(LIMITS)}.")
    return LIMITS | dict(limits)


def refuse(findings: Iterable[Finding], limits: Mapping[str, float], name: str) -> None:
    """Raises:
    UserError: for the first finding above its limit, with the remedy.
    """
    for finding in findings:
        if finding.count > limits[finding.kind] * finding.of:
            raise UserError(
                f"{name}: {finding}. That is more than {limits[finding.kind]:.2%}; {REMEDIES[finding.kind]}, or allow more "
                f"(LIMITS = {{'{finding.kind}': ...}})."
            )


def first_named(rows: Sequence[str], count: int) -> str:
    """Names the first few of `count` rows."""
    return "; ".join(rows[:NAMED_ROWS]) + ("; ..." if count > NAMED_ROWS else "")


def unproducible(vocabulary: Vocabulary, text: str) -> str | None:
    """What the vocabulary cannot write of a text: its characters, or "runs of spaces"; None if it can write all."""
    if vocabulary.decode(vocabulary.encode(text)) == text:
        return None
    lost = {c for c in text if vocabulary.decode(vocabulary.encode(f"a{c}a")) != f"a{c}a"}
    return "".join(sorted(lost)) or "runs of spaces"


def check_tokens(
    split: str,
    texts: Iterable[tuple[str, Sequence[str]]],
    vocabulary: Vocabulary,
    limits: Mapping[str, int],
) -> tuple[dict[str, Lengths], list[Finding]]:
    """Counts the tokens of examples.

    Args:
      split: the split of the examples.
      texts: `(inputs, references)` of each.
      vocabulary: the model's.
      limits: `{"inputs": L, "targets": T}`; longer texts are cut.

    Returns:
      `{"inputs": Lengths, "targets": Lengths}`, and what is wrong.
    """
    sizes: dict[str, list[int]] = {"inputs": [], "targets": []}
    unwritable, signs = 0, collections.Counter()
    for inputs, references in texts:
        sizes["inputs"].append(len(vocabulary.input_ids(inputs)))
        for target in references:
            sizes["targets"].append(len(vocabulary.encode(target)) + 1)
            if (lost := unproducible(vocabulary, target)) is not None:
                unwritable += 1
                signs.update([lost] if lost == "runs of spaces" else lost)
    findings = [
        Finding(
            TRUNCATED, f"{side} of {split} are longer than {limits[side]} tokens and will be cut",
            sum(size > limits[side] for size in sizes[side]), len(sizes[side]),
        )
        for side in sizes
    ]  # fmt: skip
    detail = f"it lacks {', '.join(repr(sign) for sign, _ in signs.most_common(12))}" if signs else ""
    what = f"targets of {split} cannot be written with the vocabulary"
    findings.append(Finding(UNPRODUCIBLE, what, unwritable, len(sizes["targets"]), detail))
    return {side: Lengths.of(lengths) for side, lengths in sizes.items() if lengths}, findings
