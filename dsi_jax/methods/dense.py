"""What methods have in common that rank documents by the products of embeddings."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from dsi_jax.decoding.strategies import BeamSearch, Decoding
from dsi_jax.inputs.streams import MODALITIES
from dsi_jax.methods.base import Collection, Stream
from dsi_jax.models.dual_encoder import Embeddings
from dsi_jax.ranking.dense_ranker import DenseRanker
from dsi_jax.ranking.document_inputs import DocumentInputs, ImageInputs
from dsi_jax.training import partitioning
from dsi_jax.training.losses import contrastive
from dsi_jax.training.step import Loss, Metrics


@dataclasses.dataclass(frozen=True)
class DenseRanking:
    """The options of exact search; see `base.RankingOptions`.

    Attributes:
      beam_size: M, documents ranked for a query.
    """

    constrained: ClassVar[bool] = True

    beam_size: int = 10

    def unconstrained(self, beam_size: int) -> None:
        """See `base.RankingOptions`: nothing but documents can be found."""


class Dense:
    """The part of a `base.Method` that is the same whatever embeds queries and documents.

    Attributes:
      who_ranks: how an error begins to say what the method does.
      symmetric: also learn to find each document's query.
    """

    decodes: ClassVar[bool] = False
    whole_batches: ClassVar[bool] = True
    who_ranks: ClassVar[str]
    symmetric: bool

    def batches(self, stream: Stream, collection: Collection) -> Stream:
        """See `base.Method`: to each query the document of its row."""
        return Pairs(stream, collection.document_inputs)

    def train_loss(self, outputs: Embeddings, batch: Any) -> tuple[jax.Array, Metrics]:
        """See `base.Method`."""
        return contrastive.contrastive_loss(*outputs, batch, symmetric=self.symmetric)

    def training_loss(self, collection: Collection) -> Loss:
        """See `base.Method`."""
        del collection
        return self.train_loss

    def eval_loss(self, outputs: Embeddings, batch: Any) -> tuple[jax.Array, Metrics]:
        """See `base.Method`."""
        return self.train_loss(outputs, batch)

    def ranking(
        self,
        *,
        beam_size: int = 10,
        constraint: str = "trie",
        decoding: Decoding = BeamSearch(),
    ) -> DenseRanking:
        """See `base.Method`; nothing is decoded."""
        if constraint != "trie":
            raise ValueError(
                f"CONSTRAINT is {constraint!r}; {self.who_ranks} documents and nothing else: "
                "expected 'trie'"
            )
        if decoding != BeamSearch():
            raise ValueError(
                f"DECODING is {decoding}; {self.who_ranks} documents and decode nothing: expected "
                f"{BeamSearch()}"
            )
        return DenseRanking(beam_size)

    def new_ranker(
        self,
        model: nn.Module,
        collection: Collection,
        options: DenseRanking,
        *,
        mesh: Mesh | None = None,
        rules: partitioning.LogicalRules = partitioning.LOGICAL_AXIS_RULES,
        rows: np.ndarray | None = None,
    ) -> DenseRanker:
        """See `base.Method`."""
        return DenseRanker(
            model,
            collection.document_inputs,
            beam_size=options.beam_size,
            mesh=mesh,
            rules=rules,
            store=collection.store,
            rows=rows,
        )


class Pairs:
    """A stream whose texts or images come with the documents that they look for."""

    def __init__(self, stream: Stream, inputs: DocumentInputs | ImageInputs) -> None:
        self._stream, self._inputs = stream, inputs
        self.batch_size, self.num_examples = stream.batch_size, stream.num_examples
        self.lines, self.state, self.restore = stream.lines, stream.state, stream.restore

    def __next__(self) -> dict[str, Any]:
        """The streams, and the document, row, weight and `is_indexing` of each pair."""
        batch = next(self._stream)
        rows_B = batch["row"]
        return {
            **{name: batch[name] for name in MODALITIES if name in batch},
            "document": self._inputs(rows_B),
            "row": rows_B,
            "weights": np.ones(len(rows_B), np.float32),
            "is_indexing": batch["is_indexing"],
        }

    def batch_shapes(self) -> dict[str, Any]:
        """ShapeDtypeStructs of the global batch."""
        shapes = self._stream.batch_shapes()
        return {
            **{name: shapes[name] for name in MODALITIES if name in shapes},
            "document": self._inputs.shapes(self.batch_size),
            "row": shapes["row"],
            "weights": jax.ShapeDtypeStruct((self.batch_size,), np.float32),
            "is_indexing": shapes["is_indexing"],
        }
