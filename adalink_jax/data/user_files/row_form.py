"""Writes the rows of tables as examples, and collects them with what is wrong with them."""

import hashlib
from array import array

import numpy as np

from adalink_jax.data.metrics.number_scores import as_number
from adalink_jax.data.splits import position_of
from adalink_jax.data.user_files import table_files
from adalink_jax.data.user_files.file_settings import OF_NUMBERS, FileSettings
from adalink_jax.data.user_files.image_files import Pictures, RowPicture
from adalink_jax.data.user_files.row_store import StoredRow, Writer
from adalink_jax.data.user_files.target_texts import Targets
from adalink_jax.data.user_files.text_templates import Template

LONG_ROW = 50  # lines; a row of so many may have swallowed others


class RowSource:
    """The rows of a published split, while they are read."""

    def __init__(self):
        self.writer = Writer()
        self.bad: list[str] = []
        self.empty: list[str] = []
        self.long: list[str] = []
        self.doubled: list[str] = []
        self.bad_lines = 0
        self.several = False
        self._digests = {"identities": array("Q"), "groups": array("Q")}

    def add(self, row: StoredRow, identity: int, group: int) -> None:
        """Adds a row, with the digests of what identifies it and of what decides its split."""
        self._digests["identities"].append(identity)
        self._digests["groups"].append(group)
        self.several |= len(row["references"]) > 1
        self.writer.append(row)

    def why_none(self) -> str:
        """Why none of the rows became an example, by the first one."""
        if self.bad:
            return f": {self.bad[0]}"
        return f": {self.empty[0]} has no input or no target" if self.empty else ""

    def finish(self) -> None:
        """Ends reading."""
        self.rows = self.writer.finish()
        self.keys = {kind: np.array(digests, np.uint64) for kind, digests in self._digests.items()}
        self.positions = np.array([position_of(group) for group in self._digests["groups"]])


class RowForm:
    """Writes the rows of a table as examples."""

    def __init__(self, settings: FileSettings, table: table_files.Table, folders: list[Pictures]):
        self._path, self._are_numbers = table.path, not set(OF_NUMBERS).isdisjoint(settings.metrics)
        self._inputs = Template("INPUTS", settings.inputs, table)
        self._targets = Targets(settings, table)
        image = None if settings.image is None else Template("IMAGE", settings.image, table)
        self._group = None if settings.group is None else Template("GROUP", settings.group, table)
        self._picture = None
        if image is not None:
            root = table_files.picture_root(settings.images, table.path)
            if root not in [folder.root for folder in folders]:
                folders.append(Pictures(root))
            self._root = [folder.root for folder in folders].index(root)
            self._pictures = folders[self._root]
            self._picture = RowPicture(image, self._pictures)

    def add(self, row: table_files.Row, source: RowSource) -> str | None:
        """Adds a row to `source`, among its rows or its empty ones; else returns why it cannot be used, in words."""
        cells = row.cells
        try:
            inputs, references = self._inputs.text(cells), self._targets(cells)
            if self._are_numbers and (text := next((x for x in references if as_number(x) is None), None)) is not None:
                return f"its target {text!r} is not a number, which METRICS are for"
            image = {} if self._picture is None else self._picture(cells)
            group = None if self._group is None else self._group.text(cells)
            if isinstance(image, str):
                return image
            if not references or not (inputs or image) or (self._picture is not None and not image):
                source.empty.append(f"line {row.line} of {self._path}")
                return None
            key = self._pictures.key(image["image_name"]) if "image_name" in image else image.get("image", "")
        except (TypeError, OSError) as e:
            return str(e)
        identity = _digest(inputs, key)
        example: StoredRow = {
            "inputs": inputs, "references": references, "image_name": image.get("image_name"), "image": image.get("image"),
            "root": self._root if "image_name" in image else None, "line": row.line,
        }  # fmt: skip
        source.add(
            example, identity, identity if group is None and not key else _digest(key if group is None else group)
        )
        if row.lines >= LONG_ROW:
            source.long.append(f"line {row.line} of {self._path}, {row.lines} lines")
        return None


def _digest(*parts: str | bytes) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part if isinstance(part, bytes) else part.encode())
        digest.update(b"\x1f")
    return int.from_bytes(digest.digest(), "big")
