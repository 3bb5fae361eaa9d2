"""K-means: NumPy on CPUs, JAX on accelerators, one interface.

Both start from k-means++ and run Lloyd's algorithm; equal arguments give equal centroids on one
engine, not across engines, so a table says which one made it.
"""

import jax
import numpy as np

from dsi_jax.docids.clustering import kmeans_jax, kmeans_numpy
from dsi_jax.docids.clustering.kmeans_numpy import Clusters

_ENGINES = {"numpy": kmeans_numpy, "jax": kmeans_jax}
ENGINES = tuple(_ENGINES)

_ROWS = 1 << 16  # points read at a time where they are not learned from


def default_engine() -> str:
    """NumPy where JAX computes on CPUs, else JAX."""
    return "numpy" if jax.default_backend() == "cpu" else "jax"


def kmeans(
    points_NxD: np.ndarray,
    num_clusters: int,
    *,
    seed: int,
    iterations: int = 25,
    restarts: int = 1,
    start: np.ndarray | None = None,
    rows: np.ndarray | None = None,
    most: int | None = None,
    engine: str = "numpy",
) -> Clusters:
    """Clusters points by Lloyd's algorithm (squared Euclidean distance).

    Args:
      points_NxD: float [N, D], at least one, all finite; may be a mapped file, of which a copy is
        made of the points that are learned from alone.
      num_clusters: K; there are as many centroids as points where those are fewer.
      seed: of the first centroids.
      iterations: Lloyd's iterations at most.
      restarts: runs from other first centroids, of which the best is kept.
      start: float32 [K, D], the first centroids; None: chosen by the seed.
      rows: int [M], which of the points; None: all. Labels are theirs.
      most: so many points, drawn by the seed, are learned from, and the others join the nearest
        centroid; None: all are.
      engine: "numpy" (one thread: sums in a fixed order) or "jax" (the default device).

    Raises:
      ValueError: an engine that is not known.
    """
    check_engine(engine)
    count = len(points_NxD) if rows is None else len(rows)
    learned = drawn(count, most, seed)
    sample_PxD = points_NxD
    if rows is not None or learned is not None:
        sample_PxD = points_NxD[_chosen(rows, slice(None) if learned is None else learned)]
    sample_PxD = np.ascontiguousarray(sample_PxD, np.float32)
    num_clusters = min(num_clusters, len(sample_PxD))
    if start is not None:
        start = np.ascontiguousarray(start[:num_clusters], np.float32)
    run = _ENGINES[engine].kmeans
    runs = (
        run(sample_PxD, num_clusters, level_seed(seed, again) if again else seed, iterations, start)
        for again in range(restarts)
    )
    found = next(runs) if restarts == 1 else min(runs, key=lambda run: error(sample_PxD, run))
    if learned is None:
        return found
    blocks = (slice(first, first + _ROWS) for first in range(0, count, _ROWS))
    labels = [
        nearest(points_NxD[_chosen(rows, block)], found.centroids, engine) for block in blocks
    ]
    return Clusters(found.centroids, np.concatenate(labels))


def check_engine(engine: str) -> None:
    """Refuses an engine that is not known.

    Raises:
      ValueError: naming those that are.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine is {engine!r}; expected one of {ENGINES}")


def drawn(count: int, most: int | None, seed: int) -> np.ndarray | None:
    """`most` of so many points, in order; None where all are to be taken."""
    if most is None or count <= most:
        return None
    rng = np.random.default_rng((seed, count))
    return np.sort(rng.choice(count, most, replace=False, shuffle=False))


def nearest(points_NxD: np.ndarray, centroids_KxD: np.ndarray, engine: str) -> np.ndarray:
    """The nearest centroid of each point; int32 [N]."""
    return _ENGINES[engine].nearest(points_NxD, centroids_KxD)


def error(points_NxD: np.ndarray, clusters: Clusters) -> float:
    """The sum of the squared distances of points to the centroids of their clusters."""
    return float(kmeans_numpy.squared_distances(points_NxD, clusters).sum(dtype=np.float64))


def _chosen(rows: np.ndarray | None, part: np.ndarray | slice) -> np.ndarray | slice:
    return part if rows is None else rows[part]


def residual_kmeans(
    points_NxD: np.ndarray,
    levels: int,
    num_clusters: int,
    *,
    seed: int,
    iterations: int = 25,
    start: np.ndarray | None = None,
    most: int | None = None,
    engine: str = "numpy",
) -> tuple[np.ndarray, np.ndarray]:
    """K-means of the points, then of what is left of them, and so on.

    Args:
      points_NxD: float [N, D]; may be a mapped file.
      levels: L.
      num_clusters: K.
      seed: of the first centroids.
      iterations: Lloyd's iterations a level, at most.
      start: float32 [L, K, D], the first centroids; None: chosen by the seed.
      most: all levels learn from so many points, drawn by the seed, and the others take the
        nearest codes, read block by block; None: from all.
      engine: see `kmeans`.

    Returns:
      Codes int32 [N, L] and centroids float32 [L, K, D], zeros where there are fewer points.
    """
    learned = drawn(len(points_NxD), most, seed)
    # A copy, from which each level takes its part.
    rest_PxD = np.array(points_NxD if learned is None else points_NxD[learned], np.float32)
    codes_LxP = np.empty((levels, len(rest_PxD)), np.int32)
    books: list[np.ndarray] = []
    for level in range(levels):
        found = kmeans(
            rest_PxD,
            num_clusters,
            seed=level_seed(seed, level),
            iterations=iterations,
            start=None if start is None else start[level],
            engine=engine,
        )
        codes_LxP[level] = found.labels
        books.append(found.centroids)
        _subtract(rest_PxD, found.centroids, found.labels)
    books_LxKxD = np.zeros((levels, num_clusters, rest_PxD.shape[1]), np.float32)
    for level, centroids_KxD in enumerate(books):
        books_LxKxD[level, : len(centroids_KxD)] = centroids_KxD
    if learned is None:
        return codes_LxP.T, books_LxKxD
    codes_NxL = np.empty((len(points_NxD), levels), np.int32)
    for first in range(0, len(points_NxD), _ROWS):
        rest_BxD = np.array(points_NxD[first : first + _ROWS], np.float32)
        for level, centroids_KxD in enumerate(books):
            labels_B = nearest(rest_BxD, centroids_KxD, engine)
            codes_NxL[first : first + _ROWS, level] = labels_B
            _subtract(rest_BxD, centroids_KxD, labels_B)
    return codes_NxL, books_LxKxD


def _subtract(points_NxD: np.ndarray, centroids_KxD: np.ndarray, labels_N: np.ndarray) -> None:
    """Takes from each point its centroid, in place and block by block."""
    for first in range(0, len(points_NxD), _ROWS):
        points_NxD[first : first + _ROWS] -= centroids_KxD[labels_N[first : first + _ROWS]]


def level_seed(seed: int, level: int) -> int:
    """Levels start differently, and as differently under another seed."""
    return int(np.random.default_rng((seed, level)).integers(1 << 31))
