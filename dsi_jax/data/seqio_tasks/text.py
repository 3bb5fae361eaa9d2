"""Turns a corpus of texts into seqio tasks and their mixture."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import seqio

from dsi_jax.data.corpora.corpus import Corpus, QuerySet
from dsi_jax.data.seqio_tasks import document_forms, features, metrics, preprocessors
from dsi_jax.data.seqio_tasks.corpus_tasks import (
    CorpusTasks,
    add_mixture,
    add_task,
    check_ratio,
    prefix_of,
    query_columns,
    strings,
)
from dsi_jax.data.seqio_tasks.sources import Column, InMemorySource, LazySource


def register_corpus_tasks(
    corpus: Corpus,
    name: str | None = None,
    indexing_ratio: float | None = None,
    chunk_ratio: float = 0.0,
    document_form: str = document_forms.FIRST,
    shuffle_buffer: int | None = None,
    with_mixture: bool = True,
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
      with_mixture: False leaves the mixture, whose name is returned all the same, unregistered.

    Returns:
      the registered names.

    Raises:
      ValueError: if an argument is out of range, or the names are taken by other content.
    """
    if not (isinstance(chunk_ratio, int | float) and chunk_ratio >= 0):
        raise ValueError(f"chunk_ratio is {chunk_ratio!r}; expected a number of at least 0")
    check_ratio("indexing_ratio", indexing_ratio)
    document_forms.check(document_form)
    tasks = _names(corpus, prefix_of(corpus, name), with_chunks=bool(chunk_ratio))
    sources = {
        tasks.indexing: _indexing_source(corpus, tasks.indexing, document_form, shuffle_buffer),
        tasks.retrieval: _retrieval_source(corpus, tasks.retrieval, shuffle_buffer),
    }
    if tasks.chunks is not None:
        sources[tasks.chunks] = _chunk_source(corpus, tasks.chunks, shuffle_buffer)
    for task, source in sources.items():
        _add_text_task(task, source)
    if with_mixture:
        add_mixture(tasks.mixture, _rates(tasks, sources, indexing_ratio, chunk_ratio))
    return tasks


def _names(corpus: Corpus, prefix: str, *, with_chunks: bool) -> CorpusTasks:
    return CorpusTasks(
        indexing=f"{prefix}_indexing",
        chunks=f"{prefix}_chunks" if with_chunks else None,
        retrieval=f"{prefix}_retrieval",
        mixture=f"{prefix}_dsi",
        evaluation_splits=tuple(s for s in ("dev", "test") if s in corpus.queries),
        corpus_hash=corpus.hash,
    )


def _rates(
    tasks: CorpusTasks,
    sources: Mapping[str, InMemorySource],
    indexing_ratio: float | None,
    chunk_ratio: float,
) -> dict[str, float]:
    """Returns task -> rate; that of retrieval is 1."""
    sizes = {task: source.num_input_examples("train") for task, source in sources.items()}
    ratio = sizes[tasks.indexing] / sizes[tasks.retrieval]
    rates = {tasks.retrieval: 1.0}
    if indexing_ratio != 0:
        rates = {tasks.indexing: float(indexing_ratio or ratio)} | rates
    if tasks.chunks is not None:
        rates[tasks.chunks] = float(chunk_ratio)
    return rates


def register_retrieval_task(corpus: Corpus, name: str | None = None) -> str:
    """Registers the task `<name>_retrieval` alone: to evaluate, not to train.

    Returns:
      the registered name.

    Raises:
      ValueError: if the name is taken by other content.
    """
    task = f"{prefix_of(corpus, name)}_retrieval"
    _add_text_task(task, _retrieval_source(corpus, task, None))
    return task


