"""Learned tables of positions for another number of patches, resampled by the rule of the checkpoint's origin.

    bilinear   big_vision: `scipy.ndimage.zoom(order=1)`, corners aligned
    bicubic    Hugging Face: `torch.nn.functional.interpolate(mode="bicubic", align_corners=False)`, no antialiasing

Both are separable: one matrix for the rows and one for the columns.
"""

import math

import numpy as np
from jaxtyping import Float

from adalink_jax.errors import CheckpointError
from adalink_jax.files.leaves import Leaf, computed

BILINEAR, BICUBIC = "bilinear", "bicubic"
RULES = (BILINEAR, BICUBIC)
_A = -0.75  # the parameter of Keys' cubic convolution (1981), as in torch


def resample(
    table: Float[np.ndarray, "patches D"], old: tuple[int, int], new: tuple[int, int], rule: str
) -> Float[np.ndarray, "resampled D"]:
    """Resamples positions for another grid of patches.

    Args:
      table: one vector per patch, row by row.
      old, new: rows and columns of patches.
      rule: one of `RULES`.

    Returns:
      The new grid's positions, float32.
    """
    matrix = {BILINEAR: _bilinear, BICUBIC: _bicubic}[rule]
    grid = np.asarray(table, np.float64).reshape(*old, -1)
    out = np.einsum("ri,cj,ijd->rcd", matrix(old[0], new[0]), matrix(old[1], new[1]), grid)
    return out.reshape(new[0] * new[1], -1).astype(np.float32)


def _bilinear(old: int, new: int) -> np.ndarray:
    """Weights [new, old]; the first and the last positions of both grids coincide."""
    at = np.linspace(0, old - 1, new) if new > 1 else np.zeros(1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(old)))


def _bicubic(old: int, new: int) -> np.ndarray:
    """Weights [new, old]; patches are areas, and the outermost is repeated beyond the border."""
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
    """Resamples a table of positions; the class token's position, row 0, is unchanged.

    Args:
      leaf: the table, [patches (+ 1), D].
      grid: rows and columns of the model's patches.
      class_token: whether row 0 is a class token's.
      rule: one of `RULES`.
      path: the checkpoint, for errors.

    Raises:
      CheckpointError: if the patches of the table do not form a square.
    """
    patches = leaf.shape[0] - class_token
    side = math.isqrt(patches)
    if side * side != patches:
        raise CheckpointError(
            f"{path} has positions for {patches} patches, which do not form a square, so they cannot be resampled to "
            f"{grid[0]} x {grid[1]}; set ViTConfig.image_size to the checkpoint's."
        )

    def resampled(table: np.ndarray) -> np.ndarray:
        token, patch_table = table[: int(class_token)], table[int(class_token) :]
        return np.concatenate([token.astype(np.float32), resample(patch_table, (side, side), grid, rule)])

    return computed((leaf,), (grid[0] * grid[1] + class_token, leaf.shape[1]), resampled, np.dtype(np.float32))
