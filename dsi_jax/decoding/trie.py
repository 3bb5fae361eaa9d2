"""The prefix tree of a docid table: a breadth-first CSR above, sorted docids below.

Nodes and edges are numbered level by level from the lexicographically sorted table, so that an
edge *is* the node below it: ``child node = edge + 1``, the root is node 0. Trees of docids end in
long tails with one document each, where a node and an edge for every level would say nothing. The
tree stops at ``depth``: below it, a beam holds a few neighbouring docids of the sorted table and
reads on in these, level by level.

A place in the tree is a range of ids. Above ``depth`` ids are edges, below they are the places of
sorted docids, counted on from the last edge; ``indptr`` leads from one to the other as it leads
from level to level.
"""

from collections.abc import Sequence
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dsi_jax.docids.table import DocidTable, token_dtype

# Smaller arrays are padded to this many entries: no memory to speak of, and every toy table of
# the same branching shares one compilation.
_SMALLEST_ARRAY = 256
_MOST_SHARED = 16  # docids below a node from which on the tree stops and the docids are read
_MOST_IN_COMPANY = 0.01  # share of docids with a neighbour below their node where a jump pays
_SEARCH_AMONG = 8  # edges a node from which on their places are searched, not counted
_CROWD = 1 << 16  # docids below a node that a number of 16 bits does not count
_SHORTEST_JUMP = 3  # levels; fewer are not worth compiling another pass of the decoder


class Range(NamedTuple):
    """Places in the tree: the ids ``low`` to ``high - 1`` of the edges or docids below them."""

    low: jax.Array
    high: jax.Array


