"""A corpus: documents in a fixed order, and queries that point to their rows.

Every reader (BEIR directories, SQuAD files, registered corpora) ends in a
`Corpus`, which checks itself, so that nothing below it meets a bad document.
This module and the readers need neither tensorflow nor seqio.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dsi_jax.documents import FullTexts

logger = logging.getLogger(__name__)

SPLITS = ("train", "dev", "test")
MAX_HELD_OUT = 1_000
# Words of a random chunk that stands for a query where a corpus has none: the
# length of typical questions and web queries.
CHUNK_WORDS = (5, 15)


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


def _update_with_strings(digest: hashlib._Hash, strings: Sequence[str]) -> None:
    # Lengths in front: ("ab", "c") and ("a", "bc") must differ.
    for string in strings:
        data = string.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)


CorpusFn = Callable[[int], Corpus]
_REGISTRY: dict[str, CorpusFn] = {}


def register_corpus(name: str, fn: CorpusFn) -> None:
    """Makes `fn(seed) -> Corpus` available as `load_corpus(name)`.

    Raises:
      ValueError: if another function bears the name.
    """
    if _REGISTRY.setdefault(name, fn) is not fn:
        raise ValueError(f"another corpus is already registered as '{name}'")


def load_corpus(spec: str, seed: int = 42, complete: bool = True) -> Corpus:
    """Loads a registered corpus, a BEIR directory or a SQuAD v1.1 file.

    Args:
      spec: the name of a registered corpus ("demo_text"), the path of a directory
        with corpus.jsonl, queries.jsonl and qrels/*.tsv, or the path of a JSON file;
        "#1000" behind any of these takes 1,000 of its documents (`subsets.subset`).
      seed: decides every random split and sample.
      complete: complete the splits where the data has only some (`complete_splits`).

    Raises:
      ValueError: if there is no such corpus or its data is malformed.
    """
    corpus = _load(spec, seed)
    return complete_splits(corpus, seed) if complete else corpus


def _load(spec: str, seed: int) -> Corpus:
    # Here, because the readers build on this module.
    from dsi_jax.data import beir, demo_text, squad, subsets
    from dsi_jax.data.natural_questions import load as natural_questions

    register_corpus("demo_text", demo_text.load)
    natural_questions.register()
    if spec in _REGISTRY:
        return _REGISTRY[spec](seed)
    path = Path(spec).expanduser()
    if path.is_dir():
        return beir.load(path)
    if path.is_file():
        return squad.load(path, seed)
    part = subsets.split_spec(spec)
    if part is not None:
        base, count = part
        return subsets.subset(_load(base, seed), count)
    raise ValueError(
        f"no corpus '{spec}': expected an existing directory in BEIR layout, a SQuAD JSON file, "
        f"or one of the registered names {sorted(_REGISTRY)}"
    )


def complete_splits(corpus: Corpus, seed: int) -> Corpus:
    """Gives every corpus something to evaluate on.

    Without queries, "test" becomes a seeded sample of chunks of the documents; with
    training queries alone, a seeded tenth of them (at most `MAX_HELD_OUT`) becomes
    "test". Any other corpus is returned as it is.
    """
    queries = {split: corpus.queries[split] for split in SPLITS if split in corpus.queries}
    if not queries:
        queries = {"test": sample_chunks(corpus, seed)}
        logger.info(
            "Corpus '%s' has no queries: training on random chunks of its documents, "
            "evaluating on a fixed sample of %d chunks.",
            corpus.name,
            len(queries["test"]),
        )
    elif list(queries) == ["train"]:
        queries = hold_out_tenth(queries["train"], seed)
        logger.info(
            "Corpus '%s' has training queries only: holding out %d of %d as test.",
            corpus.name,
            len(queries["test"]),
            len(corpus.queries["train"]),
        )
    elif list(queries) == list(corpus.queries):
        return corpus  # not a copy, which would be checked and hashed again
    return dataclasses.replace(corpus, queries=queries)


def hold_out_tenth(train: QuerySet, seed: int) -> dict[str, QuerySet]:
    """Splits `train` into "train" and a seeded tenth (at least one query) "test"."""
    order = np.random.default_rng(seed).permutation(len(train))
    count = min(MAX_HELD_OUT, max(1, len(train) // 10))
    parts = {"train": train.subset(np.sort(order[count:]))}
    parts["test"] = train.subset(np.sort(order[:count]))
    return {split: part for split, part in parts.items() if len(part)}


def sample_chunks(corpus: Corpus, seed: int) -> QuerySet:
    """A seeded random chunk of words of each of at most `MAX_HELD_OUT` documents."""
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(corpus))[:MAX_HELD_OUT])
    chunks = []
    for row in rows:
        words = f"{corpus.titles[row]} {corpus.texts[row]}".split()
        length = min(len(words), int(rng.integers(CHUNK_WORDS[0], CHUNK_WORDS[1] + 1)))
        start = int(rng.integers(0, len(words) - length + 1))
        chunks.append(" ".join(words[start : start + length]))
    return QuerySet(
        ids=[f"chunk-{row}" for row in rows],
        texts=chunks,
        relevant=[np.array([row], np.int32) for row in rows],
        relevance=[np.ones(1, np.float32) for _ in rows],
    )


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
