"""Docids of one token: a search is a top-k of the first logits.

Where the mesh splits the vocabulary, each part of it ranks its own tokens, and only the best of
the parts are gathered: logits never leave the devices that computed them.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from dsi_jax.decoding import trie as trie_lib
from dsi_jax.decoding.constraint import TrieConstraint
from dsi_jax.decoding.decode_loop import DecodeFns, next_logits
from dsi_jax.decoding.result import Docids
from dsi_jax.docids.table import PAD_TOKEN


def atomic_search(
    decode: DecodeFns,
    memory: Any,
    mask: jax.Array,
    *,
    constraint: TrieConstraint,
    beam_size: int,
    renormalize: bool = False,
) -> Docids:
    """The best docids of a table with L = 1, best first; equal scores keep the order of tokens.

    Args:
      decode: the decoder; its V may exceed the table's.
      memory: the encoded queries.
      mask: bool [B, S], which memory positions are real.
      constraint: the allowed docids.
      beam_size: M.
      renormalize: divide probabilities among the allowed docids.
    """
    cache = decode.init_cache(memory, mask, 1, 1)
    first_Bx1 = jnp.full((mask.shape[0], 1), PAD_TOKEN, jnp.int32)
    lineage_Bx1x1 = jnp.zeros((mask.shape[0], 1, 1), jnp.int32)
    logits_BxV = next_logits(decode, cache, first_Bx1, 0, lineage_Bx1x1, constraint)[0][:, 0]
    axes = ("batch", "vocab")
    logits_BxV = nn.with_logical_constraint(logits_BxV, axes)
    place_V = _places(constraint.trie, logits_BxV.shape[1])
    allowed_1xV = (place_V >= 0)[None]
    ids_BxV = jnp.broadcast_to(constraint.trie.first_leaf + place_V, logits_BxV.shape)
    allowed_BxV = allowed_1xV & constraint.allows(ids_BxV)
    allowed_BxV = nn.with_logical_constraint(allowed_BxV, axes)
    counted = allowed_BxV | ~allowed_BxV.any(1, keepdims=True) if renormalize else None
    normalizer_Bx1 = jax.nn.logsumexp(logits_BxV, axis=1, keepdims=True, where=counted)
    scores_BxV = jnp.where(allowed_BxV, logits_BxV - normalizer_Bx1, -jnp.inf)
    scores_BxM, token_BxM = two_stage_top_k(scores_BxV, min(beam_size, scores_BxV.shape[1]))
    live_BxM = scores_BxM > -jnp.inf
    return Docids(
        place=jnp.take(place_V, token_BxM, mode="clip"),
        scores=jnp.where(live_BxM, scores_BxM, 0.0),
        live=live_BxM,
        tokens=token_BxM[..., None],
    )


def two_stage_top_k(scores_BxV: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """`jax.lax.top_k`, first on each part of a vocabulary that the mesh splits, then of the best.

    Args:
      scores_BxV: scores; how they lie is said by the logical axis rules that are active while this
        is traced, as for the models' activations.
      k: at most V.

    Returns:
      Scores and int32 indices [B, k], best first; of equal ones the lower index first.
    """
    batch_axes, vocab_axes = nn.logical_to_mesh_axes(("batch", "vocab"))
    if _num_parts(vocab_axes) == 1:
        return jax.lax.top_k(scores_BxV, k)

    def rank_part(scores_BxC: jax.Array) -> tuple[jax.Array, jax.Array]:
        num_tokens = scores_BxC.shape[1]
        best, index = jax.lax.top_k(scores_BxC, min(k, num_tokens))
        index += jax.lax.axis_index(vocab_axes) * num_tokens
        best, index = jax.lax.all_gather((best, index), vocab_axes, axis=1, tiled=True)
        best, of_best = jax.lax.top_k(best, k)
        return best, jnp.take_along_axis(index, of_best, axis=1)

    found = PartitionSpec(batch_axes)
    return jax.shard_map(
        rank_part,
        in_specs=PartitionSpec(batch_axes, vocab_axes),
        out_specs=(found, found),
        check_vma=False,  # the same on all parts, being merged from all
    )(scores_BxV)


def _num_parts(axes: str | tuple[str, ...] | None) -> int:
    """Among how many parts of the active mesh these axes split a dimension."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or axes is None:
        return 1
    return math.prod(mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes))


def _places(trie: trie_lib.Trie, vocab_size: int) -> jax.Array:
    """int32 [V]: the place of each token's docid among the sorted ones, -1 where there is none."""
    place_U = jnp.arange(trie.tails.shape[1], dtype=jnp.int32)
    token_U = trie_lib.tokens_of(trie, trie.first_leaf + place_U, 0, True)
    num_docids = trie.indptr[-1] - trie.first_leaf
    token_U = jnp.where(place_U < num_docids, token_U, vocab_size)
    place_V = jnp.full(vocab_size, -1, jnp.int32)
    return place_V.at[token_U].set(place_U, mode="drop", indices_are_sorted=True)
