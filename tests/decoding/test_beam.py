"""Beam search against enumeration and against uncached NumPy searches written here.

The toy decoder's logits depend on the whole prefix, through a recurrent state and through a
history addressed by position: a beam that keeps its neighbour's cache, or a cache written to the
wrong place, changes every later score.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from dsi_jax.decoding.beam import DecodeFns, beam_search
from dsi_jax.decoding.constraint import Free, TrieConstraint
from dsi_jax.decoding.document_sets import document_sets
from dsi_jax.decoding.score import score_docids
from dsi_jax.decoding.trie import build_trie
from dsi_jax.docids.table import DocidTable

B, L, V, D = 2, 5, 7, 6
CLOSE = 1e-4
BEAM_SIZES = (1, 2, 3, 9, 32)  # 9 > V, 32 >= N


def toy_params(seed, vocab_size=V, length=L):
    rng = np.random.default_rng(seed)
    return {
        "embed": rng.normal(size=(vocab_size, D)),
        "recur": rng.normal(size=(D, D)),
        "address": rng.normal(size=(length, length)),
        "head": rng.normal(size=(2 * D, vocab_size)),
        "memory": rng.normal(size=(B, D)),
    }


def toy_decoder(params):
    """The cached decoder: recurrent states and embeddings of all beams at all positions."""
    params = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}

    def init_cache(memory, mask, num_beams, length):
        shape = (mask.shape[0], num_beams, length, D)
        return {"states": jnp.zeros(shape), "embedded": jnp.zeros(shape), "memory": memory}

    def step(cache, tokens, position, lineage):
        batch, _, length = lineage.shape

        def of_lineage(array):
            return array[jnp.arange(batch)[:, None, None], lineage, jnp.arange(length)]

        def written(array, new):
            return array.at[:, : new.shape[1], position].set(new)

        embedded = params["embed"][tokens]
        before = of_lineage(cache["states"])[:, :, jnp.maximum(position - 1, 0)]
        before = jnp.where(position > 0, before, 0)
        state = jnp.tanh(before @ params["recur"] + embedded + cache["memory"][:, None])
        cache = {
            **cache,
            "states": written(cache["states"], state),
            "embedded": written(cache["embedded"], embedded),
        }
        history = of_lineage(cache["embedded"])
        history = jnp.where((jnp.arange(length) <= position)[:, None], history, 0)
        context = jnp.einsum("bmld,l->bmd", history, params["address"][position])
        return jnp.concatenate([state, context], -1) @ params["head"], cache

    def score(cache, inputs, targets, position, lineage):
        every = []
        for index in range(inputs.shape[-1]):
            logits, cache = step(cache, inputs[:, :, index], position + index, lineage)
            every.append(logits)
        return score_docids(jnp.stack(every, axis=2), targets)

    return DecodeFns(init_cache, step, score)


@functools.partial(jax.jit, static_argnames=("beam_size", "renormalize"))
def traced_search(params, constraint, *, beam_size, renormalize=False):
    mask = jnp.ones((B, 1), bool)
    return beam_search(
        toy_decoder(params),
        params["memory"],
        mask,
        constraint=constraint,
        beam_size=beam_size,
        renormalize=renormalize,
    )


def search(*args, **options):
    """The result as NumPy arrays: looking at a single entry of JAX's compiles a program."""
    return jax.device_get(traced_search(*args, **options))


class UncachedToy:
    """The toy decoder again, in float64 NumPy, each prefix from its beginning."""

    def __init__(self, params, query):
        self.params, self.query = params, query
        self.logits = functools.lru_cache(None)(self._logits)

    def _logits(self, prefix):
        inputs = (0, *prefix)
        state = np.zeros(D)
        context = np.zeros(D)
        for position, token in enumerate(inputs):
            embedded = self.params["embed"][token]
            memory = self.params["memory"][self.query]
            state = np.tanh(state @ self.params["recur"] + embedded + memory)
            context += self.params["address"][len(inputs) - 1, position] * embedded
        return np.concatenate([state, context]) @ self.params["head"]

    def log_prob(self, prefix, token, among=None):
        """log p(token | prefix), the softmax over all tokens or ``among`` some; pads score 0."""
        if 1 in prefix:
            assert token == 0
            return 0.0
        logits = self.logits(prefix)
        among = range(len(logits)) if among is None else among
        return logits[token] - np.log(sum(np.exp(logits[other]) for other in among))

    def total(self, docid):
        return sum(self.log_prob(docid[:level], docid[level]) for level in range(len(docid)))


