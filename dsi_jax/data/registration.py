"""Turns a corpus into seqio tasks and their mixture."""

from __future__ import annotations

import dataclasses
import hashlib
import re

import numpy as np
import seqio

from dsi_jax.data import document_forms, features, metrics, preprocessors
from dsi_jax.data.corpora import Corpus, QuerySet
from dsi_jax.data.sources import Column, InMemorySource


@dataclasses.dataclass(frozen=True)
class CorpusTasks:
    """Names of what `register_corpus_tasks` registered.

    Attributes:
      indexing: task document -> row; its only split is "train". The mixture has it unless the
        indexing ratio is 0.
      chunks: task random chunk of a document -> row, new each pass; "train" only; None
        where the mixture has none.
      retrieval: task query -> row; "train" and the evaluation splits.
      mixture: mixture of the two, for training.
      evaluation_splits: splits of `retrieval` to evaluate on, among "dev" and "test".
      corpus_hash: `Corpus.hash`.
    """

    indexing: str
    chunks: str | None
    retrieval: str
    mixture: str
    evaluation_splits: tuple[str, ...]
    corpus_hash: str


def register_corpus_tasks(
    corpus: Corpus,
    name: str | None = None,
    indexing_ratio: float | None = None,
    chunk_ratio: float = 0.0,
    document_form: str = document_forms.FIRST,
    shuffle_buffer: int | None = None,
) -> CorpusTasks:
    """Registers `<name>_indexing`, `_chunks`, `_retrieval` and their mixture `<name>_dsi`.

    A retrieval example is a pair of a training query and one of its documents; without
    training queries it is a random chunk of a document, new each epoch. Registering
    the same content again changes nothing.

    Args:
      corpus: the documents and queries.
      name: prefix of the registered names; None takes the corpus's name.
      indexing_ratio: indexing examples for each retrieval example, a true sampling
        ratio (r of Tay et al. 2022, arXiv:2202.06991, section 3.3); 0 indexes nothing;
        None mixes both in proportion to their sizes.
      chunk_ratio: random chunks of documents for each retrieval example, in the role of
        generated queries: a few words of a document that stand for it. 0: none.
      document_form: what stands for a document, one of `document_forms.FORMS`.
      shuffle_buffer: examples in a task's shuffle buffer; None shuffles fully. With a buffer,
        documents that have no training query come last, as in the original, whose forgetting
        this brings back (Tay et al. 2022, appendix).

    Returns:
      the registered names.

    Raises:
      ValueError: if an argument is out of range, or the names are taken by other content.
    """
    if not (isinstance(chunk_ratio, int | float) and chunk_ratio >= 0):
        raise ValueError(f"chunk_ratio is {chunk_ratio!r}; expected a number of at least 0")
    if indexing_ratio is not None and not (
        isinstance(indexing_ratio, int | float) and indexing_ratio >= 0
    ):
        raise ValueError(
            f"indexing_ratio is {indexing_ratio!r}; expected a number of at least 0 or None"
        )
    document_forms.check(document_form)
    prefix = _prefix(corpus, name)
    documents = _strings(corpus.document_texts())
    rows = np.arange(len(corpus), dtype=np.int32)
    if shuffle_buffer is not None:
        rows = np.argsort(~corpus.documents_with_training_query(), kind="stable").astype(np.int32)
    columns = {
        f"{prefix}_indexing": {"train": _indexing_columns(corpus, rows, document_form)},
        f"{prefix}_retrieval": _retrieval_columns(corpus, documents),
    }
    if chunk_ratio:
        chunks = _chunk_columns(documents, rows, is_indexing=True)
        columns[f"{prefix}_chunks"] = {"train": chunks}
    for task, splits in columns.items():
        form = document_form if task == f"{prefix}_indexing" else None
        fingerprint = _fingerprint(corpus, form, shuffle_buffer)
        _add_task(task, splits, fingerprint, corpus.hash, shuffle_buffer)

    tasks = CorpusTasks(
        indexing=f"{prefix}_indexing",
        chunks=f"{prefix}_chunks" if chunk_ratio else None,
        retrieval=f"{prefix}_retrieval",
        mixture=f"{prefix}_dsi",
        evaluation_splits=tuple(s for s in ("dev", "test") if s in corpus.queries),
        corpus_hash=corpus.hash,
    )
    sizes = {
        task: len(columns[task]["train"][features.TARGETS])
        for task in (tasks.indexing, tasks.retrieval)
    }
    ratio = sizes[tasks.indexing] / sizes[tasks.retrieval]
    rates = {tasks.retrieval: 1.0}
    if indexing_ratio != 0:
        rates = {tasks.indexing: float(indexing_ratio or ratio)} | rates
    if tasks.chunks is not None:
        rates[tasks.chunks] = float(chunk_ratio)
    _add_mixture(tasks.mixture, rates)
    return tasks


