"""The CSR trie against prefixes enumerated in Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsi_jax.decoding import trie as trie_lib
from dsi_jax.docids.table import DocidTable


def make_table(tokens, vocab_size, variable_length=False):
    tokens = np.asarray(tokens, np.min_scalar_type(vocab_size - 1))
    return DocidTable(
        tokens=tokens,
        keys=[f"doc{row}" for row in range(len(tokens))],
        vocab_size=vocab_size,
        kind="test",
        parameters={},
        corpus_hash="none",
        variable_length=variable_length,
    )


@st.composite
def tables(draw):
    length = draw(st.integers(1, 6))
    vocab_size = draw(st.sampled_from([3, 4, 12, 300, 70_000]))
    code = st.integers(2, vocab_size - 1)
    variable_length = length > 1 and draw(st.booleans())
    if variable_length:
        docids = draw(st.sets(st.lists(code, max_size=length - 1).map(tuple), min_size=1))
        docids = [(*docid, 1) + (0,) * (length - 1 - len(docid)) for docid in docids]
    else:
        docids = sorted(draw(st.sets(st.tuples(*[code] * length), min_size=1)))
    return make_table(draw(st.permutations(docids)), vocab_size, variable_length)


def walk(trie, node, prefix, found):
    """Collects {docid: row} below a node from the arrays alone."""
    if len(prefix) == trie.length:
        found[prefix] = int(trie.rows[node - trie.first_leaf])
        return
    edges = range(trie.indptr[node], trie.indptr[node + 1])
    siblings = [int(trie.tokens[edge]) for edge in edges]
    assert siblings == sorted(set(siblings))
    assert 1 <= len(siblings) <= trie.branching[len(prefix)]
    for edge, token in zip(edges, siblings, strict=True):
        walk(trie, edge + 1, (*prefix, token), found)


@settings(max_examples=100, deadline=None)
@given(tables())
def test_walk_from_the_root_finds_each_docid_once(table):
    trie = trie_lib.build_trie(table)
    found = {}
    walk(trie, 0, (), found)
    assert found == {tuple(docid): row for row, docid in enumerate(table.tokens.tolist())}
    prefixes = {docid[:level] for docid in found for level in range(trie.length + 1)}
    leaves = len(table.tokens)
    assert int(trie.first_leaf) + leaves == len(prefixes)  # one node a prefix, the root included
    assert trie.indptr[-1] == len(prefixes) - 1
    assert (trie.rows[leaves:] == -1).all()


def looked_up(trie, tokens):
    """The row of each docid, -1 where there is none."""
    leaves = trie_lib.lookup(trie, tokens)
    start, _ = trie_lib.run_of_leaf(trie, leaves)
    return jnp.where(leaves > 0, trie_lib.rows_at(trie, start), -1)


@settings(max_examples=25, deadline=None)
@given(tables(), st.integers(0, 2**32 - 1))
def test_lookup_finds_rows_and_nothing_else(table, seed):
    trie = trie_lib.build_trie(table)
    strangers = np.random.default_rng(seed).integers(
        0, table.vocab_size, (20, trie.length), dtype=np.int32
    )
    tokens = np.concatenate([table.tokens.astype(np.int32), strangers])
    rows = {tuple(docid): row for row, docid in enumerate(table.tokens.tolist())}
    expected = [rows.get(tuple(docid), -1) for docid in tokens.tolist()]
    assert np.asarray(looked_up(trie, tokens)).tolist() == expected


def test_token_type_is_the_smallest():
    for vocab_size, dtype in ((256, np.uint8), (257, np.uint16), (65_537, np.uint32)):
        trie = trie_lib.build_trie(make_table([[2], [vocab_size - 1]], vocab_size))
        assert trie.tokens.dtype == dtype
        rows = looked_up(trie, np.array([[vocab_size - 1], [2], [3]]))
        assert np.asarray(rows).tolist() == [1, 0, -1]


def test_buckets_hold_their_size_and_waste_an_eighth():
    sizes = [trie_lib.bucket(size) for size in range(1, 5000)]
    assert sizes == sorted(sizes)
    assert all(size <= held <= max(size, size * 1.125) for size, held in enumerate(sizes, 1))
    assert len(set(sizes)) < 100


def test_refreshed_table_has_the_shapes_of_the_one_before():
    rng = np.random.default_rng(0)
    tokens = np.unique(rng.integers(2, 34, (3000, 5)), axis=0)
    rng.shuffle(tokens)
    before = trie_lib.build_trie(make_table(tokens[:2900], 34))
    after = trie_lib.build_trie(make_table(tokens[10:2905], 34))
    assert int(before.first_leaf) != int(after.first_leaf)
    lookup = jax.jit(looked_up)
    np.testing.assert_array_equal(lookup(before, tokens[:2900]), np.arange(2900))
    np.testing.assert_array_equal(lookup(after, tokens[10:2910])[:2895], np.arange(2895))
    assert lookup._cache_size() == 1


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[2, 9]], "token 9; expected tokens below its vocab_size 9"),
        ([[2, 3], [4, 5], [2, 3]], r"'doc0' \(row 0\) and 'doc2' \(row 2\) share the docid \[2, 3"),
    ],
)
def test_bad_tables(tokens, message):
    with pytest.raises(ValueError, match=message):
        trie_lib.build_trie(make_table(tokens, 9))
