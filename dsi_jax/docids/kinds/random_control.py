"""Random docids: the control that tells what the structure of other kinds is worth."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from dsi_jax.docids.numbers import digits, num_digits
from dsi_jax.docids.sorting import packed
from dsi_jax.docids.table import DocidTable

_DENSE = 4  # with more codes than this a document, drawing again what collides is cheap


@dataclasses.dataclass(frozen=True)
class Random:
    """Distinct codes drawn uniformly from all codes of one length; no end token.

    To compare with a structured table, give its length and number of codes a level.

    Attributes:
      length: L, the levels; None: the fewest that give every document a docid of its own.
      clusters: the codes of a level; V = clusters + 2.
    """

    length: int | None = None
    clusters: int = 10

    kind: ClassVar[str] = "random"
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self):
        if self.clusters < 2 or (self.length is not None and self.length < 1):
            raise ValueError(f"{self}: expected clusters >= 2 and length >= 1")

    def build(
        self,
        keys: Sequence[str],
        corpus_hash: str,
        embeddings: np.ndarray | None = None,
        seed: int = 42,
    ) -> DocidTable:
        """See `dsi_jax.docids.table.DocidBuilder`.

        Raises:
          ValueError: if there are more documents than codes of this length.
        """
        del embeddings
        length = self.length or num_digits(len(keys), self.clusters)
        if self.clusters**length < len(keys):
            raise ValueError(
                f"{length} levels of {self.clusters} codes give {self.clusters**length} docids, "
                f"the corpus has {len(keys)} documents"
            )
        rng = np.random.default_rng(seed)
        return DocidTable.from_codes(
            _distinct_codes(rng, len(keys), length, self.clusters),
            num_codes=self.clusters,
            keys=keys,
            kind=self.kind,
            parameters={"length": length, "clusters": self.clusters, "seed": seed},
            corpus_hash=corpus_hash,
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
