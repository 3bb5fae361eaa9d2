"""One compiled search: encoder, constrained beams, ranked rows.

Evaluation and serving both rank documents through this class, so that a figure printed by the one
is what the other returns. Serving has one device; an evaluation while training runs on the mesh.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from dsi_jax.decoding import adapter, trie
from dsi_jax.decoding import constraint as constraint_lib
from dsi_jax.decoding.document_sets import document_sets
from dsi_jax.decoding.result import BeamResult
from dsi_jax.decoding.strategies import BeamSearch, Decoding
from dsi_jax.docids.table import DocidTable
from dsi_jax.models.dsi import DSIModel, padded_vocab_size
from dsi_jax.ranking.allow_lists import check_allowed, num_queries
from dsi_jax.training import partitioning, program

CONSTRAINTS = ("trie", "free")
Ranked = TypeVar("Ranked")  # a BeamResult, or whatever else has rows, scores and valid


class DocidRanker:
    """Ranks the rows of one docid table for batches of queries.

    Args:
      model: the model whose docid vocabulary and length are those of `table`.
      table: the docids to decode.
      beam_size: M, beams kept a query and rows returned; under "trie" no more than may be found.
      constraint: "trie" (only docids of the table) or "free" (whatever the model says).
      mesh: where the parameters lie; None: on one device.
      rules: logical axis rules, fitted to the model; used with a mesh.
      rows: under "trie", the documents that may be found; None: all.
      decoding: the decoding strategy.

    Raises:
      ValueError: an unknown constraint, a beam size below 1, or a table that is not the model's.
    """

    def __init__(
        self,
        model: DSIModel,
        table: DocidTable,
        *,
        beam_size: int = 10,
        constraint: str = "trie",
        mesh: Mesh | None = None,
        rules: partitioning.LogicalRules = partitioning.LOGICAL_AXIS_RULES,
        rows: np.ndarray | None = None,
        decoding: Decoding = BeamSearch(),
    ) -> None:
        check_constraint(constraint)
        self._capped = functools.partial(cap_beams, table=table, constraint=constraint, rows=rows)
        self.beam_size = self._capped(beam_size)
        if self.beam_size < 1:
            raise ValueError(f"beam_size is {self.beam_size}; expected at least 1")
        check_table(model, table)
        self._model, self._mesh, self._rules = model, mesh, rules
        self._decoding, self._draws = decoding, itertools.count()
        self._num_documents = table.num_documents
        self._whole = None if mesh is None else partitioning.replicated(mesh)
        self._searches: dict[int, adapter.SearchFn] = {}
        if constraint == "trie":
            self._host_rule = constraint_lib.TrieConstraint(trie.build_trie(table, rows=rows))
        else:
            self._host_rule = constraint_lib.Free(trie.build_trie(table))

    def prepare(self, params: Any) -> Iterator[None]:
        """Nothing: the docids lie in the parameters."""
        del params
        yield from ()

    def search(
        self,
        params: Any,
        batch: Mapping[str, Any],
        beam_size: int | None = None,
        allowed: np.ndarray | None = None,
    ) -> BeamResult:
        """Rows [B, M], scores [B, M] and validity [B, M] of a batch, still on the device.

        Args:
          params: the parameters; with a mesh, global arrays on it.
          batch: NumPy arrays of the whole batch, the same on all processes.
          beam_size: M; None: that of the ranker. Each is a program of its own.
          allowed: bool [B, N], the rows that each query may find, or [1, N] for all queries; None:
            all of them. A list for all, a list for each and none are programs of their own.

        Raises:
          ValueError: `allowed` has another shape, or beams are free to leave the table.
        """
        search, rule = self._search_with(self._capped(beam_size or self.beam_size)), self._rule
        if allowed is not None:
            rule = self._restricted(rule, allowed, num_queries(batch))
        draw = np.uint32(next(self._draws))
        if self._mesh is None:
            return search(params, batch, rule, draw)
        placed = partitioning.place(batch, partitioning.data_sharding(self._mesh))
        with partitioning.activate(self._mesh, self._rules):
            return search(params, placed, rule, draw)

    def _search_with(self, beam_size: int) -> adapter.SearchFn:
        if beam_size not in self._searches:
            self._searches[beam_size] = adapter.make_search(
                self._model,
                beam_size=beam_size,
                decoding=self._decoding,
                out_sharding=self._whole,
            )
        return self._searches[beam_size]

    def lower(self, params: Any, batch: Mapping[str, Any]) -> jax.stages.Lowered:
        """The search lowered for a mesh whose devices need not be attached.

        Args:
          params: shapes of the parameters, with their shardings.
          batch: shapes of the whole batch.

        Raises:
          ValueError: the search was made without a mesh.
        """
        if self._mesh is None:
            raise ValueError("a search without a mesh cannot be lowered; expected a mesh")
        placed = program.with_sharding(batch, partitioning.data_sharding(self._mesh))
        rule = program.with_sharding(self._host_rule, self._whole)
        with partitioning.activate(self._mesh, self._rules):
            return self._search_with(self.beam_size).lower(params, placed, rule, np.uint32(0))

    def _restricted(
        self, rule: constraint_lib.Constraint, allowed_AxN: np.ndarray, batch_size: int
    ) -> constraint_lib.TrieConstraint:
        """The rule with the documents that each query may find."""
        if not isinstance(rule, constraint_lib.TrieConstraint):
            raise ValueError(
                "documents are allowed or denied, and constraint is 'free'; expected 'trie'"
            )
        check_allowed(allowed_AxN, batch_size, self._num_documents)
        sets = document_sets(self._host_rule.trie, allowed_AxN)
        set_of_query = np.arange(batch_size, dtype=np.int32) % len(allowed_AxN)
        return dataclasses.replace(rule, sets=self._put(sets), set_of_query=self._put(set_of_query))

    @functools.cached_property
    def _rule(self) -> constraint_lib.Constraint:
        return self._put(self._host_rule)

    def _put(self, tree: Any) -> Any:
        """The arrays whole on every device."""
        if self._whole is None:
            return jax.device_put(tree)
        return partitioning.place(tree, self._whole)


def check_constraint(constraint: str) -> None:
    """Refuses what is not one of `CONSTRAINTS`.

    Raises:
      ValueError: names the constraint.
    """
    if constraint not in CONSTRAINTS:
        raise ValueError(f"constraint is {constraint!r}; expected one of {CONSTRAINTS}")


def cap_beams(
    beam_size: int, table: DocidTable, constraint: str, rows: np.ndarray | None = None
) -> int:
    """The beams that can be filled: under "trie" no more than there are documents, or `rows`."""
    if constraint != "trie":
        return beam_size
    return min(beam_size, table.num_documents if rows is None else len(rows))


def check_table(model: DSIModel, table: DocidTable) -> None:
    """Refuses a table whose docids the model's decoder cannot spell.

    Raises:
      ValueError: names the vocabulary sizes and lengths of both.
    """
    config = model.config
    fitting = (table.vocab_size, padded_vocab_size(table.vocab_size))
    if config.docid_vocab_size not in fitting or config.docid_length != table.length:
        raise ValueError(
            f"docid table {table.kind!r} has a vocabulary of {table.vocab_size} and docids of "
            f"length {table.length}; the model was made for a vocabulary of "
            f"{config.docid_vocab_size} and length {config.docid_length}"
        )


def to_host(result: Ranked) -> Ranked:
    """The result as NumPy arrays; waits for the device."""
    return jax.tree.map(np.asarray, result)
