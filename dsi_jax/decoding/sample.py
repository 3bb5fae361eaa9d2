"""Ancestral sampling of docids, constrained level by level."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from dsi_jax.decoding.constraint import Constraint
from dsi_jax.decoding.levels import Beams, DecodeFns, Level, decode_levels, extend, follow
from dsi_jax.decoding.result import Docids


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
        batch_size, num_beams, num_children = level.scores.shape
        shape = (batch_size, self.num_samples, num_children)
        allowed = level.candidates.allowed & level.beams.live[..., None]
        # The largest of logits with Gumbel noise is a draw from their softmax.
        noise = jax.random.gumbel(jax.random.fold_in(extra, level.number), shape)
        noisy = level.candidates.logits / self.temperature + noise
        choice = jnp.argmax(jnp.where(allowed, noisy, -jnp.inf), axis=-1)
        parent = jnp.arange(self.num_samples) % num_beams  # one, or as many as samples
        live = jnp.broadcast_to(allowed.any(-1), choice.shape)
        index = (parent * num_children + choice).astype(jnp.int32)
        return extend(level, index, live), extra
