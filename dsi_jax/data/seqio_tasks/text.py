"""Turns a corpus into seqio tasks and their mixture."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import seqio

from dsi_jax.data.corpora import splits as splits_lib
from dsi_jax.data.corpora.corpus import Corpus, QuerySet
from dsi_jax.data.corpora.image_corpus import ImageCorpus
from dsi_jax.data.readers import load as load_lib
from dsi_jax.data.seqio_tasks import document_forms, features, metrics, preprocessors
from dsi_jax.data.seqio_tasks.sources import Column, InMemorySource, LazySource

_KINDS = ("indexing", "chunks", "retrieval", "images", "dsi", "pairs")


@dataclasses.dataclass(frozen=True)
class CorpusTasks:
    """Names of what `register_corpus_tasks` registered.

    Attributes:
      indexing: task document -> row; its only split is "train". The mixture has it unless the
        indexing ratio is 0.
      chunks: task random chunk of a document -> row, new each pass; "train" only; None
        where the mixture has none.
      retrieval: task query -> row; "train" and the evaluation splits.
      images: task image -> row of another project's or a view's document: evaluation splits and,
        where images have classes, "train"; None where there are no such queries.
      mixture: mixture of these, for training.
      pairs: the same without indexing examples, for methods that learn from pairs; None where there
        would be nothing to train on, and for texts.
      evaluation_splits: splits of `retrieval` to evaluate on, among "dev" and "test".
      corpus_hash: `Corpus.hash`.
    """

    indexing: str
    chunks: str | None
    retrieval: str | None
    mixture: str
    evaluation_splits: tuple[str, ...]
    corpus_hash: str
    images: str | None = None
    pairs: str | None = None


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
    prefix = prefix_of(corpus, name)
    tasks = CorpusTasks(
        indexing=f"{prefix}_indexing",
        chunks=f"{prefix}_chunks" if chunk_ratio else None,
        retrieval=f"{prefix}_retrieval",
        mixture=f"{prefix}_dsi",
        evaluation_splits=tuple(s for s in ("dev", "test") if s in corpus.queries),
        corpus_hash=corpus.hash,
    )
    sources = {
        tasks.indexing: _indexing_source(corpus, tasks.indexing, document_form, shuffle_buffer),
        tasks.retrieval: _retrieval_source(corpus, tasks.retrieval, shuffle_buffer),
    }
    if tasks.chunks is not None:
        sources[tasks.chunks] = _chunk_source(corpus, tasks.chunks, shuffle_buffer)
    for task, source in sources.items():
        _add_text_task(task, source)

    sizes = {task: source.num_input_examples("train") for task, source in sources.items()}
    ratio = sizes[tasks.indexing] / sizes[tasks.retrieval]
    rates = {tasks.retrieval: 1.0}
    if indexing_ratio != 0:
        rates = {tasks.indexing: float(indexing_ratio or ratio)} | rates
    if tasks.chunks is not None:
        rates[tasks.chunks] = float(chunk_ratio)
    if with_mixture:
        add_mixture(tasks.mixture, rates)
    return tasks


def load_corpus_for(spec: str, seed: int, mixture_or_task_name: str | None) -> tuple[Corpus, bool]:
    """Loads a corpus for a run on its own tasks, or on those of another project.

    Another project's tasks bring their own queries: the corpus is taken as it is. Else its
    splits are completed.

    Args:
      spec: see `corpora.load_corpus`.
      seed: decides every random split and sample.
      mixture_or_task_name: what the run is on; None: the corpus's own tasks.

    Returns:
      (the corpus, whether the tasks are another project's, which has registered them).

    Raises:
      ValueError: see `corpora.load_corpus`.
    """
    corpus = load_lib.load_corpus(spec, seed, complete=False)
    if is_external(mixture_or_task_name, corpus):
        return corpus, True
    return splits_lib.complete_splits(corpus, seed), False


def is_external(mixture_or_task_name: str | None, corpus: Corpus | ImageCorpus) -> bool:
    """Whether a registered task or mixture of that name is another project's."""
    registered = {*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()}
    own = {f"{prefix_of(corpus, None)}_{kind}" for kind in _KINDS}
    return mixture_or_task_name in registered - own


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


def check_ratio(name: str, ratio: float | None) -> None:
    """Raises unless a ratio is None or a number of at least 0.

    Raises:
      ValueError: naming it.
    """
    if ratio is not None and not (isinstance(ratio, int | float) and ratio >= 0):
        raise ValueError(f"{name} is {ratio!r}; expected a number of at least 0 or None")


def prefix_of(corpus: Corpus | ImageCorpus, name: str | None) -> str:
    """What the names of a corpus's tasks begin with."""
    return re.sub(r"[^\w.:#]", "_", corpus.name if name is None else name)


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


def query_columns(queries: QuerySet, seen: np.ndarray) -> dict[str, Column]:
    """One evaluation example a query; the target is its most relevant document."""
    return {
        features.INPUTS: strings(queries.texts),
        features.TARGETS: np.array([rows[:1] for rows in queries.relevant], np.int32),
        features.IS_INDEXING: np.zeros([len(queries), 1], np.int32),
        features.QUERY_ID: strings(queries.ids),
        features.RELEVANT: queries.relevant,
        features.RELEVANCE: queries.relevance,
        features.SEEN: seen.astype(np.int32)[:, None],
    }


def strings(texts: list[str]) -> np.ndarray:
    """Object array [n, 1] of UTF-8 bytes; a lone surrogate becomes "?"."""
    encoded = [text.encode("utf-8", "replace") for text in texts]
    return np.array(encoded, dtype=object)[:, None]


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


def add_task(name: str, source: InMemorySource, **options: Any) -> None:
    """Registers a task of documents' rows, unless the same is registered already.

    Args:
      name: its name.
      source: its source, which shuffles.
      options: further ones of `seqio.TaskRegistry.add`.

    Raises:
      ValueError: if the name is taken by other content.
    """
    if name in seqio.TaskRegistry.names():
        registered = seqio.TaskRegistry.get(name).source
        if (
            not isinstance(registered, InMemorySource)
            or registered.fingerprint != source.fingerprint
        ):
            raise ValueError(
                f"the task '{name}' is already registered with other content or options; "
                "give this corpus another name"
            )
        return
    seqio.TaskRegistry.add(
        name,
        source=source,
        postprocess_fn=metrics.postprocess,
        shuffle_buffer_size=None,  # the source shuffles
        **options,
    )


def add_mixture(name: str, rates: dict[str, float]) -> None:
    """Registers a mixture, unless the same is registered already.

    Raises:
      ValueError: if the name is taken by other rates.
    """
    if name in seqio.MixtureRegistry.names():
        registered = dict(seqio.MixtureRegistry.get(name).rate_per_task_name)
        if registered != rates:
            raise ValueError(
                f"the mixture '{name}' is already registered with the rates {registered}; "
                f"asked for {rates}"
            )
        return
    seqio.MixtureRegistry.add(name, list(rates.items()))
