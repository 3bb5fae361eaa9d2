"""BM25 on the same queries and with the same metrics: the baseline to beat.

Robertson and Zaragoza 2009, in bm25s (Lù 2024, arXiv:2407.03618) with its own
tokenizer, its English stop words and Lucene's variant.
"""

from __future__ import annotations

import importlib
import logging
from types import ModuleType

import numpy as np

from dsi_jax.data.corpora.any_corpus import AnyCorpus
from dsi_jax.data.seqio_tasks import metrics


def _bm25s() -> ModuleType:
    """bm25s, imported when it is used: it runs JAX at import, before a run has chosen its devices.

    It sets its own logger to DEBUG, which would speak through absl's handler.
    """
    module = importlib.import_module("bm25s")
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    return module


class BM25:
    """An index over title and text of every document of a corpus, or of some.

    Args:
      corpus: the documents and queries.
      rows: int [C], ascending, the documents that may be found; None: all.
    """

    def __init__(self, corpus: AnyCorpus, rows: np.ndarray | None = None) -> None:
        self._corpus = corpus
        self._rows = np.arange(len(corpus)) if rows is None else rows
        self._bm25s = bm25s = _bm25s()
        texts = corpus.document_texts()
        texts = [texts[row] for row in self._rows]
        tokens = bm25s.tokenize(texts, stopwords="en", show_progress=False)
        self._index = bm25s.BM25()
        self._index.index(tokens, show_progress=False)

    def search(self, queries: list[str], num_results: int) -> tuple[np.ndarray, np.ndarray]:
        """Ranks documents for each query.

        Args:
          queries: Q texts.
          num_results: M; fewer come back if there are fewer documents.

        Returns:
          (rows int32 [Q, M], scores float32 [Q, M]), best first; where a document shares
          no word with the query, row -1 and score -inf.
        """
        tokens = self._bm25s.tokenize(queries, stopwords="en", show_progress=False)
        num_results = min(num_results, len(self._rows))
        places, scores = self._index.retrieve(tokens, k=num_results, show_progress=False)
        found = scores > 0
        rows = np.where(found, self._rows[places], -1).astype(np.int32)
        return rows, np.where(found, scores, -np.inf).astype(np.float32)

    def evaluate(self, split: str, num_results: int = max(metrics.HITS_AT)) -> dict[str, float]:
        """`metrics.retrieval_metrics` of the corpus's queries of `split`."""
        rows, _ = self.search(self._corpus.queries[split].texts, num_results)
        return metrics.retrieval_metrics(metrics.targets_of(self._corpus, split), rows, {})
