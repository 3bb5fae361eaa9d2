"""The nearest documents by embedding, exactly."""

from collections.abc import Sequence

import numpy as np

_BLOCK = 1 << 24  # distances held at a time


def nearest_rows(points_NxD: np.ndarray, rows: Sequence[int] | np.ndarray, k: int) -> np.ndarray:
    """The k points that are nearest to each of some points, themselves left out.

    Args:
      points_NxD: float [N, D].
      rows: the S points whose neighbours are sought.
      k: neighbours of each; at most N - 1.

    Returns:
      int32 [S, k], in no particular order; by squared Euclidean distance, of equally far ones any.

    Raises:
      ValueError: there are not k other points.
    """
    count = len(points_NxD)
    if not 0 <= k < count:
        raise ValueError(f"k is {k}: each of {count} points has {count - 1} others")
    rows = np.asarray(rows)
    points_NxD = np.asarray(points_NxD, np.float32)
    norms_N = (points_NxD**2).sum(axis=1)
    found = np.empty((len(rows), k), np.int32)
    step = max(1, _BLOCK // count)
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        distances_BxN = norms_N - 2 * (points_NxD[block] @ points_NxD.T)
        distances_BxN[np.arange(len(block)), block] = np.inf
        if k:
            nearest = np.argpartition(distances_BxN, k - 1, axis=1)
            found[start : start + step] = nearest[:, :k]
    return found
