"""Allow-lists and deny-lists: sets of documents as bits of the trie, without building another."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dsi_jax.decoding.trie import Trie, slices

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
    return _document_set(trie, allowed_N).alive


def bits_from(
    alive_AxW: jax.Array, set_BxM: jax.Array, low_BxM: jax.Array, count: int
) -> jax.Array:
    """The bits of the ids ``low`` to ``low + count - 1``, bool [B, M, count].

    One slice of words for each, which is cheaper than a lookup of each id.

    Args:
      alive_AxW: as `DocumentSets.alive`.
      set_BxM: int32, which set's.
      low_BxM: int32.
      count: at most the largest of `Trie.widths`.
    """
    num_words = -(-count // _WORD)
    words = slices(alive_AxW, set_BxM, low_BxM // _WORD, count=num_words + 1)
    shift = (low_BxM % _WORD).astype(jnp.uint32)[..., None]
    # Two shifts for one by 32 - shift, which may be 32.
    words = (words[..., :-1] >> shift) | (words[..., 1:] << 1 << (_WORD - 1 - shift))
    bits = words[..., None] >> jnp.arange(_WORD, dtype=jnp.uint32) & 1
    return bits.reshape(*low_BxM.shape, -1)[..., :count] == 1


def _document_set(trie: Trie, allowed_N: np.ndarray) -> DocumentSets:
    """One of `DocumentSets`, without their axis A."""
    flags = _in_order(trie, allowed_N)
    if trie.runs is None:
        return DocumentSets(_alive(trie, flags))
    rows = np.full_like(trie.rows, -1)
    kept = trie.rows[: len(flags)][flags]
    rows[: len(kept)] = kept
    runs = _counts_before(flags, np.int32)[trie.runs]
    ends = runs[: _num_docids(trie) + 1]
    return DocumentSets(_alive(trie, ends[1:] != ends[:-1]), rows, runs)


def _in_order(trie: Trie, allowed_N: np.ndarray) -> np.ndarray:
    """Whether the document at each place of `Trie.rows` is allowed, bool; without the padding."""
    num_rows = int(trie.rows.max()) + 1
    if allowed_N.ndim != 1 or len(allowed_N) < num_rows or allowed_N.dtype != bool:
        raise ValueError(
            f"the list of allowed documents has the shape {allowed_N.shape} and type "
            f"{allowed_N.dtype}; expected a bool for each of the {num_rows} documents"
        )
    count = _num_docids(trie) if trie.runs is None else int(trie.runs[-1])
    return _take(allowed_N, trie.rows[:count], 0)


def _alive(trie: Trie, docids_U: np.ndarray) -> np.ndarray:
    """See `alive_bits`; of the docids that have an allowed document."""
    octets = np.zeros(trie.num_words * _WORD // 8, np.uint8)
    _mark(octets, int(trie.first_leaf), docids_U)
    # From the docids up. Counted before each place of a level, what has allowed docids below it has
    # a count that the next place does not have, also modulo 2**16 if it has fewer docids.
    alive, counts = docids_U, _counts_before(docids_U, np.uint16)
    for level, (start, stop) in reversed(list(enumerate(_node_levels(trie)[1:], 1))):
        ends = trie.indptr[start : stop + 1]
        if level < trie.crowded:
            alive = np.logical_or.reduceat(alive, ends[:-1] - ends[0])
        else:
            counts = _take(counts, ends, ends[0])
            alive = counts[1:] != counts[:-1]
        _mark(octets, start - 1, alive)  # the place of a node is its edge's
    return octets.view("<u4").astype(np.uint32, copy=False)


def _mark(octets: np.ndarray, first: int, flags: np.ndarray) -> None:
    """Sets the bits of the ids from `first` on whose flags are set."""
    padded = np.concatenate([np.zeros(first % 8, bool), flags])
    packed = np.packbits(padded, bitorder="little")
    octets[first // 8 :][: len(packed)] |= packed


def _counts_before(flags: np.ndarray, dtype: type[np.integer]) -> np.ndarray:
    """How many flags are set before each place, and in all, modulo what the type holds."""
    counts = np.zeros(len(flags) + 1, dtype)
    counts[1:] = flags
    return np.cumsum(counts, dtype=dtype, out=counts)


def _num_docids(trie: Trie) -> int:
    return int(trie.indptr[-1] - trie.first_leaf)


def _take(array: np.ndarray, index: np.ndarray, origin: int) -> np.ndarray:
    """``array[index - origin]``, by blocks: `np.take` copies an index of int32 first."""
    out = np.empty(len(index), array.dtype)
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