@flax.struct.dataclass
class Trie:
    """A docid table's prefix tree: a pytree of arrays with static metadata.

    The arrays are padded to sizes of a coarse series and the level boundaries are data, so that a
    refreshed table usually has the shapes of the one before and nothing is compiled anew. The
    arrays come from NumPy; call ``jax.device_put`` once, or each use copies them.

    Attributes:
      tokens: unsigned [E], the token on each edge, ascending among siblings; padded with 0.
      indptr: int32 [nodes down to `depth` + 1]; below node n are the ids
        ``indptr[n]:indptr[n + 1]``. Padded with its last entry.
      tails: unsigned [L - depth, U], the tokens of the sorted docids at the levels from `depth` on;
        padded with 0.
      rows: int32 [N], the documents' rows in the order of their docids; padded with -1.
      first_leaf: int32 [], the id of the first docid; docid ``i`` is the document ``rows[i]``.
      crowded: int32 [], how many levels of nodes down to `depth`, the root's being the first, have
        one with 2**16 docids or more below it.
      runs: None where each docid is one document. Else int32 [U + 1]: docid ``i`` is the run
        ``rows[runs[i]:runs[i + 1]]``. Padded with N.
      widths: for each level, a number of ids that no range there exceeds.
      depth: the levels of edges; the first level that is read from `tails`.
      jump: the level before which nearly every docid is the only one below its node, so that all
        later tokens of a beam are known; None: there is none that leaves enough levels.
      vocab_size: V.
    """

    tokens: np.ndarray | jax.Array
    indptr: np.ndarray | jax.Array
    tails: np.ndarray | jax.Array
    rows: np.ndarray | jax.Array
    first_leaf: np.ndarray | jax.Array
    crowded: np.ndarray | jax.Array
    runs: np.ndarray | jax.Array | None
    widths: tuple[int, ...] = flax.struct.field(pytree_node=False)
    depth: int = flax.struct.field(pytree_node=False)
    jump: int | None = flax.struct.field(pytree_node=False)
    vocab_size: int = flax.struct.field(pytree_node=False)

    @property
    def length(self) -> int:
        """L, the number of levels."""
        return len(self.widths)

    @property
    def num_words(self) -> int:
        """The 32-bit words that hold one bit an id, and one more, so that slices of bits fit."""
        return -(-(len(self.tokens) + self.tails.shape[1]) // 32) + 1


def build_trie(
    table: DocidTable,
    depth: int | None = None,
    rows: np.ndarray | None = None,
    like: Trie | None = None,
) -> Trie:
    """Builds the trie of a table, on the host.

    Args:
      table: a docid table; its keys are not read.
      depth: the levels of edges, below L; None: as few as leave no node with more than 16 docids,
        or else all but the last.
      rows: the documents to build it of, which keep their rows and their order; None: all.
      like: a trie of the table before it was changed. Its `depth`, `jump`, widths and sizes of
        arrays are taken wherever they are possible here, so that what was compiled with it
        compiles nothing anew: without it, a choice may fall otherwise by a single document.

    Returns:
      A `Trie` of NumPy arrays in the smallest types that hold them.

    Raises:
      ValueError: if a token is not below ``vocab_size``, two documents share a docid and ties are
        not declared, the tree has more edges than int32 counts, `like` has docids of another
        length, `depth` is not below L, or `rows` are not rows of the table.
    """
    if depth is not None and not 0 <= depth < table.length:
        raise ValueError(f"depth is {depth}; expected one of 0 to {table.length - 1}")
    order, tokens_UxL, runs = _docids_of(table, rows)
    if like is not None and like.length != tokens_UxL.shape[1]:
        raise ValueError(
            f"like has docids of {like.length} tokens; expected the table's {tokens_UxL.shape[1]}"
        )
    depth = like.depth if like is not None and depth is None else depth
    levels = _levels(tokens_UxL, depth)
    if len(levels.repeats):
        _raise_duplicate(table, order, int(levels.repeats[0]))
    edges = levels.edges
    num_edges = sum(map(len, edges))
    num_ids = num_edges + len(tokens_UxL)
    count = len(order)
    widths, jump = _choices(levels, tokens_UxL.shape, like)
    # A slice of a level's width may start at any id; of docids of one token, only at the first.
    sliced = widths if len(widths) > 1 else [max(widths[0] - len(tokens_UxL), 0)]
    room = [max(part, default=0) for part in (sliced[: len(edges)], sliced[len(edges) :])]
    dtype = token_dtype(table.vocab_size)
    return Trie(
        tokens=_padded(edges, dtype, 0, like and like.tokens, room[0]),
        indptr=_padded(levels.indptr, np.int32, num_ids, like and like.indptr),
        tails=_tails(tokens_UxL[:, len(edges) :], dtype, like and like.tails, room[1]),
        rows=_padded([order], np.int32, -1, like and like.rows),
        first_leaf=np.asarray(num_edges, np.int32),
        crowded=np.asarray(levels.crowded, np.int32),
        runs=None
        if runs is None
        else _padded([runs, [count]], np.int32, count, like and like.runs),
        widths=tuple(widths),
        depth=len(edges),
        jump=jump,
        vocab_size=table.vocab_size,
    )


def _docids_of(
    table: DocidTable, rows: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The rows in the order of their docids, the distinct docids, and `Trie.runs` unpadded."""
    largest = int(table.tokens.max())
    if largest >= table.vocab_size:
        raise ValueError(
            f"docid table holds token {largest}; expected tokens below its vocab_size "
            f"{table.vocab_size}"
        )
    order = table.order
    if rows is not None:
        order = order[np.isin(order, _checked_rows(rows, len(order)))]
    tokens_UxL = table.tokens[order]
    runs = None
    if table.tie_seed is not None:
        opens = np.ones(len(tokens_UxL), bool)
        opens[1:] = (tokens_UxL[1:] != tokens_UxL[:-1]).any(axis=1)
        runs = np.flatnonzero(opens)
        tokens_UxL = tokens_UxL[runs]
    return order, tokens_UxL, runs


def _checked_rows(rows: np.ndarray, num_documents: int) -> np.ndarray:
    rows = np.asarray(rows)
    if rows.dtype == bool or (rows.size and not np.issubdtype(rows.dtype, np.integer)):
        raise ValueError(f"rows are of type {rows.dtype}; expected integers, the documents' rows")
    if rows.size and not (rows.min() >= 0 and rows.max() < num_documents):
        raise ValueError(
            f"rows are {rows.min()} to {rows.max()}; expected rows of the table, below "
            f"{num_documents}"
        )
    return rows


class _Levels(NamedTuple):
    """What describes the levels of sorted docids."""

    edges: list[np.ndarray]  # their tokens, a part a level down to `Trie.depth`
    indptr: list[np.ndarray]  # `Trie.indptr` in parts
    widths: list[int]  # of all levels
    crowded: int  # see `Trie`
    company: list[int]  # from `depth` on, how many docids have another one below their node
    repeats: np.ndarray  # the places of docids that equal the one before


def _levels(tokens_UxL: np.ndarray, depth: int | None) -> _Levels:
    count, length = tokens_UxL.shape
    # Whether a docid differs from the one before it in the levels seen so far, that is, whether it
    # is the first below a new edge; and the places of the first docids below each node.
    opens_U = np.zeros(count, bool)
    opens_U[:1] = True
    first = np.zeros(1, np.int64)
    edges, indptr, widths, num_edges, crowded = [], [], [], 0, 0
    for level in range(length):
        if num_edges + count >= np.iinfo(np.int32).max:
            raise ValueError(
                f"docid trie has {num_edges + count} edges above level {level} and docids; "
                "expected below 2**31 - 1"
            )
        most = int(np.diff(first, append=count).max(initial=0))
        crowded += most >= _CROWD
        if level == (length - 1 if depth is None else depth):
            break
        if depth is None and most <= _MOST_SHARED:
            break
        column_U = tokens_UxL[:, level]
        opens_U[1:] |= column_U[1:] != column_U[:-1]
        below = np.flatnonzero(opens_U)
        if len(first) <= max(len(below) // _SEARCH_AMONG, 1):
            edge_of = np.searchsorted(below, first).astype(np.int32)
        else:  # as many edges open before it
            edge_of = np.cumsum(opens_U, dtype=np.int32)[first] - 1
        widths.append(int(np.diff(edge_of, append=len(below)).max(initial=0)))
        edges.append(column_U[below])
        edge_of += num_edges
        indptr.append(edge_of)
        num_edges += len(below)
        first = below
    indptr += [(num_edges + first).astype(np.int32), [num_edges + count]]
    company = []
    tied = np.flatnonzero(~opens_U)  # places that are below one node with the place before
    for column_U in tokens_UxL[:, len(edges) :].T:
        runs = _runs(tied)
        company.append(len(tied) + len(runs))  # each run follows a docid that is no part of it
        widths.append(1 + int(runs.max(initial=0)))
        tied = tied[column_U[tied] == column_U[tied - 1]]
    return _Levels(edges, indptr, widths, crowded, company, tied)


def _choices(
    levels: _Levels, shape: tuple[int, int], like: Trie | None
) -> tuple[list[int], int | None]:
    """`Trie.widths` and `Trie.jump`, those of `like` wherever they are possible."""
    depth = len(levels.edges)
    jump = _jump(levels.company, depth, shape)
    widths = [_width_bucket(width) for width in levels.widths]
    if like is not None:
        widths = [_kept(width, old) for width, old in zip(widths, like.widths, strict=True)]
        jump = like.jump if like.depth == depth else jump
    return widths, jump


def _jump(company: list[int], depth: int, shape: tuple[int, int]) -> int | None:
    """See `Trie.jump`; never the first level, before which no list of documents is looked at."""
    count, length = shape
    for level, in_company in enumerate(company, depth):
        if level > 0 and in_company <= _MOST_IN_COMPANY * count:
            return level if length - level >= _SHORTEST_JUMP else None
    return None


def _runs(places: np.ndarray) -> np.ndarray:
    """The lengths of the runs of places that follow each other without a gap."""
    starts = np.flatnonzero(np.diff(places, prepend=-2) != 1)
    return np.diff(starts, append=len(places))


def _tails(
    tokens_UxT: np.ndarray, dtype: np.dtype, like: np.ndarray | None, room: int
) -> np.ndarray:
    """See `Trie.tails`."""
    count, length = tokens_UxT.shape
    tails = np.zeros((length, _padded_size(count + room, None if like is None else like[0])), dtype)
    tails[:, :count] = tokens_UxT.T
    return tails


def root(trie: Trie) -> Range:
    """The ids below the root; int32 []."""
    return below(trie, jnp.int32(-1))


def below(trie: Trie, edge: jax.Array) -> Range:
    """The ids below each edge."""
    low = jnp.take(trie.indptr, edge + 1, mode="clip")
    return Range(low, jnp.take(trie.indptr, edge + 2, mode="clip"))


def tokens_of(trie: Trie, ids: jax.Array, level: jax.Array | int, in_tails: bool) -> jax.Array:
    """The token of each id at a level, int32; some token where there is no such id.

    Args:
      trie: the trie.
      ids: int32 [...].
      level: below `depth` if `in_tails`, else not looked at.
      in_tails: whether ids are docids; then the level may be an array that ids broadcast with.
    """
    if not in_tails:
        return jnp.take(trie.tokens, ids, mode="clip").astype(jnp.int32)
    tails = jnp.asarray(trie.tails)
    return tails.at[level - trie.depth, ids - trie.first_leaf].get(mode="clip").astype(jnp.int32)


def tokens_from(
    trie: Trie, low: jax.Array, count: int, level: jax.Array | int, in_tails: bool
) -> jax.Array:
    """The tokens of the ids ``low`` to ``low + count - 1``, int32 [..., count].

    One slice for each, which is cheaper than a lookup of each id.

    Args:
      trie: the trie.
      low: int32 [...]; where L is 1, only the first id.
      count: at most the largest of `Trie.widths` above or below `depth`.
      level: as for `tokens_of`.
      in_tails: as for `tokens_of`.
    """
    if not in_tails:
        return slices(trie.tokens, low, count=count).astype(jnp.int32)
    level = jnp.broadcast_to(level - trie.depth, low.shape)
    return slices(trie.tails, level, low - trie.first_leaf, count=count).astype(jnp.int32)


def slices(array: np.ndarray | jax.Array, *starts: jax.Array, count: int) -> jax.Array:
    """Slices of an array along its last axis, [..., count]; kept within its ends.

    Args:
      array: of any number of axes.
      *starts: int32 [...] each, where the slices begin, one for each axis of the array.
      count: the elements of a slice.
    """
    ndim = len(starts)
    dimensions = jax.lax.GatherDimensionNumbers(
        offset_dims=(starts[0].ndim,),
        collapsed_slice_dims=tuple(range(ndim - 1)),
        start_index_map=tuple(range(ndim)),
    )
    sizes = (*[1] * (ndim - 1), count)
    starts = jnp.stack(starts, axis=-1)
    return jax.lax.gather(jnp.asarray(array), starts, dimensions, sizes, mode="clip")


def lookup(trie: Trie, tokens: jax.Array) -> jax.Array:
    """Walks the trie, on the device, from docids to their places.

    Args:
      trie: the docids of the corpus.
      tokens: int [..., L] token sequences.

    Returns:
      int32 [...]: the place of that docid among the sorted ones, -1 where there is none.
    """
    here = Range(*(jnp.broadcast_to(end, tokens.shape[:-1]) for end in root(trie)))
    for in_tails, start, stop in ((False, 0, trie.depth), (True, trie.depth, trie.length)):

        def step(level: jax.Array, here: Range, in_tails: bool = in_tails) -> Range:
            token = jax.lax.dynamic_index_in_dim(tokens, level, axis=-1, keepdims=False)
            return step_into(trie, here, level, token.astype(jnp.int32), in_tails)

        if start < stop:
            here = jax.lax.fori_loop(start, stop, step, here)
    return jnp.where(here.low < here.high, here.low - trie.first_leaf, -1)


def step_into(
    trie: Trie, here: Range, level: jax.Array | int, token: jax.Array, in_tails: bool
) -> Range:
    """The places below the child with a token; an empty range where there is none."""
    first = _lower_bound(trie, here, level, token, in_tails)
    if in_tails:
        return Range(first, _lower_bound(trie, here, level, token + 1, in_tails))
    found = (first < here.high) & (tokens_of(trie, first, level, in_tails) == token)
    deeper = below(trie, first)
    return Range(deeper.low, jnp.where(found, deeper.high, deeper.low))


def _lower_bound(
    trie: Trie, ids: Range, level: jax.Array | int, token: jax.Array, in_tails: bool
) -> jax.Array:
    """The first id of each range with at least that token; the range's end if there is none."""

    def halve(ids: Range) -> Range:
        low, high = ids
        middle = low + (high - low) // 2
        smaller = (tokens_of(trie, middle, level, in_tails) < token) & (low < high)
        return Range(jnp.where(smaller, middle + 1, low), jnp.where(smaller, high, middle))

    # A loop: of halves written out one after the other, XLA fuses each with all before it.
    return jax.lax.while_loop(lambda ids: (ids.low < ids.high).any(), halve, ids).low


def run_of_docid(trie: Trie, place: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where in ``rows`` the documents of each sorted docid begin and how many they are; int32."""
    if trie.runs is None:
        return place, jnp.ones_like(place)
    start = jnp.take(trie.runs, place, mode="clip")
    return start, jnp.take(trie.runs, place + 1, mode="clip") - start


def rows_at(trie: Trie, position: jax.Array) -> jax.Array:
    """The row at each position of ``rows``, int32; that of some document beyond them."""
    return jnp.take(trie.rows, position, mode="clip")


def bucket(size: int) -> int:
    """The smallest size of a coarse series, eight an octave, that is at least ``size``."""
    step = 1 << max(size.bit_length() - 4, 0)
    return -(-size // step) * step


def _width_bucket(width: int) -> int:
    """Powers of two first: a node that gains its sixth child should not compile anew."""
    return bucket(width) if width > 16 else 1 << (width - 1).bit_length()


def _kept(needed: int, old: int) -> int:
    """The old number where it is enough and not far too much, else the needed one."""
    return old if needed <= old <= 2 * needed else needed


def _padded_size(size: int, like: np.ndarray | None = None) -> int:
    padded = max(bucket(size), _SMALLEST_ARRAY)
    if like is not None and size <= len(like) <= 2 * padded:
        return len(like)
    return padded


def _padded(
    parts: Sequence[np.ndarray],
    dtype: np.dtype,
    value: int,
    like: np.ndarray | None = None,
    room: int = 0,
) -> np.ndarray:
    """Concatenates ``parts`` and fills up to a bucketed size, or that of `like`, with ``value``.

    At least `room` entries are filled up, so that a slice of so many may start at any entry.
    """
    size = sum(len(part) for part in parts)
    padded = np.empty(_padded_size(size + room, like), dtype)
    start = 0
    for part in parts:
        padded[start : start + len(part)] = part
        start += len(part)
    padded[size:] = value
    return padded


def _raise_duplicate(table: DocidTable, order: np.ndarray, place: int) -> None:
    first, second = sorted(int(row) for row in order[place - 1 : place + 1])
    raise ValueError(
        f"documents {table.keys[first]!r} (row {first}) and {table.keys[second]!r} (row {second}) "
        f"share the docid {table.tokens[first].tolist()}; expected unique docids"
    )
