"""A beam search as T5X makes it (Roberts et al. 2022, `t5x/decoding.py`), with a trie in its cache.

Written small for the benchmarks: what makes it T5X's is that queries are repeated M times from the
first step on, their encoder states and projected keys and values too; that 2 M candidates of the
whole vocabulary are kept; that beams are reordered by products with one-hot matrices; and that one
loop decodes all levels. T5X's second pool, of finished sequences, is left out: docids of one length
finish together.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dsi_jax.decoding.trie import Trie, build_trie
from dsi_jax.docids.table import DocidTable

_NEVER = -1e7  # T5X's minus infinity


@flax.struct.dataclass
class Children:
    """Every level of a trie as CSR: node ``edge + 1`` is below an edge, 0 is the root."""

    tokens: jax.Array
    indptr: jax.Array
    width: int = flax.struct.field(pytree_node=False)

    @classmethod
    def of(cls, table: DocidTable) -> "Children":
        """The children of a table's prefixes; docids have one length and no ties."""
        trie: Trie = build_trie(table, table.length - 1)
        num_edges = int(trie.first_leaf)
        last = table.tokens[table.order, -1]
        num_nodes = int(np.searchsorted(trie.indptr, num_edges + len(last))) + 1
        return cls(
            jnp.asarray(np.concatenate([trie.tokens[:num_edges], last]), jnp.int32),
            jnp.asarray(trie.indptr[:num_nodes]),
            max(trie.widths),
        )


class _State(NamedTuple):
    scores: jax.Array  # [B, M]
    tokens: jax.Array  # [B, M, L]
    last: jax.Array  # [B, M]
    node: jax.Array  # [B, M]
    cache: Any  # leaves [B M, 1, ...]


def make_t5x_search(
    model: nn.Module, beam_size: int, length: int
) -> Callable[[Any, Mapping[str, Any], Children | None], tuple[jax.Array, jax.Array]]:
    """A jitted search: ``(params, batch, children) -> (tokens [B, M, L], scores [B, M])``."""

    def search(
        params: Any, batch: Mapping[str, Any], children: Children | None
    ) -> tuple[jax.Array, jax.Array]:
        def apply(*args: Any, **options: Any) -> Any:
            return model.apply({"params": params}, *args, **options)

        memory, mask = apply(batch, method="encode")
        batch_size = mask.shape[0]
        memory, mask = (jnp.repeat(x, beam_size, axis=0) for x in (memory, mask))
        cache = apply(memory, mask, num_beams=1, length=length, method="init_cache")
        shape = (batch_size, beam_size)
        itself = jnp.zeros((batch_size * beam_size, 1, length), jnp.int32)
        state = _State(
            jnp.full(shape, _NEVER).at[:, 0].set(0.0),
            jnp.zeros((*shape, length), jnp.int32),
            jnp.zeros(shape, jnp.int32),
            jnp.zeros(shape, jnp.int32),
            cache["self"],
        )

        def step(level: jax.Array, state: _State) -> _State:
            logits, new = apply(
                {"self": state.cache, "cross": cache["cross"]},
                state.last.reshape(-1, 1),
                level,
                itself,
                method="decode_step",
            )
            log_probs = jax.nn.log_softmax(logits[:, 0]).reshape(*shape, -1)
            if children is not None:
                log_probs = jnp.where(_allowed(children, state.node, log_probs), log_probs, _NEVER)
            return _grow(state, log_probs, new["self"], children, level)

        state = jax.lax.fori_loop(0, length, step, state)
        return state.tokens, state.scores

    return jax.jit(search)


def _grow(
    state: _State, log_probs: jax.Array, cache: Any, children: Children | None, level: jax.Array
) -> _State:
    batch_size, beam_size, vocab_size = log_probs.shape
    total = (state.scores[..., None] + log_probs).reshape(batch_size, -1)
    scores, index = jax.lax.top_k(total, min(2 * beam_size, total.shape[1]))
    scores, index = scores[:, :beam_size], index[:, :beam_size]
    parent, token = index // vocab_size, index % vocab_size
    one_hot = jax.nn.one_hot(parent, beam_size, dtype=jnp.float32)

    def follow(x: jax.Array) -> jax.Array:
        beams = x.reshape(batch_size, beam_size, *x.shape[1:])
        return jnp.einsum("beo,bo...->be...", one_hot, beams).astype(x.dtype).reshape(x.shape)

    node = jnp.take_along_axis(state.node, parent, axis=1)
    if children is not None:
        edges, tokens = _edges(children, node)
        node = jnp.take_along_axis(edges, (tokens == token[..., None]).argmax(-1)[..., None], -1)
        node = node[..., 0] + 1
    history = jnp.take_along_axis(state.tokens, parent[..., None], axis=1)
    return _State(
        scores, history.at[:, :, level].set(token), token, node, jax.tree.map(follow, cache)
    )


def _edges(children: Children, node: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Edges and tokens [B, M, K] below each node; -1 for the token where there is none."""
    start = jnp.take(children.indptr, node, mode="clip")
    end = jnp.take(children.indptr, node + 1, mode="clip")
    edges = start[..., None] + jnp.arange(children.width)
    tokens = jnp.take(children.tokens, edges, mode="clip")
    return edges, jnp.where(edges < end[..., None], tokens, -1)


def _allowed(children: Children, node: jax.Array, log_probs: jax.Array) -> jax.Array:
    """bool [B, M, V]."""
    _, tokens = _edges(children, node)
    tokens = jnp.where(tokens < 0, log_probs.shape[-1], tokens)
    batch, beam = jnp.indices(node.shape)
    allowed = jnp.zeros(log_probs.shape, bool)
    return allowed.at[batch[..., None], beam[..., None], tokens].set(True, mode="drop")
