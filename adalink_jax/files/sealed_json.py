"""JSON files that state a digest of their own text, so that a changed byte is found when they are read."""

import hashlib
import json
from typing import Any

KEY = "digest"
_UNSEALED = "0" * 64  # the digest is of the text with this in its place


def seal(value: dict[str, Any], within: str | None = None) -> str:
    """The JSON text of `value`, with the text's SHA-256 under `digest`, at the top or in the object `within`."""
    mark = {KEY: _UNSEALED}
    text = (
        json.dumps(value | (mark if within is None else {within: value[within] | mark}), indent=2, sort_keys=True)
        + "\n"
    )
    return text.replace(_UNSEALED, _digest(text))


def is_intact(text: str, stated: str) -> bool:
    """Whether `text` is as it was sealed with the digest `stated`."""
    return len(stated) == len(_UNSEALED) and stated == _digest(text.replace(stated, _UNSEALED))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