def register_retrieval_task(corpus: Corpus, name: str | None = None) -> str:
    """Registers the task `<name>_retrieval` alone: to evaluate, not to train.

    Returns:
      the registered name.

    Raises:
      ValueError: if the name is taken by other content.
    """
    task = f"{_prefix(corpus, name)}_retrieval"
    columns = _retrieval_columns(corpus, _strings(corpus.document_texts()))
    _add_task(task, columns, _fingerprint(corpus, None, None), corpus.hash)
    return task


def _prefix(corpus: Corpus, name: str | None) -> str:
    return re.sub(r"[^\w.:#]", "_", corpus.name if name is None else name)


def _indexing_columns(corpus: Corpus, rows: np.ndarray, document_form: str) -> dict[str, Column]:
    texts = corpus.document_texts()
    inputs, texts = document_forms.field(document_form, [texts[row] for row in rows])
    return {
        inputs: _strings(texts),
        features.TARGETS: rows[:, None],
        features.IS_INDEXING: np.ones([len(rows), 1], np.int32),
    }


def _chunk_columns(documents: np.ndarray, rows: np.ndarray, is_indexing: bool) -> dict[str, Column]:
    return {
        preprocessors.DOCUMENT: documents[rows],
        features.TARGETS: rows[:, None],
        features.IS_INDEXING: np.full([len(rows), 1], int(is_indexing), np.int32),
    }


def _retrieval_columns(corpus: Corpus, documents: np.ndarray) -> dict[str, dict[str, Column]]:
    if corpus.has_training_queries:
        train = _pair_columns(corpus.queries["train"])
    else:
        rows = np.arange(len(documents), dtype=np.int32)
        train = _chunk_columns(documents, rows, is_indexing=False)
    evaluation = {
        split: _query_columns(queries, corpus.seen(split))
        for split, queries in corpus.queries.items()
        if split != "train"
    }
    return {"train": train} | evaluation


def _pair_columns(queries: QuerySet) -> dict[str, Column]:
    """One example a pair of query and relevant document."""
    counts = [len(rows) for rows in queries.relevant]
    rows = np.concatenate(queries.relevant).astype(np.int32)
    return {
        features.INPUTS: np.repeat(_strings(queries.texts), counts, axis=0),
        features.TARGETS: rows[:, None],
        features.IS_INDEXING: np.zeros([len(rows), 1], np.int32),
    }


def _query_columns(queries: QuerySet, seen: np.ndarray) -> dict[str, Column]:
    """One example a query; the target is its most relevant document."""
    return {
        features.INPUTS: _strings(queries.texts),
        features.TARGETS: np.array([rows[:1] for rows in queries.relevant], np.int32),
        features.IS_INDEXING: np.zeros([len(queries), 1], np.int32),
        features.QUERY_ID: _strings(queries.ids),
        features.RELEVANT: queries.relevant,
        features.RELEVANCE: queries.relevance,
        features.SEEN: seen.astype(np.int32)[:, None],
    }


def _strings(texts: list[str]) -> np.ndarray:
    """Object array [n, 1] of UTF-8 bytes; a lone surrogate becomes "?"."""
    encoded = [text.encode("utf-8", "replace") for text in texts]
    return np.array(encoded, dtype=object)[:, None]


def _fingerprint(corpus: Corpus, form: str | None, shuffle_buffer: int | None) -> str:
    digest = hashlib.sha256(f"{corpus.hash} {form} {shuffle_buffer}".encode())
    for split, queries in sorted(corpus.queries.items()):
        digest.update(split.encode())
        queries.update_hash(digest)
    return digest.hexdigest()


def _add_task(
    name: str,
    columns: dict[str, dict[str, Column]],
    fingerprint: str,
    corpus_hash: str,
    shuffle_buffer: int | None = None,
) -> None:
    if name in seqio.TaskRegistry.names():
        source = seqio.TaskRegistry.get(name).source
        if not isinstance(source, InMemorySource) or source.fingerprint != fingerprint:
            raise ValueError(
                f"the task '{name}' is already registered with other content or options; "
                "give this corpus another name"
            )
        return
    seqio.TaskRegistry.add(
        name,
        source=InMemorySource(columns, name, corpus_hash, fingerprint, shuffle_buffer),
        preprocessors=[preprocessors.chunk_documents],
        output_features=features.output_features(),
        postprocess_fn=metrics.postprocess,
        metric_fns=[metrics.retrieval_metrics],
        shuffle_buffer_size=None,  # the source shuffles
    )


def _add_mixture(name: str, rates: dict[str, float]) -> None:
    if name in seqio.MixtureRegistry.names():
        registered = dict(seqio.MixtureRegistry.get(name).rate_per_task_name)
        if registered != rates:
            raise ValueError(
                f"the mixture '{name}' is already registered with the rates {registered}; "
                f"asked for {rates}"
            )
        return
    seqio.MixtureRegistry.add(name, list(rates.items()))