def numpy_beams(log_prob, children, beam_size, length):
    """A beam search by the book.

    Returns:
      ([(score, tokens)] best first, the smallest score gap at which a beam was cut).
    """
    beams, gap = [(0.0, ())], math.inf
    for _ in range(length):
        grown = [
            (score + log_prob(prefix, token), (*prefix, token))
            for score, prefix in beams
            for token in children(prefix)
        ]
        grown.sort(key=lambda beam: -beam[0])
        if len(grown) > beam_size:
            gap = min(gap, grown[beam_size - 1][0] - grown[beam_size][0])
        beams = grown[:beam_size]
    return beams, gap


@st.composite
def docid_lists(draw):
    """Docids in random row order: variable or fixed length, dense or with one-child tails."""
    code = st.integers(2, V - 1)
    if draw(st.booleans()):
        docids = draw(st.sets(st.lists(code, min_size=1, max_size=L - 1).map(tuple), min_size=1))
        docids = {(*docid, 1) + (0,) * (L - 1 - len(docid)) for docid in docids}
    else:
        docids = draw(st.sets(st.tuples(*[code] * L), min_size=1))
    if draw(st.booleans()):  # siblings: the last code replaced by its neighbours
        ends = [docid.index(1) if 1 in docid else L for docid in docids]
        docids |= {
            (*docid[: end - 1], other, *docid[end:])
            for docid, end in zip(list(docids), ends, strict=True)
            for other in (2, 3)
        }
    return draw(st.permutations(sorted(docids)[:24]))


def make_table(docids, vocab_size=V, tie_seed=None):
    return DocidTable(
        tokens=np.asarray(docids, np.min_scalar_type(vocab_size - 1)),
        keys=[f"doc{row}" for row in range(len(docids))],
        vocab_size=vocab_size,
        kind="test",
        parameters={},
        corpus_hash="none",
        variable_length=any(1 in docid for docid in docids),
        tie_seed=tie_seed,
    )


def make_trie(docids, vocab_size=V, widest=True, tie_seed=None, depth=None, rows=None):
    """The trie; ``widest`` declares great width everywhere and no jump: tries share a jit."""
    trie = build_trie(make_table(docids, vocab_size, tie_seed), depth, rows)
    if widest:
        return dataclasses.replace(trie, widths=(max(vocab_size, 24),) * trie.length, jump=None)
    return trie


def table_children(docids):
    return lambda prefix: {docid[len(prefix)] for docid in docids if docid[: len(prefix)] == prefix}


def assert_same_ranking(rows, scores, expected):
    """``expected`` is [(score, row)], best first; rows closer than CLOSE may change places."""
    np.testing.assert_allclose(scores, [score for score, _ in expected], atol=CLOSE)
    total = {row: score for score, row in expected}
    assert set(rows) == set(total)
    assert len(set(rows)) == len(rows)
    for row, (score, _) in zip(rows, expected, strict=True):
        assert abs(total[row] - score) < CLOSE


def assert_empty_slots(result, query, count):
    """After ``count`` results every slot is empty in all its fields."""
    assert np.asarray(result.rows)[query, count:].tolist() == [-1] * (result.rows.shape[1] - count)
    assert np.isneginf(np.asarray(result.scores)[query, count:]).all()
    assert not np.asarray(result.valid)[query, count:].any()
    assert not np.asarray(result.tokens)[query, count:].any()


