"""The interface of document embedders, and the check of what they return."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

_CHECK_ROWS = 1 << 16


class Embedder(Protocol):
    """Turns documents into vectors.

    An attribute `one_by_one` that is True says that a document's vector depends on it alone: hosts
    may then share the documents.
    """

    def embed(self, texts: Sequence[str], seed: int = 42) -> np.ndarray:
        """Embeds N texts as float32 [N, D]; equal arguments give equal vectors."""

    def describe(self) -> dict[str, Any]:
        """The embedder and its parameters as plain JSON, kept in the docid table."""


def check_embeddings(embeddings: np.ndarray, count: int) -> None:
    """Checks that there is one finite vector per document.

    Args:
      embeddings: one vector per document.
      count: the number of documents.

    Raises:
      ValueError: naming the shape, or the first bad row.
    """
    if embeddings.ndim != 2 or len(embeddings) != count or embeddings.shape[1] == 0:
        raise ValueError(
            f"embeddings have the shape {embeddings.shape}, expected one vector for each of the "
            f"{count} documents"
        )
    for start in range(0, count, _CHECK_ROWS):
        finite = np.isfinite(embeddings[start : start + _CHECK_ROWS]).all(axis=1)
        if not finite.all():
            row = start + int(finite.argmin())
            raise ValueError(f"the embedding of row {row} holds a value that is not finite")
