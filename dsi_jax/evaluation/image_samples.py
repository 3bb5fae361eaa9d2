"""What a person looks at: queries of a corpus of images and the images found for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dsi_jax.data.corpora.any_corpus import AnyCorpus
from dsi_jax.data.seqio_tasks import features
from dsi_jax.evaluation.contact_sheet import SHOWN, Found, SheetRow

NUM_TEXTS, NUM_IMAGES = 10, 5
# (split, flat examples of one modality) -> rows and scores [n, M], see `evaluator.Predictor.rank`.
Rank = Callable[[str, Sequence[Mapping[str, np.ndarray]]], tuple[np.ndarray, np.ndarray]]


def sheet_rows(corpus: AnyCorpus, rank: Rank) -> list[SheetRow]:
    """Ranks images for some captions and images of the last split, evenly taken.

    Args:
      corpus: the documents; of texts there are no rows.
      rank: ranks the images that may be found in a split.
    """
    rows: list[SheetRow] = []
    if corpus.images is None:
        return rows
    split = _last_split(corpus.queries)
    if split is not None:
        texts = corpus.queries[split]
        chosen = _evenly(len(texts), NUM_TEXTS)
        examples = [_example(features.INPUTS, texts.texts[i].encode()) for i in chosen]
        relevant = [texts.relevant[i] for i in chosen]
        rows += _rows(corpus, [texts.texts[i] for i in chosen], relevant, rank(split, examples))
    split = _last_split(corpus.image_queries)
    if split is not None:
        images = corpus.image_queries[split]
        chosen = _evenly(len(images), NUM_IMAGES)
        queries = [images.images[i] for i in chosen]
        contents = [q if isinstance(q, bytes) else q.read_bytes() for q in queries]
        examples = [_example(features.IMAGE, content) for content in contents]
        relevant = [images.relevant[i] for i in chosen]
        rows += _rows(corpus, queries, relevant, rank(split, examples))
    return rows


def _rows(
    corpus: AnyCorpus,
    queries: Sequence[Any],
    relevant: Sequence[np.ndarray],
    ranked: tuple[np.ndarray, np.ndarray],
) -> list[SheetRow]:
    def found(row: int, score: float | None, right: bool) -> Found:
        return Found(corpus.images[row], corpus.keys[row], score, right)

    sheet = []
    for query, wanted, rows, scores in zip(queries, relevant, *ranked, strict=True):
        right = set(np.asarray(wanted).tolist())
        results = [
            found(int(row), float(score), int(row) in right)
            for row, score in zip(rows[:SHOWN], scores[:SHOWN], strict=True)
            if row >= 0
        ]
        sheet.append(SheetRow(query, results, found(int(wanted[0]), None, True)))
    return sheet


def _example(feature: str, value: bytes) -> dict[str, np.ndarray]:
    return {feature: np.array([value], object)}


def _last_split(queries: Mapping[str, Any]) -> str | None:
    """The test split, or dev; None if there are neither."""
    return next((split for split in ("test", "dev") if split in queries), None)


def _evenly(size: int, count: int) -> list[int]:
    return np.linspace(0, size - 1, min(size, count)).round().astype(int).tolist()
