"""Finished docids apart from the beams, as Hugging Face's `generate` treats finished hypotheses.

Docids of several lengths can end before the last level. Then they either keep a beam, and compete
with all others to the end (`beam_search` by default), or make room for longer ones and wait in a
pool of the M best, as in transformers 4.57 (`GenerationMixin._beam_search`).
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dsi_jax.decoding import trie as trie_lib
from dsi_jax.decoding.constraint import Constraint
from dsi_jax.decoding.decode_loop import Beams, Level, best_candidates, follow
from dsi_jax.decoding.result import Docids
from dsi_jax.docids.table import END_TOKEN, PAD_TOKEN


@dataclasses.dataclass(frozen=True)
class AsGenerate:
    """What `generate` can be told about finished hypotheses, by its names and with its defaults.

    Scores become the sum of log-probabilities over length ** length_penalty; the end token counts.
    Where fewer than M docids were finished, slots stay empty that `generate` fills with sequences
    of score -1e9.

    Attributes:
      length_penalty: 0 leaves the sum as it is; above, longer docids are favoured.
      early_stopping: True: M finished docids end the search. False: it ends once the best beam, at
        its present length, is no better than the worst of them. "never": the same, but for what
        the best beam could become at the greatest length, if that is favoured.

    Raises:
      ValueError: early_stopping is something else.
    """

    length_penalty: float = 1.0
    early_stopping: bool | str = False

    def __post_init__(self) -> None:
        # 1 and 0 are equal to True and False, but not meant by them.
        if self.early_stopping != "never" and not isinstance(self.early_stopping, bool):
            raise ValueError(
                f"early_stopping is {self.early_stopping!r}; expected True, False or 'never'"
            )


class Pool(NamedTuple):
    """The finished docids of each query, best first.

    Attributes:
      scores: float32 [B, M], -inf where there is none.
      tokens: int32 [B, M, L].
      is_open: bool [B], whether more of them can come.
    """

    scores: jax.Array
    tokens: jax.Array
    is_open: jax.Array


def empty_pool(batch_size: int, beam_size: int, length: int) -> Pool:
    """The pool before the first level."""
    return Pool(
        jnp.full((batch_size, beam_size), -jnp.inf, jnp.float32),
        jnp.full((batch_size, beam_size, length), PAD_TOKEN, jnp.int32),
        jnp.ones(batch_size, bool),
    )


def docids_of(pool: Pool, constraint: Constraint) -> Docids:
    """The docids of a pool after the last level."""
    live_BxM = pool.scores > -jnp.inf
    place_BxM = trie_lib.lookup(constraint.trie, pool.tokens)
    return Docids(place_BxM, jnp.where(live_BxM, pool.scores, 0.0), live_BxM, pool.tokens)


@dataclasses.dataclass(frozen=True)
class Pooling:
    """See `levels.Picker`: the best M candidates that go on, the finished ones into a `Pool`.

    Attributes:
      beam_size: M.
      options: when to stop, and how to score.
    """

    beam_size: int
    options: AsGenerate
    jumps = False

    def width(self, num_beams: int, num_children: int) -> int:
        return min(self.beam_size, num_beams * num_children)

    def __call__(self, level: Level, extra: Pool) -> tuple[Beams, Pool]:
        # Of 2 M candidates at least M go on, as each beam ends in one way only.
        found = best_candidates(level, 2 * self.beam_size)
        is_last = level.number == level.constraint.length - 1
        ends_BxW = found.live & ((found.last == END_TOKEN) | is_last)
        pool = self._add(extra, found, ends_BxW, level)
        goes_on_BxW = found.live & ~ends_BxW
        order = jnp.argsort(~goes_on_BxW, axis=1, stable=True)
        beams = follow(found._replace(live=goes_on_BxW), order[:, : self._kept(level)])
        return beams, self._closed(pool, beams, level)

    def _kept(self, level: Level) -> int:
        return self.width(*level.scores.shape[1:])

    def _add(self, pool: Pool, found: Beams, ends_BxW: jax.Array, level: Level) -> Pool:
        """The pool with those of the best M candidates that end."""
        adds_BxW = ends_BxW & (jnp.arange(ends_BxW.shape[1]) < self.beam_size)
        adds_BxW &= pool.is_open[:, None]
        if self.options.early_stopping is True:
            adds_BxW &= ~_is_full(pool)[:, None]
        scores_BxW = found.scores / self._penalty(level.number + 1)
        scores = jnp.concatenate([pool.scores, jnp.where(adds_BxW, scores_BxW, -jnp.inf)], axis=1)
        tokens = jnp.concatenate([pool.tokens, found.tokens], axis=1)
        best_BxM, index_BxM = jax.lax.top_k(scores, self.beam_size)
        return pool._replace(scores=best_BxM, tokens=follow(tokens, index_BxM))

    def _closed(self, pool: Pool, beams: Beams, level: Level) -> Pool:
        """Closes the pool where no beam can better it."""
        length = level.number + 1
        if self.options.early_stopping == "never" and self.options.length_penalty > 0:
            length = level.constraint.length
        hope_B = beams.scores[:, 0] / self._penalty(length)
        better_B = ~_is_full(pool) | (hope_B > pool.scores.min(axis=1))
        return pool._replace(is_open=pool.is_open & beams.live[:, 0] & better_B)

    def _penalty(self, length: jax.Array | int) -> Any:
        return jnp.asarray(length, jnp.float32) ** self.options.length_penalty


def _is_full(pool: Pool) -> jax.Array:
    return (pool.scores > -jnp.inf).all(axis=1)
