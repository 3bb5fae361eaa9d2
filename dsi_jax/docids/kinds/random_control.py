"""Random docids: the control that tells what the structure of other kinds is worth."""

import dataclasses
from typing import ClassVar

import numpy as np

from dsi_jax.docids.builder import DocidBuilder
from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.numbers import digits, num_digits
from dsi_jax.docids.sorting import packed
from dsi_jax.docids.table import DocidTable

_DENSE = 4  # with more codes than this a document, drawing again what collides is cheap


@dataclasses.dataclass(frozen=True)
class Random(DocidBuilder):
    """Distinct codes drawn uniformly from all codes of one length; no end token.

    To compare with a structured table, give its length and number of codes a level.

    Attributes:
      length: L, the levels; None: the fewest that give every document a docid of its own.
      clusters: the codes of a level; V = clusters + 2.
    """

    length: int | None = None
    clusters: int = 10

    kind: ClassVar[str] = "random"

    def __post_init__(self):
        if self.clusters < 2 or (self.length is not None and self.length < 1):
            raise ValueError(f"{self}: expected clusters >= 2 and length >= 1")

    def build(self, documents: DocumentColumns, seed: int = 42) -> DocidTable:
        """See `DocidBuilder`.

        Raises:
          ValueError: if there are more documents than codes of this length.
        """
        length = self.length or num_digits(len(documents), self.clusters)
        if self.clusters**length < len(documents):
            raise ValueError(
                f"{length} levels of {self.clusters} codes give {self.clusters**length} docids, "
                f"the corpus has {len(documents)} documents"
            )
        rng = np.random.default_rng(seed)
        return DocidTable.from_codes(
            _distinct_codes(rng, len(documents), length, self.clusters),
            num_codes=self.clusters,
            keys=documents.keys,
            kind=self.kind,
            parameters={"length": length, "clusters": self.clusters, "seed": seed},
            corpus_hash=documents.corpus_hash,
        )


def _distinct_codes(rng: np.random.Generator, count: int, length: int, clusters: int) -> np.ndarray:
    """Draws `count` distinct codes [count, length], uniformly and in random order."""
    space = clusters**length
    if space <= _DENSE * count:
        return digits(rng.choice(space, count, replace=False), clusters, length)
    dtype = np.min_scalar_type(clusters - 1)
    codes = rng.integers(clusters, size=(count, length), dtype=dtype)
    while True:
        _, first = np.unique(packed(codes), return_index=True)
        again = np.ones(count, bool)
        again[first] = False
        if not again.any():
            return codes
        codes[again] = rng.integers(clusters, size=(again.sum(), length), dtype=dtype)
