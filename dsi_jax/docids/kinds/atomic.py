"""Atomic docids: one token a document, one decoding step."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from dsi_jax.docids.numbers import check_id_space, draw
from dsi_jax.docids.table import DocidTable


@dataclasses.dataclass(frozen=True)
class Atomic:
    """Unstructured atomic identifiers (DSI, Tay et al. 2022, section 3.2): L = 1, V = N + 2.

    Attributes:
      id_space: codes are drawn from 0..id_space-1, and V = id_space + 2: 320,000 in DSI, whatever
        the subset of NQ. None: from 0..N-1.
    """

    id_space: int | None = None

    kind: ClassVar[str] = "atomic"
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
        """See `dsi_jax.docids.table.DocidBuilder`; codes follow no order of the data.

        Raises:
          ValueError: if there are more documents than codes in `id_space`.
        """
        del embeddings
        codes, id_space = draw(len(keys), self.id_space, seed)
        return DocidTable.from_codes(
            codes[:, None],
            num_codes=id_space,
            keys=keys,
            kind=self.kind,
            parameters={"id_space": id_space, "seed": seed},
            corpus_hash=corpus_hash,
        )
