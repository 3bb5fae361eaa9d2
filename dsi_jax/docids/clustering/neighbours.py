"""The nearest documents by embedding, exactly."""

from collections.abc import Sequence

import numpy as np

_QUERIES = 1 << 11  # points whose distances are held at a time,
_ROWS = 1 << 13  # and to how many others


def nearest_rows(points_NxD: np.ndarray, rows: Sequence[int] | np.ndarray, k: int) -> np.ndarray:
    """The k points that are nearest to each of some points, themselves left out.

    Args:
      points_NxD: float [N, D]; may be a mapped file, of which no copy is made.
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
    found = np.empty((len(rows), k), np.int32)
    for start in range(0, len(rows) if k else 0, _QUERIES):
        found[start : start + _QUERIES] = _nearest(points_NxD, rows[start : start + _QUERIES], k)
    return found


def _nearest(points_NxD: np.ndarray, rows_S: np.ndarray, k: int) -> np.ndarray:
    """The same for few rows: of the points before, the k nearest are held."""
    queries_SxD = np.asarray(points_NxD[rows_S], np.float32)
    best_SxK = np.full((len(rows_S), k), np.inf, np.float32)
    found_SxK = np.zeros((len(rows_S), k), np.int32)
    for start in range(0, len(points_NxD), _ROWS):
        block_BxD = np.asarray(points_NxD[start : start + _ROWS], np.float32)
        distances_SxB = queries_SxD @ block_BxD.T
        distances_SxB *= -2
        distances_SxB += np.einsum("bd,bd->b", block_BxD, block_BxD)
        (mine,) = np.nonzero((start <= rows_S) & (rows_S < start + len(block_BxD)))
        distances_SxB[mine, rows_S[mine] - start] = np.inf
        both = np.concatenate([best_SxK, distances_SxB], axis=1)
        nearest_SxK = np.argpartition(both, k - 1, axis=1)[:, :k]
        best_SxK = np.take_along_axis(both, nearest_SxK, axis=1)
        held_SxK = np.take_along_axis(found_SxK, np.minimum(nearest_SxK, k - 1), axis=1)
        found_SxK = np.where(nearest_SxK < k, held_SxK, nearest_SxK - k + start)
    return found_SxK
