"""Naive string docids: a document's number, digit by digit."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from dsi_jax.docids.numbers import draw
from dsi_jax.docids.table import DocidTable


@dataclasses.dataclass(frozen=True)
class NaiveString:
    """Naively structured string identifiers (DSI, Tay et al. 2022, section 3.2).

    The documents are numbered in a seeded random order. The digits 0..9 are the tokens 2..11.

    Attributes:
      id_space: numbers are drawn from 0..id_space-1: 320,000 in DSI, whatever the subset of NQ.
        None: from 0..N-1.
      zero_pad: write all numbers with the same number of digits; then no end token is needed.
    """

    id_space: int | None = None
    zero_pad: bool = False

    kind: ClassVar[str] = "naive"
    needs: ClassVar[frozenset[str]] = frozenset()

    def build(
        self,
        keys: Sequence[str],
        corpus_hash: str,
        embeddings: np.ndarray | None = None,
        seed: int = 42,
    ) -> DocidTable:
        """See `dsi_jax.docids.table.DocidBuilder`.

        Raises:
          ValueError: if there are more documents than numbers in `id_space`.
        """
        del embeddings
        numbers, id_space = draw(len(keys), self.id_space, seed)
        width = len(str(id_space - 1))
        powers = 10 ** np.arange(1, width)
        lengths = None if self.zero_pad else 1 + np.searchsorted(powers, numbers, side="right")
        digits = np.empty((len(keys), width), np.uint8)
        for level in range(width):
            below = (width if lengths is None else lengths) - 1 - level
            digits[:, level] = numbers // 10 ** np.maximum(below, 0) % 10
        return DocidTable.from_codes(
            digits,
            lengths,
            num_codes=10,
            keys=keys,
            kind=self.kind,
            parameters={"id_space": id_space, "zero_pad": self.zero_pad, "seed": seed},
            corpus_hash=corpus_hash,
        )
