"""Splits of a corpus: completed where the data has only some."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np

from dsi_jax.data.corpora.any_corpus import AnyCorpus
from dsi_jax.data.corpora.corpus import SPLITS, Corpus, QuerySet
from dsi_jax.inputs.streams import TEXT

logger = logging.getLogger(__name__)


MAX_HELD_OUT = 1_000


# Words of a random chunk that stands for a query where a corpus has none: the
# length of typical questions and web queries.
CHUNK_WORDS = (5, 15)


def complete_splits(corpus: AnyCorpus, seed: int) -> AnyCorpus:
    """Gives every corpus of texts something to evaluate on.

    Without queries, "test" becomes a seeded sample of chunks of the documents; with
    training queries alone, a seeded tenth of them (at most `MAX_HELD_OUT`) becomes
    "test". Any other corpus is returned as it is; of images the protocol has made the splits.
    """
    if corpus.modality != TEXT:
        return corpus
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