@pytest.mark.parametrize("depth", [0, 2, L - 1])
@pytest.mark.parametrize("beam_size", BEAM_SIZES)
@settings(max_examples=20, deadline=None)
@given(docids=docid_lists(), seed=st.integers(0, 2**32 - 1))
@example(docids=[(2, 2, 2, 2, 2)], seed=0)  # one document, one-child everywhere
@example(docids=[(6, 1, 0, 0, 0), (6, 6, 6, 6, 1)], seed=1)
def test_trie_search(beam_size, depth, docids, seed):
    params = toy_params(seed)
    result = search(params, TrieConstraint(make_trie(docids, depth=depth)), beam_size=beam_size)
    for query in range(B):
        toy = UncachedToy(params, query)
        totals = [toy.total(docid) for docid in docids]
        count = min(beam_size, len(docids))
        rows = np.asarray(result.rows)[query, :count].tolist()
        scores = np.asarray(result.scores)[query, :count]
        # (c) at any width: documents only, none twice, each with its own log-probability.
        assert len(set(rows)) == count
        assert set(rows) <= set(range(len(docids)))
        assert np.asarray(result.valid)[query, :count].all()
        np.testing.assert_allclose(scores, [totals[row] for row in rows], atol=CLOSE)
        assert (np.diff(scores) <= 0).all()
        assert np.asarray(result.tokens)[query, :count].tolist() == [
            list(docids[row]) for row in rows
        ]
        assert_empty_slots(result, query, count)
        if beam_size >= len(docids):  # (a) all beams survive: enumeration
            expected = sorted(((total, row) for row, total in enumerate(totals)), reverse=True)
        else:  # (b) the same width by the book, unless rounding may decide who survives
            beams, gap = numpy_beams(toy.log_prob, table_children(docids), beam_size, L)
            assume(gap > CLOSE)
            expected = [(score, docids.index(tokens)) for score, tokens in beams]
        assert_same_ranking(rows, scores, expected)


@pytest.mark.parametrize("beam_size", BEAM_SIZES)
@settings(max_examples=20, deadline=None)
@given(docids=docid_lists(), seed=st.integers(0, 2**32 - 1))
def test_free_search(beam_size, docids, seed):
    params = toy_params(seed)
    result = search(params, Free(make_trie(docids, depth=2)), beam_size=beam_size)
    rows = {docid: row for row, docid in enumerate(docids)}
    for query in range(B):
        toy = UncachedToy(params, query)
        beams, gap = numpy_beams(
            toy.log_prob, lambda prefix: [0] if 1 in prefix else range(V), beam_size, L
        )
        assume(gap > CLOSE)
        scores = np.asarray(result.scores)[query]
        found = [tuple(tokens) for tokens in np.asarray(result.tokens)[query].tolist()]
        assert_same_ranking(found, scores, beams)
        expected = [rows.get(tokens, -1) for tokens in found]
        assert np.asarray(result.rows)[query].tolist() == expected
        assert np.asarray(result.valid)[query].tolist() == [row >= 0 for row in expected]


def test_free_search_finds_a_document_and_keeps_strangers():
    params = toy_params(0)
    toy = UncachedToy(params, 0)
    beams, _ = numpy_beams(toy.log_prob, lambda p: [0] if 1 in p else range(V), 9, L)
    best, second = (tokens for _, tokens in beams[:2])
    result = search(params, Free(make_trie([(2, 2, 2, 2, 2), second])), beam_size=9)
    assert np.asarray(result.rows)[0].tolist()[:2] == [-1, 1]
    assert np.asarray(result.valid)[0].tolist()[:2] == [False, True]
    assert tuple(np.asarray(result.tokens)[0, 0].tolist()) == best
    assert np.isfinite(np.asarray(result.scores)).all()


@pytest.mark.parametrize("constraint", [TrieConstraint, Free])
@pytest.mark.parametrize("beam_size", BEAM_SIZES)
@settings(max_examples=15, deadline=None)
@given(docids=docid_lists(), data=st.data())
def test_ties_are_expanded_in_their_order(constraint, beam_size, docids, data):
    """The ranking of distinct docids, each replaced by its documents, cut after M results."""
    rows = data.draw(st.lists(st.sampled_from(range(len(docids))), min_size=1, max_size=40))
    shared = [docids[index] for index in rows]
    params, seed = toy_params(len(rows)), data.draw(st.integers(0, 9))
    trie = make_trie(shared, tie_seed=seed, depth=2)
    found = search(params, constraint(trie), beam_size=beam_size)
    distinct = sorted(set(shared))
    once = search(params, constraint(make_trie(distinct, depth=2)), beam_size=beam_size)
    shuffled = np.random.default_rng(seed).permutation(len(shared)).tolist()
    for query in range(B):
        expected = []
        for slot, row in enumerate(np.asarray(once.rows)[query].tolist()):
            score = float(once.scores[query, slot])
            if row >= 0:
                ties = [other for other in shuffled if shared[other] == distinct[row]]
                expected += [(other, score) for other in ties]
            elif score > -np.inf:
                expected.append((-1, score))
        expected = expected[:beam_size]
        count = len(expected)
        assert np.asarray(found.rows)[query, :count].tolist() == [row for row, _ in expected]
        scores = np.asarray(found.scores)[query, :count]
        np.testing.assert_allclose(scores, [score for _, score in expected], atol=1e-6)
        for slot, (row, _) in enumerate(expected):
            assert row == -1 or tuple(found.tokens[query, slot].tolist()) == shared[row]
        assert_empty_slots(found, query, count)


