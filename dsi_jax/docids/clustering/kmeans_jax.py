"""K-means in JAX, for accelerators; `clustering.kmeans_numpy` has the same functions for CPUs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dsi_jax.docids.clustering.kmeans_numpy import Clusters

_BLOCK = 1 << 14  # points whose distances are held at a time on the device
_SEEDING_POINTS = 64  # k-means++ chooses among so many points a centroid


def kmeans(
    points_NxD: np.ndarray,
    num_clusters: int,
    seed: int,
    iterations: int,
    start: np.ndarray | None,
) -> Clusters:
    """Lloyd's algorithm from k-means++, so many iterations.

    Args:
      points_NxD: float32 [N, D].
      num_clusters: K, at most N.
      seed: of the first centroids.
      iterations: how many.
      start: float32 [K, D], the first centroids; None: chosen by the seed.
    """
    points = jnp.asarray(points_NxD)
    if start is None:
        first = _plus_plus(points, jax.random.key(seed), num_clusters)
    else:
        first = jnp.asarray(start)
    centroids, labels = _lloyd(points, first, iterations)
    return Clusters(np.asarray(centroids), np.asarray(labels))


def nearest(points_NxD: np.ndarray, centroids_KxD: np.ndarray) -> np.ndarray:
    """The nearest centroid of each point; int32 [N]."""
    points = jnp.asarray(points_NxD, jnp.float32)
    return np.asarray(_jitted_assign(points, jnp.asarray(centroids_KxD))[0])


@functools.partial(jax.jit, static_argnums=2)
def _lloyd(
    points_NxD: jax.Array, first_KxD: jax.Array, iterations: int
) -> tuple[jax.Array, jax.Array]:
    """Centroids and labels."""
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
    return centroids_KxD, _assign(points_NxD, centroids_KxD)[0]


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
