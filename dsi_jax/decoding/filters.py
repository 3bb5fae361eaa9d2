"""Allow-lists and deny-lists: sets of documents as bits of the trie, without building another."""

import flax.struct
import jax
import numpy as np

from dsi_jax.decoding.trie import Trie

_WORD = 32
_BLOCK = 1 << 16  # lookups whose indices stay in the cache


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
    sets = [_document_set(trie, allowed_N) for allowed_N in allowed_AxN]
    return jax.tree.map(lambda *arrays: np.stack(arrays), *sets)


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
    return _alive(trie, _allowed_before(trie, allowed_N))


def _document_set(trie: Trie, allowed_N: np.ndarray) -> DocumentSets:
    """One of `DocumentSets`, without their axis A."""
    before = _allowed_before(trie, allowed_N)
    if trie.runs is None:
        return DocumentSets(_alive(trie, before))
    kept = trie.rows[: len(before) - 1][before[1:] != before[:-1]]
    rows = np.full_like(trie.rows, -1)
    rows[: len(kept)] = kept
    runs = before[trie.runs]
    return DocumentSets(_alive(trie, before), rows, runs)


def _allowed_before(trie: Trie, allowed_N: np.ndarray) -> np.ndarray:
    """How many allowed documents lie before each place of `Trie.rows`, and in all; int32."""
    num_rows = int(trie.rows.max()) + 1
    if allowed_N.ndim != 1 or len(allowed_N) < num_rows or allowed_N.dtype != bool:
        raise ValueError(
            f"the list of allowed documents has the shape {allowed_N.shape} and type "
            f"{allowed_N.dtype}; expected a bool for each of the {num_rows} documents"
        )
    count = _num_docids(trie) if trie.runs is None else int(trie.runs[-1])
    before = np.zeros(count + 1, np.int32)
    before[1:] = _take(allowed_N, trie.rows[:count], 0, np.empty(count, bool))
    return np.cumsum(before, out=before)


def _alive(trie: Trie, before: np.ndarray) -> np.ndarray:
    """See `alive_bits`; what `_allowed_before` counted is overwritten."""
    # From the docids up, the counts before each place of a level: what has allowed documents below
    # it has a count that the next place does not have. The place of a node is its edge's.
    spare = np.empty_like(before)
    levels = [(trie.indptr[start : stop + 1], start - 1) for start, stop in _node_levels(trie)[1:]]
    runs = None if trie.runs is None else trie.runs[: _num_docids(trie) + 1]
    levels.append((runs, int(trie.first_leaf)))
    flags = np.zeros(trie.num_words * _WORD, bool)
    for ends, first in reversed(levels):
        if ends is not None and len(ends) != len(before):  # else one each, and the counts the same
            before, spare = _take(before, ends, ends[0], spare[: len(ends)]), before
        np.not_equal(before[1:], before[:-1], out=flags[first:][: len(before) - 1])
    return np.packbits(flags, bitorder="little").view("<u4").astype(np.uint32)


def _num_docids(trie: Trie) -> int:
    return int(trie.indptr[-1] - trie.first_leaf)


def _take(array: np.ndarray, index: np.ndarray, origin: int, out: np.ndarray) -> np.ndarray:
    """``array[index - origin]`` into `out`, by blocks: `np.take` copies an index of int32 first."""
    buffer = np.empty(min(_BLOCK, len(index)), np.int64)
    for start in range(0, len(index), _BLOCK):
        part = index[start : start + _BLOCK]
        block = np.subtract(part, origin, out=buffer[: len(part)])
        np.take(array, block, out=out[start : start + _BLOCK], mode="clip")  # checks no index
    return out


def _node_levels(trie: Trie) -> list[tuple[int, int]]:
    """The nodes of each level down to `Trie.depth`, as ranges."""
    levels = [(0, 1)]
    for _ in range(trie.depth):
        start, stop = levels[-1]
        levels.append((int(trie.indptr[start]) + 1, int(trie.indptr[stop]) + 1))
    return levels