@pytest.mark.parametrize("constraint", [TrieConstraint, Free])
def test_more_beams_than_sequences(constraint):
    """L = 2, V = 4: free search has 4 * 4 - 3 sequences (an end admits one pad) and 40 slots."""
    docids = [(3, 2), (2, 3)]
    params = toy_params(3, vocab_size=4, length=2)
    result = search(params, constraint(make_trie(docids, 4)), beam_size=40)
    count = 2 if constraint is TrieConstraint else 13
    assert np.isfinite(np.asarray(result.scores)[:, :count]).all()
    for query in range(B):
        assert_empty_slots(result, query, count)
        rows = np.asarray(result.rows)[query]
        assert sorted(rows[rows >= 0].tolist()) == [0, 1]


@pytest.mark.parametrize(("num_documents", "beam_size"), [(50, 1), (50, 4), (50, 100), (3000, 4)])
def test_atomic_docids_are_a_top_k(num_documents, beam_size):
    codes = np.random.default_rng(0).permutation(num_documents) + 2
    params = toy_params(1, vocab_size=num_documents + 2, length=1)
    trie = make_trie([(int(code),) for code in codes], num_documents + 2, widest=False)
    result = search(params, TrieConstraint(trie), beam_size=beam_size)
    count = min(beam_size, num_documents)
    for query in range(B):
        toy = UncachedToy(params, query)
        totals = np.array([toy.total((int(code),)) for code in codes])
        assert (
            np.asarray(result.rows)[query, :count].tolist() == np.argsort(-totals)[:count].tolist()
        )
        np.testing.assert_allclose(
            np.asarray(result.scores)[query, :count], np.sort(-totals)[:count] * -1, atol=CLOSE
        )
        assert_empty_slots(result, query, count)


@pytest.mark.parametrize("beam_size", [2, 9, 32])
def test_narrow_levels_change_nothing(beam_size):
    """A trie's own branching (levels of 1, 2, 4 children, few beams at first) loses no beam."""
    rng = np.random.default_rng(5)
    docids = [
        (2 + first, 2 + second, 4, 2 + fourth, 3)
        for first in range(2)
        for second in range(3)
        for fourth in range(4)
    ]
    docids = [docids[i] for i in rng.permutation(len(docids))]
    params = toy_params(2)
    wide = search(params, TrieConstraint(make_trie(docids)), beam_size=beam_size)
    for depth, widths in ((4, (2, 4, 1, 4, 1)), (2, (2, 4, 4, 4, 1)), (1, (2, 16, 4, 4, 1))):
        trie = make_trie(docids, widest=False, depth=depth)
        assert trie.widths == widths
        narrow = search(params, TrieConstraint(trie), beam_size=beam_size)
        np.testing.assert_array_equal(narrow.rows, wide.rows)
        np.testing.assert_allclose(narrow.scores, wide.scores, atol=1e-5)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 9, 16, 17, 100])
def test_docids_of_one_token_are_one_child_however_many_there_are(count):
    """The first of them that is allowed; docids 0 to `count - 1` have the token 5, one has 6."""
    docids = [[5, 2 + index] for index in range(count)] + [[6, 2]]
    trie = make_trie(docids, vocab_size=count + 7, widest=False, depth=0)
    for allowed, children in (
        ([0, count - 1], [0]),
        ([count - 1, count], [count - 1, count]),
        ([0, count - 1, count], [0, count]),
    ):
        sets = document_sets(trie, np.isin(np.arange(count + 1), allowed)[None])
        constraint = TrieConstraint(trie, sets, np.zeros(1, np.int32))
        logits = np.zeros((1, 1, trie.vocab_size), np.float32)
        found = constraint.expand(constraint.spans[0], 0, constraint.start(1), logits)
        np.testing.assert_array_equal(np.flatnonzero(found.allowed[0, 0]), children)


