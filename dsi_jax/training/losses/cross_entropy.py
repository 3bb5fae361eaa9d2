"""Token cross entropy with z-loss and label smoothing, and the figures made from it."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp


class Mean(NamedTuple):
    """A mean kept as its sum and its count, so that parts of a batch add up exactly.

    Attributes:
      total: float32 [], the weighted sum.
      count: float32 [], the sum of the weights; 0 where there was nothing to average.
    """

    total: jax.Array
    count: jax.Array

    def __add__(self, other: Self) -> Self:
        """The mean over both parts."""
        return Mean(self.total + other.total, self.count + other.count)


def token_cross_entropy(
    logits_BxLxV: jax.Array,
    targets_BxL: jax.Array,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """The loss of each token, with T5X's z-loss and label smoothing, in float32.

    The smoothed target gives `1 - label_smoothing` to the right token and shares the rest among
    the others; its entropy is subtracted, so that the smallest possible loss is 0 (without
    z-loss). The z-loss, `z_loss * log(Z)^2` with Z the softmax's normaliser, keeps logits from
    drifting. Both as in T5X `losses.compute_weighted_cross_entropy`; label smoothing is Szegedy
    et al. 2016 (arXiv:1512.00567).

    Args:
      logits_BxLxV: float [B, L, V].
      targets_BxL: int [B, L], in [0, V).
      z_loss: its coefficient.
      label_smoothing: probability taken from the right token, in [0, 1).

    Returns:
      (losses, z_losses), both float32 [B, L]; the first contains the second.

    Raises:
      ValueError: label_smoothing is outside [0, 1), or the shapes do not fit.
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}, expected a value in [0, 1)")
    if logits_BxLxV.shape[:-1] != targets_BxL.shape:
        raise ValueError(
            f"logits of shape {logits_BxLxV.shape} do not fit targets of shape "
            f"{targets_BxL.shape}: expected one vector of logits for each target"
        )
    logits_BxLxV = logits_BxLxV.astype(jnp.float32)
    vocab_size = logits_BxLxV.shape[-1]
    # Shifted before the sum: the small losses of memorised docids keep their digits.
    max_BxLx1 = jax.lax.stop_gradient(jnp.max(logits_BxLxV, axis=-1, keepdims=True))
    shifted_BxLxV = logits_BxLxV - max_BxLx1
    log_sum_BxLx1 = jnp.log(jnp.sum(jnp.exp(shifted_BxLxV), axis=-1, keepdims=True))
    log_probs_BxLxV = shifted_BxLxV - log_sum_BxLx1
    # A comparison fuses into the sum and works on a sharded vocabulary; a gather does neither.
    is_target_BxLxV = jnp.arange(vocab_size) == targets_BxL[..., None]
    target_log_probs_BxL = jnp.sum(jnp.where(is_target_BxLxV, log_probs_BxLxV, 0.0), axis=-1)
    losses_BxL = -target_log_probs_BxL
    if label_smoothing and vocab_size > 1:
        confidence = 1.0 - label_smoothing
        rest = label_smoothing / (vocab_size - 1)
        entropy = -confidence * math.log(confidence) - label_smoothing * math.log(rest)
        losses_BxL = (
            -(confidence - rest) * target_log_probs_BxL
            - rest * jnp.sum(log_probs_BxLxV, axis=-1)
            - entropy
        )
    z_losses_BxL = z_loss * jnp.square((log_sum_BxLx1 + max_BxLx1)[..., 0])
    return losses_BxL + z_losses_BxL, z_losses_BxL


