"""What a beam may be extended with: any token (`Free`) or the children of its trie node.

A constraint is a pytree, an argument of the jitted search: another table of the same shapes
reuses the compiled program. The search knows constraints by the methods of `Constraint` alone.
What indexes a candidate (an edge of the trie, a bit of a mask, a token) is the constraint's own
affair, level by level, and ``allowed`` is per query.
"""

from typing import Any, NamedTuple, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dsi_jax.decoding import trie as trie_lib
from dsi_jax.decoding.document_sets import DocumentSets, bits_from
from dsi_jax.docids.table import END_TOKEN, PAD_TOKEN

_NARROW = 64  # levels of so few children are decoded as if they had as many as the widest of them


class Candidates(NamedTuple):
    """The K ways to extend each beam at one level.

    Attributes:
      logits: float32 [B, M, K], the model's logit of each candidate's token; finite wherever the
        model's are, meaningful only where allowed.
      allowed: bool [B, M, K], whether there is such a candidate.
      forced: bool, broadcastable to [B, M, K]: the pad after an end token, which scores 0.
    """

    logits: jax.Array
    allowed: jax.Array
    forced: jax.Array


class Span(NamedTuple):
    """Levels ``start`` to ``stop - 1``, which one program can decode, one after the other.

    Attributes:
      start: the first level.
      stop: the level after the last.
      width: K, the number of candidates that `Constraint.expand` gives each beam.
    """

    start: int
    stop: int
    width: int


