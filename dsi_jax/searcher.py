"""One compiled search: encoder, constrained beams, ranked rows.

Evaluation and serving both rank documents through this class, so that a figure printed by the one
is what the other returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dsi_jax.decoding import adapter, trie
from dsi_jax.decoding import constraint as constraint_lib
from dsi_jax.decoding.beam import BeamResult
from dsi_jax.docids.table import DocidTable
from dsi_jax.models.dsi import DSIModel

CONSTRAINTS = ("trie", "free")


class Searcher:
    """Ranks the rows of one docid table for batches of queries.

    Args:
      model: the model whose docid vocabulary and length are those of `table`.
      table: the docids to decode.
      beam_size: M, beams kept a query and rows returned.
      constraint: "trie" (only docids of the table) or "free" (whatever the model says).

    Raises:
      ValueError: an unknown constraint, a beam size below 1, or a table that is not the model's.
    """

    def __init__(
        self, model: DSIModel, table: DocidTable, *, beam_size: int = 10, constraint: str = "trie"
    ) -> None:
        if constraint not in CONSTRAINTS:
            raise ValueError(f"constraint is {constraint!r}; expected one of {CONSTRAINTS}")
        if beam_size < 1:
            raise ValueError(f"beam_size is {beam_size}; expected at least 1")
        check_table(model, table)
        self.beam_size = beam_size
        trie_ = jax.device_put(trie.build_trie(table))
        self._rule = (
            constraint_lib.TrieConstraint(trie_)
            if constraint == "trie"
            else constraint_lib.Free(trie_)
        )
        self._search = adapter.make_search(model, beam_size=beam_size)

    def search(self, params: Any, batch: Mapping[str, Any]) -> BeamResult:
        """Rows [B, M], scores [B, M] and validity [B, M] of a batch, still on the device."""
        return self._search(params, batch, self._rule)


def check_table(model: DSIModel, table: DocidTable) -> None:
    """Refuses a table whose docids the model's decoder cannot spell.

    Raises:
      ValueError: names the vocabulary sizes and lengths of both.
    """
    config = model.config
    found = (table.vocab_size, table.length)
    expected = (config.docid_vocab_size, config.docid_length)
    if found != expected:
        raise ValueError(
            f"docid table {table.kind!r} has a vocabulary of {found[0]} and docids of length "
            f"{found[1]}; the model was made for a vocabulary of {expected[0]} and length "
            f"{expected[1]}"
        )


def text_batch(tokens_BxS: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """The encoder's part of a batch for token ids [B, S], 0 being padding."""
    return {"text": {"tokens": tokens_BxS, "mask": tokens_BxS != 0}}


def pad_rows(tokens_BxS: np.ndarray, size: int) -> np.ndarray:
    """Repeats the last query until the batch has `size` rows, so that one program serves all."""
    missing = size - len(tokens_BxS)
    return np.concatenate([tokens_BxS, np.repeat(tokens_BxS[-1:], missing, axis=0)])


def to_host(result: BeamResult) -> BeamResult:
    """The result as NumPy arrays; waits for the device."""
    return jax.tree.map(np.asarray, result)