def register_lazily(
    name: str, load: Callable[[], Corpus], splits: Sequence[str], indexing_ratio: float
) -> None:
    """Registers `<name>_indexing`, `_retrieval` and their mixture `<name>_dsi`, reading nothing.

    They are the tasks that `register_corpus_tasks` makes of the corpus, which is loaded when one
    of them is first asked for its examples, their number or their content.

    Args:
      name: prefix of the registered names.
      load: loads the corpus.
      splits: the corpus's splits of queries.
      indexing_ratio: indexing examples for each retrieval example.

    Raises:
      ValueError: if the names are taken by other content.
    """
    loaded = functools.cache(load)
    indexing, retrieval = f"{name}_indexing", f"{name}_retrieval"

    def index() -> InMemorySource:
        return _indexing_source(loaded(), indexing, document_forms.FIRST, None)

    def retrieve() -> InMemorySource:
        return _retrieval_source(loaded(), retrieval, None)

    _add_text_task(indexing, LazySource(index, ["train"]))
    _add_text_task(retrieval, LazySource(retrieve, splits))
    add_mixture(f"{name}_dsi", {indexing: float(indexing_ratio), retrieval: 1.0})


def _indexing_source(
    corpus: Corpus, task: str, form: str, shuffle_buffer: int | None
) -> InMemorySource:
    rows = _rows(corpus, shuffle_buffer)
    texts = corpus.document_texts()
    inputs, texts = document_forms.field(form, [texts[row] for row in rows])
    columns = {
        inputs: strings(texts),
        features.TARGETS: rows[:, None],
        features.IS_INDEXING: np.ones([len(rows), 1], np.int32),
    }
    return _source(corpus, task, {"train": columns}, form, shuffle_buffer)


def _chunk_source(corpus: Corpus, task: str, shuffle_buffer: int | None) -> InMemorySource:
    rows = _rows(corpus, shuffle_buffer)
    columns = {"train": _chunk_columns(corpus, rows, is_indexing=True)}
    return _source(corpus, task, columns, None, shuffle_buffer)


def _retrieval_source(corpus: Corpus, task: str, shuffle_buffer: int | None) -> InMemorySource:
    if corpus.has_training_queries:
        train = _pair_columns(corpus.queries["train"])
    else:
        train = _chunk_columns(corpus, _rows(corpus, None), is_indexing=False)
    evaluation = {
        split: query_columns(queries, corpus.seen(split))
        for split, queries in corpus.queries.items()
        if split != "train"
    }
    return _source(corpus, task, {"train": train} | evaluation, None, shuffle_buffer)


def _source(
    corpus: Corpus,
    task: str,
    columns: dict[str, dict[str, Column]],
    form: str | None,
    shuffle_buffer: int | None,
) -> InMemorySource:
    fingerprint = _fingerprint(corpus, form, shuffle_buffer)
    return InMemorySource(columns, task, corpus.hash, fingerprint, shuffle_buffer)


def _rows(corpus: Corpus, shuffle_buffer: int | None) -> np.ndarray:
    """int32 [N], the order of the documents; those without a training query last, for a buffer."""
    if shuffle_buffer is None:
        return np.arange(len(corpus), dtype=np.int32)
    return np.argsort(~corpus.documents_with_training_query(), kind="stable").astype(np.int32)


def _chunk_columns(corpus: Corpus, rows: np.ndarray, is_indexing: bool) -> dict[str, Column]:
    return {
        preprocessors.DOCUMENT: strings(corpus.document_texts())[rows],
        features.TARGETS: rows[:, None],
        features.IS_INDEXING: np.full([len(rows), 1], int(is_indexing), np.int32),
    }


def _pair_columns(queries: QuerySet) -> dict[str, Column]:
    """One example a pair of query and relevant document."""
    counts = [len(rows) for rows in queries.relevant]
    rows = np.concatenate(queries.relevant).astype(np.int32)
    return {
        features.INPUTS: np.repeat(strings(queries.texts), counts, axis=0),
        features.TARGETS: rows[:, None],
        features.IS_INDEXING: np.zeros([len(rows), 1], np.int32),
    }


def _fingerprint(corpus: Corpus, form: str | None, shuffle_buffer: int | None) -> str:
    digest = hashlib.sha256(f"{corpus.hash} {form} {shuffle_buffer}".encode())
    for split, queries in sorted(corpus.queries.items()):
        digest.update(split.encode())
        queries.update_hash(digest)
    return digest.hexdigest()


def _add_text_task(name: str, source: InMemorySource) -> None:
    add_task(
        name,
        source,
        # Chunks stand behind the cache: they are new each pass with it, too.
        preprocessors=[seqio.CacheDatasetPlaceholder(), preprocessors.chunk_documents],
        output_features=features.output_features(),
        metric_fns=[metrics.retrieval_metrics],
    )
