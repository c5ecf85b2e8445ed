"""What a frozen vision tower makes of each image, computed once and stored.

    CACHE/cache.json                which tower, in which dtype and shape; which splits of which tasks are whole
    CACHE/part-00000.safetensors    keys uint8 [rows, 16], sums uint8 [rows, 8], features [rows, N, width]
    CACHE/part-00000.json           the part's rows; written after its values, and what makes it count

Invariant: a row is given only for the image (and the instruction, where the tower reads it) that it was made of, by the very
tower that made it, and if its sum is right. A pass that was stopped goes on: whole parts are kept.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence

import numpy as np
from etils import epath

from adalink_jax.errors import UserError
from adalink_jax.files import safetensors_file
from adalink_jax.files.leaves import Leaf, from_array

ABOUT, FORMAT_VERSION = "cache.json", 1
KEY_BYTES, SUM_BYTES = 16, 8


def image_key(image, instruction: Sequence[int] = ()) -> bytes:
    """What an image is known by: a digest of its file's bytes, or of its array, and of the instruction's ids."""
    content = image if isinstance(image, bytes) else np.ascontiguousarray(image, np.float32).tobytes()
    digest = hashlib.blake2b(content, digest_size=KEY_BYTES)
    digest.update(np.asarray(list(instruction), np.int32).tobytes())
    return digest.digest()


@dataclasses.dataclass(frozen=True)
class Tower:
    """What made the features; a cache of another is stale.

    Attributes:
      fingerprint: of the weights that the features depend on.
      settings: what else decides them (sizes of the image, the tower's settings that shapes do not show), as text.
      shape: (N, width) of one image's features.
      dtype: that they are stored in.
    """

    fingerprint: str
    settings: str
    shape: tuple[int, int]
    dtype: str

    def to_json(self) -> dict:
        """As `cache.json` holds it."""
        return dataclasses.asdict(self) | {"shape": list(self.shape)}


class VisionCache:
    """The features in a folder, by key."""

    def __init__(self, folder: str, tower: Tower):
        """Opens a cache, or begins one in a folder that is empty or absent.

        Raises:
          UserError: if the folder holds another tower's features, or something else, or a part is damaged.
        """
        self.folder, self.tower = epath.Path(folder).expanduser(), tower
        self._about = self._read_about()
        self._rows: dict[bytes, tuple[Leaf, Leaf, int]] = {}
        self._parts = 0
        for path in sorted(self.folder.glob("part-*.json")) if self.folder.exists() else ():
            if path.read_text().strip():  # else it was killed just then, and the part is made again
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
        """Whether all images of a split of a task were stored."""
        return [task, split] in self._about["whole"]

    def read(self, key: bytes, name: str) -> np.ndarray:
        """The features of one image: [N, width].

        Args:
          key: `image_key`.
          name: of the example, for the error.

        Raises:
          UserError: for an image that is not here, and a damaged row.
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
          keys: one for each row, none of them here yet.
          features: [rows, N, width] in the tower's dtype.
        """
        path = self.folder / f"part-{self._parts:05d}.json"
        values = np.ascontiguousarray(features).astype(self.tower.dtype, copy=False)
        as_bytes = lambda rows, size: np.frombuffer(b"".join(rows), np.uint8).reshape(-1, size)
        leaves = {
            "keys": from_array(as_bytes(keys, KEY_BYTES), "keys"),
            "sums": from_array(as_bytes(map(_sum, values), SUM_BYTES), "sums"),
            "features": from_array(values, "features"),
        }
        file = _values_of(path)
        safetensors_file.write_leaves(file, leaves, {name: leaf.dtype for name, leaf in leaves.items()})
        path.write_text(json.dumps({"rows": len(keys)}) + "\n")
        self._take(path)

    def finish(self, task: str, split: str) -> None:
        """Notes that all images of a split of a task are stored."""
        self._about["whole"].append([task, split])
        self._about["images"] = len(self)
        self._write_about()

    def begin(self) -> None:
        """Makes the folder, and says whose features it is for."""
        if not (self.folder / ABOUT).exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write_about()

    def _write_about(self) -> None:
        (self.folder / ABOUT).write_text(json.dumps(self._about, indent=2) + "\n")

    def _read_about(self) -> dict:
        mine = {"format_version": FORMAT_VERSION, "tower": self.tower.to_json(), "whole": [], "images": 0}
        path = self.folder / ABOUT
        if not path.exists():
            if self.folder.exists() and any(self.folder.iterdir()):
                raise UserError(
                    f"VISION_CACHE = {str(self.folder)!r} holds something that is no cache; give another folder."
                )
            return mine
        try:
            found = json.loads(path.read_text())
            version, tower, _, _ = (found[name] for name in mine)
        except (json.JSONDecodeError, KeyError, TypeError) as e:
            raise UserError(f"{path} is damaged; delete the cache and make it again.") from e
        if version > FORMAT_VERSION:
            raise UserError(f"{self.folder} was written by a newer version; update adalink-jax.")
        other = [name for name, value in mine["tower"].items() if tower.get(name) != value]
        if other:
            told = "; ".join(f"{name}: {tower.get(name)} there, {mine['tower'][name]} here" for name in other)
            raise UserError(
                f"VISION_CACHE = {str(self.folder)!r} holds features of another tower ({told}); give another folder, or "
                f"delete it."
            )
        return found

    def _take(self, path: epath.Path) -> None:
        """Adds the rows of a part that is whole."""
        try:
            leaves = safetensors_file.read_leaves(_values_of(path))
            rows = json.loads(path.read_text())["rows"]
            keys = leaves["keys"].whole()
            expected = (rows, *self.tower.shape)
            if leaves["features"].shape != expected or keys.shape != (rows, KEY_BYTES):
                raise ValueError(f"its features are {leaves['features'].shape}")
        except (ValueError, KeyError, TypeError, FileNotFoundError) as e:  # a CheckpointError is a ValueError
            raise UserError(f"{_values_of(path)} is damaged ({e}); delete the cache and make it again.") from e
        features = dataclasses.replace(leaves["features"], origin=_values_of(path).name)
        for row, key in enumerate(keys):
            self._rows[key.tobytes()] = (features, leaves["sums"], row)
        self._parts = max(self._parts, int(path.name.removeprefix("part-").removesuffix(".json")) + 1)


def _values_of(path: epath.Path) -> epath.Path:
    return path.parent / path.name.replace(".json", ".safetensors")


def _sum(values: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(values).tobytes(), digest_size=SUM_BYTES).digest()
