"""K-means in NumPy, for CPUs.

One matrix product a block of points finds the nearest centroids, which NumPy's BLAS makes several
times faster than faiss (`benchmarks/docid_kmeans.py`); only points that change their cluster are
added up again.
"""

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

_BLOCK = 1 << 12  # points whose distances are held at a time: they stay in the cache
_SEEDING_POINTS = 64  # k-means++ chooses among so many points a centroid
_FIRST_POINTS = 1000  # a centroid: of the smallest sample that centroids settle on
_GROWTH = 4  # of the samples
_SETTLED = 0.005  # the share of the points that may still change cluster in the last iteration


class Clusters(NamedTuple):
    """Centroids and who belongs to them.

    Attributes:
      centroids: float32 [K, D].
      labels: int32 [N], the nearest centroid of each point; of equally near ones, any.
    """

    centroids: np.ndarray
    labels: np.ndarray


def kmeans(
    points_NxD: np.ndarray,
    num_clusters: int,
    seed: int,
    iterations: int,
    start: np.ndarray | None,
) -> Clusters:
    """Lloyd's algorithm from greedy k-means++.

    Centroids settle on a small sample first, then on samples four times as large, and last on all
    points: most of the way is made where an iteration costs little.

    Args:
      points_NxD: float32 [N, D].
      num_clusters: K, at most N.
      seed: of all that is random.
      iterations: at most, on each sample and on all points. Fewer are made where less than
        1 point in 200 changes its cluster.
      start: float32 [K, D], the first centroids; they go to all points at once.
    """
    with one_thread():
        if start is None:
            start = _settle(points_NxD, num_clusters, np.random.default_rng(seed), iterations)
        return _lloyd(points_NxD, start, iterations)


def nearest(points_NxD: np.ndarray, centroids_KxD: np.ndarray) -> np.ndarray:
    """The nearest centroid of each point; int32 [N]."""
    with one_thread():
        return np.concatenate(
            [_Nearest(centroids_KxD)(block_BxD) for _, block_BxD in _blocks(points_NxD)]
        )


def one_thread() -> AbstractContextManager:
    """BLAS computes in one thread and so sums in one order: equal arguments, equal results."""
    return _controller().limit(limits=1, user_api="blas")


@functools.cache
def _controller() -> "ThreadpoolController":
    from threadpoolctl import ThreadpoolController  # of the extra `train`

    return ThreadpoolController()  # looks at all libraries of the process: a millisecond


def _settle(
    points_NxD: np.ndarray, num_clusters: int, rng: np.random.Generator, iterations: int
) -> np.ndarray:
    """First centroids [K, D] for all points: k-means of growing samples of them."""
    shuffled_N = rng.permutation(len(points_NxD))
    sample_PxD = points_NxD[shuffled_N[: _SEEDING_POINTS * num_clusters]]
    centroids_KxD = sample_PxD[_plus_plus(sample_PxD, num_clusters, rng)]
    size = _FIRST_POINTS * num_clusters
    while size < len(points_NxD):
        sample_PxD = points_NxD[np.sort(shuffled_N[:size])]
        centroids_KxD = _lloyd(sample_PxD, centroids_KxD, iterations).centroids
        size *= _GROWTH
    return centroids_KxD


def _plus_plus(sample_PxD: np.ndarray, num_clusters: int, rng: np.random.Generator) -> list[int]:
    """Rows of K points, by greedy k-means++ (Arthur and Vassilvitskii 2007).

    Each is the one of a few candidates, drawn by their squared distances to the points before, that
    leaves the smallest sum of them.
    """
    sample_PxD = sample_PxD - sample_PxD.mean(axis=0)  # smaller numbers, smaller rounding errors
    norms_P = np.einsum("pd,pd->p", sample_PxD, sample_PxD)
    trials = 2 + int(np.log(num_clusters))
    chosen: list[int] = []
    left_P = np.ones(len(sample_PxD), np.float32)  # the first is drawn uniformly
    for index in range(num_clusters):
        cumulated_P = np.cumsum(left_P, dtype=np.float64)
        drawn_T = rng.random(trials if index else 1) * cumulated_P[-1]
        drawn_T = np.minimum(np.searchsorted(cumulated_P, drawn_T, "right"), len(left_P) - 1)
        products_TxP = sample_PxD[drawn_T] @ sample_PxD.T
        distances_TxP = norms_P + norms_P[drawn_T, None] - 2 * products_TxP
        left_TxP = np.maximum(distances_TxP, 0)
        if index:
            left_TxP = np.minimum(left_TxP, left_P)
        best = int(left_TxP.sum(axis=1).argmin())
        left_P = left_TxP[best]
        chosen.append(int(drawn_T[best]))
        left_P[chosen[-1]] = 0  # not what rounding left of it
    return chosen


