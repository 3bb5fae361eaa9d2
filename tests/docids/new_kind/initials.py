"""A docid kind: the first letter of a document's title, then its number under that letter."""

import collections
import dataclasses

import numpy as np

from dsi_jax.docids.builder import DocidBuilder
from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.table import DocidTable


@dataclasses.dataclass(frozen=True)
class Initials(DocidBuilder):
    """Builds docids of two codes.

    Attributes:
      most: the documents of one letter, at most.
    """

    most: int = 1000

    kind = "initials"

    def build(self, documents: DocumentColumns, seed: int = 42) -> DocidTable:
        """See `DocidBuilder`; numbers are in a random order, not in that of the corpus."""
        letters = sorted({title[:1].lower() for title in documents.titles})
        codes_Nx2 = np.zeros((len(documents), 2), int)
        taken = collections.Counter()
        for row in np.random.default_rng(seed).permutation(len(documents)):
            letter = documents.titles[row][:1].lower()
            codes_Nx2[row] = letters.index(letter), taken[letter]
            taken[letter] += 1
        letter, count = taken.most_common(1)[0]
        if count > self.most:
            raise ValueError(f"{count} titles begin with {letter!r}; expected at most {self.most}")
        return DocidTable.from_codes(
            codes_Nx2,
            num_codes=max(len(letters), count),
            keys=documents.keys,
            kind=self.kind,
            parameters={"most": self.most, "seed": seed},
            corpus_hash=documents.corpus_hash,
        )
