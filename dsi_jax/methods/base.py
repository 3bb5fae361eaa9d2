"""What the loop, the evaluation and the retriever know of a way of retrieving."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from dsi_jax.decoding.result import BeamResult
from dsi_jax.decoding.strategies import BeamSearch, Decoding
from dsi_jax.docids.table import DocidTable
from dsi_jax.inputs.encoder_inputs import Inputs
from dsi_jax.inputs.image_files import ImageSource
from dsi_jax.inputs.lexical_vocabulary import LexicalVocabulary
from dsi_jax.inputs.tokenizer import Tokenizer
from dsi_jax.models.encoders.config import TowersConfig
from dsi_jax.models.t5 import T5Config
from dsi_jax.ranking.document_inputs import AbsentImages, DocumentInputs, ImageInputs
from dsi_jax.ranking.top_k import Ranking
from dsi_jax.storage.embeddings import EmbeddingStore
from dsi_jax.training import partitioning
from dsi_jax.training.step import Loss, Metrics


@dataclasses.dataclass(frozen=True)
class Collection:
    """The documents that are trained on and ranked.

    Attributes:
      table: docid and key of each row.
      texts: text of each row, title included; None where only its tasks know a corpus.
      tokenizer: of the texts.
      lengths: tokens kept of each feature; `documents` are as long as `inputs` unless given.
      images: image of each row, where documents are images.
      image_size: pixels a side of the images that the model reads; None: it reads none.
      image_canvas: pixels a side of what the model resizes to that; None: the host resizes.
      store: keeps their embeddings by the one set of parameters that will rank them; None: nowhere.
      lexical_vocabulary: the stems that the model's lexical head knows; None: it has none.
      seen: bool [N], whether a document has a training question; None where that is not known.
    """

    table: DocidTable
    texts: Sequence[str] | None
    tokenizer: Tokenizer
    lengths: Mapping[str, int]
    store: EmbeddingStore | None = None
    images: Sequence[ImageSource] | None = None
    image_size: int | None = None
    image_canvas: int | None = None
    lexical_vocabulary: LexicalVocabulary | None = None
    seen: np.ndarray | None = None

    @functools.cached_property
    def inputs(self) -> Inputs:
        """Makes what the encoders read of texts and images."""
        return Inputs(
            self.tokenizer,
            self.lengths,
            self.image_size,
            self.image_canvas,
            self.lexical_vocabulary,
        )

    @functools.cached_property
    def document_inputs(self) -> DocumentInputs | ImageInputs:
        """The documents as an encoder reads them.

        Raises:
          ValueError: there are no texts.
        """
        if self.images is not None:
            return ImageInputs(self.images, self.inputs)
        if self.image_size is not None:
            return ImageInputs(AbsentImages(self.table.num_documents), self.inputs)
        if self.texts is None:
            raise ValueError(
                "the documents themselves are needed, and there are none: training needs CORPUS, "
                "a search needs documents.arrow in MODEL_DIR"
            )
        length = self.lengths.get("documents", self.lengths["inputs"])
        return DocumentInputs(self.texts, self.tokenizer, length)


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


class RankingOptions(Protocol):
    """What can be chosen about how a method ranks documents; a frozen dataclass of the method's.

    Attributes:
      beam_size: M, documents ranked for a query.
      constrained: whether nothing but documents can be found.
    """

    @property
    def beam_size(self) -> int: ...

    @property
    def constrained(self) -> bool: ...

    def unconstrained(self, beam_size: int) -> RankingOptions | None:
        """Returns the options of a search that may miss all documents; None: the method has none.

        Args:
          beam_size: M, at most.
        """


class Ranker(Protocol):
    """Ranks the rows of one collection for batches of queries."""

    def prepare(self, params: Any) -> Iterator[None]:
        """Does what these parameters need before their first search, with pauses in between."""

    def search(
        self,
        params: Any,
        batch: Mapping[str, Any],
        beam_size: int | None = None,
        allowed: np.ndarray | None = None,
    ) -> BeamResult | Ranking:
        """Rows, scores and validity [B, M] of a batch, best first, still on the device.

        Args:
          params: the parameters.
          batch: NumPy arrays of the whole batch, the same on all processes.
          beam_size: M; None: that of the ranker.
          allowed: bool [B, N], the rows that each query may find, or [1, N] for all queries; None:
            all of them.
        """


class Method(Protocol):
    """What tells one way of retrieving from another.

    A method is a small frozen dataclass of what can be chosen about it; gin's macro METHOD.

    Attributes:
      kind: its name in checkpoints.
      title: its name in reports.
      decodes: whether it decodes docids, so that an unconstrained search may miss all documents.
      whole_batches: whether the loss of a batch is more than that of its parts.
    """

    kind: str
    title: str
    decodes: bool
    whole_batches: bool

    def check(self) -> None:
        """Raises where a choice is impossible.

        Raises:
          ValueError: naming it.
        """

    def new_model(
        self, t5: T5Config, table: DocidTable | None, towers: TowersConfig | None = None
    ) -> nn.Module:
        """The model, called as `model(batch, deterministic=...)`; `config.to_json()` describes it.

        Args:
          t5: the architecture.
          table: the docids; None, while they are not known, gives the smallest model possible.
          towers: encoders of texts and images in place of T5's encoder of texts.

        Raises:
          ValueError: the method has no use for the encoders given.
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

    def training_loss(self, collection: Collection) -> Loss:
        """Returns `train_loss` with what it must know of the documents.

        Args:
          collection: the documents that are trained on.

        Raises:
          ValueError: the method cannot learn from such documents.
        """

    def eval_loss(self, outputs: Any, batch: Any) -> tuple[jax.Array, Metrics]:
        """The same without what only helps to train."""

    def ranking(
        self,
        *,
        beam_size: int = 10,
        constraint: str = "trie",
        decoding: Decoding = BeamSearch(),
    ) -> RankingOptions:
        """Makes the method's own options from those that a configuration or a caller names.

        Args:
          beam_size: M, documents ranked for a query.
          constraint: "trie" (only documents) or "free" (whatever the model says).
          decoding: the decoding strategy.

        Raises:
          ValueError: the method cannot rank so.
        """

    def new_ranker(
        self,
        model: nn.Module,
        collection: Collection,
        options: Any,
        *,
        mesh: Mesh | None = None,
        rules: partitioning.LogicalRules = partitioning.LOGICAL_AXIS_RULES,
        rows: np.ndarray | None = None,
    ) -> Ranker:
        """Makes what ranks the collection's documents.

        Args:
          model: the model.
          collection: the documents.
          options: the method's own, as `ranking` makes them.
          mesh: where the parameters lie; None: on one device.
          rules: logical axis rules, fitted to the model; used with a mesh.
          rows: int [C], ascending, the documents that may be found, where the options let nothing
            else be found; None: all.
        """
