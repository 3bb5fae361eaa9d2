"""What a corpus of any modality answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from dsi_jax.data.corpora.corpus import QuerySet
from dsi_jax.data.corpora.image_corpus import ImageQuerySet
from dsi_jax.inputs.image_files import ImageSource


@runtime_checkable
class AnyCorpus(Protocol):
    """N documents in a fixed order, and queries that point to their rows.

    `Corpus` has documents of text, `ImageCorpus` images. Only their readers and the modules of
    their seqio tasks know these classes; all else asks a corpus by the members below.
    """

    @property
    def modality(self) -> str:
        """The modality of the documents, one of `streams.MODALITIES`."""

    @property
    def name(self) -> str:
        """The short name, used in names of tasks and files."""

    @property
    def protocol(self) -> str | None:
        """The protocol that made the queries, one of `image_corpus.PROTOCOLS`; None for texts."""

    @property
    def keys(self) -> Sequence[str]:
        """N unique document keys."""

    @property
    def titles(self) -> Sequence[str]:
        """N titles, "" where there is none."""

    @property
    def texts(self) -> Sequence[str]:
        """N texts to show and to search by words, "" where there is none."""

    @property
    def images(self) -> Sequence[ImageSource] | None:
        """N images; None where documents are texts."""

    @property
    def classes(self) -> Sequence[int] | np.ndarray | None:
        """N class numbers; None where there are none."""

    @property
    def queries(self) -> Mapping[str, QuerySet]:
        """Split -> queries in words."""

    @property
    def image_queries(self) -> Mapping[str, ImageQuerySet]:
        """Split -> images that look for documents; empty for texts."""

    @property
    def hash(self) -> str:
        """The SHA-256 (hex) of the documents in order; queries do not enter."""

    @property
    def has_training_queries(self) -> bool:
        """Whether `queries` has the split "train"."""

    def __len__(self) -> int:
        """Returns N."""

    def document_texts(self, rows: Sequence[int] | None = None) -> list[str]:
        """Returns title and text, joined, of some rows or of all N."""

    def documents_with_training_query(self) -> np.ndarray:
        """Returns bool [N]: whether training has a query for the document (*seen*)."""

    def seen(self, split: str) -> np.ndarray:
        """Returns bool [Q]: whether a relevant document of the query was seen in training."""

    def candidates(self, split: str) -> np.ndarray | None:
        """Returns int32 [C], ascending, the rows that queries of a split may find; None: all."""

    def describe(self) -> str:
        """Returns name, sizes and hash in one line, for a person to read."""
