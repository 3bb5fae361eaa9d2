"""The dense baseline of image retrieval: contrastive towers, searched exactly.

CLIP (Radford et al., 2021, https://arxiv.org/abs/2103.00020): pretrained weights as they are, or
the same towers trained on the pairs that a differentiable search index is trained on.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import numpy as np
from jax.sharding import Mesh

from dsi_jax import checks
from dsi_jax.dense.searcher import DenseSearcher
from dsi_jax.docids.table import DocidTable
from dsi_jax.methods.base import Collection, Stream
from dsi_jax.methods.dual_encoder import Pairs
from dsi_jax.models.contrastive import ContrastiveConfig, ContrastiveModel
from dsi_jax.models.dual_encoder import Embeddings
from dsi_jax.models.t5 import T5Config
from dsi_jax.models.towers_config import TowersConfig
from dsi_jax.training import contrastive, partitioning
from dsi_jax.training.step import Metrics


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """See `base.Method`. A docid table is of use for its keys and rows alone.

    Attributes:
      embedding_dim: width of the embeddings; None: the width of the encoder of images.
      symmetric: also learn to find each image's text, as CLIP does.
    """

    kind: ClassVar[str] = "contrastive"
    title: ClassVar[str] = "dense"
    decodes: ClassVar[bool] = False
    whole_batches: ClassVar[bool] = True

    embedding_dim: int | None = None
    symmetric: bool = True

    def check(self) -> None:
        """See `base.Method`."""
        checks.check_whole_numbers(EMBEDDING_DIM=self.embedding_dim)

    def new_model(
        self, t5: T5Config, table: DocidTable | None, towers: TowersConfig | None = None
    ) -> ContrastiveModel:
        """See `base.Method`."""
        del t5, table
        if towers is None or towers.image is None:
            raise ValueError("METHOD is contrastive and IMAGE_ENCODER is None; expected an encoder")
        dim = self.embedding_dim or towers.image.hidden_size
        return ContrastiveModel(ContrastiveConfig(towers.text, towers.image, dim))

    def load_model(self, value: dict[str, Any]) -> ContrastiveModel:
        """See `base.Method`."""
        return ContrastiveModel(ContrastiveConfig.from_json(value))

    def batches(self, stream: Stream, collection: Collection) -> Stream:
        """See `base.Method`: to each query the image of its row."""
        return Pairs(stream, collection.document_inputs)

    def train_loss(self, outputs: Embeddings, batch: Any) -> tuple[jax.Array, Metrics]:
        """See `base.Method`."""
        return contrastive.contrastive_loss(*outputs, batch, symmetric=self.symmetric)

    def eval_loss(self, outputs: Embeddings, batch: Any) -> tuple[jax.Array, Metrics]:
        """See `base.Method`."""
        return self.train_loss(outputs, batch)

    def new_ranker(
        self,
        model: ContrastiveModel,
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
                f"CONSTRAINT is {constraint!r}; towers rank documents and nothing else: expected "
                "'trie'"
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
