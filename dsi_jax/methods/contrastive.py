"""The dense baseline of image retrieval: contrastive towers, searched exactly.

CLIP (Radford et al., 2021, https://arxiv.org/abs/2103.00020): pretrained weights as they are, or
encoders of any kinds trained on the pairs that a differentiable search index is trained on.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from dsi_jax.docids.table import DocidTable
from dsi_jax.methods.dense import Dense
from dsi_jax.models.contrastive import ContrastiveConfig, ContrastiveModel
from dsi_jax.models.encoders.config import TowersConfig
from dsi_jax.models.t5 import T5Config
from dsi_jax.utils import checks


@dataclasses.dataclass(frozen=True)
class Contrastive(Dense):
    """See `base.Method`. A docid table is of use for its keys and rows alone.

    Attributes:
      embedding_dim: width of the embeddings; None: the width of the encoder of images.
      symmetric: also learn to find each image's text, as CLIP does.
    """

    kind: ClassVar[str] = "contrastive"
    title: ClassVar[str] = "dense"
    who_ranks: ClassVar[str] = "towers rank"

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
