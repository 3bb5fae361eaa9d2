"""A part of a corpus: K of its documents, with the queries that point to them."""

from __future__ import annotations

import hashlib
import logging

import numpy as np

from dsi_jax.data.corpora.corpus import Corpus, QuerySet

logger = logging.getLogger(__name__)

SEPARATOR = "#"


def split_spec(spec: str) -> tuple[str, int] | None:
    """ "DIR#1000" -> ("DIR", 1000); None where the text asks for no subset."""
    base, separator, count = spec.rpartition(SEPARATOR)
    if not (base and separator and count.isascii() and count.isdigit()):
        return None
    return base, int(count)


def subset(corpus: Corpus, count: int) -> Corpus:
    """`count` documents of the corpus that have queries, with those queries.

    The documents are those whose keys have the smallest SHA-256: neither a seed nor the order of
    the corpus enters, and a smaller subset is part of a larger one. They keep the order of the
    corpus, and queries keep their splits; of a query's documents, those outside are dropped. In a
    corpus without queries any document may be chosen.

    Args:
      corpus: the whole corpus.
      count: K.

    Returns:
      the corpus "<name>#<count>".

    Raises:
      ValueError: if the corpus has fewer such documents, or `count` is 0.
    """
    candidates = np.flatnonzero(_with_queries(corpus))
    if not 0 < count <= len(candidates):
        kind = "documents with queries" if corpus.queries else "documents"
        raise ValueError(
            f"corpus '{corpus.name}{SEPARATOR}{count}': expected 1 to {len(candidates)}, the "
            f"number of {kind} in '{corpus.name}'"
        )
    by_digest = sorted(candidates, key=lambda row: _digest(corpus.keys[row]))
    rows = np.sort(by_digest[:count])
    new_row = np.full(len(corpus), -1, np.int32)
    new_row[rows] = np.arange(count)
    queries = {split: _restrict(part, new_row) for split, part in corpus.queries.items()}
    empty = [split for split, part in queries.items() if not len(part)]
    if empty:
        logger.warning("%s%s%d: no queries left in %s", corpus.name, SEPARATOR, count, empty)
    return Corpus(
        name=f"{corpus.name}{SEPARATOR}{count}",
        keys=[corpus.keys[row] for row in rows],
        titles=[corpus.titles[row] for row in rows],
        texts=[corpus.texts[row] for row in rows],
        queries={split: part for split, part in queries.items() if len(part)},
        classes=None if corpus.classes is None else [corpus.classes[row] for row in rows],
    )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _with_queries(corpus: Corpus) -> np.ndarray:
    """bool [N]; all True in a corpus without queries."""
    if not corpus.queries:
        return np.ones(len(corpus), bool)
    found = np.zeros(len(corpus), bool)
    for queries in corpus.queries.values():
        found[np.concatenate(queries.relevant)] = True
    return found


def _restrict(queries: QuerySet, new_row: np.ndarray) -> QuerySet:
    """The queries with a document that has a new row (not -1), pointing to the new rows."""
    kept = [np.flatnonzero(new_row[rows] >= 0) for rows in queries.relevant]
    indices = [i for i, positions in enumerate(kept) if len(positions)]
    chosen = queries.subset(indices)
    return QuerySet(
        ids=chosen.ids,
        texts=chosen.texts,
        relevant=[new_row[queries.relevant[i][kept[i]]] for i in indices],
        relevance=[queries.relevance[i][kept[i]] for i in indices],
    )
