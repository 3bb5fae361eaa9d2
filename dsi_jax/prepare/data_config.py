"""Names everything that a run reads, and checks it."""

from __future__ import annotations

import dataclasses

from dsi_jax.data.batches import indexing_strategies
from dsi_jax.data.readers.load import modality_of
from dsi_jax.data.seqio_tasks import document_forms
from dsi_jax.docids.builder import DocidBuilder
from dsi_jax.inputs.streams import IMAGE
from dsi_jax.models.dsi import COMPACT_SPACE, DOCID_SPACES, TEXT_SPACE
from dsi_jax.utils import checks


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Names of everything that a run reads; gin fills it from the macros.

    Attributes:
      corpus: a registered corpus ("demo_text", "demo_image"), a directory in BEIR layout, or a
        SQuAD JSON file, each of texts with "#1000" behind it for 1,000 of its documents; None where
        the task comes from another project and its docid table is given, or `images` are.
      images: a directory of images, in place of a corpus.
      captions: the file of their captions; None: there are none.
      protocol: what is indexed and what looks for it, one of `image_corpus.PROTOCOLS`; None: what
        suits the images.
      skip_unreadable: count and leave out images and captions that cannot be used; else an error.
      docids: builder of the docid table (`docids.atomic.Atomic()` ...); used where no table lies
        at `docid_table`.
      docid_table: directory of the table; by default MODEL_DIR/docids.
      vocabulary: a SentencePiece model file or a directory with spiece.model; a CLIP, by its
        directory or hub id; a checkpoint, a MODEL_DIR or its tokenizer.json; or "bytes". None
        trains one on the corpus.
      vocabulary_size: pieces of a trained vocabulary, at most.
      mixture_or_task_name: a registered seqio mixture or task; by default the corpus's own.
      indexing_ratio: indexing examples for each retrieval example; None: as many as keep documents
        and queries equally often seen; 0: none.
      chunk_ratio: random chunks of documents for each retrieval example, as generated queries.
      document_form: what text stands for a document, one of `document_forms.FORMS`.
      indexing_strategy: what an indexing example asks, one of `strategies.STRATEGIES`.
      docid_space: "compact" or "text" (see `DSIConfig`); None: what the strategy needs.
      shuffle_buffer_size: examples in a task's shuffle buffer, as in the original; None shuffles
        fully.
      seed: seed of the vocabulary, the docids and the corpus splits.
    """

    corpus: str | None = "demo_text"
    docids: DocidBuilder | None = None
    docid_table: str | None = None
    vocabulary: str | None = None
    vocabulary_size: int = 8192
    mixture_or_task_name: str | None = None
    indexing_ratio: float | None = None
    chunk_ratio: float = 0.0
    document_form: str = document_forms.FIRST
    indexing_strategy: str = indexing_strategies.INPUTS2TARGETS
    docid_space: str | None = None
    shuffle_buffer_size: int | None = None
    seed: int = 42
    images: str | None = None
    captions: str | None = None
    protocol: str | None = None
    skip_unreadable: bool = False

    @property
    def of_images(self) -> bool:
        """Whether documents are images."""
        return self.images is not None or modality_of(self.corpus or "") == IMAGE

    @property
    def space(self) -> str:
        """The space of docids, decided."""
        needs_text = indexing_strategies.Strategy(self.indexing_strategy).needs_text_space
        return self.docid_space or (TEXT_SPACE if needs_text else COMPACT_SPACE)


def check_data_config(data: DataConfig) -> None:
    """Raises where a field is of the wrong type or out of range; reads nothing.

    Raises:
      ValueError: naming it.
    """
    checks.check_fields(data)
    checks.check_whole_numbers(
        VOCABULARY_SIZE=data.vocabulary_size, SHUFFLE_BUFFER_SIZE=data.shuffle_buffer_size
    )
    checks.check_whole_numbers(least=0, RANDOM_SEED=data.seed)
    document_forms.check(data.document_form)
    if data.space not in DOCID_SPACES:
        raise ValueError(f"DOCID_SPACE is {data.space!r}; expected one of {DOCID_SPACES}")
    strategy = indexing_strategies.Strategy(data.indexing_strategy)
    if strategy.needs_text_space and data.space != TEXT_SPACE:
        raise ValueError(
            f"INDEXING_STRATEGY is {strategy.name!r}, which needs docids in text tokens; "
            f"DOCID_SPACE is {data.space!r}, expected {TEXT_SPACE!r} or None"
        )
    _check_modality(data)


def _check_modality(data: DataConfig) -> None:
    """Raises where a field is given that texts, or images, have no use for."""
    default = DataConfig()
    if data.of_images:
        what, names = (
            "images",
            {
                "CHUNK_RATIO": "chunk_ratio",
                "DOCUMENT_FORM": "document_form",
                "INDEXING_STRATEGY": "indexing_strategy",
                "SHUFFLE_BUFFER_SIZE": "shuffle_buffer_size",
            },
        )
    else:
        what, names = "texts", {"CAPTIONS": "captions", "PROTOCOL": "protocol"}
    for macro, name in names.items():
        if getattr(data, name) != getattr(default, name):
            raise ValueError(
                f"{macro} is {getattr(data, name)!r}, and documents are {what}; expected "
                f"{getattr(default, name)!r}"
            )
