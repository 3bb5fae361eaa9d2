"""Naive string docids: a document's number, digit by digit."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from dsi_jax.docids.numbers import check_id_space, digits, draw, num_digits
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

    def __post_init__(self) -> None:
        check_id_space(self.id_space)

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
        width = num_digits(id_space, 10)
        lengths = None
        if not self.zero_pad:
            powers = 10 ** np.arange(1, width)
            lengths = 1 + np.searchsorted(powers, numbers, side="right")
            numbers *= 10 ** (width - lengths)  # to the left: what lies beyond a length is not used
        return DocidTable.from_codes(
            digits(numbers, 10, width),
            lengths,
            num_codes=10,
            keys=keys,
            kind=self.kind,
            parameters={"id_space": id_space, "zero_pad": self.zero_pad, "seed": seed},
            corpus_hash=corpus_hash,
        )
