"""A corpus of texts: documents in a fixed order, and queries that point to their rows.

Every reader (BEIR directories, SQuAD files, registered corpora) ends in a
`Corpus`, which checks itself, so that nothing below it meets a bad document.
This module and the readers need neither tensorflow nor seqio.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from dsi_jax.inputs.streams import TEXT
from dsi_jax.storage.documents import FullTexts

logger = logging.getLogger(__name__)

SPLITS = ("train", "dev", "test")


@dataclasses.dataclass(frozen=True, eq=False)
class QuerySet:
    """Queries of one split with their relevant documents.

    Attributes:
      ids: Q query ids.
      texts: Q query texts.
      relevant: Q arrays int32 [R_q] of rows, the most relevant first.
      relevance: Q arrays float32 [R_q] of positive grades, aligned with `relevant`.
    """

    ids: list[str]
    texts: list[str]
    relevant: list[np.ndarray]
    relevance: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, indices: Sequence[int] | np.ndarray) -> QuerySet:
        """The queries at `indices`, in that order."""
        return QuerySet(
            ids=[self.ids[i] for i in indices],
            texts=[self.texts[i] for i in indices],
            relevant=[self.relevant[i] for i in indices],
            relevance=[self.relevance[i] for i in indices],
        )

    def update_hash(self, digest: hashlib._Hash) -> None:
        """Feeds ids, texts, rows and grades to `digest`."""
        for query_id, text, rows, grades in zip(
            self.ids, self.texts, self.relevant, self.relevance, strict=True
        ):
            _update_with_strings(digest, (query_id, text))
            digest.update(np.asarray(rows, "<i4").tobytes())
            digest.update(np.asarray(grades, "<f4").tobytes())


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """Documents, in the order that defines their rows, and queries by split.

    Where `queries` holds no "train", retrieval is trained on random chunks of
    the documents (see `has_training_queries`).

    Attributes:
      name: a short name, used in names of tasks and files.
      keys: N unique document keys; the row of a document is its position.
      titles: N titles, "" where there is none.
      texts: N texts, "" where there is only a title.
      queries: split -> queries; the splits are among "train", "dev", "test".
      classes: N class numbers, for docid kinds that tell classes apart; None where there are none.

    Raises:
      ValueError: at construction, if there is no document, the columns differ in
        length, a key is empty or repeated, a document has neither title nor text,
        or a query has no text, no document or a row outside the corpus.
    """

    name: str
    keys: Sequence[str]
    titles: Sequence[str]
    texts: Sequence[str]
    queries: Mapping[str, QuerySet]
    classes: Sequence[int] | None = None

    # What only a corpus of images has, see `any_corpus.AnyCorpus`.
    modality: ClassVar[str] = TEXT
    protocol: ClassVar[None] = None
    images: ClassVar[None] = None
    image_queries: ClassVar[Mapping[str, None]] = {}

    def __post_init__(self) -> None:
        if not self.keys:
            raise ValueError(f"corpus '{self.name}' is empty; expected at least one document")
        if not len(self.keys) == len(self.titles) == len(self.texts):
            raise ValueError(
                f"corpus '{self.name}' has {len(self.keys)} keys, {len(self.titles)} titles and "
                f"{len(self.texts)} texts; expected one of each a document"
            )
        if self.classes is not None and len(self.classes) != len(self.keys):
            raise ValueError(
                f"corpus '{self.name}' has {len(self.classes)} classes for {len(self.keys)} "
                "documents; expected one of each"
            )
        seen: dict[str, int] = {}
        for row, (key, title, text) in enumerate(
            zip(self.keys, self.titles, self.texts, strict=True)
        ):
            where = f"corpus '{self.name}', document {row} (key '{key}')"
            if not key:
                raise ValueError(f"{where}: the key is empty")
            if seen.setdefault(key, row) != row:
                raise ValueError(f"{where}: the key is already that of document {seen[key]}")
            if not title.strip() and not text.strip():
                raise ValueError(f"{where}: expected a title or a text, found neither")
        for split, queries in self.queries.items():
            self._check_queries(split, queries)

    def _check_queries(self, split: str, queries: QuerySet) -> None:
        if split not in SPLITS:
            raise ValueError(
                f"corpus '{self.name}' has a split '{split}'; expected one of {SPLITS}"
            )
        for query_id, text, rows, grades in zip(
            queries.ids, queries.texts, queries.relevant, queries.relevance, strict=True
        ):
            where = f"corpus '{self.name}', split '{split}', query '{query_id}'"
            if not text.strip():
                raise ValueError(f"{where}: the text is empty")
            if len(rows) == 0 or len(rows) != len(grades):
                raise ValueError(f"{where}: {len(rows)} documents and {len(grades)} grades")
            if min(rows) < 0 or max(rows) >= len(self.keys):
                raise ValueError(f"{where}: row outside the {len(self.keys)} documents: {rows}")

    def __len__(self) -> int:
        return len(self.keys)

    @functools.cached_property
    def hash(self) -> str:
        """sha256 (hex) over keys, titles and texts in order; queries do not enter."""
        digest = hashlib.sha256()
        for document in zip(self.keys, self.titles, self.texts, strict=True):
            _update_with_strings(digest, document)
        return digest.hexdigest()

    @property
    def has_training_queries(self) -> bool:
        """Whether there are training queries; otherwise chunks of documents serve."""
        return "train" in self.queries

    def document_texts(self, rows: Sequence[int] | None = None) -> list[str]:
        """Title and text joined by a space, what is indexed and embedded, of `rows` or all N."""
        full = FullTexts(self.titles, self.texts)
        return list(full) if rows is None else [full[row] for row in rows]

    def documents_with_training_query(self) -> np.ndarray:
        """bool [N]: whether a training query points to the document (*seen*).

        All True where chunks of every document serve as training queries.
        """
        if not self.has_training_queries:
            return np.ones(len(self), bool)
        seen = np.zeros(len(self), bool)
        seen[np.concatenate(self.queries["train"].relevant)] = True
        return seen

    def seen(self, split: str) -> np.ndarray:
        """bool [Q]: whether a relevant document of the query had a training query."""
        documents = self.documents_with_training_query()
        return np.array([documents[rows].any() for rows in self.queries[split].relevant], bool)

    def candidates(self, split: str) -> None:
        """Returns None: queries of any split may find all documents."""
        del split

    def describe(self) -> str:
        """Returns name, sizes and hash in one line, for a person to read."""
        sizes = ", ".join(f"{len(q):,} {split}" for split, q in self.queries.items()) or "none"
        return f"{self.name}: {len(self):,} documents; queries: {sizes}; {self.hash[:12]}"


def _update_with_strings(digest: hashlib._Hash, strings: Sequence[str]) -> None:
    # Lengths in front: ("ab", "c") and ("a", "bc") must differ.
    for string in strings:
        data = string.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)


def make_query_set(
    queries: Mapping[str, str], relevant: Mapping[str, Mapping[int, float]]
) -> QuerySet:
    """Builds a `QuerySet` from query id -> text and query id -> {row: grade}.

    Queries keep the order of `relevant`; documents are ordered by falling grade, then row.
    """
    ordered = [
        sorted(grades.items(), key=lambda item: (-item[1], item[0])) for grades in relevant.values()
    ]
    return QuerySet(
        ids=list(relevant),
        texts=[queries[query_id] for query_id in relevant],
        relevant=[np.array([row for row, _ in pairs], np.int32) for pairs in ordered],
        relevance=[np.array([grade for _, grade in pairs], np.float32) for pairs in ordered],
    )
