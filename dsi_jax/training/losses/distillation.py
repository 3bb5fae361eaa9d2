"""The losses of an index with a teacher: what questions show, and what they must not undo."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dsi_jax.training.losses import cross_entropy
from dsi_jax.training.losses.cross_entropy import Mean

_MASKED = -1e9  # finite: a masked token must not make a loss of 0 * inf


def docid_loss(
    logits_BxLxV: jax.Array,
    batch: Mapping[str, Any],
    *,
    seen_V: jax.Array | None = None,
    teacher_BxLxV: jax.Array | None = None,
    documents_V: jax.Array | None = None,
    questions: bool = True,
    z_loss: float = 0.0,
) -> tuple[jax.Array, dict[str, Mean]]:
    """The cross entropy of questions, and of documents and their chunks.

    A question is to be told from the *seen* documents alone, those that have a training question:
    a softmax over all documents pushes the others down with every step, as none is ever right. A
    document or chunk is to be found as the teacher finds it: as the only right answer to a few of
    its words it would teach that words which others share speak for it alone. Where the teacher
    knows nothing, the document itself is the right answer.

    Args:
      logits_BxLxV: float [B, L, V].
      batch: as for `cross_entropy.docid_loss`.
      seen_V: bool [V], the tokens of seen documents; None: questions are told from all tokens.
      teacher_BxLxV: float [B, L, V], the teacher's logits, all 0 where it knows nothing; None:
        there is no teacher.
      documents_V: bool [V], the tokens of documents; of these the teacher speaks.
      questions: whether examples that are not of documents are questions; False: chunks stand in
        their place.
      z_loss: coefficient of the z-loss.

    Returns:
      (loss, metrics) as `cross_entropy.cross_entropy` does. The loss of an example with a teacher
      is the Kullback-Leibler divergence, 0 at best.
    """
    decoder, logits_BxLxV = batch["decoder"], logits_BxLxV.astype(jnp.float32)
    targets_BxL = decoder["targets"]
    is_indexing_B = batch["is_indexing"].reshape(-1).astype(bool)
    asks_Bx1 = (~is_indexing_B & questions)[:, None]
    if seen_V is not None:
        is_target_BxLxV = jnp.arange(len(seen_V)) == targets_BxL[..., None]
        kept_BxLxV = seen_V | is_target_BxLxV | ~asks_Bx1[..., None]
        logits_BxLxV = jnp.where(kept_BxLxV, logits_BxLxV, _MASKED)
    losses_BxL, z_losses_BxL = cross_entropy.token_cross_entropy(
        logits_BxLxV, targets_BxL, z_loss=z_loss
    )
    if teacher_BxLxV is not None:
        teacher_BxLxV = jax.lax.stop_gradient(teacher_BxLxV.astype(jnp.float32))
        is_taught_BxL = ~asks_Bx1 & (teacher_BxLxV != 0).any(-1)
        soft_BxL = _divergence(teacher_BxLxV, documents_V, logits_BxLxV)
        losses_BxL = jnp.where(is_taught_BxL, soft_BxL + z_losses_BxL, losses_BxL)
    right_BxL = jnp.argmax(logits_BxLxV, axis=-1) == targets_BxL
    return cross_entropy.summed(
        losses_BxL, z_losses_BxL, right_BxL, decoder["weights"], batch["is_indexing"]
    )


def _divergence(
    teacher_BxLxV: jax.Array, documents_V: jax.Array, logits_BxLxV: jax.Array
) -> jax.Array:
    """The divergence [B, L] of the logits' distribution from the teacher's over documents."""
    teacher_BxLxV = jnp.where(documents_V, teacher_BxLxV, _MASKED)
    wanted_BxLxV = jax.nn.log_softmax(teacher_BxLxV)
    found_BxLxV = jax.nn.log_softmax(logits_BxLxV)
    return jnp.sum(jnp.exp(wanted_BxLxV) * (wanted_BxLxV - found_BxLxV), axis=-1)
