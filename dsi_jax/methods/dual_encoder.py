"""The paper's baseline: a T5 dual encoder, trained by in-batch softmax, searched exactly.

Tay et al., 2022, https://arxiv.org/abs/2202.06991, section 4.2.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import numpy as np
from jax.sharding import Mesh

from dsi_jax import checks
from dsi_jax.dense.documents import DocumentInputs, ImageInputs
from dsi_jax.dense.searcher import DenseSearcher
from dsi_jax.docids.table import DocidTable
from dsi_jax.methods.base import Collection, Stream
from dsi_jax.models.dual_encoder import (
    LARGEST_SCALE,
    POOLINGS,
    DualEncoderConfig,
    DualEncoderModel,
    Embeddings,
)
from dsi_jax.models.streams import MODALITIES
from dsi_jax.models.t5 import T5Config
from dsi_jax.models.towers_config import TowersConfig
from dsi_jax.training import contrastive, partitioning
from dsi_jax.training.step import Metrics


@dataclasses.dataclass(frozen=True)
class DualEncoder:
    """See `base.Method`. A docid table is of use for its keys and rows alone.

    Attributes:
      embedding_dim: width of the embeddings; None: the model's own, without a projection.
      pooling: "mean" over the tokens of a text, or its "first".
      shared: whether one encoder serves queries and documents.
      scale: what products are multiplied by before the softmax (1 / temperature).
      learn_scale: learn it from there.
      symmetric: also learn to find each document's query.
    """

    kind: ClassVar[str] = "dual_encoder"
    title: ClassVar[str] = "dual encoder"
    decodes: ClassVar[bool] = False
    whole_batches: ClassVar[bool] = True

    embedding_dim: int | None = None
    pooling: str = "mean"
    shared: bool = True
    scale: float = 20.0
    learn_scale: bool = True
    symmetric: bool = False

    def check(self) -> None:
        """See `base.Method`."""
        checks.check_whole_numbers(EMBEDDING_DIM=self.embedding_dim)
        if self.pooling not in POOLINGS:
            raise ValueError(f"POOLING is {self.pooling!r}; expected one of {POOLINGS}")
        if not 0 < self.scale <= LARGEST_SCALE:
            raise ValueError(f"SCALE is {self.scale}; expected it in (0, {LARGEST_SCALE:g}]")

    def new_model(
        self, t5: T5Config, table: DocidTable | None, towers: TowersConfig | None = None
    ) -> DualEncoderModel:
        """See `base.Method`."""
        if towers is not None:
            raise ValueError(
                "METHOD is the dual encoder of T5, and TEXT_ENCODER or IMAGE_ENCODER is given; "
                "expected methods/contrastive.gin for them"
            )
        del table
        names = [field.name for field in dataclasses.fields(DualEncoderConfig)]
        mine = {name: value for name, value in vars(self).items() if name in names}
        return DualEncoderModel(DualEncoderConfig(t5, **mine))

    def load_model(self, value: dict[str, Any]) -> DualEncoderModel:
        """See `base.Method`."""
        return DualEncoderModel(DualEncoderConfig.from_json(value))

    def batches(self, stream: Stream, collection: Collection) -> Stream:
        """See `base.Method`: to each text the document of its row."""
        return Pairs(stream, collection.document_inputs)

    def train_loss(self, outputs: Embeddings, batch: Any) -> tuple[jax.Array, Metrics]:
        """See `base.Method`."""
        return contrastive.contrastive_loss(*outputs, batch, symmetric=self.symmetric)

    def eval_loss(self, outputs: Embeddings, batch: Any) -> tuple[jax.Array, Metrics]:
        """See `base.Method`."""
        return self.train_loss(outputs, batch)

    def new_ranker(
        self,
        model: DualEncoderModel,
        collection: Collection,
        *,
        beam_size: int,
        constraint: str,
        mesh: Mesh | None = None,
        rules: partitioning.LogicalRules = partitioning.LOGICAL_AXIS_RULES,
        rows: np.ndarray | None = None,
    ) -> DenseSearcher:
        """See `base.Method`."""
        if constraint != "trie":
            raise ValueError(
                f"CONSTRAINT is {constraint!r}; a dual encoder ranks documents and nothing else: "
                "expected 'trie'"
            )
        return DenseSearcher(
            model,
            collection.document_inputs,
            beam_size=beam_size,
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
