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

from dsi_jax.decoding import trie as trie_lib
from dsi_jax.docids.table import END_TOKEN, PAD_TOKEN


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


class Constraint(Protocol):
    """The interface between the beam search and the set of allowed docids.

    ``state`` is a pytree of arrays [B, M, ...] that the search reorders along with the beams.
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

    def start(self, batch_size: int) -> Any:
        """The state of one empty beam a query."""

    def width(self, level: int) -> int:
        """K, the number of candidates that `expand` gives each beam at ``level``; static."""

    def expand(self, level: int, state: Any, logits_BxMxV: jax.Array) -> Candidates:
        """The candidates for each beam at ``level``."""

    def advance(self, level: int, state: Any, choice_BxM: jax.Array) -> tuple[jax.Array, Any]:
        """The token, int32 [B, M], and the next state of beams that took candidate ``choice``."""

    def leaves(self, state: Any, tokens_BxMxL: jax.Array) -> jax.Array:
        """The trie's leaf of each complete beam, int32 [B, M]; 0 where there is none."""


@flax.struct.dataclass
class TrieConstraint:
    """Beams walk the trie: each result is a document of the table. The state is the node."""

    trie: trie_lib.Trie

    @property
    def length(self) -> int:
        return self.trie.length

    @property
    def vocab_size(self) -> int:
        return self.trie.vocab_size

    def start(self, batch_size: int) -> jax.Array:
        return jnp.zeros((batch_size, 1), jnp.int32)

    def width(self, level: int) -> int:
        return self.trie.branching[level]

    def expand(self, level: int, state: jax.Array, logits_BxMxV: jax.Array) -> Candidates:
        first_BxM, end_BxM = trie_lib.edges_below(self.trie, state)
        edge_BxMxK = first_BxM[..., None] + jnp.arange(self.width(level), dtype=jnp.int32)
        allowed_BxMxK = edge_BxMxK < end_BxM[..., None]
        token_BxMxK = trie_lib.tokens_of(self.trie, edge_BxMxK)
        logits_BxMxK = jnp.take_along_axis(logits_BxMxV, token_BxMxK, axis=-1, mode="clip")
        return Candidates(logits_BxMxK, allowed_BxMxK, token_BxMxK == PAD_TOKEN)

    def advance(
        self, level: int, state: jax.Array, choice_BxM: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        del level  # every level is the one CSR
        edge_BxM = trie_lib.edges_below(self.trie, state)[0] + choice_BxM
        return trie_lib.tokens_of(self.trie, edge_BxM), edge_BxM + 1

    def leaves(self, state: jax.Array, tokens_BxMxL: jax.Array) -> jax.Array:
        del tokens_BxMxL  # the node is the leaf
        return state


@flax.struct.dataclass
class Free:
    """Any token may follow, the end token being followed by pads; rows are looked up afterwards.

    The state says whether a beam has ended. Sequences that are no document's docid are found at
    the rate at which the model believes in them: that is what this constraint measures.
    """

    trie: trie_lib.Trie

    @property
    def length(self) -> int:
        return self.trie.length

    @property
    def vocab_size(self) -> int:
        return self.trie.vocab_size

    def start(self, batch_size: int) -> jax.Array:
        return jnp.zeros((batch_size, 1), bool)

    def width(self, level: int) -> int:
        del level
        return self.vocab_size

    def expand(self, level: int, state: jax.Array, logits_BxMxV: jax.Array) -> Candidates:
        del level
        ended_BxMx1 = state[..., None]
        is_pad_V = jnp.arange(self.vocab_size) == PAD_TOKEN
        logits_BxMxV = logits_BxMxV[..., : self.vocab_size]  # a model's may be padded
        return Candidates(logits_BxMxV, ~ended_BxMx1 | is_pad_V, ended_BxMx1)

    def advance(
        self, level: int, state: jax.Array, choice_BxM: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        del level
        return choice_BxM, state | (choice_BxM == END_TOKEN)

    def leaves(self, state: jax.Array, tokens_BxMxL: jax.Array) -> jax.Array:
        del state
        return trie_lib.lookup(self.trie, tokens_BxMxL)
