"""Atomic docids: one token a document, one decoding step."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from dsi_jax.docids.table import DocidTable


@dataclasses.dataclass(frozen=True)
class Atomic:
    """Unstructured atomic identifiers (DSI, Tay et al. 2022, section 3.2): L = 1, V = N + 2."""

    kind: ClassVar[str] = "atomic"
    needs_embeddings: ClassVar[bool] = False

    def build(
        self,
        keys: Sequence[str],
        corpus_hash: str,
        embeddings: np.ndarray | None = None,
        seed: int = 42,
    ) -> DocidTable:
        """See `dsi_jax.docids.table.DocidBuilder`; codes are a seeded permutation of the rows."""
        del embeddings
        codes = np.random.default_rng(seed).permutation(len(keys))
        return DocidTable.from_codes(
            codes[:, None],
            num_codes=len(keys),
            keys=keys,
            kind=self.kind,
            parameters={"seed": seed},
            corpus_hash=corpus_hash,
        )
