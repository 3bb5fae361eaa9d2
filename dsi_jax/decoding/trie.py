"""The prefix tree of a docid table as one breadth-first CSR.

Nodes and edges are numbered level by level from the lexicographically sorted table, so that an
edge *is* the node below it: ``child node = edge + 1``, the root is node 0, and the last level's
nodes stand in the order of the sorted docids. Two arrays describe the tree (``tokens`` and
``indptr``, about six bytes a node) and one leads from its leaves to documents: a leaf is one
document, or a run of them where the table declares ties.
"""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dsi_jax.docids.table import DocidTable

# Smaller arrays are padded to this many entries: no memory to speak of, and every toy table of
# the same branching shares one compilation.
_SMALLEST_ARRAY = 256


@flax.struct.dataclass
class Trie:
    """A docid table's prefix tree: a pytree of arrays with static metadata.

    The arrays are padded to sizes of a coarse series and the level boundaries are data, so that a
    refreshed table usually has the shapes of the one before and nothing is compiled anew. The
    arrays come from NumPy; call ``jax.device_put`` once, or each use copies them.

    Attributes:
      tokens: unsigned [E], the token on each edge, ascending among siblings; padded with 0.
      indptr: int32 [nodes above the last level + 1]; the edges below node n are
        ``indptr[n]:indptr[n + 1]``. Padded with the number of edges.
      rows: int32 [N], the documents' rows in the order of the leaves; padded with -1.
      first_leaf: int32 [], the node of the first leaf: leaf ``n`` is ``rows[n - first_leaf]``.
      runs: None where each leaf is one document. Else int32 [leaves + 1]: leaf ``n`` is the run
        ``rows[runs[i]:runs[i + 1]]`` with ``i = n - first_leaf``. Padded with N.
      branching: for each level, a number of children that no node of it exceeds.
      vocab_size: V.
    """

    tokens: np.ndarray | jax.Array
    indptr: np.ndarray | jax.Array
    rows: np.ndarray | jax.Array
    first_leaf: np.ndarray | jax.Array
    runs: np.ndarray | jax.Array | None
    branching: tuple[int, ...] = flax.struct.field(pytree_node=False)
    vocab_size: int = flax.struct.field(pytree_node=False)

    @property
    def length(self) -> int:
        """L, the number of levels."""
        return len(self.branching)


def build_trie(table: DocidTable) -> Trie:
    """Builds the trie of a table, on the host.

    Args:
      table: a docid table; its keys are not read.

    Returns:
      A `Trie` of NumPy arrays in the smallest types that hold them.

    Raises:
      ValueError: if a token is not below ``vocab_size``, two documents share a docid and ties are
        not declared, or the tree has more edges than int32 counts.
    """
    tokens_NxL = table.tokens
    num_documents, length = tokens_NxL.shape
    largest = int(tokens_NxL.max())
    if largest >= table.vocab_size:
        raise ValueError(
            f"docid table holds token {largest}; expected tokens below its vocab_size "
            f"{table.vocab_size}"
        )
    ties = table.tie_seed is not None
    order_N = table.order

    # opens_N: whether a sorted docid differs from the one before it in the levels seen so far,
    # that is, whether it is the first document below a new edge.
    opens_N = np.zeros(num_documents, bool)
    opens_N[0] = True
    parents = np.zeros(1, np.int64)  # sorted positions of the first document below each node
    tokens, indptr, branching, num_edges = [], [], [], 0
    for level in range(length):
        column_N = tokens_NxL[order_N, level]
        opens_N[1:] |= column_N[1:] != column_N[:-1]
        edges = np.flatnonzero(opens_N)
        first_edge = np.cumsum(opens_N, dtype=np.int32)[parents] - 1
        tokens.append(column_N[edges])
        indptr.append(num_edges + first_edge.astype(np.int64))
        branching.append(int(np.diff(first_edge, append=len(edges)).max()))
        num_edges += len(edges)
        parents = edges
    if len(parents) != num_documents and not ties:
        _raise_duplicate(table, order_N, opens_N)
    if num_edges >= np.iinfo(np.int32).max:
        raise ValueError(f"docid trie has {num_edges} edges; expected fewer than 2**31 - 1")

    return Trie(
        tokens=_padded(tokens, tokens_NxL.dtype, 0),
        indptr=_padded([*indptr, [num_edges]], np.int32, num_edges),
        rows=_padded([order_N], np.int32, -1),
        first_leaf=np.asarray(num_edges - len(parents) + 1, np.int32),
        runs=_padded([parents, [num_documents]], np.int32, num_documents) if ties else None,
        branching=tuple(min(_branching_bucket(k), table.vocab_size) for k in branching),
        vocab_size=table.vocab_size,
    )


