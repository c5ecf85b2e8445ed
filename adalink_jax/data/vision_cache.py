"""Outputs of a frozen vision tower, computed once per image and stored.

    CACHE/cache.json                the tower, the dtype and shape of its outputs; the splits of tasks that are complete
    CACHE/part-00000.safetensors    keys uint8 [rows, 16], sums uint8 [rows, 8], features [rows, N, width]
    CACHE/part-00000.json           the number of rows; written after the values, so that only complete parts have it

Invariant: a row is returned only for the image (and the instruction, if the tower reads it) that it was computed from, for
the same tower, and if its checksum is right. A pass that was stopped resumes: complete parts are kept.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from adalink_jax.errors import UserError
from adalink_jax.files import locks, safetensors_file
from adalink_jax.files.leaves import Leaf, from_array
from adalink_jax.files.places import path_of
from adalink_jax.files.whole_file import write_json

ABOUT, FORMAT_VERSION = "cache.json", 1
KEY_BYTES, SUM_BYTES = 16, 8


def image_key(image: bytes | np.ndarray, instruction: Sequence[int] = ()) -> bytes:
    """The digest that identifies an image: of its file's bytes or its array, and of the instruction's ids."""
    content = image if isinstance(image, bytes) else np.ascontiguousarray(image, np.float32).tobytes()
    digest = hashlib.blake2b(content, digest_size=KEY_BYTES)
    digest.update(np.asarray(list(instruction), np.int32).tobytes())
    return digest.digest()


@dataclasses.dataclass(frozen=True)
class Tower:
    """The vision tower that computed the features; the cache of another tower is stale.

    Attributes:
      fingerprint: fingerprint of the weights that the features depend on.
      settings: other settings that they depend on (size of the image, settings of the tower that shapes do not show), as text.
      shape: (N, width) of one image's features.
      dtype: dtype of the stored features.
    """

    fingerprint: str
    settings: str
    shape: tuple[int, int]
    dtype: str

    def to_json(self) -> dict[str, Any]:
        """The form that `cache.json` holds."""
        return dataclasses.asdict(self) | {"shape": list(self.shape)}


class VisionCache:
    """The features in a folder, by image key."""

    def __init__(self, folder: str, tower: Tower):
        """Opens a cache, or starts one in a folder that is empty or missing.

        Raises:
          UserError: if the folder holds another tower's features or other files, or if a part is damaged.
        """
        self.folder, self.tower = path_of(folder), tower
        self._about = self._read_about()
        self._rows: dict[bytes, tuple[Leaf, Leaf, int]] = {}
        self._parts = 0
        for path in sorted(self.folder.glob("part-*.json")) if self.folder.exists() else ():
            if path.read_text().strip():  # empty: killed while writing it, so the part is made again
                self._take(path)
        if len(self) < (images := self._about["images"]):
            raise UserError(
                f"{self.folder} lacks {images - len(self)} of its {images} images; delete the cache and make it again."
            )

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def covers(self, task: str, split: str) -> bool:
        """Whether all images of a split of a task are stored."""
        return [task, split] in self._about["whole"]

    def read(self, key: bytes, name: str) -> np.ndarray:
        """Returns the features of one image: [N, width].

        Args:
          key: see `image_key`.
          name: the example, for error messages.

        Raises:
          UserError: if the image is not in the cache, or its row is damaged.
        """
        if key not in self._rows:
            raise UserError(
                f"The image of {name} is not in the cache {self.folder}. Make the cache again if the data changed; images "
                f"that are changed at random while training cannot be cached, as each is another image every time."
            )
        features, sums, row = self._rows[key]
        at = lambda leaf: leaf.read((slice(row, row + 1), *(slice(0, n) for n in leaf.shape[1:])))[0]
        values = at(features)
        if _sum(values) != at(sums).tobytes():
            raise UserError(
                f"Row {row} of {features.origin} in {self.folder} is damaged; delete the cache and make it again."
            )
        return values

    def add(self, keys: Sequence[bytes], features: np.ndarray) -> None:
        """Writes a part.

        Args:
          keys: one per row; none of them is in the cache yet.
          features: [rows, N, width] in the tower's dtype.
        """
        path = self.folder / f"part-{self._parts:05d}.json"
        values = np.ascontiguousarray(features).astype(self.tower.dtype, copy=False)
        leaves = {
            "keys": from_array(_byte_rows(keys, KEY_BYTES), "keys"),
            "sums": from_array(_byte_rows(map(_sum, values), SUM_BYTES), "sums"),
            "features": from_array(values, "features"),
        }
        file = path.with_suffix(".safetensors")
        safetensors_file.write_leaves(file, leaves, {name: leaf.dtype for name, leaf in leaves.items()})
        write_json(path, {"rows": len(keys)})
        self._take(path)

    def finish(self, task: str, split: str) -> None:
        """Records that all images of a split of a task are stored."""
        self._about["whole"].append([task, split])
        self._about["images"] = len(self)
        self._write_about()

    def begin(self) -> None:
        """Creates the folder and records the tower."""
        if not (self.folder / ABOUT).exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write_about()

    def _write_about(self) -> None:
        write_json(self.folder / ABOUT, self._about)

    def _read_about(self) -> dict[str, Any]:
        here = self.tower.to_json()
        new = {"format_version": FORMAT_VERSION, "tower": here, "whole": [], "images": 0}
        path = self.folder / ABOUT
        if not path.exists():
            if self.folder.exists() and any(map(_is_strange, self.folder.iterdir())):
                raise UserError(
                    f"VISION_CACHE = {str(self.folder)!r} holds files that are not a cache; give another folder."
                )
            return new
        try:
            about = json.loads(path.read_text())
            version, tower, _, _ = (about[name] for name in new)
            differences = _differences(tower, here) if version <= FORMAT_VERSION else []
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise UserError(f"{path} is damaged; delete the cache and make it again.") from e
        if version > FORMAT_VERSION:
            raise UserError(f"{self.folder} was written by a newer version; update adalink-jax.")
        if differences:
            raise UserError(
                f"VISION_CACHE = {str(self.folder)!r} holds features of another tower ({'; '.join(differences)}); give "
                f"another folder, or delete it."
            )
        return about

    def _take(self, path: epath.Path) -> None:
        """Adds the rows of a complete part."""
        file = path.with_suffix(".safetensors")
        try:
            leaves = safetensors_file.read_leaves(file)
            rows = json.loads(path.read_text())["rows"]
            keys = leaves["keys"].whole()
            expected = (rows, *self.tower.shape)
            if leaves["features"].shape != expected or keys.shape != (rows, KEY_BYTES):
                raise ValueError(f"its features are {leaves['features'].shape}")
        except (ValueError, KeyError, TypeError, FileNotFoundError) as e:  # a CheckpointError is a ValueError
            raise UserError(f"{file} is damaged ({e}); delete the cache and make it again.") from e
        features = dataclasses.replace(leaves["features"], origin=file.name)
        for row, key in enumerate(keys):
            self._rows[key.tobytes()] = (features, leaves["sums"], row)
        self._parts = max(self._parts, int(path.name.removeprefix("part-").removesuffix(".json")) + 1)


def _is_strange(path: epath.Path) -> bool:
    """Whether a file in a folder without `cache.json` was not left by a process that was killed before it wrote that."""
    return path.name != locks.LOCK and not path.name.startswith(f".{ABOUT}.")


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What differs between two towers, in words; each setting has its name."""
    left, right = _by_name(there), _by_name(here)
    names = sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))
    return [f"{name}: {left.get(name)} there, {right.get(name)} here" for name in names]


def _by_name(tower: Mapping[str, Any]) -> dict[str, Any]:
    facts = {name: x for name, x in tower.items() if name != "settings"}
    for part, fields in json.loads(tower["settings"]).items():
        fields = fields if isinstance(fields, dict) else {"": fields}
        facts |= {f"settings {part}.{name}".rstrip("."): x for name, x in fields.items()}
    return facts


def _byte_rows(rows: Iterable[bytes], size: int) -> np.ndarray:
    return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, size)


def _sum(values: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(values).tobytes(), digest_size=SUM_BYTES).digest()
