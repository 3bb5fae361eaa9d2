"""Position embeddings of a grid of patches, interpolated to another grid."""

import jax
import numpy as np


def resize_positions(table: np.ndarray, size: int) -> np.ndarray:
    """Interpolates a vision transformer's position embeddings, bicubic and antialiased.

    So do Pillow and OpenCLIP. (transformers' `interpolate_pos_encoding=True` has a sharper kernel
    and no low-pass filter when it shrinks.)

    Args:
      table: float32 [1 + old * old, D]; the first row, the class token's, is kept as it is.
      size: patches along a side of the new grid.

    Returns:
      float32 [1 + size * size, D].

    Raises:
      ValueError: the old grid is no square.
    """
    old = int(np.sqrt(len(table) - 1))
    if old * old != len(table) - 1:
        raise ValueError(
            f"the position embedding has {len(table)} rows; expected one more than a square"
        )
    grid_YxXxD = np.asarray(table[1:], np.float32).reshape(old, old, -1)
    shape = (size, size, grid_YxXxD.shape[-1])
    resized = np.asarray(jax.image.resize(grid_YxXxD, shape, "cubic", antialias=True))
    return np.concatenate([table[:1], resized.reshape(size * size, -1)]).astype(np.float32)
