"""K-means: NumPy on CPUs, JAX on accelerators, one interface.

Both start from k-means++ and run Lloyd's algorithm; equal arguments give equal centroids on one
engine, not across engines, so a table says which one made it.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dsi_jax.docids import lloyd

ENGINES = ("numpy", "jax")

_BLOCK = 1 << 14  # points whose distances are held at a time on the device
_ROWS = 1 << 16  # points read at a time where they are not learned from
_SEEDING_POINTS = 64  # k-means++ chooses among so many points a centroid


class Clusters(NamedTuple):
    """Centroids and who belongs to them.

    Attributes:
      centroids: float32 [K, D].
      labels: int32 [N], the nearest centroid of each point; of equally near ones, any.
    """

    centroids: np.ndarray
    labels: np.ndarray


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
    run = lloyd.kmeans if engine == "numpy" else _jax_kmeans
    found = run(sample_PxD, num_clusters, seed, iterations, restarts, start)
    if learned is None:
        return Clusters(found.centroids, found.labels)
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
    if engine == "numpy":
        return lloyd.nearest(points_NxD, centroids_KxD)
    points = jnp.asarray(points_NxD, jnp.float32)
    return np.asarray(_jitted_assign(points, jnp.asarray(centroids_KxD))[0])


def _chosen(rows: np.ndarray | None, part: np.ndarray | slice) -> np.ndarray | slice:
    return part if rows is None else rows[part]


def _jax_kmeans(
    points_NxD: np.ndarray,
    num_clusters: int,
    seed: int,
    iterations: int,
    restarts: int,
    start: np.ndarray | None,
) -> Clusters:
    points = jnp.asarray(points_NxD)
    best = None
    for key in jax.random.split(jax.random.key(seed), restarts):
        first = _plus_plus(points, key, num_clusters) if start is None else jnp.asarray(start)
        found = _lloyd(points, first, iterations)
        if best is None or found[2] < best[2]:
            best = found
    return Clusters(np.asarray(best[0]), np.asarray(best[1]))


@functools.partial(jax.jit, static_argnums=2)
def _lloyd(
    points_NxD: jax.Array, first_KxD: jax.Array, iterations: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Centroids, labels and the sum of squared distances."""
    num_clusters = len(first_KxD)

    def improve(_, centroids_KxD: jax.Array) -> jax.Array:
        labels_N, distances_N = _assign(points_NxD, centroids_KxD)
        sums_KxD = jax.ops.segment_sum(points_NxD, labels_N, num_clusters)
        counts_K = jax.ops.segment_sum(jnp.ones_like(distances_N), labels_N, num_clusters)
        # An empty cluster takes one of the points that are farthest from their centroids.
        _, farthest_K = jax.lax.top_k(distances_N, num_clusters)
        rank_K = jnp.cumsum(counts_K == 0) - 1
        return jnp.where(
            (counts_K == 0)[:, None],
            points_NxD[farthest_K[rank_K]],
            sums_KxD / jnp.maximum(counts_K, 1)[:, None],
        )

    centroids_KxD = jax.lax.fori_loop(0, iterations, improve, first_KxD)
    labels_N, distances_N = _assign(points_NxD, centroids_KxD)
    return centroids_KxD, labels_N, distances_N.sum()


@functools.partial(jax.jit, static_argnums=2)
def _plus_plus(points_NxD: jax.Array, key: jax.Array, num_clusters: int) -> jax.Array:
    """k-means++ (Arthur and Vassilvitskii 2007) on a sample of the points."""
    sample_key, first_key, key = jax.random.split(key, 3)
    size = min(len(points_NxD), _SEEDING_POINTS * num_clusters)
    sample_PxD = jax.random.choice(sample_key, points_NxD, (size,), replace=False)
    first = sample_PxD[jax.random.randint(first_key, (), 0, size)]

    def add(index, state):
        centroids_KxD, nearest_P = state
        # Where all points have a centroid on them, any of them will do.
        logits_P = jnp.log(jnp.maximum(nearest_P, 1e-30))
        chosen = jax.random.categorical(jax.random.fold_in(key, index), logits_P)
        centroid = sample_PxD[chosen]
        nearest_P = jnp.minimum(nearest_P, ((sample_PxD - centroid) ** 2).sum(-1))
        return centroids_KxD.at[index].set(centroid), nearest_P

    centroids_KxD = jnp.zeros((num_clusters, len(first)), first.dtype).at[0].set(first)
    nearest_P = ((sample_PxD - first) ** 2).sum(-1)
    return jax.lax.fori_loop(1, num_clusters, add, (centroids_KxD, nearest_P))[0]


def _assign(points_NxD: jax.Array, centroids_KxD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The nearest centroid of each point, int32 [N], and the squared distance to it, [N]."""
    norms_K = (centroids_KxD**2).sum(-1)

    def block(points_BxD: jax.Array) -> tuple[jax.Array, jax.Array]:
        products_BxK = jnp.matmul(points_BxD, centroids_KxD.T, precision="highest")
        distances_BxK = norms_K - 2 * products_BxK
        labels_B = distances_BxK.argmin(-1).astype(jnp.int32)
        return labels_B, distances_BxK.min(-1) + (points_BxD**2).sum(-1)

    count, dimension = points_NxD.shape
    if count <= _BLOCK:
        return block(points_NxD)
    padding = -count % _BLOCK
    blocks = jnp.pad(points_NxD, ((0, padding), (0, 0))).reshape(-1, _BLOCK, dimension)
    labels, distances = jax.lax.map(block, blocks)
    return labels.reshape(-1)[:count], distances.reshape(-1)[:count]


_jitted_assign = jax.jit(_assign)


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
