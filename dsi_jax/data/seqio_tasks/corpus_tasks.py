"""Names and registers what the seqio tasks of all corpora share, whatever their modality."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import seqio

from dsi_jax.data.corpora.any_corpus import AnyCorpus
from dsi_jax.data.corpora.corpus import QuerySet
from dsi_jax.data.seqio_tasks import features, metrics
from dsi_jax.data.seqio_tasks.sources import Column, InMemorySource

_KINDS = ("indexing", "chunks", "retrieval", "images", "dsi", "pairs")


@dataclasses.dataclass(frozen=True)
class CorpusTasks:
    """Names the seqio tasks and mixtures of a corpus.

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


def prefix_of(corpus: AnyCorpus, name: str | None) -> str:
    """What the names of a corpus's tasks begin with."""
    return re.sub(r"[^\w.:#]", "_", corpus.name if name is None else name)


def is_external(mixture_or_task_name: str | None, corpus: AnyCorpus) -> bool:
    """Whether a registered task or mixture of that name is another project's."""
    registered = {*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()}
    own = {f"{prefix_of(corpus, None)}_{kind}" for kind in _KINDS}
    return mixture_or_task_name in registered - own


def check_ratio(name: str, ratio: float | None) -> None:
    """Raises unless a ratio is None or a number of at least 0.

    Raises:
      ValueError: naming it.
    """
    if ratio is not None and not (isinstance(ratio, int | float) and ratio >= 0):
        raise ValueError(f"{name} is {ratio!r}; expected a number of at least 0 or None")


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