def lookup(trie: Trie, tokens: jax.Array) -> jax.Array:
    """Walks the trie, on the device, from docids to leaves.

    Args:
      trie: the docids of the corpus.
      tokens: int [..., L] token sequences.

    Returns:
      int32 [...]: the last-level node of that docid, 0 (the root) where there is none.
    """
    node = jnp.zeros(tokens.shape[:-1], jnp.int32)
    found = jnp.ones(tokens.shape[:-1], bool)
    for level, branching in enumerate(trie.branching):
        token = tokens[..., level].astype(jnp.int32)
        low, end = edges_below(trie, node)
        high = end
        for _ in range(branching.bit_length()):  # lower bound among the sorted siblings
            middle = low + (high - low) // 2
            smaller = (low < high) & (tokens_of(trie, middle) < token)
            low = jnp.where(smaller, middle + 1, low)
            high = jnp.where(smaller, high, middle)
        found &= (low < end) & (tokens_of(trie, low) == token)
        node = jnp.where(found, low + 1, 0)
    return node


def edges_below(trie: Trie, node: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first edge below each node and the end of its range; int32, of ``node``'s shape."""
    first = jnp.take(trie.indptr, node, mode="clip")
    end = jnp.take(trie.indptr, node + 1, mode="clip")
    return first, end


def tokens_of(trie: Trie, edge: jax.Array) -> jax.Array:
    """The token on each edge, int32; an edge beyond the array gives some token of it."""
    return jnp.take(trie.tokens, edge, mode="clip").astype(jnp.int32)


def run_of_leaf(trie: Trie, node: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where in ``rows`` the documents of each last-level node begin and how many they are; int32.

    Meaningless at other nodes.
    """
    leaf = node - trie.first_leaf
    if trie.runs is None:
        return leaf, jnp.ones_like(leaf)
    start = jnp.take(trie.runs, leaf, mode="clip")
    return start, jnp.take(trie.runs, leaf + 1, mode="clip") - start


def rows_at(trie: Trie, position: jax.Array) -> jax.Array:
    """The row at each position of ``rows``, int32; that of some document beyond them."""
    return jnp.take(trie.rows, position, mode="clip")


def bucket(size: int) -> int:
    """The smallest size of a coarse series, eight an octave, that is at least ``size``."""
    step = 1 << max(size.bit_length() - 4, 0)
    return -(-size // step) * step


def _branching_bucket(branching: int) -> int:
    """Powers of two first: a node that gains its sixth child should not compile anew."""
    return bucket(branching) if branching > 16 else 1 << (branching - 1).bit_length()


def _padded(parts: Sequence[np.ndarray], dtype: np.dtype, value: int) -> np.ndarray:
    """Concatenates ``parts`` and fills up to a bucketed size with ``value``."""
    size = sum(len(part) for part in parts)
    padded = np.full(max(bucket(size), _SMALLEST_ARRAY), value, dtype)
    padded[:size] = np.concatenate(parts)
    return padded


def _raise_duplicate(table: DocidTable, order_N: np.ndarray, opens_N: np.ndarray) -> None:
    position = int(np.flatnonzero(~opens_N)[0])
    first, second = sorted(int(row) for row in order_N[position - 1 : position + 1])
    raise ValueError(
        f"documents {table.keys[first]!r} (row {first}) and {table.keys[second]!r} (row {second}) "
        f"share the docid {table.tokens[first].tolist()}; expected unique docids"
    )
