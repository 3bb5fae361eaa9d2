"""Dense search of one collection: the query's embedding against all documents'."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dsi_jax.ranking import top_k
from dsi_jax.ranking.allow_lists import check_allowed, num_queries
from dsi_jax.ranking.document_embedder import DocumentEmbedder
from dsi_jax.ranking.document_inputs import DocumentInputs, SomeInputs
from dsi_jax.storage.embeddings import EmbeddingStore
from dsi_jax.training import partitioning


class DenseRanker:
    """Ranks the documents of one collection exactly, as `docid_ranker` does docids.

    The documents are embedded at the first search with some parameters, and forgotten as soon as
    those parameters are.

    Args:
      model: a dual encoder.
      inputs: of the documents.
      beam_size: M, rows a query.
      mesh: where the parameters lie; None: on one device.
      rules: logical axis rules, fitted to the model.
      store: keeps the embeddings of the only parameters that will search, on one device.
      rows: int [C], ascending, the documents to rank; None: all. Those of some are not stored.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: DocumentInputs,
        *,
        beam_size: int = 10,
        mesh: Mesh | None = None,
        rules: partitioning.LogicalRules = partitioning.LOGICAL_AXIS_RULES,
        store: EmbeddingStore | None = None,
        rows: np.ndarray | None = None,
    ) -> None:
        if mesh is None:
            mesh = partitioning.one_device_mesh()
        self.beam_size, self._rows = beam_size, rows
        self._num_rows = len(inputs)
        if rows is not None:
            inputs, store = SomeInputs(inputs, rows), None
        self._mesh, self._rules, self._num_documents = mesh, rules, len(inputs)
        self._embedder = DocumentEmbedder(model, inputs, mesh=mesh, rules=rules)
        self._width, self._store = model.config.width, store
        self._embeddings: jax.Array | None = None
        self._embedded_by: list[weakref.ref] = []
        self._search = jax.jit(functools.partial(_search, model, mesh), static_argnames="beam_size")

    def prepare(self, params: Any) -> Iterator[None]:
        """Embeds the documents, if these parameters have not; pauses after each batch."""
        leaves = jax.tree.leaves(params)
        known = [reference() for reference in self._embedded_by]
        if self._embeddings is not None and all(
            mine is given for mine, given in zip(known, leaves, strict=True)
        ):
            return
        self._forget()
        embeddings_PxNxE = self._stored()
        if embeddings_PxNxE is None:
            for filling_PxNxE in self._embedder.batches(params):
                embeddings_PxNxE = filling_PxNxE
                yield
            if self._store is not None:
                self._store.save(np.asarray(embeddings_PxNxE[0]))
        self._embeddings = embeddings_PxNxE
        self._embedded_by = [weakref.ref(leaf, self._forget) for leaf in leaves]

    def search(
        self,
        params: Any,
        batch: Mapping[str, Any],
        beam_size: int | None = None,
        allowed: np.ndarray | None = None,
    ) -> top_k.Ranking:
        """Rows, scores and validity [B, M] of a batch, still on the device.

        Args:
          params: the parameters; with several devices, global arrays on the mesh.
          batch: NumPy arrays of the whole batch, the same on all processes.
          beam_size: M; None: that of the searcher.
          allowed: bool [B, N], the rows that each query may find, or [1, N] for all queries; None:
            all of them.

        Raises:
          ValueError: `allowed` has another shape.
        """
        if allowed is not None:
            check_allowed(allowed, num_queries(batch), self._num_rows)
            allowed = allowed if self._rows is None else allowed[:, self._rows]
        for _ in self.prepare(params):
            pass
        queries = partitioning.place(dict(batch), partitioning.data_sharding(self._mesh))
        with partitioning.activate(self._mesh, self._rules):
            return self._search(
                params,
                queries,
                self._embeddings,
                self._num_documents,
                self._rows,
                allowed,
                beam_size=min(beam_size or self.beam_size, self._num_documents),
            )

    def _stored(self) -> jax.Array | None:
        if self._store is None:
            return None
        stored_NxE = self._store.load(self._num_documents, self._width)
        return None if stored_NxE is None else jax.device_put(stored_NxE[None])

    def _forget(self, reference: weakref.ref | None = None) -> None:
        del reference
        self._embeddings, self._embedded_by = None, []


def _search(
    model: nn.Module,
    mesh: Mesh,
    params: Any,
    queries: Any,
    embeddings_PxNxE: jax.Array,
    num_documents: jax.Array,
    rows_N: jax.Array | None,
    allowed_AxN: jax.Array | None,
    *,
    beam_size: int,
) -> top_k.Ranking:
    queries_BxE = model.apply({"params": params}, queries, method="encode_query")
    found = top_k.exact_top_k(
        queries_BxE, embeddings_PxNxE, num_documents, allowed_AxN, k=beam_size, mesh=mesh
    )
    if rows_N is None:
        return found
    rows_BxM = jnp.where(found.valid, rows_N[found.rows], -1)
    return found._replace(rows=rows_BxM.astype(jnp.int32))
