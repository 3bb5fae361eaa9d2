"""Exact beam search over docids: all children of all live beams compete, nothing is sampled.

The first step decodes one beam, and beams multiply only as fast as candidates do: these levels
are programs of their own. Once there are M beams, levels of like width are one program in a loop,
so that the time to compile does not grow with L. Trace it under one ``jit`` with the model
(`dsi_jax.decoding.adapter.make_search`).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dsi_jax.decoding import trie as trie_lib
from dsi_jax.decoding.constraint import Candidates, Constraint, Span
from dsi_jax.docids.table import PAD_TOKEN


class DecodeFns(NamedTuple):
    """A decoder as two functions with its parameters bound.

    Attributes:
      init_cache: ``(memory, mask, num_beams, length) -> cache``, a mapping. Leaves under
        ``cache['self']`` have the beams on axis 1 and follow them; all others are shared by the
        beams of a query and left alone.
      step: ``(cache, tokens int32 [B, M], position int32 []) -> (logits [B, M, V], cache)``,
        where ``tokens`` are the decoder's inputs at ``position``, 0 (pad) at the first.
    """

    init_cache: Callable[[Any, Any, int, int], dict[str, Any]]
    step: Callable[[dict[str, Any], jax.Array, jax.Array], tuple[jax.Array, dict[str, Any]]]


class BeamResult(NamedTuple):
    """The best docids found for each query, best first.

    Documents that share a docid, where the table declares ties, follow each other with one score,
    in the table's order. Slots without a document come last with row -1, score -inf, valid False
    and pads for tokens. Under `Free` a sequence that is no docid keeps its place, score and tokens;
    its row is -1 and valid is False.

    Attributes:
      rows: int32 [B, M], the document's row.
      scores: float32 [B, M], the sum of the model's log-probabilities of the tokens, natural log.
      valid: bool [B, M], whether the slot holds a document.
      tokens: int32 [B, M, L], the docid.
    """

    rows: jax.Array
    scores: jax.Array
    valid: jax.Array
    tokens: jax.Array


class _Beams(NamedTuple):
    """The beams between two levels; ``live`` says which exist, never a score of -inf."""

    scores: jax.Array  # float32 [B, M], 0 where not live
    live: jax.Array  # bool [B, M]
    last: jax.Array  # int32 [B, M], the token that the decoder reads next
    tokens: jax.Array  # int32 [B, M, L], pads where not decoded yet
    state: Any  # the constraint's
    parent: jax.Array  # int32 [B, M], the beam of the level before that each extends


def beam_search(
    decode: DecodeFns,
    memory: Any,
    mask: jax.Array,
    *,
    constraint: Constraint,
    beam_size: int,
    renormalize: bool = False,
) -> BeamResult:
    """Finds the ``beam_size`` best docids of each query.

    Scores are plain sums of log-probabilities over the full vocabulary, masked after the softmax
    as in GENRE (De Cao et al., 2021, https://arxiv.org/abs/2010.00904); the pad after an end token
    adds exactly 0. With at least as many beams as documents the ranking is exact. Equal scores
    keep the order of their beams, then of their tokens.

    Args:
      decode: the decoder.
      memory: the encoded queries, handed to ``decode.init_cache``; usually float [B, S, D].
      mask: bool [B, S], which memory positions are real.
      constraint: the allowed docids; gives L.
      beam_size: M, at least 1; may exceed both V and N.
      renormalize: divide probabilities among the allowed children of a beam instead of the whole
        vocabulary; scores are then no longer the model's log-probabilities.

    Returns:
      A `BeamResult` with M slots a query.

    Raises:
      ValueError: if ``beam_size`` is below 1, or the decoder's logits and the constraint differ in
        their vocabulary size.
    """
    if beam_size < 1:
        raise ValueError(f"beam_size is {beam_size}; expected at least 1")
    batch_size = mask.shape[0]
    cache = decode.init_cache(memory, mask, 1, constraint.length)
    beams = _Beams(
        scores=jnp.zeros((batch_size, 1), jnp.float32),
        live=jnp.ones((batch_size, 1), bool),
        last=jnp.full((batch_size, 1), PAD_TOKEN, jnp.int32),
        tokens=jnp.full((batch_size, 1, constraint.length), PAD_TOKEN, jnp.int32),
        state=constraint.start(batch_size),
        parent=jnp.zeros((batch_size, 1), jnp.int32),
    )

    def decode_level(
        span: Span, level: jax.Array | int, carry: tuple[_Beams, dict[str, Any]]
    ) -> tuple[_Beams, dict[str, Any]]:
        beams, cache = carry
        cache = {**cache, "self": _follow(cache["self"], beams.parent)}
        logits_BxMxV, cache = decode.step(cache, beams.last, jnp.int32(level))
        if logits_BxMxV.shape[-1] < constraint.vocab_size:
            raise ValueError(
                f"the decoder's logits have a vocabulary of {logits_BxMxV.shape[-1]}; expected the "
                f"docid table's {constraint.vocab_size}, or a padded one"
            )
        logits_BxMxV = logits_BxMxV.astype(jnp.float32)
        candidates = constraint.expand(span, level, beams.state, logits_BxMxV)
        log_probs_BxMxK = _log_probs(candidates, logits_BxMxV, renormalize)
        beams = _select(
            constraint, span, level, beams, candidates.allowed, log_probs_BxMxK, beam_size
        )
        return beams, cache

    carry = beams, cache
    for span in constraint.spans:
        level = span.start
        while level < span.stop and _grows(carry[0], span, beam_size):
            carry = decode_level(span, level, carry)
            level += 1
        if level + 1 == span.stop:  # a loop of one level would copy the cache for nothing
            carry = decode_level(span, level, carry)
        elif level < span.stop:
            body = functools.partial(decode_level, span)
            carry = jax.lax.fori_loop(level, span.stop, body, _caught_up(*carry))
    return _result(constraint, carry[0], beam_size)


def _caught_up(beams: _Beams, cache: dict[str, Any]) -> tuple[_Beams, dict[str, Any]]:
    """The same, with a cache that has as many beams as there are."""
    own = jnp.broadcast_to(jnp.arange(beams.parent.shape[1], dtype=jnp.int32), beams.parent.shape)
    return beams._replace(parent=own), {**cache, "self": _follow(cache["self"], beams.parent)}


def _grows(beams: _Beams, span: Span, beam_size: int) -> bool:
    """Whether there are more beams after the next level than before."""
    num_beams = beams.last.shape[1]
    return min(beam_size, num_beams * span.width) > num_beams


def _log_probs(candidates: Candidates, logits_BxMxV: jax.Array, renormalize: bool) -> jax.Array:
    """float32 [B, M, K]: each candidate's log-probability; finite, also where not allowed."""
    if renormalize:
        some_BxMx1 = candidates.allowed.any(-1, keepdims=True)
        normalizer_BxMx1 = jax.nn.logsumexp(
            candidates.logits, axis=-1, keepdims=True, where=candidates.allowed | ~some_BxMx1
        )
    else:
        normalizer_BxMx1 = jax.nn.logsumexp(logits_BxMxV, axis=-1, keepdims=True)
    return jnp.where(candidates.forced, 0.0, candidates.logits - normalizer_BxMx1)


def _select(
    constraint: Constraint,
    span: Span,
    level: jax.Array | int,
    beams: _Beams,
    allowed_BxMxK: jax.Array,
    log_probs_BxMxK: jax.Array,
    beam_size: int,
) -> _Beams:
    """The best candidates as the next beams."""
    batch_size, num_beams, num_children = log_probs_BxMxK.shape
    width = min(beam_size, num_beams * num_children)
    exists = (allowed_BxMxK & beams.live[..., None]).reshape(batch_size, -1)
    scores = (beams.scores[..., None] + log_probs_BxMxK).reshape(batch_size, -1)
    best, index = jax.lax.top_k(jnp.where(exists, scores, -jnp.inf), width)
    live = jnp.take_along_axis(exists, index, axis=1, mode="clip")
    parent, choice = index // num_children, index % num_children
    tokens, state = _follow((beams.tokens, beams.state), parent)
    token, state = constraint.advance(span, level, state, choice)
    return _Beams(
        scores=jnp.where(live, best, 0.0),
        live=live,
        last=token,
        tokens=tokens.at[:, :, level].set(token),
        state=state,
        parent=parent,
    )


def _follow(tree: Any, parent_BxM: jax.Array) -> Any:
    """Each leaf [B, M', ...] reordered along its beams, to [B, M, ...]."""
    return jax.tree.map(
        lambda leaf: jax.vmap(lambda x, i: jnp.take(x, i, axis=0, mode="clip"))(leaf, parent_BxM),
        tree,
    )


def _result(constraint: Constraint, beams: _Beams, beam_size: int) -> BeamResult:
    """The documents of the last level's beams, and empty slots up to ``beam_size``."""
    place = constraint.docids(beams.state, beams.tokens)
    start, count = trie_lib.run_of_docid(constraint.trie, place)
    known = place >= 0
    # A beam that is no docid keeps its place, as one result without a document.
    count = jnp.where(beams.live, jnp.where(known, count, 1), 0)
    source, offset, exists = _spread(count, beam_size)

    def of_source(x: jax.Array) -> jax.Array:
        return _follow(x, source)

    rows = trie_lib.rows_at(constraint.trie, of_source(start) + offset)
    rows = jnp.where(exists & of_source(known), rows, -1)
    return BeamResult(
        rows=rows,
        scores=jnp.where(exists, of_source(beams.scores), -jnp.inf),
        valid=rows >= 0,
        tokens=jnp.where(exists[..., None], of_source(beams.tokens), PAD_TOKEN),
    )


def _spread(count_BxM: jax.Array, size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gives each beam as many consecutive slots as it has documents.

    Returns:
      For each of the slots [B, size]: its beam, its number within the beam, whether it is taken.
    """
    ends_BxM = jnp.cumsum(count_BxM, axis=1)
    slot_S = jnp.arange(size, dtype=jnp.int32)
    beam_BxS = jax.vmap(lambda ends_M: jnp.searchsorted(ends_M, slot_S, side="right"))(ends_BxM)
    offset_BxS = slot_S - _follow(ends_BxM - count_BxM, beam_BxS)
    return beam_BxS, offset_BxS, slot_S < ends_BxM[:, -1:]
