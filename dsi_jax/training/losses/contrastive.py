"""The in-batch softmax of a dual encoder: each query against the documents of its batch."""

from typing import Any

import jax
import jax.numpy as jnp

from dsi_jax.training.losses.cross_entropy import Mean


def in_batch_softmax(
    queries_BxE: jax.Array,
    documents_BxE: jax.Array,
    scale: jax.Array,
    rows_B: jax.Array,
    weights_B: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The negative log-probability of each query's document, and whether it comes first.

    The softmax is over the documents of the batch (Henderson et al., 2017,
    https://arxiv.org/abs/1705.00652, section 4). Other copies of the same document are left
    out, being neither wrong nor another answer; so is what has weight 0.

    Args:
      queries_BxE: float [B, E].
      documents_BxE: float [B, E]; document i belongs to query i.
      scale: float [], by which products are multiplied.
      rows_B: int [B], which document each is.
      weights_B: float [B].

    Returns:
      (losses, right), float32 [B] and bool [B]; right where no other document scores as high.
    """
    scores_BxB = scale * jnp.einsum(
        "qe,de->qd", queries_BxE, documents_BxE, preferred_element_type=jnp.float32
    )
    own_BxB = jnp.eye(len(rows_B), dtype=bool)
    other_BxB = (rows_B[:, None] != rows_B[None, :]) & (weights_B > 0)[None, :]
    scores_BxB = jnp.where(own_BxB | other_BxB, scores_BxB, -jnp.inf)
    own_B = jnp.diagonal(scores_BxB)
    best_other_B = jnp.max(scores_BxB, axis=1, where=~own_BxB, initial=-jnp.inf)
    return jax.nn.logsumexp(scores_BxB, axis=1) - own_B, own_B > best_other_B


def contrastive_loss(
    queries_BxE: jax.Array,
    documents_BxE: jax.Array,
    scale: jax.Array,
    batch: dict[str, Any],
    *,
    symmetric: bool = False,
) -> tuple[jax.Array, dict[str, Mean]]:
    """The summed in-batch softmax loss of a batch, and its figures.

    Args:
      queries_BxE: float [B, E].
      documents_BxE: float [B, E]; document i belongs to query i.
      scale: float [], by which products are multiplied.
      batch: {"row": int [B], "weights": float [B], "is_indexing": [B]}; further entries are
        ignored.
      symmetric: take the mean with the loss of finding each document's query (GTR, Ni et al.,
        2022, https://arxiv.org/abs/2112.07899, section 3.2).

    Returns:
      (loss, metrics): float32 [], the weighted sum over pairs, and the means `loss`,
      `loss_indexing` and `loss_retrieval`, `in_batch_accuracy_indexing` and
      `in_batch_accuracy_retrieval` (the query's document scores highest in the batch) and
      `scale`.
    """
    weights_B = batch["weights"].astype(jnp.float32)
    rows_B = batch["row"]
    losses_B, right_B = in_batch_softmax(queries_BxE, documents_BxE, scale, rows_B, weights_B)
    if symmetric:
        reverse_B, _ = in_batch_softmax(documents_BxE, queries_BxE, scale, rows_B, weights_B)
        losses_B = (losses_B + reverse_B) / 2
    indexing_B = batch["is_indexing"].reshape(weights_B.shape).astype(jnp.float32)
    loss = jnp.sum(losses_B * weights_B)
    metrics = {
        "loss": Mean(loss, jnp.sum(weights_B)),
        "scale": Mean(jnp.asarray(scale, jnp.float32), jnp.ones([], jnp.float32)),
    }
    for part, part_B in (("indexing", indexing_B), ("retrieval", 1.0 - indexing_B)):
        count_B = weights_B * part_B
        metrics[f"loss_{part}"] = Mean(jnp.sum(losses_B * count_B), jnp.sum(count_B))
        metrics[f"in_batch_accuracy_{part}"] = Mean(jnp.sum(right_B * count_B), jnp.sum(count_B))
    return loss, metrics