class Constraint(Protocol):
    """The interface between the beam search and the set of allowed docids.

    ``state`` is a pytree of arrays [B, M, ...] that the search reorders along with the beams;
    ``level`` may be traced, `Span` is static.
    """

    @property
    def length(self) -> int:
        """L, the number of decoding steps."""

    @property
    def vocab_size(self) -> int:
        """V, which the decoder's logits must have at least."""

    @property
    def trie(self) -> trie_lib.Trie:
        """The documents."""

    @property
    def spans(self) -> tuple[Span, ...]:
        """All levels, in order."""

    @property
    def jump(self) -> int | None:
        """The level from which on beams usually have one docid left, or None.

        It lies in the last span. Without one, `decided` and `rest` are not asked for.
        """

    def start(self, batch_size: int) -> Any:
        """The state of one empty beam a query."""

    def expand(
        self, span: Span, level: jax.Array | int, state: Any, logits_BxMxV: jax.Array
    ) -> Candidates:
        """The candidates for each beam at ``level``."""

    def advance(
        self, span: Span, level: jax.Array | int, state: Any, choice_BxM: jax.Array
    ) -> tuple[jax.Array, Any]:
        """The token, int32 [B, M], and the next state of beams that took candidate ``choice``."""

    def decided(self, state: Any) -> jax.Array:
        """Whether one docid is left of each beam, bool [B, M]; anything where not live."""

    def rest(self, state: Any, level: int) -> jax.Array:
        """The tokens from ``level`` on of beams that are decided, int32 [B, M, L - level]."""

    def docids(self, state: Any, tokens_BxMxL: jax.Array) -> jax.Array:
        """The place among the trie's docids of each complete beam, int32 [B, M]; -1: it is none."""

    def documents(self, place_BxM: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The number of the first document of each docid and how many it has, int32 [B, M]."""

    def rows(self, document_BxM: jax.Array) -> jax.Array:
        """The row of each document by its number, int32 [B, M]; some row where there is none."""


class _OfTrie:
    """The sizes of a constraint's docids, which are its trie's."""

    trie: trie_lib.Trie

    @property
    def length(self) -> int:
        return self.trie.length

    @property
    def vocab_size(self) -> int:
        return self.trie.vocab_size


@flax.struct.dataclass
class TrieConstraint(_OfTrie):
    """Beams walk the trie: each result is a document of the table.

    The state is where a beam stands, a `trie.Range`.

    Attributes:
      trie: the documents.
      sets: None: all of them. Else sets of documents (`filters.document_sets`).
      set_of_query: int32 [B], the set that each query may find; given with `sets`.
    """

    trie: trie_lib.Trie
    sets: DocumentSets | None = None
    set_of_query: jax.Array | None = None

    @property
    def spans(self) -> tuple[Span, ...]:
        """Levels of edges and levels of tails apart, each cut where widths differ too much."""
        spans: list[Span] = []
        for level, width in enumerate(self.trie.widths):
            widest = max(spans[-1].width, width) if spans else width
            narrowest = min(self.trie.widths[spans[-1].start : level + 1]) if spans else width
            alike = widest <= max(_NARROW, 2 * narrowest)
            if spans and alike and level != self.trie.depth:
                spans[-1] = Span(spans[-1].start, level + 1, widest)
            else:
                spans.append(Span(level, level + 1, width))
        return tuple(spans)

    @property
    def jump(self) -> int | None:
        return self.trie.jump

    def start(self, batch_size: int) -> trie_lib.Range:
        shape = (batch_size, 1)
        return trie_lib.Range(*(jnp.broadcast_to(end, shape) for end in trie_lib.root(self.trie)))

    def expand(
        self, span: Span, level: jax.Array | int, state: trie_lib.Range, logits_BxMxV: jax.Array
    ) -> Candidates:
        ids_BxMxK, token_BxMxK = self._children(span, level, state)
        allowed_BxMxK = (ids_BxMxK < state.high[..., None]) & self._allows_from(state.low, span)
        alike = self._most_alike(span)
        if alike > 1:  # docids with the same token are one child, the first of them that is allowed
            seen_BxMxK, reach = token_BxMxK, 1
            if self.sets is not None:
                seen_BxMxK, reach = jnp.where(allowed_BxMxK, token_BxMxK, -1), alike - 1
            allowed_BxMxK &= token_BxMxK > _before(seen_BxMxK, reach)
        logits_BxMxK = jnp.take_along_axis(logits_BxMxV, token_BxMxK, axis=-1, mode="clip")
        return Candidates(logits_BxMxK, allowed_BxMxK, token_BxMxK == PAD_TOKEN)

    def advance(
        self, span: Span, level: jax.Array | int, state: trie_lib.Range, choice_BxM: jax.Array
    ) -> tuple[jax.Array, trie_lib.Range]:
        id_BxM = state.low + choice_BxM
        if not self._in_tails(span):
            token_BxM = trie_lib.tokens_of(self.trie, id_BxM, level, False)
            return token_BxM, trie_lib.below(self.trie, id_BxM)
        if span.start == self.length - 1:  # the last token leaves one docid
            token_BxM = trie_lib.tokens_of(self.trie, id_BxM, level, True)
            return token_BxM, trie_lib.Range(id_BxM, id_BxM + 1)
        here = trie_lib.Range(id_BxM, state.high)
        ids_BxMxK, token_BxMxK = self._children(span, level, here)
        same_BxMxK = (ids_BxMxK < state.high[..., None]) & (token_BxMxK == token_BxMxK[..., :1])
        count_BxM = same_BxMxK.sum(-1, dtype=jnp.int32)  # equal tokens follow each other
        return token_BxMxK[..., 0], trie_lib.Range(id_BxM, id_BxM + count_BxM)

    def decided(self, state: trie_lib.Range) -> jax.Array:
        return state.high - state.low <= 1

    def rest(self, state: trie_lib.Range, level: int) -> jax.Array:
        levels_T = np.arange(level, self.length)
        return trie_lib.tokens_of(self.trie, state.low[..., None], levels_T, True)

    def docids(self, state: trie_lib.Range, tokens_BxMxL: jax.Array) -> jax.Array:
        del tokens_BxMxL  # the range holds the docid alone
        return state.low - self.trie.first_leaf

    def documents(self, place_BxM: jax.Array) -> tuple[jax.Array, jax.Array]:
        if self.sets is None or self.sets.runs is None:
            return trie_lib.run_of_docid(self.trie, place_BxM)
        start_BxM = self._of_set(self.sets.runs, place_BxM)
        return start_BxM, self._of_set(self.sets.runs, place_BxM + 1) - start_BxM

    def rows(self, document_BxM: jax.Array) -> jax.Array:
        if self.sets is None or self.sets.rows is None:
            return trie_lib.rows_at(self.trie, document_BxM)
        return self._of_set(self.sets.rows, document_BxM)

    def allows(self, ids: jax.Array) -> jax.Array | bool:
        """Whether each id, of the shape [B, ...], leads to a document that its query may find."""
        if self.sets is None:
            return True
        words = self._of_set(self.sets.alive, ids >> 5)
        return (words >> (ids & 31).astype(jnp.uint32)) & 1 == 1

    def _allows_from(self, low_BxM: jax.Array, span: Span) -> jax.Array | bool:
        """Whether each of the ids that a range begins with leads to such a document, [B, M, K]."""
        if self.sets is None:
            return True
        set_BxM = jnp.broadcast_to(self.set_of_query[:, None], low_BxM.shape)
        return bits_from(self.sets.alive, set_BxM, low_BxM, span.width)

    def _in_tails(self, span: Span) -> bool:
        return span.start >= self.trie.depth

    def _most_alike(self, span: Span) -> int:
        """How many of the ids below a node may have one token: edges differ, docids may not."""
        if not self._in_tails(span):
            return 1
        return max((1, *self.trie.widths[span.start + 1 : span.stop + 1]))

    def _children(
        self, span: Span, level: jax.Array | int, state: trie_lib.Range
    ) -> tuple[jax.Array, jax.Array]:
        """Ids and tokens, int32 [B, M, K], of what each range begins with."""
        ids_BxMxK = state.low[..., None] + jnp.arange(span.width, dtype=jnp.int32)
        in_tails = self._in_tails(span)
        return ids_BxMxK, trie_lib.tokens_from(self.trie, state.low, span.width, level, in_tails)

    def _of_set(self, array_AxI: jax.Array, index: jax.Array) -> jax.Array:
        """What an array holds for each query's set at indices [B, ...]."""
        set_of_query = self.set_of_query.reshape(-1, *[1] * (index.ndim - 1))
        sets = jnp.broadcast_to(set_of_query, index.shape)
        return jnp.asarray(array_AxI).at[sets, index].get(mode="clip")


def _before(token_BxMxK: jax.Array, reach: int) -> jax.Array:
    """The largest of at least `reach` tokens before each, int32 [B, M, K]; -1 before the first.

    By doubling: each pass runs over whole rows, and XLA may not make one pass of all.
    `jax.lax.cummax` takes 3 to 15 times as long on CPUs.
    """
    first_BxMx1 = jnp.full((*token_BxMxK.shape[:-1], 1), -1, token_BxMxK.dtype)
    step = 1
    while step < min(reach, token_BxMxK.shape[-1]):
        later = jnp.maximum(token_BxMxK[..., step:], token_BxMxK[..., :-step])
        token_BxMxK = jnp.concatenate([token_BxMxK[..., :step], later], axis=-1)
        token_BxMxK = jax.lax.optimization_barrier(token_BxMxK)
        step *= 2
    return jnp.concatenate([first_BxMx1, token_BxMxK[..., :-1]], axis=-1)


@flax.struct.dataclass
class Free(_OfTrie):
    """Any token may follow, the end token being followed by pads; rows are looked up afterwards.

    The state says whether a beam has ended. Sequences that are no document's docid are found at
    the rate at which the model believes in them: that is what this constraint measures.
    """

    trie: trie_lib.Trie

    @property
    def spans(self) -> tuple[Span, ...]:
        return (Span(0, self.length, self.vocab_size),)

    @property
    def jump(self) -> int | None:
        return None

    def start(self, batch_size: int) -> jax.Array:
        return jnp.zeros((batch_size, 1), bool)

    def expand(
        self, span: Span, level: jax.Array | int, state: jax.Array, logits_BxMxV: jax.Array
    ) -> Candidates:
        del span, level
        ended_BxMx1 = state[..., None]
        is_pad_V = jnp.arange(self.vocab_size) == PAD_TOKEN
        logits_BxMxV = logits_BxMxV[..., : self.vocab_size]  # a model's may be padded
        return Candidates(logits_BxMxV, ~ended_BxMx1 | is_pad_V, ended_BxMx1)

    def advance(
        self, span: Span, level: jax.Array | int, state: jax.Array, choice_BxM: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        del span, level
        return choice_BxM, state | (choice_BxM == END_TOKEN)

    def docids(self, state: jax.Array, tokens_BxMxL: jax.Array) -> jax.Array:
        del state
        return trie_lib.lookup(self.trie, tokens_BxMxL)

    def documents(self, place_BxM: jax.Array) -> tuple[jax.Array, jax.Array]:
        return trie_lib.run_of_docid(self.trie, place_BxM)

    def rows(self, document_BxM: jax.Array) -> jax.Array:
        return trie_lib.rows_at(self.trie, document_BxM)
