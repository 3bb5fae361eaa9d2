"""Exact beam search over docids: all children of all live beams compete, nothing is sampled."""

import dataclasses
from typing import Any

import jax

from dsi_jax.decoding import finished_pool
from dsi_jax.decoding.constraint import Constraint, TrieConstraint
from dsi_jax.decoding.decode_loop import Beams, DecodeFns, Level, best_candidates, decode_levels
from dsi_jax.decoding.result import BeamResult, Docids, documents_of
from dsi_jax.decoding.single_token import atomic_search

__all__ = ["BeamResult", "DecodeFns", "beam_search"]


def beam_search(
    decode: DecodeFns,
    memory: Any,
    mask: jax.Array,
    *,
    constraint: Constraint,
    beam_size: int,
    num_results: int | None = None,
    renormalize: bool = False,
    finished: finished_pool.AsGenerate | None = None,
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
      num_results: slots a query, of which documents that share a docid take one each; None: M.
      renormalize: divide probabilities among the allowed children of a beam instead of the whole
        vocabulary; scores are then no longer the model's log-probabilities.
      finished: None: a docid that has ended keeps its beam and competes with all others to the
        last level. Else ended docids leave the beams, as in Hugging Face's `generate`.

    Returns:
      A `BeamResult`.

    Raises:
      ValueError: if ``beam_size`` is below 1, or the decoder's logits have fewer tokens than the
        constraint.
    """
    if beam_size < 1:
        raise ValueError(f"beam_size is {beam_size}; expected at least 1")
    num_results = beam_size if num_results is None else num_results
    docids = _find(
        decode,
        memory,
        mask,
        constraint=constraint,
        beam_size=beam_size,
        renormalize=renormalize,
        finished=finished,
    )
    return documents_of(constraint, docids, num_results)


def _find(
    decode: DecodeFns,
    memory: Any,
    mask: jax.Array,
    *,
    constraint: Constraint,
    beam_size: int,
    renormalize: bool,
    finished: finished_pool.AsGenerate | None,
) -> Docids:
    """Finds the best docids by the search that fits the constraint; see `beam_search`."""
    if constraint.length == 1 and isinstance(constraint, TrieConstraint):
        # Whatever is done about finished docids, all end here.
        return atomic_search(
            decode,
            memory,
            mask,
            constraint=constraint,
            beam_size=beam_size,
            renormalize=renormalize,
        )
    if finished is None:
        beams, _ = decode_levels(
            decode,
            memory,
            mask,
            constraint=constraint,
            pick=_Best(beam_size),
            renormalize=renormalize,
        )
        place = constraint.docids(beams.state, beams.tokens)
        return Docids(place, beams.scores, beams.live, beams.tokens)
    _, pool = decode_levels(
        decode,
        memory,
        mask,
        constraint=constraint,
        pick=finished_pool.Pooling(beam_size, finished),
        extra=finished_pool.empty_pool(mask.shape[0], beam_size, constraint.length),
        renormalize=renormalize,
    )
    return finished_pool.docids_of(pool, constraint)


@dataclasses.dataclass(frozen=True)
class _Best:
    """See `levels.Picker`: the best candidates of each query."""

    beam_size: int
    jumps = True

    def width(self, num_beams: int, num_children: int) -> int:
        return min(self.beam_size, num_beams * num_children)

    def __call__(self, level: Level, extra: None) -> tuple[Beams, None]:
        return best_candidates(level, self.beam_size), extra
