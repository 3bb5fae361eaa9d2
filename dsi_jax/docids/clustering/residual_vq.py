"""Residual vector quantization that learns along: the layer inside rqvae and irgen.

Codebooks are not trained by gradients. They follow what they quantize by moving averages (van den
Oord et al. 2017, appendix A.1; Razavi et al. 2019), and a code that is hardly used starts anew at a
vector of the batch (Dhariwal et al. 2020, section 3.1, "random restarts"). Gradients pass the
rounding straight through (Bengio et al. 2013).
"""

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dsi_jax.docids.clustering.kmeans import residual_kmeans

_FIRST_ITERATIONS = 10  # of k-means, before training
_LEAST_COUNT = 1e-20  # averages below are too near to 0 to divide by


@flax.struct.dataclass
class Codebooks:
    """The codes' vectors, and the moving averages that they are made of.

    Attributes:
      vectors: float32 [L, K, D], ``sums / counts``.
      counts: float32 [L, K], how many vectors of a batch take the code, on average.
      sums: float32 [L, K, D], the sum of those vectors, on average.
    """

    vectors: jax.Array
    counts: jax.Array
    sums: jax.Array


class Rounded(NamedTuple):
    """Points as codes.

    Attributes:
      codes: int32 [L, B].
      prefixes: float32 [L, B, D], the sum of the vectors of the first l codes.
      rests: float32 [L, B, D], what each level had to quantize.
    """

    codes: jax.Array
    prefixes: jax.Array
    rests: jax.Array


def fit_codebooks(
    points_NxD: np.ndarray, levels: int, codes: int, *, batch_size: int, seed: int, engine: str
) -> Codebooks:
    """Codebooks that start as those of residual k-means, all codes used alike."""
    _, books = residual_kmeans(
        points_NxD, levels, codes, seed=seed, iterations=_FIRST_ITERATIONS, engine=engine
    )
    counts_LxK = jnp.full(books.shape[:2], batch_size / codes, jnp.float32)
    vectors_LxKxD = jnp.asarray(books)
    return Codebooks(vectors_LxKxD, counts_LxK, vectors_LxKxD * counts_LxK[..., None])


def round_residuals(vectors_LxKxD: jax.Array, points_BxD: jax.Array) -> Rounded:
    """Takes the nearest code level by level, each time of what the levels before left."""

    def level(rest_BxD: jax.Array, vectors_KxD: jax.Array) -> tuple[jax.Array, tuple]:
        products_BxK = jnp.matmul(rest_BxD, vectors_KxD.T, precision="highest")
        codes_B = ((vectors_KxD**2).sum(-1) - 2 * products_BxK).argmin(-1).astype(jnp.int32)
        return rest_BxD - vectors_KxD[codes_B], (codes_B, rest_BxD)

    last_BxD, (codes_LxB, rests_LxBxD) = jax.lax.scan(level, points_BxD, vectors_LxKxD)
    left_LxBxD = jnp.concatenate([rests_LxBxD[1:], last_BxD[None]])
    return Rounded(codes_LxB, points_BxD - left_LxBxD, rests_LxBxD)


def straight_through(points: jax.Array, rounded: jax.Array) -> jax.Array:
    """The value of `rounded`, whose gradient goes to `points` as it is."""
    return points + jax.lax.stop_gradient(rounded - points)


def follow(books: Codebooks, rounded: Rounded, decay: float) -> Codebooks:
    """Moves the averages toward a batch: ``average = decay average + (1 - decay) batch``."""
    num_codes = books.counts.shape[1]

    def batch(codes_B: jax.Array, rests_BxD: jax.Array) -> tuple[jax.Array, jax.Array]:
        chosen_BxK = jax.nn.one_hot(codes_B, num_codes, dtype=rests_BxD.dtype)
        return chosen_BxK.sum(0), jnp.matmul(chosen_BxK.T, rests_BxD, precision="highest")

    counts_LxK, sums_LxKxD = jax.vmap(batch)(rounded.codes, rounded.rests)
    counts_LxK = decay * books.counts + (1 - decay) * counts_LxK
    sums_LxKxD = decay * books.sums + (1 - decay) * sums_LxKxD
    # What nobody takes for long keeps its vector, however small the averages become.
    used_LxKx1 = (counts_LxK > _LEAST_COUNT)[..., None]
    means_LxKxD = sums_LxKxD / jnp.maximum(counts_LxK, _LEAST_COUNT)[..., None]
    return Codebooks(jnp.where(used_LxKx1, means_LxKxD, books.vectors), counts_LxK, sums_LxKxD)


def restart_dead(
    books: Codebooks, rounded: Rounded, key: jax.Array, least: float
) -> tuple[Codebooks, jax.Array]:
    """Starts each code with less than `least` of an equal share anew, at a vector of the batch.

    A new code counts as used by an equal share, so that it has time to find its own.

    Returns:
      The codebooks and how many codes were restarted, int32 [].
    """
    num_levels, num_codes = books.counts.shape
    batch_size = rounded.codes.shape[1]
    share = batch_size / num_codes
    dead_LxK = books.counts < least * share
    drawn_LxK = jax.random.randint(key, (num_levels, num_codes), 0, batch_size)
    vectors_LxKxD = jax.vmap(lambda rests, drawn: rests[drawn])(rounded.rests, drawn_LxK)
    dead_LxKx1 = dead_LxK[..., None]
    return (
        Codebooks(
            vectors=jnp.where(dead_LxKx1, vectors_LxKxD, books.vectors),
            counts=jnp.where(dead_LxK, share, books.counts),
            sums=jnp.where(dead_LxKx1, vectors_LxKxD * share, books.sums),
        ),
        dead_LxK.sum(dtype=jnp.int32),
    )