@pytest.mark.parametrize("depth", [0, 2, L - 1])
@pytest.mark.parametrize("beam_size", [1, 3, 32])
@settings(max_examples=20, deadline=None)
@given(docids=docid_lists(), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_lists_of_allowed_documents_search_as_if_there_were_no_others(
    beam_size, depth, docids, seed, data
):
    """Each query has a list of its own, perhaps an empty one; of a docid's documents some."""
    tie_seed = data.draw(st.none() | st.integers(0, 9))
    if tie_seed is not None:
        docids = data.draw(st.lists(st.sampled_from(docids), min_size=1, max_size=24))
    count = len(docids)
    built = data.draw(st.lists(st.integers(0, count - 1), min_size=1))  # the trie may hold fewer
    params = toy_params(seed)
    trie = make_trie(docids, depth=depth, tie_seed=tie_seed, rows=built)
    lists = st.lists(st.booleans(), min_size=count, max_size=count)
    allowed = [np.array(data.draw(lists)) for _ in range(B)]
    sets = document_sets(trie, np.stack(allowed[::-1]))
    constraint = TrieConstraint(trie, sets, np.arange(B)[::-1].astype(np.int32))
    result = search(params, constraint, beam_size=beam_size)
    for query, own in enumerate(allowed):
        rows = np.intersect1d(np.flatnonzero(own), built)
        if not len(rows):
            assert_empty_slots(result, query, 0)
            continue
        alone = make_trie(docids, depth=depth, tie_seed=tie_seed, rows=rows)
        expected = search(params, TrieConstraint(alone), beam_size=beam_size)
        np.testing.assert_array_equal(result.rows[query], expected.rows[query])
        np.testing.assert_allclose(result.scores[query], expected.scores[query], atol=1e-6)


@pytest.mark.parametrize(
    ("variant", "jump"),
    [("plain", 1), ("plain", 3), ("many beams", 2), ("ties", 1), ("lists", 1), ("renormalized", 1)],
)
@settings(max_examples=20, deadline=None)
@given(docids=docid_lists(), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_known_tokens_are_scored_at_once(variant, jump, docids, seed, data):
    """Wherever the jump may be, whether documents are alone there or not."""
    beam_size, tie_seed, sets, set_of_query = 3, None, None, None
    if variant == "many beams":
        beam_size = 32
    if variant == "ties":
        docids = data.draw(st.lists(st.sampled_from(docids), min_size=1, max_size=24))
        tie_seed = 3
    trie = make_trie(docids, depth=1, tie_seed=tie_seed)
    if variant == "lists":
        lists = st.lists(st.booleans(), min_size=len(docids), max_size=len(docids))
        sets = document_sets(trie, np.stack([np.array(data.draw(lists)) for _ in range(B)]))
        set_of_query = np.arange(B, dtype=np.int32)
    params = toy_params(seed)
    found, expected = (
        search(
            params,
            TrieConstraint(dataclasses.replace(trie, jump=level), sets, set_of_query),
            beam_size=beam_size,
            renormalize=variant == "renormalized",
        )
        for level in (jump, None)
    )
    if tie_seed is None:
        scores = np.where(np.isfinite(expected.scores), expected.scores, -1e9)
        assume(not ((np.diff(scores) > -CLOSE) & (scores[:, 1:] > -1e9)).any())
    np.testing.assert_allclose(found.scores, expected.scores, atol=CLOSE)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.valid, expected.valid)


@pytest.mark.parametrize("allowed", [True, False])
def test_the_only_document_is_not_found_where_it_is_not_allowed(allowed):
    """All its tokens are known from the first level on."""
    trie = make_trie([(2, 3, 4, 5, 6)], widest=False)
    sets = document_sets(trie, np.array([[allowed]] * B))
    constraint = TrieConstraint(trie, sets, np.arange(B, dtype=np.int32))
    found = search(toy_params(0), constraint, beam_size=1)
    assert np.asarray(found.rows).tolist() == [[0 if allowed else -1]] * B


@pytest.mark.parametrize("alone", [True, False])
def test_a_jump_is_made_only_where_all_beams_are_decided(alone):
    """A `score` that adds 1000 tells whether it was asked."""
    docids = [(2, 3, 4, 5, 6), (3, 3, 4, 5, 6), (4, 2, 2, 2, 2)]
    if not alone:
        docids.append((4, 2, 2, 2, 5))
    trie = dataclasses.replace(make_trie(docids, depth=1), jump=2)
    params = toy_params(1)
    decode = toy_decoder(params)
    told = decode._replace(score=lambda *args: decode.score(*args) + 1000)
    mask = jnp.ones((B, 1), bool)
    found, expected = (
        jax.jit(
            lambda fns=fns: beam_search(
                fns, params["memory"], mask, constraint=TrieConstraint(trie), beam_size=5
            )
        )()
        for fns in (told, decode)
    )
    np.testing.assert_array_equal(found.rows, expected.rows)
    added = (found.scores - expected.scores)[:, : len(docids)]
    np.testing.assert_allclose(added, 1000 if alone else 0, atol=1e-3)


def test_levels_of_like_width_are_one_program():
    rng = np.random.default_rng(0)
    tokens = np.unique(rng.integers(2, 130, (20_000, 12)), axis=0)
    trie = build_trie(make_table(tokens.tolist(), 130))
    assert [tuple(span) for span in TrieConstraint(trie).spans] == [
        (0, 2, 128),
        (2, 12, trie.widths[2]),
    ]
    assert [tuple(span) for span in Free(trie).spans] == [(0, 12, 130)]


def test_equal_scores_keep_the_order_of_tokens():
    params = {name: np.zeros_like(value) for name, value in toy_params(0).items()}
    docids = [(4, 2, 2, 2, 2), (2, 5, 2, 2, 2), (2, 3, 6, 2, 2), (2, 3, 4, 2, 2), (6, 2, 2, 2, 2)]
    result = search(params, TrieConstraint(make_trie(docids)), beam_size=9)
    assert np.asarray(result.rows)[0].tolist() == [3, 2, 1, 0, 4, -1, -1, -1, -1]
    np.testing.assert_allclose(result.scores[:, :5], -L * np.log(V), rtol=1e-6)


def test_renormalized_scores_share_out_the_children():
    docids = [(2, 1, 0, 0, 0), (2, 3, 1, 0, 0), (4, 2, 5, 6, 1), (4, 2, 5, 5, 1)]
    params = toy_params(7)
    trie = make_trie(docids)
    result = search(params, TrieConstraint(trie), beam_size=9, renormalize=True)
    children = table_children(docids)
    for query in range(B):
        toy = UncachedToy(params, query)
        beams, _ = numpy_beams(
            lambda prefix, token, toy=toy: toy.log_prob(prefix, token, among=children(prefix)),
            children,
            9,
            L,
        )
        expected = [(score, docids.index(tokens)) for score, tokens in beams]
        scores = np.asarray(result.scores)[query, :4]
        assert_same_ranking(np.asarray(result.rows)[query, :4].tolist(), scores, expected)
        assert math.isclose(np.exp(scores).sum(), 1.0, abs_tol=1e-4)  # all documents: a partition
        assert_empty_slots(result, query, 4)


def test_another_table_of_the_same_shapes_compiles_nothing():
    params = toy_params(0)
    rng = np.random.default_rng(0)
    tokens = np.unique(rng.integers(2, V, (300, L)), axis=0)
    search_once = jax.jit(
        lambda params, constraint: traced_search(params, constraint, beam_size=3).rows
    )
    for part in (tokens[:-10], tokens[5:]):
        trie = build_trie(make_table(part.tolist()))
        rows = np.asarray(search_once(params, TrieConstraint(jax.device_put(trie))))
        assert (rows >= 0).all()
    assert search_once._cache_size() == 1


def test_score_docids_is_the_sum_of_log_probabilities():
    params = toy_params(4)
    docids = [(2, 1, 0, 0, 0), (3, 4, 5, 6, 2)]
    toy = UncachedToy(params, 1)
    logits = np.array(
        [[toy.logits(docid[:level]) for level in range(L)] for docid in docids], np.float32
    )
    scores = score_docids(logits, np.array(docids))
    np.testing.assert_allclose(scores, [toy.total(docid) for docid in docids], atol=CLOSE)


def test_no_beams_is_an_error():
    with pytest.raises(ValueError, match="beam_size is 0; expected at least 1"):
        search(toy_params(0), TrieConstraint(make_trie([(2,) * L])), beam_size=0)


def test_a_table_of_another_vocabulary_is_an_error():
    with pytest.raises(ValueError, match=f"vocabulary of {V}; expected the docid table's 300"):
        search(toy_params(0), TrieConstraint(make_trie([(2,) * L], 300)), beam_size=2)
