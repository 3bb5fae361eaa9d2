"""Decoding level by level: what beam search and sampling have in common.

The first step decodes one beam, and beams multiply only as fast as whoever picks among the
candidates lets them: these levels are programs of their own. Once there are as many beams as there
will be, one program decodes all levels in a loop, so that the time to compile does not grow with L;
in it, levels of like width share what expands and picks. Where every beam has one docid left, all
tokens to come are known: the loop ends, and one pass of the decoder scores them. What the decoder
remembers of a beam stays where it was written: a beam's lineage says where that is. Trace it under
one ``jit`` with the model (`dsi_jax.decoding.adapter.make_search`).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from dsi_jax.decoding.constraint import Candidates, Constraint, Span
from dsi_jax.docids.table import PAD_TOKEN


class DecodeFns(NamedTuple):
    """A decoder as functions with its parameters bound.

    Attributes:
      init_cache: ``(memory, mask, num_beams, length) -> cache``, a pytree with room for so many
        beams at every position.
      step: ``(cache, tokens int32 [B, M], position int32 [], lineage int32 [B, M, L]) ->
        (logits [B, M, V], cache)``, where ``tokens`` are the decoder's inputs at ``position``, 0
        (pad) at the first. A beam's earlier position l was decoded as beam ``lineage[b, m, l]``;
        from ``position`` on, lineage is the beam's own number. So a cache need not be reordered.
      score: ``(cache, inputs int32 [B, M, T], targets int32 [B, M, T], position, lineage) ->
        float32 [B, M]``, the sum of the log-probabilities of ``targets`` (of pads: 0) after
        ``inputs`` at ``position`` and the positions that follow. None: all levels are decoded one
        by one.
    """

    init_cache: Callable[[Any, Any, int, int], Any]
    step: Callable[[Any, jax.Array, jax.Array | int, jax.Array], tuple[jax.Array, Any]]
    score: Callable[[Any, jax.Array, jax.Array, int, jax.Array], jax.Array] | None = None


class Beams(NamedTuple):
    """The beams between two levels; ``live`` says which exist, never a score of -inf."""

    scores: jax.Array  # float32 [B, M], 0 where not live
    live: jax.Array  # bool [B, M]
    last: jax.Array  # int32 [B, M], the token that the decoder reads next
    tokens: jax.Array  # int32 [B, M, L], pads where not decoded yet
    state: Any  # the constraint's
    lineage: jax.Array  # int32 [B, M, L], see `DecodeFns.step`; up to the last level decoded


class Level(NamedTuple):
    """One level's candidates for the beams.

    Attributes:
      span: the span that the level is of.
      number: the level; may be traced.
      beams: what they extend.
      candidates: the constraint's.
      scores: float32 [B, M, K], of the beam and the candidate; finite, also where not allowed.
      constraint: the constraint.
    """

    span: Span
    number: jax.Array | int
    beams: Beams
    candidates: Candidates
    scores: jax.Array
    constraint: Constraint


class Picker(Protocol):
    """Picks the candidates that become the next beams.

    Attributes:
      jumps: whether levels may be left out at which each beam has one candidate: their scores are
        added to those of the last.
    """

    jumps: bool

    def width(self, num_beams: int, num_children: int) -> int:
        """The beams after a level of which there were `num_beams`, each with so many children."""

    def __call__(self, level: Level, extra: Any) -> tuple[Beams, Any]:
        """The next beams, see `extend`, and whatever else is carried from level to level."""


def decode_levels(
    decode: DecodeFns,
    memory: Any,
    mask: jax.Array,
    *,
    constraint: Constraint,
    pick: Picker,
    extra: Any = None,
    renormalize: bool = False,
) -> tuple[Beams, Any]:
    """Decodes all levels.

    Args:
      decode: the decoder.
      memory: the encoded queries, handed to ``decode.init_cache``; usually float [B, S, D].
      mask: bool [B, S], which memory positions are real.
      constraint: the allowed docids; gives L.
      pick: says which candidates become beams.
      extra: what `pick` carries from level to level, before the first.
      renormalize: divide probabilities among the allowed children of a beam instead of the whole
        vocabulary.

    Returns:
      The beams after the last level, and what `pick` carried.

    Raises:
      ValueError: the decoder's logits have fewer tokens than the constraint.
    """

    levels = _Levels(decode, constraint, pick, renormalize)
    num_beams = levels.num_beams()
    cache = decode.init_cache(memory, mask, num_beams[-1], constraint.length)
    carry = _one_empty_beam(mask.shape[0], constraint), cache, extra
    growing = num_beams.index(num_beams[-1])
    for number in range(growing):
        carry = levels.one(levels.spans(number, number + 1), number, carry)
    beams, _, extra = levels.all_from(growing, carry)
    return beams, extra


@dataclasses.dataclass(frozen=True)
class _Levels:
    """See `decode_levels`; a carry is (beams, cache, what the picker carries)."""

    decode: DecodeFns
    constraint: Constraint
    pick: Picker
    renormalize: bool

    def num_beams(self) -> list[int]:
        """The beams before each level and after the last; they never become fewer."""
        numbers = [1]
        for span in self.constraint.spans:
            for _ in range(span.start, span.stop):
                numbers.append(max(numbers[-1], self.pick.width(numbers[-1], span.width)))
        return numbers

    def spans(self, start: int, stop: int) -> list[Span]:
        """Those that have a level from `start` to `stop - 1`."""
        return [span for span in self.constraint.spans if span.start < stop and start < span.stop]

    def one(self, spans: list[Span], number: jax.Array | int, carry: tuple) -> tuple:
        """One level, which is of one of these spans."""
        beams, cache, extra = carry
        beams = _at_level(beams, number)
        logits_BxMxV, cache = next_logits(
            self.decode, cache, beams.last, number, beams.lineage, self.constraint
        )
        branches = [functools.partial(self._picked, span) for span in spans]
        later = [number >= span.start for span in spans[1:]]
        index = jnp.asarray(later, jnp.int32).sum()
        beams, extra = jax.lax.switch(index, branches, number, logits_BxMxV, beams, extra)
        return beams, cache, extra

    def all_from(self, number: int, carry: tuple) -> tuple:
        """All levels from one on, at which there are as many beams as there will be."""
        length = self.constraint.length
        spans = self.spans(number, length)
        if length - number <= 1:
            return self.one(spans, number, carry) if spans else carry
        jump = self._jump_from(number)

        def goes_on(state: tuple) -> jax.Array:
            level, (beams, _, _) = state
            more = level < length
            if jump is not None:
                decided = (self.constraint.decided(beams.state) | ~beams.live).all()
                more &= ~((level == jump) & decided)
            return more

        def go_on(state: tuple) -> tuple:
            level, carry = state
            return level + 1, self.one(spans, level, carry)

        level, carry = jax.lax.while_loop(goes_on, go_on, (jnp.int32(number), carry))
        if jump is None:
            return carry
        beams, cache, extra = carry
        beams, extra = jax.lax.cond(
            level < length,
            lambda: self._pass_over(jump, beams, cache, extra),
            lambda: (beams, extra),
        )
        return beams, cache, extra

    def _picked(
        self,
        span: Span,
        number: jax.Array | int,
        logits_BxMxV: jax.Array,
        beams: Beams,
        extra: Any,
    ) -> tuple[Beams, Any]:
        """The next beams, by the logits of a level."""
        candidates = self.constraint.expand(span, number, beams.state, logits_BxMxV)
        log_probs_BxMxK = _log_probs(candidates, logits_BxMxV, self.renormalize)
        scores_BxMxK = beams.scores[..., None] + log_probs_BxMxK
        level = Level(span, number, beams, candidates, scores_BxMxK, self.constraint)
        return self.pick(level, extra)

    def _jump_from(self, number: int) -> int | None:
        """The level from which on levels may be passed over; None: from none."""
        if self.constraint.jump is None or self.decode.score is None or not self.pick.jumps:
            return None
        level = max(self.constraint.jump, number)
        return level if self.constraint.length - level > 1 else None

    def _pass_over(self, start: int, beams: Beams, cache: Any, extra: Any) -> tuple[Beams, Any]:
        """The beams after the last level, of which each has one docid left at level `start`."""
        beams = _at_level(beams, start)
        targets_BxMxT = self.constraint.rest(beams.state, start)
        beams = beams._replace(tokens=beams.tokens.at[:, :, start:].set(targets_BxMxT))
        scores_BxM = beams.scores
        if not self.renormalize:  # else the only child of a node has the probability 1
            inputs = [beams.last[..., None], targets_BxMxT[..., :-1]]
            inputs_BxMxT = jnp.concatenate(inputs, axis=-1)
            scores_BxM += self.decode.score(
                cache, inputs_BxMxT, targets_BxMxT, start, beams.lineage
            )
        # To whoever picks, it is the last level, with one candidate for each beam.
        only_BxMx1 = beams.live[..., None]
        candidates = Candidates(jnp.zeros(only_BxMx1.shape), only_BxMx1, ~only_BxMx1)
        last = self.constraint.spans[-1]
        scores_BxMx1 = scores_BxM[..., None]
        level = Level(last, last.stop - 1, beams, candidates, scores_BxMx1, self.constraint)
        return self.pick(level, extra)


def next_logits(
    decode: DecodeFns,
    cache: Any,
    last_BxM: jax.Array,
    number: jax.Array | int,
    lineage_BxMxL: jax.Array,
    constraint: Constraint,
) -> tuple[jax.Array, Any]:
    """The logits of a level, float32 [B, M, V], and the cache after it.

    Raises:
      ValueError: the decoder's logits have fewer tokens than the constraint.
    """
    logits_BxMxV, cache = decode.step(cache, last_BxM, number, lineage_BxMxL)
    if logits_BxMxV.shape[-1] < constraint.vocab_size:
        raise ValueError(
            f"the decoder's logits have a vocabulary of {logits_BxMxV.shape[-1]}; expected the "
            f"docid table's {constraint.vocab_size}, or a padded one"
        )
    return logits_BxMxV.astype(jnp.float32), cache


def best_candidates(level: Level, most: int) -> Beams:
    """The best candidates of each query, at most so many, as beams; best first."""
    exists = (level.candidates.allowed & level.beams.live[..., None]).reshape(len(level.scores), -1)
    scores = jnp.where(exists, level.scores.reshape(exists.shape), -jnp.inf)
    _, index = jax.lax.top_k(scores, min(most, exists.shape[1]))
    return extend(level, index, jnp.take_along_axis(exists, index, axis=1, mode="clip"))


def extend(level: Level, index_BxW: jax.Array, live_BxW: jax.Array) -> Beams:
    """The beams that candidates become.

    Args:
      level: the level.
      index_BxW: int32, among all candidates of a query, M times K.
      live_BxW: bool, which of these candidates there are.
    """
    batch_size, _, num_children = level.scores.shape
    parent, choice = index_BxW // num_children, index_BxW % num_children
    beams = level.beams
    tokens, lineage, state = follow((beams.tokens, beams.lineage, beams.state), parent)
    token, state = level.constraint.advance(level.span, level.number, state, choice)
    scores = jnp.take_along_axis(
        level.scores.reshape(batch_size, -1), index_BxW, axis=1, mode="clip"
    )
    return Beams(
        scores=jnp.where(live_BxW, scores, 0.0),
        live=live_BxW,
        last=token,
        tokens=tokens.at[:, :, level.number].set(token),
        state=state,
        lineage=lineage,
    )


def follow(tree: Any, parent_BxM: jax.Array) -> Any:
    """Each leaf [B, M', ...] reordered along its beams, to [B, M, ...]."""
    return jax.tree.map(
        lambda leaf: jax.vmap(lambda x, i: jnp.take(x, i, axis=0, mode="clip"))(leaf, parent_BxM),
        tree,
    )


def _one_empty_beam(batch_size: int, constraint: Constraint) -> Beams:
    return Beams(
        scores=jnp.zeros((batch_size, 1), jnp.float32),
        live=jnp.ones((batch_size, 1), bool),
        last=jnp.full((batch_size, 1), PAD_TOKEN, jnp.int32),
        tokens=jnp.full((batch_size, 1, constraint.length), PAD_TOKEN, jnp.int32),
        state=constraint.start(batch_size),
        lineage=jnp.zeros((batch_size, 1, constraint.length), jnp.int32),
    )


def _at_level(beams: Beams, number: jax.Array | int) -> Beams:
    """Beams that are about to be decoded at a level, each under its own number."""
    length = beams.lineage.shape[-1]
    own_Mx1 = jnp.arange(beams.lineage.shape[1], dtype=jnp.int32)[:, None]
    return beams._replace(lineage=jnp.where(jnp.arange(length) < number, beams.lineage, own_Mx1))


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
