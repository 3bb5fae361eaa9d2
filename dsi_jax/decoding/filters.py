"""Allow-lists and deny-lists: sets of documents as bits of the trie, without building another."""

import numpy as np

from dsi_jax.decoding.trie import Trie

_WORD = 32


def alive_bits(trie: Trie, allowed_N: np.ndarray) -> np.ndarray:
    """Which edges and docids of a trie lead to an allowed document, on the host.

    A list is one row of `TrieConstraint.alive`; a deny-list is the complement of an allow-list.
    Another set of documents compiles nothing anew.

    Args:
      trie: of NumPy arrays.
      allowed_N: bool [N], by row.

    Returns:
      uint32 [words]: the bit ``id % 32`` of word ``id // 32``.

    Raises:
      ValueError: there is not one value for each document.
    """
    num_documents = int(np.searchsorted(trie.rows < 0, True))
    if allowed_N.shape != (num_documents,) or allowed_N.dtype != bool:
        raise ValueError(
            f"the list of allowed documents has the shape {allowed_N.shape} and type "
            f"{allowed_N.dtype}; expected a bool for each of the {num_documents} documents"
        )
    alive = allowed_N[trie.rows[:num_documents]]
    if trie.runs is not None:
        num_docids = int(np.searchsorted(trie.runs, num_documents))
        alive = _any_of(alive, trie.runs[: num_docids + 1])
    parts = [alive]
    # From the last level of edges up: an edge is alive if an id below it is.
    for start, stop in reversed(_node_levels(trie)):
        alive = _any_of(alive, trie.indptr[start : stop + 1] - trie.indptr[start])
        parts.append(alive)
    parts.pop()  # the root is no edge
    bits = np.zeros(trie.num_words * _WORD, bool)
    flat = np.concatenate(parts[::-1])
    bits[: len(flat)] = flat
    return np.packbits(bits, bitorder="little").view("<u4").astype(np.uint32)


def _any_of(flags: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Whether any of the flags ``ends[i]`` to ``ends[i + 1] - 1`` is set."""
    if len(ends) == len(flags) + 1:  # one each
        return flags
    before = np.zeros(len(flags) + 1, np.int32)
    np.cumsum(flags, out=before[1:])
    before = before[ends]
    return before[1:] != before[:-1]


def _node_levels(trie: Trie) -> list[tuple[int, int]]:
    """The nodes of each level down to `Trie.depth`, as ranges."""
    levels = [(0, 1)]
    for _ in range(trie.depth):
        start, stop = levels[-1]
        levels.append((int(trie.indptr[start]) + 1, int(trie.indptr[stop]) + 1))
    return levels
