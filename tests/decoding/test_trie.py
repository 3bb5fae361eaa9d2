"""The CSR trie against prefixes enumerated in Python."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsi_jax.decoding import document_sets
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


depths = st.sampled_from([None, 0, 1, 2, 5])


def build(table, depth):
    return trie_lib.build_trie(
        table, None if depth is None else min(depth, table.tokens.shape[1] - 1)
    )


def walk(trie, ids, prefix, found):
    """Collects {docid: row} below a place from the arrays alone."""
    level = len(prefix)
    if level == trie.length:
        (place,) = ids
        found[prefix] = int(trie.rows[place - int(trie.first_leaf)])
        return
    assert 1 <= len(ids) <= trie.widths[level]
    if level < trie.depth:
        tokens = trie.tokens[ids]
    else:
        tokens = trie.tails[level - trie.depth, np.array(ids) - trie.first_leaf]
    assert tokens.tolist() == sorted(tokens.tolist())
    if level < trie.depth:
        assert len(set(tokens.tolist())) == len(ids)
        deeper = [list(range(trie.indptr[edge + 1], trie.indptr[edge + 2])) for edge in ids]
    else:
        deeper = [
            [place for place, token in zip(ids, tokens, strict=True) if token == own]
            for own in tokens
        ]
    for token, below in zip(tokens.tolist(), deeper, strict=True):
        if (*prefix, token) not in found:
            walk(trie, below, (*prefix, token), found)


@settings(max_examples=100, deadline=None)
@given(tables(), depths)
def test_walk_from_the_root_finds_each_docid_once(table, depth):
    trie = build(table, depth)
    found = {}
    walk(trie, list(range(trie.indptr[0], trie.indptr[1])), (), found)
    assert found == {tuple(docid): row for row, docid in enumerate(table.tokens.tolist())}
    prefixes = {docid[:level] for docid in found for level in range(1, trie.depth + 1)}
    assert int(trie.first_leaf) == len(prefixes)  # one edge a prefix
    assert trie.indptr[-1] == len(prefixes) + len(found)
    assert (trie.rows[len(found) :] == -1).all()


@settings(max_examples=100, deadline=None)
@given(tables(), depths, st.data())
def test_a_trie_like_another_holds_its_own_docids(table, depth, data):
    """Whatever the other one held; what it held of this one's table decides the shapes."""
    old = build(table, depth)
    tokens = data.draw(
        st.lists(st.sampled_from(table.tokens.tolist()), min_size=1, unique_by=tuple)
    )
    strangers = {(*token[:-1], table.vocab_size - 1) for token in tokens[:3]}
    tokens = sorted({tuple(token) for token in tokens} | strangers)
    changed = make_table(tokens, table.vocab_size)
    trie = trie_lib.build_trie(changed, like=old)
    found = {}
    walk(trie, list(range(trie.indptr[0], trie.indptr[1])), (), found)
    assert found == {tuple(docid): row for row, docid in enumerate(changed.tokens.tolist())}
    assert np.asarray(looked_up(trie, changed.tokens.astype(np.int32))).tolist() == list(
        range(len(tokens))
    )
    again = trie_lib.build_trie(table, like=old)
    jax.tree.map(np.testing.assert_array_equal, again, old)
    assert jax.tree.structure(again) == jax.tree.structure(old)


def test_a_choice_that_would_fall_otherwise_is_kept():
    """Seventeen documents below a node need an edge each, sixteen do not."""
    tokens = np.array([[2, 2 + number, 2, 3, 4, 5] for number in range(17)])
    old, less = trie_lib.build_trie(make_table(tokens, 130)), make_table(tokens[1:], 130)
    kept = trie_lib.build_trie(less, like=old)
    assert trie_lib.build_trie(less).depth != old.depth
    shapes = [jax.tree.map(np.shape, trie) for trie in (old, kept)]
    assert shapes[0] == shapes[1]  # and so are depth, jump and widths
    with pytest.raises(ValueError, match="like has docids of 6 tokens; expected the table's 2"):
        trie_lib.build_trie(make_table([[2, 3]], 130), like=old)


