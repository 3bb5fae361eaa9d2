"""The lexical head alone, on the same queries and with the same metrics as the whole index."""

from __future__ import annotations

import numpy as np

from dsi_jax.data.corpora.any_corpus import AnyCorpus
from dsi_jax.data.seqio_tasks import metrics
from dsi_jax.storage.lexical_index import LexicalIndex

_BATCH = 64  # queries whose scores of all documents are held at once


class LexicalSearch:
    """Ranks documents by the fitted weights of the words of a query.

    Args:
      index: the weights.
      corpus: the documents and queries.
      rows: int [C], ascending, the documents that may be found; None: all.
    """

    def __init__(
        self, index: LexicalIndex, corpus: AnyCorpus, rows: np.ndarray | None = None
    ) -> None:
        self._index, self._corpus = index, corpus
        self._rows = np.arange(len(corpus)) if rows is None else rows

    def search(self, queries: list[str], num_results: int) -> np.ndarray:
        """Ranks documents for each query.

        Args:
          queries: Q texts.
          num_results: M; fewer come back if there are fewer documents.

        Returns:
          Rows int32 [Q, M], best first, of equal scores the first row; -1 where a document shares
          no word with the query.
        """
        found = []
        for start in range(0, len(queries), _BATCH):
            scores_BxC = self._index.scores(queries[start : start + _BATCH])[:, self._rows]
            place_BxM = np.argsort(-scores_BxC, axis=1, kind="stable")[:, :num_results]
            is_found_BxM = np.take_along_axis(scores_BxC, place_BxM, 1) > 0
            found.append(np.where(is_found_BxM, self._rows[place_BxM], -1).astype(np.int32))
        return np.concatenate(found)

    def evaluate(self, split: str, num_results: int = max(metrics.HITS_AT)) -> dict[str, float]:
        """Returns `metrics.retrieval_metrics` of the corpus's queries of a split."""
        rows = self.search(list(self._corpus.queries[split].texts), num_results)
        return metrics.retrieval_metrics(metrics.targets_of(self._corpus, split), rows, {})
