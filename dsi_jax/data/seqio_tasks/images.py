"""Turns a corpus of images into seqio tasks and their mixture."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import seqio
import tensorflow as tf

from dsi_jax.data.corpora.image_corpus import ImageCorpus, ImageQuerySet
from dsi_jax.data.seqio_tasks import features, metrics, preprocessors
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
from dsi_jax.inputs.image_files import ImageSource

_EVALUATED = ("dev", "test")


def register_image_tasks(
    corpus: ImageCorpus,
    name: str | None = None,
    indexing_ratio: float | None = None,
    with_mixture: bool = True,
) -> CorpusTasks:
    """Registers `<name>_indexing`, `_retrieval`, `_images` and mixtures of them.

    `<name>_dsi` has all of them, `<name>_pairs` all but the indexing examples.

    An indexing example is an image and its row. A retrieval example is an image's caption, one of
    its training captions drawn anew each pass, and its row; with classes also (or only) an image
    and the row of a random image of its class, as in IRGen (Zhang et al., 2024,
    https://arxiv.org/abs/2303.10126, section 3.2). A corpus of neither trains on indexing alone.

    Args:
      corpus: the images, captions and queries.
      name: prefix of the registered names; None takes the corpus's name.
      indexing_ratio: indexing examples for each retrieval example; 0 indexes nothing; None mixes
        in proportion to their numbers.
      with_mixture: False leaves the mixture, whose name is returned all the same, unregistered.

    Returns:
      the registered names.

    Raises:
      ValueError: if the ratio is out of range, nothing would be trained on, or the names are taken
        by other content.
    """
    check_ratio("indexing_ratio", indexing_ratio)
    prefix = prefix_of(corpus, name)
    sources = {f"{prefix}_indexing": _source(corpus, f"{prefix}_indexing", _indexing(corpus))}
    retrieval = _retrieval(corpus)
    if retrieval:
        task = f"{prefix}_retrieval"
        sources[task] = _source(corpus, task, retrieval)
    images = _image_queries(corpus)
    if images:
        task = f"{prefix}_images"
        sources[task] = _source(corpus, task, images)
    classes_of = None if corpus.classes is None else lambda: corpus.classes
    for task, source in sources.items():
        _add_image_task(task, source, classes_of)
    tasks = CorpusTasks(
        indexing=f"{prefix}_indexing",
        chunks=None,
        retrieval=f"{prefix}_retrieval" if retrieval else None,
        images=f"{prefix}_images" if images else None,
        mixture=f"{prefix}_dsi",
        evaluation_splits=tuple(s for s in _EVALUATED if s in corpus.queries),
        pairs=f"{prefix}_pairs" if "train" in retrieval | images else None,
        corpus_hash=corpus.hash,
    )
    if with_mixture:
        rates = _rates(corpus, tasks, sources, indexing_ratio)
        add_mixture(tasks.mixture, rates)
        if tasks.pairs is not None:
            add_mixture(tasks.pairs, {t: r for t, r in rates.items() if t != tasks.indexing})
    return tasks


def register_lazily(
    name: str,
    load: Callable[[], ImageCorpus],
    *,
    retrieval: Sequence[str] = (),
    images: Sequence[str] = (),
    indexing_ratio: float = 1.0,
) -> None:
    """Registers the tasks and mixtures that `register_image_tasks` would, reading nothing.

    The corpus is loaded when one of them is first asked for its examples, their number or their
    content.

    Args:
      name: prefix of the registered names.
      load: loads the corpus.
      retrieval: its splits of captions; without any there is no such task.
      images: its splits of images that look for images; with "train", images have classes.
      indexing_ratio: indexing examples for each retrieval example.

    Raises:
      ValueError: if the names are taken by other content.
    """
    loaded = functools.cache(load)
    classes_of = (lambda: loaded().classes) if "train" in images else None
    kinds = {
        "indexing": (_indexing, ["train"]),
        "retrieval": (_retrieval, retrieval),
        "images": (_image_queries, images),
    }
    rates = {}
    for kind, (columns, splits) in kinds.items():
        if not splits:
            continue
        task = f"{name}_{kind}"

        def make(columns=columns, task=task) -> InMemorySource:
            return _source(loaded(), task, columns(loaded()))

        _add_image_task(task, LazySource(make, splits), classes_of)
        rates[task] = float(indexing_ratio) if kind == "indexing" else 1.0
    add_mixture(f"{name}_dsi", rates)
    add_mixture(f"{name}_pairs", {t: r for t, r in rates.items() if t != f"{name}_indexing"})


def _rates(
    corpus: ImageCorpus,
    tasks: CorpusTasks,
    sources: dict[str, InMemorySource],
    indexing_ratio: float | None,
) -> dict[str, float]:
    """Task -> rate; retrieval has 1 in all, and tasks to evaluate alone the same splits as ever."""
    sizes = {
        task: source.num_input_examples("train") if "train" in source.splits else 0
        for task, source in sources.items()
    }
    retrieval = {t: float(n) for t, n in sizes.items() if t != tasks.indexing and n}
    total = sum(retrieval.values())
    rates = {task: rate / total for task, rate in retrieval.items()}
    ratio = sizes[tasks.indexing] / total if total and indexing_ratio is None else indexing_ratio
    if not total:
        ratio = 1.0
        if indexing_ratio == 0:
            raise ValueError(
                f"INDEXING_RATIO is 0 and the images of '{corpus.name}' have neither training "
                "captions nor classes: nothing would be trained on"
            )
    if ratio:
        rates = {tasks.indexing: float(ratio)} | rates
    # seqio has no rate of 0; a mixture's evaluation needs its tasks without a training split.
    return rates | {task: 1.0 for task, n in sizes.items() if not n}


def _indexing(corpus: ImageCorpus) -> dict[str, dict[str, Column]]:
    rows = np.arange(len(corpus), dtype=np.int32)
    return {
        "train": _image_columns(corpus.images)
        | {
            features.TARGETS: rows[:, None],
            features.IS_INDEXING: np.ones([len(rows), 1], np.int32),
        }
    }


def _retrieval(corpus: ImageCorpus) -> dict[str, dict[str, Column]]:
    """Captions: of each image those to draw from, and queries to evaluate."""
    columns: dict[str, dict[str, Column]] = {}
    if "train" in corpus.queries:
        captions = corpus.training_captions()
        rows = np.array([row for row, own in enumerate(captions) if own], np.int32)
        columns["train"] = {
            preprocessors.CHOICES: [strings(captions[row])[:, 0] for row in rows],
            features.TARGETS: rows[:, None],
            features.IS_INDEXING: np.zeros([len(rows), 1], np.int32),
        }
    for split in _EVALUATED:
        if split in corpus.queries:
            columns[split] = query_columns(corpus.queries[split], corpus.seen(split))
    return columns


def _image_queries(corpus: ImageCorpus) -> dict[str, dict[str, Column]]:
    """Images that look for images: of their class in training, and queries to evaluate."""
    columns: dict[str, dict[str, Column]] = {}
    if corpus.classes is not None:
        columns["train"] = _image_columns(corpus.images) | {
            preprocessors.CLASS: np.asarray(corpus.classes, np.int32)[:, None],
            features.IS_INDEXING: np.zeros([len(corpus), 1], np.int32),
        }
    for split in _EVALUATED:
        if split in corpus.image_queries:
            columns[split] = _query_columns(corpus.image_queries[split])
    return columns


def _query_columns(queries: ImageQuerySet) -> dict[str, Column]:
    return _image_columns(queries.images) | {
        features.TARGETS: np.array([rows[:1] for rows in queries.relevant], np.int32),
        features.IS_INDEXING: np.zeros([len(queries), 1], np.int32),
        features.QUERY_ID: strings(queries.ids),
        features.RELEVANT: queries.relevant,
        features.RELEVANCE: [np.ones(len(rows), np.float32) for rows in queries.relevant],
    }


def _image_columns(images: Sequence[ImageSource]) -> dict[str, Column]:
    """Files by their paths, which tasks read when their turn comes; bytes as they are."""
    if images and isinstance(images[0], Path):
        return {preprocessors.IMAGE_FILE: strings([str(Path(image)) for image in images])}
    return {features.IMAGE: np.array(list(images), dtype=object)[:, None]}


def _source(
    corpus: ImageCorpus, task: str, columns: dict[str, dict[str, Column]]
) -> InMemorySource:
    digest = hashlib.sha256(f"{corpus.hash} {corpus.protocol}".encode())
    for split, queries in sorted(corpus.queries.items()):
        digest.update(split.encode())
        queries.update_hash(digest)
    for split, queries in sorted(corpus.image_queries.items()):
        digest.update(f"{split} {queries.ids}".encode())
    return InMemorySource(columns, task, corpus.hash, digest.hexdigest())


def _choose_row(
    dataset: tf.data.Dataset, classes_of: Callable[[], np.ndarray] | None
) -> tf.data.Dataset:
    """See `preprocessors.choose_row`; a class's rows are looked up when examples are asked for."""
    if classes_of is None or preprocessors.CLASS not in dataset.element_spec:
        return dataset
    classes = classes_of()
    order = np.argsort(classes, kind="stable").astype(np.int32)
    rows_of_class = tf.RaggedTensor.from_row_lengths(order, np.bincount(classes))
    return preprocessors.choose_row(dataset, rows_of_class)


def _add_image_task(
    name: str, source: InMemorySource, classes_of: Callable[[], np.ndarray] | None
) -> None:
    more_metrics = [] if classes_of is None else [metrics.class_metrics]
    add_task(
        name,
        source,
        # Files are read before the cache, so that it needs none; choices are new each pass.
        preprocessors=[
            preprocessors.read_images,
            seqio.CacheDatasetPlaceholder(),
            preprocessors.choose_caption,
            functools.partial(_choose_row, classes_of=classes_of),
        ],
        output_features=features.output_features(images=True),
        metric_fns=[metrics.retrieval_metrics, *more_metrics],
    )
