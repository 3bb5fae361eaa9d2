"""Documents that stand in for a corpus that is not here."""

import functools

import numpy as np

from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.inputs.tokenizer import Tokenizer

_WIDTH = 16  # numbers of a vector, and classes


class SyntheticColumns(DocumentColumns):
    """Numbered documents: their keys, titles and texts are their rows, their vectors random.

    Args:
      num_documents: N.
      tokenizer: the tokenizer of the texts.
      seed: seed of the vectors.
    """

    def __init__(self, num_documents: int, tokenizer: Tokenizer, seed: int) -> None:
        keys = [str(row) for row in range(num_documents)]
        super().__init__(
            keys,
            "synthetic",
            titles=keys,
            texts=keys,
            tokenizer=tokenizer,
            classes=np.arange(num_documents) % _WIDTH,
        )
        self._seed = seed

    @functools.cached_property
    def embeddings(self) -> np.ndarray:
        """See `DocumentColumns`."""
        rng = np.random.default_rng(self._seed)
        return rng.normal(size=(len(self), _WIDTH)).astype(np.float32)
