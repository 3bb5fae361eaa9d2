"""Which documents the queries of a batch may find: allow-lists and deny-lists, by key or by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dsi_jax.inputs.encoder_inputs import pad_rows
from dsi_jax.storage.string_columns import string_arrays

Listed = Sequence[str] | Sequence[int] | np.ndarray  # documents, by their keys or by their rows
Lists = Listed | Sequence[Listed | None]  # one for all queries, or one a query


class AllowLists:
    """The documents that each of some queries may find.

    Args:
      keys: of all documents, in the order of their rows; N of them.
      num_queries: how many queries there are.
      allow: the only documents that may be found; None: all. One list for all queries, or as many
        as there are queries, of which some may be None. An empty list allows nothing.
      deny: documents that must not be found, allowed or not; given as `allow` is.

    Raises:
      ValueError: a key or row of no document, or not as many lists as queries.
    """

    def __init__(
        self,
        keys: Sequence[str],
        num_queries: int,
        *,
        allow: Lists | None = None,
        deny: Lists | None = None,
    ) -> None:
        self._num_documents = len(keys)
        self._everything = allow is None and deny is None
        self._allow = _rows_per_query(allow, keys, num_queries, "allow")
        self._deny = _rows_per_query(deny, keys, num_queries, "deny")

    def of(self, queries: slice, size: int) -> np.ndarray | None:
        """What some of the queries may find.

        Args:
          queries: which of them.
          size: B, to which they are padded.

        Returns:
          bool [1, N], which holds for all of them, or [B, N]; None: every document.
        """
        if self._everything:
            return None
        count = max(len(self._allow), len(self._deny))
        if count == 1:
            return self._of(0)[None]
        allowed = np.stack([self._of(query) for query in range(*queries.indices(count))])
        return pad_rows(allowed, size)

    def _of(self, query: int) -> np.ndarray:
        """bool [N]"""
        allow, deny = (rows[query % len(rows)] for rows in (self._allow, self._deny))
        allowed_N = np.full(self._num_documents, allow is None)
        if allow is not None:
            allowed_N[allow] = True
        if deny is not None:
            allowed_N[deny] = False
        return allowed_N


def rows_of(listed: Listed, keys: Sequence[str], name: str) -> np.ndarray:
    """The rows, int64 [n], of documents listed by key or by row.

    Args:
      listed: documents, in any order.
      keys: of all documents.
      name: what is listed, for the error message.

    Raises:
      ValueError: a key or row of no document, or an item that is neither.
    """
    if len(listed) == 0:
        return np.zeros(0, np.int64)
    if all(isinstance(item, str) for item in listed):
        return _rows_of_keys(listed, keys, name)
    rows = None if any(isinstance(item, str) for item in listed) else np.asarray(listed)
    if rows is None or rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise ValueError(f"{name} begins with {listed[0]!r}; expected all keys, or all whole rows")
    outside = (rows < 0) | (rows >= len(keys))
    if outside.any():
        raise ValueError(
            f"{name} has the row {rows[outside.argmax()]}; expected rows of the {len(keys)} "
            f"documents, from 0"
        )
    return rows.astype(np.int64)


def num_queries(batch: Mapping[str, Any]) -> int:
    """B, the queries of a batch in all its streams."""
    return sum(len(jax.tree.leaves(stream)[0]) for stream in batch.values())


def check_allowed(allowed: np.ndarray, batch_size: int, num_documents: int) -> None:
    """Refuses what is not a bool for each document, or each query and document.

    Raises:
      ValueError: names shape and type.
    """
    shapes = ((1, num_documents), (batch_size, num_documents))
    if allowed.shape not in shapes or allowed.dtype != bool:
        raise ValueError(
            f"allowed documents are {allowed.dtype} of shape {allowed.shape}; expected bool of "
            f"shape {shapes[0]} or {shapes[1]}"
        )


def _rows_of_keys(listed: Sequence[str], keys: Sequence[str], name: str) -> np.ndarray:
    text = pa.large_string()
    known = pa.chunked_array(list(string_arrays("key", keys)), text)
    found = pc.index_in(pa.array(listed, text), value_set=known)
    if found.null_count:
        unknown = listed[pc.index(found.is_null(), True).as_py()]
        raise ValueError(
            f"{name} has {found.null_count} of {len(listed)} keys that no document has, first "
            f"{unknown!r}; expected keys of the {len(keys)} documents, such as {keys[0]!r}"
        )
    return found.to_numpy().astype(np.int64)


def _rows_per_query(
    lists: Lists | None, keys: Sequence[str], num_queries: int, name: str
) -> list[np.ndarray | None]:
    """The rows that each query lists, or one item that holds for all; None: no list."""
    if lists is None:
        return [None]
    if not any(item is None or _is_list(item) for item in lists):
        return [rows_of(lists, keys, name)]
    if len(lists) != num_queries:
        raise ValueError(
            f"{name} has {len(lists)} lists for {num_queries} queries; expected one for each of "
            "them, or one for all"
        )
    return [
        None if item is None else rows_of(item, keys, f"{name}[{index}]")
        for index, item in enumerate(lists)
    ]


def _is_list(item: object) -> bool:
    return isinstance(item, Sequence | np.ndarray) and not isinstance(item, str)
