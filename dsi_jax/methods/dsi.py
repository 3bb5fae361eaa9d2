"""The differentiable search index: documents are found by decoding their docids."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import numpy as np
from jax.sharding import Mesh

from dsi_jax.decoding.strategies import BeamSearch, Decoding
from dsi_jax.docids import text_space
from dsi_jax.docids.table import DocidTable
from dsi_jax.methods.base import Collection, Stream
from dsi_jax.models.dsi import (
    COMPACT_SPACE,
    TEXT_SPACE,
    DSIConfig,
    DSIModel,
    ScoredLogits,
    padded_vocab_size,
)
from dsi_jax.models.encoders.config import TowersConfig
from dsi_jax.models.t5 import T5Config
from dsi_jax.ranking import docid_ranker
from dsi_jax.training import partitioning
from dsi_jax.training.losses import cross_entropy, distillation
from dsi_jax.training.step import Loss, Metrics
from dsi_jax.utils import checks


@dataclasses.dataclass(frozen=True)
class DocidRanking:
    """The options of decoding docids; see `base.RankingOptions`.

    Attributes:
      beam_size: M, beams kept for a query.
      constraint: "trie" (only docids of the table) or "free" (whatever the model says).
      decoding: the decoding strategy.

    Raises:
      ValueError: an unknown constraint.
    """

    beam_size: int = 10
    constraint: str = "trie"
    decoding: Decoding = BeamSearch()

    def __post_init__(self) -> None:
        docid_ranker.check_constraint(self.constraint)

    @property
    def constrained(self) -> bool:
        """See `base.RankingOptions`."""
        return self.constraint != "free"

    def unconstrained(self, beam_size: int) -> DocidRanking:
        """See `base.RankingOptions`."""
        beam_size = min(beam_size, self.beam_size)
        return dataclasses.replace(self, constraint="free", beam_size=beam_size)


@dataclasses.dataclass(frozen=True)
class DSI:
    """See `base.Method`.

    Attributes:
      z_loss: weight of T5X's z-loss.
      label_smoothing: probability spread over the other docid tokens.
      seen_softmax: tell the document of a question from documents with training questions alone.
      soft_targets: let documents and chunks be found as the lexical head finds them; see
        `distillation.docid_loss` for both. For atomic docids so far.
    """

    kind: ClassVar[str] = "dsi"
    title: ClassVar[str] = "DSI"
    decodes: ClassVar[bool] = True
    whole_batches: ClassVar[bool] = False

    z_loss: float = 0.0
    label_smoothing: float = 0.0
    seen_softmax: bool = False
    soft_targets: bool = False

    def check(self) -> None:
        """See `base.Method`."""
        checks.check_fractions(LABEL_SMOOTHING=self.label_smoothing)
        if self.z_loss < 0:
            raise ValueError(f"Z_LOSS is {self.z_loss}; expected at least 0")
        if self.label_smoothing and (self.seen_softmax or self.soft_targets):
            raise ValueError(
                f"LABEL_SMOOTHING is {self.label_smoothing}; expected 0.0 with SEEN_SOFTMAX or "
                "SOFT_TARGETS, which say themselves what else may be right"
            )

    def new_model(
        self, t5: T5Config, table: DocidTable | None, towers: TowersConfig | None = None
    ) -> DSIModel:
        """See `base.Method`."""
        vocab_size, length = (2, 1) if table is None else (table.vocab_size, table.length)
        vocab_size = padded_vocab_size(vocab_size)
        space = COMPACT_SPACE
        if table is not None and text_space.is_spelled(table):
            # Behind the text's tokens come sentinels and, where docids are atomic, documents.
            t5, space = dataclasses.replace(t5, vocab_size=vocab_size), TEXT_SPACE
        return DSIModel(
            DSIConfig(
                t5,
                docid_vocab_size=vocab_size,
                docid_length=length,
                docid_space=space,
                towers=towers,
            )
        )

    def load_model(self, value: dict[str, Any]) -> DSIModel:
        """See `base.Method`."""
        return DSIModel(DSIConfig.from_json(value))

    def batches(self, stream: Stream, collection: Collection) -> Stream:
        """See `base.Method`: the stream has the docids already."""
        del collection
        return stream

    def train_loss(
        self, outputs: jax.Array | ScoredLogits, batch: Any
    ) -> tuple[jax.Array, Metrics]:
        """See `base.Method`; `training_loss` adds what the documents decide."""
        return cross_entropy.docid_loss(
            _logits(outputs), batch, z_loss=self.z_loss, label_smoothing=self.label_smoothing
        )

    def training_loss(self, collection: Collection) -> Loss:
        """See `base.Method`."""
        if not (self.seen_softmax or self.soft_targets):
            return self.train_loss
        table, seen_N = collection.table, collection.seen
        if table.length != 1:
            raise ValueError(
                f"SEEN_SOFTMAX is {self.seen_softmax} and SOFT_TARGETS {self.soft_targets}, and "
                f"docids of kind {table.kind!r} have {table.length} tokens; both are for atomic "
                "docids so far: expected False"
            )
        tokens_N = table.tokens[:, 0]
        documents_V, seen_V = np.zeros((2, padded_vocab_size(table.vocab_size)), bool)
        documents_V[tokens_N] = True
        if seen_N is not None:
            seen_V[tokens_N] = seen_N
        # Where there are no questions, chunks of documents are asked in their place.
        questions = seen_N is None or bool(seen_N.any())
        return functools.partial(
            self._distilled_loss,
            documents_V=documents_V,
            seen_V=seen_V if self.seen_softmax and seen_N is not None else None,
            questions=questions,
        )

    def _distilled_loss(
        self,
        outputs: jax.Array | ScoredLogits,
        batch: Any,
        *,
        documents_V: np.ndarray,
        seen_V: np.ndarray | None,
        questions: bool,
    ) -> tuple[jax.Array, Metrics]:
        return distillation.docid_loss(
            _logits(outputs),
            batch,
            seen_V=seen_V,
            teacher_BxLxV=outputs.lexical if self.soft_targets else None,
            documents_V=documents_V,
            questions=questions,
            z_loss=self.z_loss,
        )

    def eval_loss(self, outputs: jax.Array | ScoredLogits, batch: Any) -> tuple[jax.Array, Metrics]:
        """See `base.Method`: without z-loss and label smoothing, among all documents."""
        return cross_entropy.docid_loss(_logits(outputs), batch)

    def ranking(
        self,
        *,
        beam_size: int = 10,
        constraint: str = "trie",
        decoding: Decoding = BeamSearch(),
    ) -> DocidRanking:
        """See `base.Method`."""
        return DocidRanking(beam_size, constraint, decoding)

    def new_ranker(
        self,
        model: DSIModel,
        collection: Collection,
        options: DocidRanking,
        *,
        mesh: Mesh | None = None,
        rules: partitioning.LogicalRules = partitioning.LOGICAL_AXIS_RULES,
        rows: np.ndarray | None = None,
    ) -> docid_ranker.DocidRanker:
        """See `base.Method`."""
        return docid_ranker.DocidRanker(
            model,
            collection.table,
            beam_size=options.beam_size,
            constraint=options.constraint,
            decoding=options.decoding,
            mesh=mesh,
            rules=rules,
            rows=rows,
        )


def _logits(outputs: jax.Array | ScoredLogits) -> jax.Array:
    return outputs.logits if isinstance(outputs, ScoredLogits) else outputs
