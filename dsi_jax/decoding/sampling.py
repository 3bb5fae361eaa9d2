"""Ancestral sampling of docids, constrained level by level."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from dsi_jax.decoding.constraint import Constraint
from dsi_jax.decoding.decode_loop import Beams, DecodeFns, Level, decode_levels, extend, follow
from dsi_jax.decoding.result import Docids

_WIDE = 4096  # of more children of one beam, groups are drawn first


def sample_docids(
    decode: DecodeFns,
    memory: Any,
    mask: jax.Array,
    *,
    constraint: Constraint,
    num_samples: int,
    key: jax.Array,
    temperature: float = 1.0,
    renormalize: bool = False,
) -> Docids:
    """Draws docids of each query, independently and with replacement.

    At each level a sample goes on to one of the allowed children of its prefix, with the
    probabilities that the model gives these children, shared out among them: those of
    softmax(logits / temperature) over the allowed children. A docid is so drawn with the product of
    these. That is not the model's distribution over all sequences cut to the documents, which
    would need the probability of everything below a child before it is taken.

    Args:
      decode: the decoder.
      memory: the encoded queries.
      mask: bool [B, S], which memory positions are real.
      constraint: the allowed docids.
      num_samples: W, docids drawn a query, at least 1.
      key: the random key; equal keys give equal samples.
      temperature: above 0; below 1 sharpens, above 1 flattens.
      renormalize: as in `beam_search`, of the scores alone; with temperature 1 a score is then the
        logarithm of the probability of being drawn.

    Returns:
      W docids a query in the order in which they were drawn, repeats among them; scores are those
      of `beam_search`, whatever the temperature. None is live where nothing is allowed.

    Raises:
      ValueError: num_samples or temperature is out of its range.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; expected at least 1")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; expected it above 0")
    beams, _ = decode_levels(
        decode,
        memory,
        mask,
        constraint=constraint,
        pick=_Draw(num_samples, temperature),
        extra=key,
        renormalize=renormalize,
    )
    place = constraint.docids(beams.state, beams.tokens)
    return Docids(place, beams.scores, beams.live, beams.tokens)


def distinct(docids: Docids) -> Docids:
    """Each docid once, best first; the rest is not live."""
    same_BxWxW = (docids.tokens[:, :, None] == docids.tokens[:, None]).all(-1)
    repeats_BxW = jnp.tril(same_BxWxW, -1).any(-1)
    docids = docids._replace(live=docids.live & ~repeats_BxW)
    scores_BxW = jnp.where(docids.live, docids.scores, -jnp.inf)
    return follow(docids, jnp.argsort(-scores_BxW, axis=1, stable=True))


@dataclasses.dataclass(frozen=True)
class _Draw:
    """See `levels.Picker`: one child of each beam, drawn; all beams begin as the one empty one."""

    num_samples: int
    temperature: float
    jumps = True

    def width(self, num_beams: int, num_children: int) -> int:
        del num_beams, num_children
        return self.num_samples

    def __call__(self, level: Level, extra: jax.Array) -> tuple[Beams, jax.Array]:
        _, num_beams, num_children = level.scores.shape
        allowed = level.candidates.allowed & level.beams.live[..., None]
        logits = jnp.where(allowed, level.candidates.logits / self.temperature, -jnp.inf)
        key = jax.random.fold_in(extra, level.number)
        if num_beams == 1 and num_children > _WIDE:
            choice = _draws_of_groups(key, logits[:, 0], self.num_samples)
        else:
            choice = _draws(key, jnp.repeat(logits, self.num_samples // num_beams, axis=1))
        parent = jnp.arange(self.num_samples) % num_beams  # one, or as many as samples
        live = jnp.broadcast_to(allowed.any(-1), choice.shape)
        index = (parent * num_children + choice).astype(jnp.int32)
        return extend(level, index, live), extra


def _draws(key: jax.Array, logits: jax.Array) -> jax.Array:
    """A draw from the softmax over the last axis of each row; int32 [...]."""
    # The largest of logits with Gumbel noise is one.
    return jnp.argmax(logits + jax.random.gumbel(key, logits.shape), axis=-1)


def _draws_of_groups(key: jax.Array, logits_BxK: jax.Array, num_samples: int) -> jax.Array:
    """`num_samples` draws a row, int32 [B, W], with noise for W sqrt(K) candidates, not for W K.

    A group of candidates is drawn by the logarithm of its members' sum, then one of its members.
    """
    batch_size, num_children = logits_BxK.shape
    size = math.isqrt(num_children - 1) + 1
    padding = ((0, 0), (0, -num_children % size))
    logits_BxGxR = jnp.pad(logits_BxK, padding, constant_values=-jnp.inf).reshape(
        batch_size, -1, size
    )
    group_key, member_key = jax.random.split(key)
    masses_Bx1xG = jax.nn.logsumexp(logits_BxGxR, axis=-1)[:, None]
    group_BxW = _draws(group_key, jnp.repeat(masses_Bx1xG, num_samples, axis=1))
    members_BxWxR = jnp.take_along_axis(logits_BxGxR, group_BxW[..., None], axis=1)
    return group_BxW * size + _draws(member_key, members_BxWxR)