def cross_entropy(
    logits_BxLxV: jax.Array,
    targets_BxL: jax.Array,
    weights_BxL: jax.Array,
    is_indexing_B: jax.Array,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> tuple[jax.Array, dict[str, Mean]]:
    """The summed loss of a batch, and its figures for indexing and retrieval apart.

    Args:
      logits_BxLxV: float [B, L, V].
      targets_BxL: int [B, L], docid tokens.
      weights_BxL: float or bool [B, L]; 0 for pad.
      is_indexing_B: int or bool [B] or [B, 1]; 1 where the example is an indexing example.
      z_loss: coefficient of the z-loss.
      label_smoothing: probability taken from the right token.

    Returns:
      (loss, metrics): float32 [], the weighted sum over tokens (the caller divides it by the
      number of tokens of the global batch), and the means `loss`, `loss_indexing`,
      `loss_retrieval`, `z_loss`, `token_accuracy` (over tokens), `docid_accuracy_indexing` and
      `docid_accuracy_retrieval` (over examples: all tokens of the docid are right).

    Raises:
      ValueError: as `token_cross_entropy`.
    """
    losses_BxL, z_losses_BxL = token_cross_entropy(
        logits_BxLxV, targets_BxL, z_loss=z_loss, label_smoothing=label_smoothing
    )
    right_BxL = jnp.argmax(logits_BxLxV, axis=-1) == targets_BxL
    return summed(losses_BxL, z_losses_BxL, right_BxL, weights_BxL, is_indexing_B)


def summed(
    losses_BxL: jax.Array,
    z_losses_BxL: jax.Array,
    right_BxL: jax.Array,
    weights_BxL: jax.Array,
    is_indexing_B: jax.Array,
) -> tuple[jax.Array, dict[str, Mean]]:
    """Sums the losses of tokens; arguments and result as of `cross_entropy`.

    Args:
      losses_BxL: float32 [B, L].
      z_losses_BxL: float32 [B, L], the part of them that is z-loss.
      right_BxL: bool [B, L], whether the most probable token is the target.
      weights_BxL: float or bool [B, L]; 0 for pad.
      is_indexing_B: int or bool [B] or [B, 1].
    """
    weights_BxL = weights_BxL.astype(jnp.float32)
    loss_B = jnp.sum(losses_BxL * weights_BxL, axis=-1)
    tokens_B = jnp.sum(weights_BxL, axis=-1)
    # An example of weight 0 (padding of a batch) is no docid, right or wrong.
    examples_B = (tokens_B > 0).astype(jnp.float32)
    docid_right_B = examples_B * jnp.all(right_BxL | (weights_BxL == 0), axis=-1)
    indexing_B = is_indexing_B.reshape(loss_B.shape).astype(jnp.float32)
    loss = jnp.sum(loss_B)
    tokens = jnp.sum(tokens_B)
    metrics = {
        "loss": Mean(loss, tokens),
        "z_loss": Mean(jnp.sum(z_losses_BxL * weights_BxL), tokens),
        "token_accuracy": Mean(jnp.sum(right_BxL * weights_BxL), tokens),
    }
    for part, part_B in (("indexing", indexing_B), ("retrieval", 1.0 - indexing_B)):
        metrics[f"loss_{part}"] = Mean(jnp.sum(loss_B * part_B), jnp.sum(tokens_B * part_B))
        metrics[f"docid_accuracy_{part}"] = Mean(
            jnp.sum(docid_right_B * part_B), jnp.sum(examples_B * part_B)
        )
    return loss, metrics


def docid_loss(
    logits_BxLxV: jax.Array,
    batch: Mapping[str, Any],
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> tuple[jax.Array, dict[str, Mean]]:
    """`cross_entropy` of a batch as `data.converters.collate` makes it.

    Args:
      logits_BxLxV: float [B, L, V].
      batch: {"decoder": {"targets": int [B, L], "weights": [B, L]}, "is_indexing": [B]}; further
        entries are ignored.
      z_loss: coefficient of the z-loss.
      label_smoothing: probability taken from the right token.
    """
    decoder = batch["decoder"]
    return cross_entropy(
        logits_BxLxV,
        decoder["targets"],
        decoder["weights"],
        batch["is_indexing"],
        z_loss=z_loss,
        label_smoothing=label_smoothing,
    )
