"""Allow-lists and deny-lists: sets of documents as bits of the trie, without building another."""

import flax.struct
import jax
import numpy as np

from dsi_jax.decoding.trie import Trie

_WORD = 32
_FEW_RANGES = 0.1  # share of the ranges with several flags up to which these are looked at alone


@flax.struct.dataclass
class DocumentSets:
    """A sets of a trie's documents, which queries may be restricted to.

    Attributes:
      alive: uint32 [A, words], see `alive_bits`.
      rows: None where each docid is one document. Else int32 [A, N], as `Trie.rows`, of the
        documents of each set alone.
      runs: None, or int32 [A, U + 1], as `Trie.runs` in these rows.
    """

    alive: np.ndarray | jax.Array
    rows: np.ndarray | jax.Array | None = None
    runs: np.ndarray | jax.Array | None = None


def document_sets(trie: Trie, allowed_AxN: np.ndarray) -> DocumentSets:
    """Makes sets of documents, on the host; other sets of the same number compile nothing anew.

    Args:
      trie: of NumPy arrays.
      allowed_AxN: bool [A, N], by row of the table, also where the trie was built of some rows.

    Raises:
      ValueError: there is not a bool for each document.
    """
    alive = np.stack([alive_bits(trie, allowed_N) for allowed_N in allowed_AxN])
    if trie.runs is None:
        return DocumentSets(alive)
    rows, runs = zip(*(_allowed_runs(trie, allowed_N) for allowed_N in allowed_AxN), strict=True)
    return DocumentSets(alive, np.stack(rows), np.stack(runs))


def alive_bits(trie: Trie, allowed_N: np.ndarray) -> np.ndarray:
    """Which edges and docids of a trie lead to an allowed document, on the host.

    Args:
      trie: of NumPy arrays.
      allowed_N: bool [N], by row of the table, also where the trie was built of some of its rows.

    Returns:
      uint32 [words]: the bit ``id % 32`` of word ``id // 32``.

    Raises:
      ValueError: there is not a bool for each document.
    """
    num_documents = _num_documents(trie)
    num_rows = int(trie.rows.max()) + 1
    if allowed_N.ndim != 1 or len(allowed_N) < num_rows or allowed_N.dtype != bool:
        raise ValueError(
            f"the list of allowed documents has the shape {allowed_N.shape} and type "
            f"{allowed_N.dtype}; expected a bool for each of the {num_rows} documents"
        )
    alive = allowed_N[trie.rows[:num_documents]]
    if trie.runs is not None:
        num_docids = int(np.searchsorted(trie.runs, num_documents))
        alive = _any_of(alive, trie.runs[: num_docids + 1])
    flags = np.zeros(trie.num_words * _WORD, bool)
    flags[trie.first_leaf :][: len(alive)] = alive
    # From the last level of edges up: an edge is alive if an id below it is. The root is no edge.
    for start, stop in reversed(_node_levels(trie)[1:]):
        alive = _any_of(alive, trie.indptr[start : stop + 1] - trie.indptr[start])
        flags[start - 1 : stop - 1] = alive
    return np.packbits(flags, bitorder="little").view("<u4").astype(np.uint32)


def _allowed_runs(trie: Trie, allowed_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`Trie.rows` without the documents that are not allowed, and `Trie.runs` in them."""
    num_documents = _num_documents(trie)
    rows_N = trie.rows[:num_documents]
    kept_N = allowed_N[rows_N]
    before = np.zeros(num_documents + 1, np.int32)
    np.cumsum(kept_N, out=before[1:])
    rows = np.full_like(trie.rows, -1)
    rows[: before[-1]] = rows_N[kept_N]
    return rows, before[trie.runs]


def _num_documents(trie: Trie) -> int:
    return int(np.searchsorted(trie.rows < 0, True))


def _any_of(flags: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Whether any of the flags ``ends[i]`` to ``ends[i + 1] - 1`` is set; no range is empty."""
    if len(ends) == len(flags) + 1:  # one each
        return flags
    several = np.flatnonzero(np.diff(ends) > 1)
    if len(several) < _FEW_RANGES * len(ends):
        found = flags.take(ends[:-1])
        # Every other range is one of these, the others lie between them.
        bounds = np.stack([ends[several], ends[several + 1]], axis=1).reshape(-1)
        bounds = bounds[: len(bounds) - (bounds[-1] == len(flags))]
        found[several] = np.logical_or.reduceat(flags, bounds)[::2]
        return found
    before = np.zeros(len(flags) + 1, np.int32)
    np.cumsum(flags, dtype=np.int32, out=before[1:])
    before = before.take(ends, mode="clip")  # which checks no index, and is faster for it
    return before[1:] != before[:-1]


def _node_levels(trie: Trie) -> list[tuple[int, int]]:
    """The nodes of each level down to `Trie.depth`, as ranges."""
    levels = [(0, 1)]
    for _ in range(trie.depth):
        start, stop = levels[-1]
        levels.append((int(trie.indptr[start]) + 1, int(trie.indptr[stop]) + 1))
    return levels
