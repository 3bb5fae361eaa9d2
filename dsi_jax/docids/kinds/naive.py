"""Naive string docids: a document's number, digit by digit."""

import dataclasses
from typing import ClassVar

import numpy as np

from dsi_jax.docids import spelling
from dsi_jax.docids.builder import DocidBuilder
from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.numbers import check_id_space, digits, draw, num_digits
from dsi_jax.docids.table import FIRST_CODE, DocidTable
from dsi_jax.inputs.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class NaiveString(DocidBuilder):
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

    def __post_init__(self) -> None:
        check_id_space(self.id_space)

    def build(self, documents: DocumentColumns, seed: int = 42) -> DocidTable:
        """See `DocidBuilder`.

        Raises:
          ValueError: if there are more documents than numbers in `id_space`.
        """
        numbers, id_space = draw(len(documents), self.id_space, seed)
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
            keys=documents.keys,
            kind=self.kind,
            parameters={"id_space": id_space, "zero_pad": self.zero_pad, "seed": seed},
            corpus_hash=documents.corpus_hash,
        )

    @classmethod
    def text_tokens(cls, table: DocidTable, tokenizer: Tokenizer) -> np.ndarray:
        """See `DocidBuilder`: a digit starts from the text's digit, where that is one token."""
        tokens_V = super().text_tokens(table, tokenizer)
        tokens_V[FIRST_CODE:] = spelling.digit_tokens(tokenizer, table.vocab_size - FIRST_CODE)
        return tokens_V
