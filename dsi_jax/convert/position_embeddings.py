"""Position embeddings of a grid of patches, interpolated to another grid."""

import jax
import numpy as np

INTERPOLATIONS = ("antialiased", "plain")


def resize_positions(
    table: np.ndarray, size: int, interpolation: str = "antialiased"
) -> np.ndarray:
    """Bicubic interpolation of a vision transformer's position embeddings.

    Args:
      table: float32 [1 + old * old, D]; the first row, the class token's, is kept as it is.
      size: patches along a side of the new grid.
      interpolation: "antialiased", as Pillow and OpenCLIP do, or "plain", as transformers does with
        `interpolate_pos_encoding=True`: a sharper kernel (a = -0.75 in Keys, 1981, not -0.5), edges
        repeated, and no low-pass filter when shrinking.

    Returns:
      float32 [1 + size * size, D].

    Raises:
      ValueError: the interpolation is unknown, or the old grid is no square.
    """
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation is {interpolation!r}; expected one of {INTERPOLATIONS}")
    old = int(np.sqrt(len(table) - 1))
    if old * old != len(table) - 1:
        raise ValueError(
            f"the position embedding has {len(table)} rows; expected one more than a square"
        )
    grid_YxXxD = np.asarray(table[1:], np.float32).reshape(old, old, -1)
    if interpolation == "antialiased":
        shape = (size, size, grid_YxXxD.shape[-1])
        resized = np.asarray(jax.image.resize(grid_YxXxD, shape, "cubic", antialias=True))
    else:
        weights = _plain_cubic_weights(old, size)
        resized = np.einsum("yY,xX,YXD->yxD", weights, weights, grid_YxXxD, optimize=True)
    return np.concatenate([table[:1], resized.reshape(size * size, -1)]).astype(np.float32)


def _plain_cubic_weights(old: int, new: int, a: float = -0.75) -> np.ndarray:
    """float32 [new, old]: what each old place gives to each new one (Keys, 1981, section IV)."""
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    places = np.floor(centres).astype(int)[:, None] + np.arange(-1, 3)
    x = np.abs(centres[:, None] - places)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    weights = np.zeros((new, old))
    rows = np.arange(new)[:, None]
    np.add.at(weights, (rows, np.clip(places, 0, old - 1)), np.where(x <= 1, near, far))
    return weights.astype(np.float32)