def test_the_tree_stops_where_few_documents_share_a_node():
    rng = np.random.default_rng(0)
    tokens = np.unique(rng.integers(2, 12, (1000, 7)), axis=0)
    trie = trie_lib.build_trie(make_table(tokens, 12))
    shared = [
        np.unique(tokens[:, :depth], axis=0, return_counts=True)[1].max() for depth in range(4)
    ]
    assert shared[trie.depth] <= 16 < shared[trie.depth - 1]
    assert trie.widths[: trie.depth] == (16,) * trie.depth
    assert trie.widths[-1] <= 2
    digits = np.array([[2 + n // 10, 2 + n % 10, 2] for n in range(100)])
    assert trie_lib.build_trie(make_table(digits, 12)).depth == 1
    many = np.array([[2, 2 + n] for n in range(100)])
    assert trie_lib.build_trie(make_table(many, 102)).depth == 1  # all but the last


@settings(max_examples=100, deadline=None)
@given(tables(), depths)
def test_the_jump_is_where_docids_are_alone(table, depth):
    trie = build(table, depth)
    alone = [
        np.unique(table.tokens[:, :level], axis=0, return_counts=True)[1].max() == 1
        for level in range(trie.length)
    ]  # so few documents that one with company is more than the hundredth that may have it
    levels = [level for level in range(max(trie.depth, 1), trie.length) if alone[level]]
    possible = bool(levels) and trie.length - levels[0] >= 3
    assert trie.jump == (levels[0] if possible else None)


def test_few_docids_in_company_leave_the_jump_where_it_is():
    rng = np.random.default_rng(0)
    tokens = np.unique(rng.integers(2, 130, (20_000, 9)), axis=0)
    first = [np.unique(tokens[:, :level], axis=0, return_counts=True)[1] for level in range(6)]
    company = [counts[counts > 1].sum() / len(tokens) for counts in first]
    assert company[3] <= 0.01 < company[2]
    assert trie_lib.build_trie(make_table(tokens, 130)).jump == 3
    digits = np.array([[2 + (n // 10**d) % 10 for d in range(3, -1, -1)] for n in range(10_000)])
    assert trie_lib.build_trie(make_table(digits, 12)).jump is None


def looked_up(trie, tokens):
    """The row of each docid, -1 where there is none."""
    places = trie_lib.lookup(trie, tokens)
    start, _ = trie_lib.run_of_docid(trie, places)
    return jnp.where(places >= 0, trie_lib.rows_at(trie, start), -1)


@settings(max_examples=25, deadline=None)
@given(tables(), depths, st.integers(0, 2**32 - 1))
def test_lookup_finds_rows_and_nothing_else(table, depth, seed):
    trie = build(table, depth)
    strangers = np.random.default_rng(seed).integers(
        0, table.vocab_size, (20, trie.length), dtype=np.int32
    )
    tokens = np.concatenate([table.tokens.astype(np.int32), strangers])
    rows = {tuple(docid): row for row, docid in enumerate(table.tokens.tolist())}
    expected = [rows.get(tuple(docid), -1) for docid in tokens.tolist()]
    assert np.asarray(looked_up(trie, tokens)).tolist() == expected


def test_the_program_of_lookup_does_not_grow_with_the_docids():
    def size(length):
        codes = np.random.default_rng(0).integers(2, 300, (2000, length))
        trie = trie_lib.build_trie(make_table(np.unique(codes, axis=0), 300))
        program = jax.jit(trie_lib.lookup).lower(trie, codes[:5]).compile()
        return program.as_text().count("\n")

    assert size(24) <= 1.1 * size(6)


def test_token_type_is_the_smallest():
    sizes = ((256, np.uint8), (257, np.uint16), (65_537, np.uint32), (2**27, np.uint32))
    for vocab_size, dtype in sizes:
        table = make_table([[2, 3], [vocab_size - 1, 3], [vocab_size - 1, 2]], vocab_size)
        for depth in (0, 1):
            trie = trie_lib.build_trie(table, depth)
            assert trie.tokens.dtype == trie.tails.dtype == dtype
            rows = looked_up(trie, np.array([[vocab_size - 1, 3], [2, 3], [3, 3]]))
            assert np.asarray(rows).tolist() == [1, 0, -1]


@settings(max_examples=50, deadline=None)
@given(tables(), depths, st.data())
def test_slices_of_tokens_are_those_of_their_ids(table, depth, data):
    trie = build(table, depth)
    level = data.draw(st.integers(0, trie.length - 1))
    in_tails = level >= trie.depth
    first, stop = 0, int(trie.first_leaf)
    if in_tails:
        first, stop = stop, stop + len(table.tokens)
    last = first if trie.length == 1 else stop - 1  # docids of one token are read from the first
    low = np.array(data.draw(st.lists(st.integers(first, last), min_size=1)), np.int32)
    widths = trie.widths[trie.depth :] if in_tails else trie.widths[: trie.depth]
    count = data.draw(st.integers(1, max(widths)))
    ids = low[:, None] + np.arange(count)
    expected = trie_lib.tokens_of(trie, ids, level, in_tails)
    found = trie_lib.tokens_from(trie, low, count, level, in_tails)
    there = ids < stop
    np.testing.assert_array_equal(np.asarray(found)[there], np.asarray(expected)[there])


@pytest.mark.parametrize("length", [1, 2])
def test_room_for_slices_is_kept_where_they_may_start_at_the_last_id(length):
    tokens = np.full((5000, length), 2)
    tokens[:, -1] = np.arange(2, 5002)
    trie = trie_lib.build_trie(make_table(tokens, 5002))
    held = trie_lib.bucket(5000 * length)
    assert trie.tails.shape == (1, held) and trie.widths[-1] <= held
    assert trie.num_words * 32 >= 5000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": np.array([True, False, True])}, "rows are of type bool; expected integers"),
        ({"rows": np.array([0, 3])}, "rows are 0 to 3; expected rows of the table, below 3"),
        ({"rows": [-1]}, "rows are -1 to -1"),
        ({"depth": 2}, "depth is 2; expected one of 0 to 1"),
    ],
)
def test_bad_choices(options, message):
    with pytest.raises(ValueError, match=message):
        trie_lib.build_trie(make_table([[2, 3], [3, 2], [3, 3]], 4), **options)


@pytest.mark.parametrize("depth", [None, 0, 1, 2])
def test_no_rows_are_an_empty_trie(depth):
    table = make_table([[2, 3, 2], [3, 2, 2]], 4)
    trie = trie_lib.build_trie(table, depth=depth, rows=np.array([]))
    assert looked_up(trie, table.tokens).tolist() == [-1, -1]


def test_buckets_hold_their_size_and_waste_an_eighth():
    sizes = [trie_lib.bucket(size) for size in range(1, 5000)]
    assert sizes == sorted(sizes)
    assert all(size <= held <= max(size, size * 1.125) for size, held in enumerate(sizes, 1))
    assert len(set(sizes)) < 100


def test_refreshed_table_has_the_shapes_of_the_one_before():
    rng = np.random.default_rng(0)
    tokens = np.unique(rng.integers(2, 34, (3000, 5)), axis=0)
    rng.shuffle(tokens)
    before = trie_lib.build_trie(make_table(tokens[:2900], 34))  # depth 2: nearly full levels
    after = trie_lib.build_trie(make_table(tokens[10:2905], 34))
    assert before.depth == 2 and (before.indptr != after.indptr).any()
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


@settings(max_examples=60, deadline=None)
@given(tables(), depths, st.data())
def test_alive_bits_are_those_of_prefixes_of_allowed_documents(table, depth, data):
    with mock.patch.object(trie_lib, "_CROWD", data.draw(st.integers(1, 9))):
        trie = build(table, depth)
    count = len(table.tokens)
    allowed = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    with mock.patch.object(document_sets, "_BLOCK", data.draw(st.integers(1, 9))):
        bits = document_sets.alive_bits(trie, allowed)
    assert bits.dtype == np.uint32 and len(bits) == trie.num_words
    alive = np.unpackbits(bits.view(np.uint8), bitorder="little").astype(bool)
    docids = [tuple(docid) for docid in table.tokens[allowed].tolist()]
    everyone = sorted(tuple(docid) for docid in table.tokens.tolist())
    expected = []
    for level in range(1, trie.depth + 1):
        good = {docid[:level] for docid in docids}
        expected += [prefix in good for prefix in sorted({docid[:level] for docid in everyone})]
    expected += [docid in set(docids) for docid in everyone]
    assert alive[: len(expected)].tolist() == expected
    assert not alive[len(expected) :].any()


@pytest.mark.parametrize("extra", [0, 1])
def test_nodes_with_any_number_of_allowed_documents_are_alive(extra):
    """Also with 2**16 of them, which counts of 16 bits take for none."""
    count = 2**16 + extra
    tokens = np.stack([np.arange(count + 2) // count, *divmod(np.arange(count + 2), 300)], axis=1)
    trie = trie_lib.build_trie(make_table(2 + tokens, 302), depth=2)
    assert int(trie.crowded) == 2
    alive = np.unpackbits(
        document_sets.alive_bits(trie, np.arange(count + 2) < count).view(np.uint8),
        bitorder="little",
    )
    first_leaf = int(trie.first_leaf)
    assert alive[:2].tolist() == [1, 0]
    assert alive[2:first_leaf].tolist() == [1] * (first_leaf - 3) + [0]
    assert alive[first_leaf:].sum() == count


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 64, 100])
def test_slices_of_bits_are_the_bits_of_their_ids(count):
    rng = np.random.default_rng(count)
    words = rng.integers(0, 2**32, (2, 9), dtype=np.uint32)
    bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little").astype(bool)
    low = np.arange(8 * 32 - count + 1)  # `Trie.num_words` has a word more than there are ids for
    of_set = rng.integers(0, 2, low.shape)
    found = document_sets.bits_from(words, of_set[None], low[None], count)
    expected = bits[of_set[:, None], low[:, None] + np.arange(count)]
    np.testing.assert_array_equal(found[0], expected)


def test_lists_of_allowed_documents_are_checked():
    trie = trie_lib.build_trie(make_table([[2], [3]], 4))
    for bad in (np.ones(1, bool), np.ones((1, 2), bool), np.ones(2, np.int32)):
        with pytest.raises(ValueError, match="expected a bool for each of the 2 documents"):
            document_sets.alive_bits(trie, bad)
