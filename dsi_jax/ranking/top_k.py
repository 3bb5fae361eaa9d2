"""Exact top-k of inner products, a chunk of documents at a time and never all of them at once."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from dsi_jax.training.partitioning import BATCH_AXES

CHUNK_SIZE = 4096


class Ranking(NamedTuple):
    """The best documents of each query, best first; of equal scores, the lower row first.

    Slots without a document come last with row -1, score -inf and valid False.

    Attributes:
      rows: int32 [Q, k].
      scores: float32 [Q, k].
      valid: bool [Q, k].
    """

    rows: jax.Array
    scores: jax.Array
    valid: jax.Array


@functools.partial(jax.jit, static_argnames=("k", "mesh", "chunk_size"))
def exact_top_k(
    queries_QxE: jax.Array,
    documents_PxNxE: jax.Array,
    num_documents: jax.Array | int,
    allowed_AxN: jax.Array | None = None,
    *,
    k: int,
    mesh: Mesh,
    chunk_size: int = CHUNK_SIZE,
) -> Ranking:
    """Ranks documents by their inner products with queries.

    Each part of the mesh ranks the documents that it holds, then the parts' best are merged.

    Args:
      queries_QxE: float [Q, E].
      documents_PxNxE: float [P, N, E]; P parts of the documents in the order of their rows, one
        for each part of the mesh's batch axes, on which it should lie (`data_sharding`).
      num_documents: how many documents are real; the last ones pad the parts to one length.
      allowed_AxN: bool [Q, N], the documents that each query may find, or [1, N] for all queries;
        None: all of them.
      k: documents a query.
      mesh: the mesh; of one device for plain arrays.
      chunk_size: documents of a part that are scored at a time.
    """

    def rank_part(
        queries_QxE: jax.Array, part_1xNxE: jax.Array, allowed_AxN: jax.Array | None
    ) -> Ranking:
        part_NxE = part_1xNxE[0]
        first_row = jax.lax.axis_index(BATCH_AXES) * len(part_NxE)
        scores_QxK, rows_QxK = _rank_chunks(
            queries_QxE, part_NxE, first_row, num_documents, allowed_AxN, k, chunk_size
        )
        if mesh.size > 1:
            gathered = jax.lax.all_gather((scores_QxK, rows_QxK), BATCH_AXES, axis=1, tiled=True)
            scores_QxK, rows_QxK = _best(*gathered, k)
        valid_QxK = scores_QxK > -jnp.inf
        return Ranking(jnp.where(valid_QxK, rows_QxK, -1), scores_QxK, valid_QxK)

    whole = PartitionSpec()
    return jax.shard_map(
        rank_part,
        mesh=mesh,
        in_specs=(whole, PartitionSpec(BATCH_AXES), whole),
        out_specs=Ranking(whole, whole, whole),
        check_vma=False,  # the result is the same everywhere, being merged from all parts
    )(queries_QxE, documents_PxNxE, allowed_AxN)


def _rank_chunks(
    queries_QxE: jax.Array,
    part_NxE: jax.Array,
    first_row: jax.Array,
    num_documents: jax.Array | int,
    allowed_AxN: jax.Array | None,
    k: int,
    chunk_size: int,
) -> tuple[jax.Array, jax.Array]:
    """The best k (scores, rows) of one part, merged chunk by chunk in the order of rows."""
    num_rows = len(part_NxE)
    chunk_size = min(chunk_size, num_rows)
    num_queries = len(queries_QxE)

    def merge(
        best: tuple[jax.Array, jax.Array], chunk: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        # The last chunk is moved back to end with the part; what it repeats does not count.
        start = jnp.minimum(chunk * chunk_size, num_rows - chunk_size)
        documents_CxE = jax.lax.dynamic_slice_in_dim(part_NxE, start, chunk_size)
        # Full float32: accelerators would round the operands, and near ties would change places.
        scores_QxC = jnp.matmul(
            queries_QxE,
            documents_CxE.T,
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )
        local_C = start + jnp.arange(chunk_size)
        rows_C = (first_row + local_C).astype(jnp.int32)
        counts_C = (local_C >= chunk * chunk_size) & (rows_C < num_documents)
        if allowed_AxN is not None:
            counts_C = counts_C & jnp.take(allowed_AxN, rows_C, axis=1, mode="clip")
        scores_QxC = jnp.where(counts_C, scores_QxC, -jnp.inf)
        chunk_scores, places = jax.lax.top_k(scores_QxC, min(k, chunk_size))
        merged = (
            jnp.concatenate([best[0], chunk_scores], axis=1),
            jnp.concatenate([best[1], rows_C[places]], axis=1),
        )
        return _best(*merged, k), None

    nothing = (
        jnp.full((num_queries, k), -jnp.inf, jnp.float32),
        jnp.full((num_queries, k), -1, jnp.int32),
    )
    best, _ = jax.lax.scan(merge, nothing, jnp.arange(-(-num_rows // chunk_size)))
    return best


def _best(scores_QxM: jax.Array, rows_QxM: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k best of M >= k; among equal scores those that come first."""
    scores_QxK, places_QxK = jax.lax.top_k(scores_QxM, k)
    return scores_QxK, jnp.take_along_axis(rows_QxM, places_QxK, axis=1)
