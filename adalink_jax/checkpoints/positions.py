"""Learned position tables for another number of patches: resampled as the checkpoint's origin does it.

    bilinear   big_vision: `scipy.ndimage.zoom(order=1)`, corners aligned
    bicubic    Hugging Face: `torch.nn.functional.interpolate(mode="bicubic", align_corners=False)`, no antialiasing

Both are separable: one matrix for the rows and one for the columns.
"""

import math

import numpy as np

from adalink_jax.errors import CheckpointError
from adalink_jax.files.leaves import Leaf, computed

BILINEAR, BICUBIC = "bilinear", "bicubic"
RULES = (BILINEAR, BICUBIC)
_A = -0.75  # of Keys' cubic convolution (1981), as torch has it


def resample(table: np.ndarray, old: tuple[int, int], new: tuple[int, int], rule: str) -> np.ndarray:
    """Positions [old rows x old columns, D], row-major -> float32 [new rows x new columns, D].

    Args:
      table: one vector a patch.
      old, new: rows and columns of patches.
      rule: one of `RULES`.
    """
    matrix = {BILINEAR: _bilinear, BICUBIC: _bicubic}[rule]
    grid = np.asarray(table, np.float64).reshape(*old, -1)
    out = np.einsum("ri,cj,ijd->rcd", matrix(old[0], new[0]), matrix(old[1], new[1]), grid)
    return out.reshape(new[0] * new[1], -1).astype(np.float32)


def _bilinear(old: int, new: int) -> np.ndarray:
    """Weights [new, old]: the first and the last of both fall together."""
    at = np.linspace(0, old - 1, new) if new > 1 else np.zeros(1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(old)))


def _bicubic(old: int, new: int) -> np.ndarray:
    """Weights [new, old]: pixels are areas; beyond the border the outermost is repeated."""
    at = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(at).astype(int) - 1
    weights = np.zeros((new, old))
    for tap in range(4):
        distance = np.abs(at - (first + tap))
        near = ((_A + 2) * distance - (_A + 3)) * distance**2 + 1
        far = ((_A * distance - 5 * _A) * distance + 8 * _A) * distance - 4 * _A
        np.add.at(weights, (np.arange(new), np.clip(first + tap, 0, old - 1)), np.where(distance <= 1, near, far))
    return weights


def for_grid(leaf: Leaf, grid: tuple[int, int], class_token: bool, rule: str, path: str) -> Leaf:
    """The table in `leaf` for a model of `grid` patches; the class token's position, row 0, stays.

    Raises:
      CheckpointError: if the patches of the table are no square.
    """
    patches = leaf.shape[0] - class_token
    side = math.isqrt(patches)
    if side * side != patches:
        raise CheckpointError(
            f"{path} has positions for {patches} patches, which are no square; they cannot be resampled to "
            f"{grid[0]} x {grid[1]}."
        )

    def make(table):
        kept, rest = table[: int(class_token)], table[int(class_token) :]
        return np.concatenate([kept.astype(np.float32), resample(rest, (side, side), grid, rule)])

    return computed((leaf,), (grid[0] * grid[1] + class_token, leaf.shape[1]), make, np.dtype(np.float32))
