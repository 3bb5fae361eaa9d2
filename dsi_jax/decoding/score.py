"""Log-probabilities of given docids, teacher forced: what a beam of that docid would score."""

import jax
import jax.numpy as jnp

from dsi_jax.docids.table import PAD_TOKEN


def score_docids(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Sums the log-probabilities of token sequences.

    Args:
      logits: float [..., L, V], the decoder's logits for each position, teacher forced.
      tokens: int [..., L], the docids; pads (0), which only follow an end token, score 0.

    Returns:
      float32 [...]: natural log-probabilities, equal to the scores of
      `dsi_jax.decoding.beam.beam_search`.
    """
    return score_tokens(logits, tokens).sum(-1)


def score_tokens(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """The log-probability, float32 [...], of each of the tokens [...] by logits [..., V]."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, tokens[..., None].astype(jnp.int32), axis=-1)[..., 0]
    log_probs = chosen - jax.nn.logsumexp(logits, axis=-1)
    return jnp.where(tokens == PAD_TOKEN, 0.0, log_probs)
