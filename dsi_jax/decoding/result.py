"""From complete beams to ranked documents."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dsi_jax.decoding.constraint import Constraint
from dsi_jax.decoding.decode_loop import follow
from dsi_jax.docids.table import PAD_TOKEN


class BeamResult(NamedTuple):
    """The best docids found for each query, best first.

    Documents that share a docid, where the table declares ties, follow each other with one score,
    in the table's order. Slots without a document come last with row -1, score -inf, valid False
    and pads for tokens. Under `Free` a sequence that is no docid keeps its place, score and tokens;
    its row is -1 and valid is False.

    Attributes:
      rows: int32 [B, M], the document's row.
      scores: float32 [B, M], the sum of the model's log-probabilities of the tokens, natural log;
        with `renormalize` or `finished` what these make of it.
      valid: bool [B, M], whether the slot holds a document.
      tokens: int32 [B, M, L], the docid.
    """

    rows: jax.Array
    scores: jax.Array
    valid: jax.Array
    tokens: jax.Array


class Docids(NamedTuple):
    """Complete docids of each query, best first.

    Attributes:
      place: int32 [B, W], the place among the trie's docids; -1 where it is none of them.
      scores: float32 [B, W].
      live: bool [B, W], whether there is one; those that are come first.
      tokens: int32 [B, W, L].
    """

    place: jax.Array
    scores: jax.Array
    live: jax.Array
    tokens: jax.Array


def documents_of(constraint: Constraint, docids: Docids, size: int) -> BeamResult:
    """The documents of docids, and empty slots up to `size`."""
    start, count = constraint.documents(docids.place)
    known = docids.place >= 0
    # A beam that is no docid keeps its place, as one result without a document.
    count = jnp.where(docids.live, jnp.where(known, count, 1), 0)
    source, offset, exists = _spread(count, size)

    def of_source(x: jax.Array) -> jax.Array:
        return follow(x, source)

    rows = constraint.rows(of_source(start) + offset)
    rows = jnp.where(exists & of_source(known), rows, -1)
    return BeamResult(
        rows=rows,
        scores=jnp.where(exists, of_source(docids.scores), -jnp.inf),
        valid=rows >= 0,
        tokens=jnp.where(exists[..., None], of_source(docids.tokens), PAD_TOKEN),
    )


def _spread(count_BxM: jax.Array, size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gives each beam as many consecutive slots as it has documents.

    Returns:
      For each of the slots [B, size]: its beam, its number within the beam, whether it is taken.
    """
    ends_BxM = jnp.cumsum(count_BxM, axis=1)
    slot_S = jnp.arange(size, dtype=jnp.int32)
    beam_BxS = jax.vmap(lambda ends_M: jnp.searchsorted(ends_M, slot_S, side="right"))(ends_BxM)
    offset_BxS = slot_S - follow(ends_BxM - count_BxM, beam_BxS)
    return beam_BxS, offset_BxS, slot_S < ends_BxM[:, -1:]