def _lloyd(points_NxD: np.ndarray, centroids_KxD: np.ndarray, iterations: int) -> Clusters:
    """Lloyd's algorithm; sums are corrected by the points that change their cluster."""
    num_clusters, dimension = centroids_KxD.shape
    labels_N = np.full(len(points_NxD), -1, np.int32)
    sums_KxD = np.zeros((num_clusters, dimension))
    counts_K = np.zeros(num_clusters)
    for _ in range(iterations):
        moved = _assign(points_NxD, centroids_KxD, labels_N, sums_KxD, counts_K)
        if moved <= _SETTLED * len(points_NxD):
            return Clusters(centroids_KxD, labels_N)
        empty_K = counts_K < 0.5
        means_KxD = sums_KxD / np.maximum(counts_K, 1)[:, None]
        centroids_KxD = np.where(empty_K[:, None], centroids_KxD, means_KxD).astype(np.float32)
        if empty_K.any():
            # They take the points that are farthest from their centroids.
            far_N = squared_distances(points_NxD, Clusters(centroids_KxD, labels_N))
            farthest = np.argsort(-far_N, kind="stable")[: empty_K.sum()]
            centroids_KxD[empty_K] = points_NxD[farthest]
    _assign(points_NxD, centroids_KxD, labels_N, sums_KxD, counts_K)
    return Clusters(centroids_KxD, labels_N)


def _assign(
    points_NxD: np.ndarray,
    centroids_KxD: np.ndarray,
    labels_N: np.ndarray,
    sums_KxD: np.ndarray,
    counts_K: np.ndarray,
) -> int:
    """Gives each point to its nearest centroid, and changes labels, sums and counts in place.

    Returns:
      How many points changed their cluster; label -1 is none.
    """
    num_clusters = len(centroids_KxD)
    find, moved = _Nearest(centroids_KxD), 0
    for start, block_BxD in _blocks(points_NxD):
        old_B = labels_N[start : start + len(block_BxD)]
        new_B = find(block_BxD)
        moved_M = np.flatnonzero(new_B != old_B)
        if not len(moved_M):
            continue
        moved += len(moved_M)
        # +1 where a point comes to, -1 where it comes from; the last column is the label -1.
        signs_MxK = np.zeros((len(moved_M), num_clusters + 1), np.float32)
        rows_M = np.arange(len(moved_M))
        signs_MxK[rows_M, new_B[moved_M]] = 1
        signs_MxK[rows_M, old_B[moved_M]] = -1
        signs_MxK = signs_MxK[:, :num_clusters]
        sums_KxD += signs_MxK.T @ (block_BxD if moved_M.size == new_B.size else block_BxD[moved_M])
        counts_K += signs_MxK.sum(axis=0)
        old_B[:] = new_B
    return moved


class _Nearest:
    """Finds the nearest of these centroids: the one with the largest ``x . c - c . c / 2``."""

    def __init__(self, centroids_KxD: np.ndarray):
        # Centroids are compared from their mean, m: where all are far from zero, the products of
        # points with them would be large and their differences lost. |x - c|^2 is
        # |x - m|^2 - 2 (x . (c - m) - m . (c - m) - |c - m|^2 / 2).
        mean_D = centroids_KxD.mean(axis=0, dtype=np.float64)
        shifted_KxD = centroids_KxD - mean_D
        self._kernel_DxK = shifted_KxD.T.astype(np.float32)
        self._bias_K = (shifted_KxD @ mean_D + (shifted_KxD**2).sum(1) / 2).astype(np.float32)

    def __call__(self, points_BxD: np.ndarray) -> np.ndarray:
        scores_BxK = points_BxD @ self._kernel_DxK
        scores_BxK -= self._bias_K
        return scores_BxK.argmax(axis=1).astype(np.int32)


def squared_distances(points_NxD: np.ndarray, clusters: Clusters) -> np.ndarray:
    """Of each point to its centroid; float32 [N]."""
    distances_N = np.empty(len(points_NxD), np.float32)
    for start, block_BxD in _blocks(points_NxD):
        part = slice(start, start + len(block_BxD))
        rest_BxD = block_BxD - clusters.centroids[clusters.labels[part]]
        distances_N[part] = (rest_BxD**2).sum(axis=1)
    return distances_N


def _blocks(points_NxD: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, float32 [B, D]) of each block."""
    for start in range(0, len(points_NxD), _BLOCK):
        yield start, np.asarray(points_NxD[start : start + _BLOCK], np.float32)
