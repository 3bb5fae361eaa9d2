"""Embeds a whole collection, straight into the places where it is searched."""

import functools
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dsi_jax.ranking.document_inputs import DocumentInputs
from dsi_jax.training import partitioning


class DocumentEmbedder:
    """Embeds all documents of a collection on a mesh.

    Part p of P of the mesh's batch axes embeds and holds the rows p * N to (p + 1) * N - 1: no
    embedding ever moves between devices. N is the same for all parts; what is beyond the last
    document repeats it.

    Args:
      model: a dual encoder.
      inputs: of the documents.
      mesh: the mesh.
      rules: logical axis rules, fitted to the model.
      batch_size: documents that a part embeds at a time.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: DocumentInputs,
        *,
        mesh: Mesh,
        rules: partitioning.LogicalRules = partitioning.LOGICAL_AXIS_RULES,
        batch_size: int = 128,
    ) -> None:
        self._inputs, self._mesh, self._rules = inputs, mesh, rules
        self._num_parts = partitioning.num_batch_shards(mesh)
        rows_a_part = -(-len(inputs) // self._num_parts)
        self._batch_size = min(batch_size, rows_a_part)
        self._num_batches = -(-rows_a_part // self._batch_size)
        self._width = model.config.width
        self._sharding = partitioning.data_sharding(mesh)
        self._embed_into = jax.jit(
            functools.partial(_embed_into, model, self._num_parts),
            donate_argnums=0,
            out_shardings=self._sharding,
        )

    def batches(self, params: Any) -> Iterator[jax.Array]:
        """Embeddings float32 [P, N, E] as they fill, after each batch; the last are complete.

        Only the latest may be used: its buffer is donated to the next batch.

        Args:
          params: the parameters; with several devices, global arrays on the mesh.
        """
        num_rows = self._num_batches * self._batch_size
        shape = (self._num_parts, num_rows, self._width)
        embeddings_PxNxE = jnp.zeros(shape, jnp.float32, device=self._sharding)
        firsts_Px1 = np.arange(self._num_parts)[:, None] * num_rows
        for index in range(self._num_batches):
            start = index * self._batch_size
            rows_B = (firsts_Px1 + start + np.arange(self._batch_size)).reshape(-1)
            documents = self._inputs(np.minimum(rows_B, len(self._inputs) - 1))
            documents = partitioning.place(documents, self._sharding)
            with partitioning.activate(self._mesh, self._rules):
                embeddings_PxNxE = self._embed_into(embeddings_PxNxE, params, documents, start)
            yield embeddings_PxNxE


def _embed_into(
    model: nn.Module,
    num_parts: int,
    embeddings_PxNxE: jax.Array,
    params: Any,
    documents: Any,
    start: jax.Array,
) -> jax.Array:
    """Writes the embeddings of P times as many documents at `start` of each part."""
    found_BxE = model.apply({"params": params}, documents, method="encode_document")
    found_PxCxE = found_BxE.reshape(num_parts, -1, found_BxE.shape[-1])
    return jax.lax.dynamic_update_slice_in_dim(embeddings_PxNxE, found_PxCxE, start, axis=1)
