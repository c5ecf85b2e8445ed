"""The files of a cached task.

    CACHE/TASK/task.json                  which task this is: its name, vocabulary, first examples
    CACHE/TASK/train-00000.array_record   records of examples, in the order of the source
    CACHE/TASK/train-00000.counts         the numbers of their tokens, of inputs and of targets
    CACHE/TASK/train-00000.json           their number, the files' sizes and digests; written after them
    CACHE/TASK/train.json                 all shards of the split; written last

Invariant: each JSON file is sealed with a digest, and states what was written before it; so a file that is there is whole, and one that was
changed or cut short is found.
"""

import hashlib
import json
from typing import Any, TypeVar

import pydantic
from etils import epath

from adalink_jax.errors import UserError
from adalink_jax.files import sealed_json
from adalink_jax.files.typed_json import Form, as_form, parse_object, read_text
from adalink_jax.files.whole_file import write_text

TASK, FORMAT_VERSION = "task.json", 1
COUNTS = "<u4"  # dtype of the numbers of tokens
AGAIN = "rerun `adalink cache-task`, which writes it again"
FormT = TypeVar("FormT", bound=Form)


class Identity(Form):
    """Which task a folder holds.

    Attributes:
      name: the task's.
      format_version: of these files.
      vocabulary: digest of the vocabulary's size, its EOS, the ids of a text, and the text of ids.
      settings: of the shipped preprocessing, as Python writes them.
      kept_ends: feature -> how many of its last ids stay where it is cut to a length; None if the examples are those of `lengths` only.
      lengths: the lengths that the examples were made at; None for whole examples.
      first_examples: digest of the first examples of each split.
    """

    name: str
    format_version: int
    vocabulary: str
    settings: dict[str, str]
    kept_ends: dict[str, pydantic.NonNegativeInt] | None
    lengths: dict[str, pydantic.PositiveInt] | None
    first_examples: dict[str, str]


class Shard(Form):
    """One file of records, and the file of their token counts.

    Attributes:
      examples: their number.
      bytes, sha256: of the file of records.
      records_sha256: digest of the records themselves, which no compression changes.
      counts_sha256: of the file of token counts.
    """

    examples: pydantic.PositiveInt
    bytes: pydantic.PositiveInt
    sha256: str
    records_sha256: str
    counts_sha256: str


class Split(Form):
    """A finished split.

    Attributes:
      shards: its files.
      source: digest of the names, sizes and times of the files that it was made of; "" where they are not known.
    """

    shards: list[Shard]
    source: str

    @property
    def digest(self) -> str:
        """The digest of its records."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()


def shard_path(folder: epath.Path, split: str, number: int) -> epath.Path:
    """The path of a shard."""
    return folder / f"{split}-{number:05d}.array_record"


def counts_path(path: epath.Path) -> epath.Path:
    """The path of a shard's token counts: `COUNTS` [examples, 2], of `SIDES`."""
    return path.with_suffix(".counts")


def write(path: epath.Path, value: Form) -> None:
    """Writes a sealed file."""
    write_text(path, sealed_json.seal(value.model_dump()))


def read(path: epath.Path, form: type[FormT], remedy: str = AGAIN) -> FormT:
    """Reads a sealed file.

    Raises:
      UserError: if it is missing, damaged, or of a newer version.
    """
    text = read_text(path, remedy)
    value: dict[str, Any] = parse_object(text, str(path), remedy)
    if isinstance(version := value.get("format_version"), int) and version > FORMAT_VERSION:
        raise UserError(f"{path} was written by a newer version; update adalink-jax.")
    if not sealed_json.is_intact(text, str(value.pop(sealed_json.KEY, ""))):
        raise UserError(f"{path} is damaged: its digest is not that of its text; {remedy}.")
    return as_form(value, form, str(path), remedy)


def differences(there: Identity, here: Identity) -> str:
    """What differs between two tasks, in words; "" if nothing does."""
    left, right = there.model_dump(), here.model_dump()
    both = {
        split: digest
        for split, digest in here.first_examples.items()
        if there.first_examples.get(split, digest) != digest
    }
    names = [name for name in left if name != "first_examples" and left[name] != right[name]]
    shown = [f"its {name} is {json.dumps(left[name])} there, {json.dumps(right[name])} here" for name in names]
    return "; ".join([*shown, *(f"the first examples of {split} are others" for split in both)])
