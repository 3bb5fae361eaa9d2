"""The paper's baseline: a T5 dual encoder, trained by in-batch softmax, searched exactly.

Tay et al., 2022, https://arxiv.org/abs/2202.06991, section 4.2.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from dsi_jax.docids.table import DocidTable
from dsi_jax.methods.dense import Dense
from dsi_jax.models.dual_encoder import LARGEST_SCALE, POOLINGS, DualEncoderConfig, DualEncoderModel
from dsi_jax.models.encoders.config import TowersConfig
from dsi_jax.models.t5 import T5Config
from dsi_jax.utils import checks


@dataclasses.dataclass(frozen=True)
class DualEncoder(Dense):
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
    who_ranks: ClassVar[str] = "a dual encoder ranks"

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
