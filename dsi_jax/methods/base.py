"""What the loop, the evaluation and the retriever know of a way of retrieving."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
from jax.sharding import Mesh

from dsi_jax.decoding.beam import BeamResult
from dsi_jax.docids.table import DocidTable
from dsi_jax.models.t5 import T5Config
from dsi_jax.tokenizers import Tokenizer
from dsi_jax.training import partitioning
from dsi_jax.training.step import Metrics


@dataclasses.dataclass(frozen=True)
class Collection:
    """The documents that are trained on and ranked.

    Attributes:
      table: docid and key of each row.
      texts: text of each row, title included; None where only its tasks know a corpus.
      tokenizer: of the texts.
      lengths: tokens kept of each feature.
    """

    table: DocidTable
    texts: Sequence[str] | None
    tokenizer: Tokenizer
    lengths: Mapping[str, int]


class Stream(Protocol):
    """Endless batches whose position can be saved (`data.pipeline.TrainPipeline`).

    Attributes:
      batch_size: B, examples in a global batch.
      num_examples: examples in one pass; None where that is not known.
    """

    batch_size: int
    num_examples: int | None

    def __next__(self) -> dict[str, Any]:
        """This host's part of the next global batch."""

    def batch_shapes(self) -> dict[str, Any]:
        """ShapeDtypeStructs of the global batch."""

    def lines(self) -> tuple[str, ...]:
        """What the batches are made of, for a person to read."""

    def state(self) -> bytes:
        """All that is needed to go on after the last batch."""

    def restore(self, state: bytes) -> None:
        """Continues after the batch at which `state` was taken."""


class Ranker(Protocol):
    """Ranks the rows of one collection for batches of queries."""

    def search(self, params: Any, batch: Mapping[str, Any]) -> BeamResult:
        """Rows, scores and validity [B, M] of a batch, best first, still on the device."""


class Method(Protocol):
    """What tells one way of retrieving from another.

    A method is a small frozen dataclass of what can be chosen about it; gin's macro METHOD.

    Attributes:
      kind: its name in checkpoints.
      title: its name in reports.
      decodes: whether it decodes docids, so that an unconstrained search may miss all documents.
    """

    kind: str
    title: str
    decodes: bool

    def check(self) -> None:
        """Raises where a choice is impossible.

        Raises:
          ValueError: naming it.
        """

    def new_model(self, t5: T5Config, table: DocidTable | None) -> nn.Module:
        """The model, called as `model(batch, deterministic=...)`; `config.to_json()` describes it.

        Args:
          t5: the architecture.
          table: the docids; None, while they are not known, gives the smallest model possible.
        """

    def load_model(self, value: dict[str, Any]) -> nn.Module:
        """The model that `config.to_json()` described.

        Raises:
          ValueError: it is not of this method.
        """

    def batches(self, stream: Stream, collection: Collection) -> Stream:
        """The stream with each batch as the model reads it."""

    def train_loss(self, outputs: Any, batch: Any) -> tuple[jax.Array, Metrics]:
        """The summed loss of a batch and its figures, see `training.step.make_train_step`."""

    def eval_loss(self, outputs: Any, batch: Any) -> tuple[jax.Array, Metrics]:
        """The same without what only helps to train."""

    def new_ranker(
        self,
        model: nn.Module,
        collection: Collection,
        *,
        beam_size: int,
        constraint: str,
        mesh: Mesh | None = None,
        rules: partitioning.LogicalRules = partitioning.LOGICAL_AXIS_RULES,
    ) -> Ranker:
        """Ranks the collection's documents.

        Args:
          model: the model.
          collection: the documents.
          beam_size: M, rows a query.
          constraint: "trie" (only documents) or "free" (whatever the model says).
          mesh: where the parameters lie; None: on one device.
          rules: logical axis rules, fitted to the model; used with a mesh.

        Raises:
          ValueError: the model cannot rank so.
        """
