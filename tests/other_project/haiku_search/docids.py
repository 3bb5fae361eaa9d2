"""A docid kind of our own: the season of a poem, then its number in the season."""

import collections

import numpy as np

from dsi_jax.docids.builder import DocidBuilder
from dsi_jax.docids.table import DocidTable
from haiku_search.corpus import HAIKU

_SEASONS = ("spring", "summer", "autumn", "winter")


class SeasonAndNumber(DocidBuilder):
    """Builds docids of two codes."""

    kind = "season"

    def build(self, documents, seed=42):
        """See `DocidBuilder`."""
        season_of = {haiku["key"]: _SEASONS.index(haiku["season"]) for haiku in HAIKU}
        order = np.random.default_rng(seed).permutation(len(documents))
        codes_Nx2, count = np.zeros([len(documents), 2], int), collections.Counter()
        for row in order:
            season = season_of[documents.keys[row]]
            codes_Nx2[row] = season, count[season]
            count[season] += 1
        return DocidTable.from_codes(
            codes_Nx2,
            num_codes=max(len(_SEASONS), *count.values()),
            keys=documents.keys,
            kind=self.kind,
            parameters={"seed": seed},
            corpus_hash=documents.corpus_hash,
        )
