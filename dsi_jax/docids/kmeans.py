"""K-means: faiss on CPUs, JAX on accelerators, one interface.

Both start from k-means++ or an approximation of it and run Lloyd's algorithm; equal arguments give
equal centroids on one engine, not across engines, so a table says which one made it.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ENGINES = ("faiss", "jax")

_STOP = 1e-4  # faiss stops once an iteration lowers the error by a smaller share than this
_BLOCK = 1 << 14  # points whose distances are held at a time on the device
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
    """faiss where JAX computes on CPUs, else JAX."""
    return "faiss" if jax.default_backend() == "cpu" else "jax"


def kmeans(
    points_NxD: np.ndarray,
    num_clusters: int,
    *,
    seed: int,
    iterations: int = 25,
    restarts: int = 1,
    start: np.ndarray | None = None,
    engine: str = "faiss",
) -> Clusters:
    """Clusters points by Lloyd's algorithm (squared Euclidean distance).

    Args:
      points_NxD: float [N, D], at least one, all finite.
      num_clusters: K; there are as many centroids as points where those are fewer.
      seed: of the first centroids.
      iterations: Lloyd's iterations at most.
      restarts: runs from other first centroids, of which the best is kept.
      start: float32 [K, D], the first centroids; None: chosen by the seed.
      engine: "faiss" (one thread: sums in a fixed order) or "jax" (the default device).

    Raises:
      ValueError: an engine that is not known.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine is {engine!r}; expected one of {ENGINES}")
    points_NxD = np.ascontiguousarray(points_NxD, np.float32)
    num_clusters = min(num_clusters, len(points_NxD))
    if start is not None:
        start = np.ascontiguousarray(start[:num_clusters], np.float32)
    run = _faiss_kmeans if engine == "faiss" else _jax_kmeans
    return run(points_NxD, num_clusters, seed, iterations, restarts, start)


def _faiss_kmeans(
    points_NxD: np.ndarray,
    num_clusters: int,
    seed: int,
    iterations: int,
    restarts: int,
    start: np.ndarray | None,
) -> Clusters:
    import faiss  # of the extra `train`

    parameters = faiss.ClusteringParameters()
    parameters.niter = iterations
    parameters.nredo = restarts
    parameters.seed = seed % (1 << 31)
    # As good as k-means++ (Bachem et al. 2016), and cheaper.
    parameters.init_method = faiss.ClusteringInitMethod_AFK_MC2
    parameters.early_stop_threshold = _STOP
    parameters.min_points_per_centroid = 1  # no warning
    parameters.max_points_per_centroid = len(points_NxD)  # no sampling
    dimension = points_NxD.shape[1]
    index = faiss.IndexFlatL2(dimension)
    clustering = faiss.Clustering(dimension, num_clusters, parameters)
    if start is not None:
        faiss.copy_array_to_vector(start.ravel(), clustering.centroids)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        clustering.train(points_NxD, index)
        _, labels_Nx1 = index.search(points_NxD, 1)
    finally:
        faiss.omp_set_num_threads(threads)
    centroids = faiss.vector_to_array(clustering.centroids).reshape(num_clusters, dimension)
    return Clusters(centroids, labels_Nx1[:, 0].astype(np.int32))


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


def residual_kmeans(
    points_NxD: np.ndarray,
    levels: int,
    num_clusters: int,
    *,
    seed: int,
    iterations: int = 25,
    start: np.ndarray | None = None,
    engine: str = "faiss",
) -> tuple[np.ndarray, np.ndarray]:
    """K-means of the points, then of what is left of them, and so on.

    Args:
      points_NxD: float [N, D].
      levels: L.
      num_clusters: K.
      seed: of the first centroids.
      iterations: Lloyd's iterations a level, at most.
      start: float32 [L, K, D], the first centroids; None: chosen by the seed.
      engine: see `kmeans`.

    Returns:
      Codes int32 [N, L] and centroids float32 [L, K, D], zeros where there are fewer points.
    """
    rest_NxD = np.asarray(points_NxD, np.float32)
    codes_NxL = np.empty((len(rest_NxD), levels), np.int32)
    books = np.zeros((levels, num_clusters, rest_NxD.shape[1]), np.float32)
    for level in range(levels):
        found = kmeans(
            rest_NxD,
            num_clusters,
            seed=level_seed(seed, level),
            iterations=iterations,
            start=None if start is None else start[level],
            engine=engine,
        )
        codes_NxL[:, level] = found.labels
        books[level, : len(found.centroids)] = found.centroids
        rest_NxD = rest_NxD - found.centroids[found.labels]
    return codes_NxL, books


def level_seed(seed: int, level: int) -> int:
    """Levels start differently, and as differently under another seed."""
    return int(np.random.default_rng((seed, level)).integers(1 << 31))
