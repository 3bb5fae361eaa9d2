"""Corpora kept on disk once they are built: mapped into memory, and checked when they are opened.

A directory holds `documents.arrow`, `queries.arrow` and `manifest.json`, which says what the
corpus was made from and has a checksum of its content.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dsi_jax.data.corpora.corpus import SPLITS, Corpus, QuerySet
from dsi_jax.storage import documents, manifests, string_columns
from dsi_jax.utils import atomic_files

_FORMAT, _FORMAT_VERSION = "dsi_jax corpus", 1
_DOCUMENTS, _QUERIES = "documents.arrow", "queries.arrow"
_QUERY_COLUMNS = ("split", "id", "text", "rows", "grades")


def exists(directory: Path) -> bool:
    """Whether a whole corpus lies there."""
    return manifests.exists(directory)


def content_hash(corpus: Corpus) -> str:
    """sha256 (hex) over documents and queries."""
    digest = hashlib.sha256(corpus.hash.encode())
    for split in SPLITS:
        if split in corpus.queries:
            digest.update(split.encode())
            corpus.queries[split].update_hash(digest)
    return digest.hexdigest()


def save(corpus: Corpus, directory: Path, origin: Mapping[str, Any]) -> None:
    """Writes the corpus as a directory, which appears only once it is complete.

    Args:
      corpus: the corpus.
      directory: where; what another process has put there in the meantime stays.
      origin: what the corpus was made from, plain JSON; kept in the manifest.

    Raises:
      OSError: if it cannot be written.
    """
    try:
        with atomic_files.replacing_directory(directory) as new:
            documents.write_documents(new / _DOCUMENTS, corpus.keys, corpus.titles, corpus.texts)
            string_columns.write_columns(new / _QUERIES, _query_columns(corpus))
            manifest = {
                "name": corpus.name,
                "documents": len(corpus),
                "queries": {split: len(queries) for split, queries in corpus.queries.items()},
                "sha256": content_hash(corpus),
                "origin": dict(origin),
            }
            manifests.write(new, _FORMAT, _FORMAT_VERSION, manifest)
    except OSError:
        if not exists(directory):
            raise


def load(directory: Path) -> tuple[Corpus, dict[str, Any]]:
    """Opens a stored corpus and checks its content.

    Returns:
      the corpus, whose titles and texts stay on disk, and its manifest.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if a file is damaged, of another format, or its content is not what was stored.
    """
    manifest = manifests.read(directory, _FORMAT, _FORMAT_VERSION)
    stored = documents.Documents.open(directory / _DOCUMENTS)
    corpus = Corpus(
        name=manifest["name"],
        keys=list(stored.keys),
        titles=stored.titles,
        texts=stored.texts,
        queries=dict(_read_queries(directory / _QUERIES)),
    )
    found = content_hash(corpus)
    if found != manifest["sha256"]:
        raise ValueError(
            f"the corpus in {directory} has the SHA-256 {found}; its manifest says "
            f"{manifest['sha256']}: remove the directory to build it anew"
        )
    return corpus, manifest


def _query_columns(corpus: Corpus) -> dict[str, Iterator[str]]:
    def column(values) -> Iterator[str]:
        for split, queries in corpus.queries.items():
            yield from values(split, queries)

    return {
        "split": column(lambda split, queries: [split] * len(queries)),
        "id": column(lambda _, queries: queries.ids),
        "text": column(lambda _, queries: queries.texts),
        "rows": column(lambda _, queries: (" ".join(map(str, r)) for r in queries.relevant)),
        "grades": column(
            lambda _, queries: (" ".join(str(float(g)) for g in r) for r in queries.relevance)
        ),
    }


def _read_queries(path: Path) -> Iterator[tuple[str, QuerySet]]:
    splits, ids, texts, rows, grades = map(list, string_columns.open_columns(path, _QUERY_COLUMNS))
    for split in dict.fromkeys(splits):
        of_split = [i for i, name in enumerate(splits) if name == split]
        yield (
            split,
            QuerySet(
                ids=[ids[i] for i in of_split],
                texts=[texts[i] for i in of_split],
                relevant=[np.array(rows[i].split(), np.int32) for i in of_split],
                relevance=[np.array(grades[i].split(), np.float32) for i in of_split],
            ),
        )
