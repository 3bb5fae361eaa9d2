"""Sampling and greedy decoding against enumerated distributions, with the decoder of test_beam."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsi_jax.decoding import sampling, strategies
from dsi_jax.decoding.constraint import Free, TrieConstraint
from dsi_jax.decoding.document_sets import document_sets
from dsi_jax.decoding.finished_pool import AsGenerate
from dsi_jax.decoding.sampling import distinct, sample_docids
from tests.decoding.test_beam import (
    B,
    UncachedToy,
    make_trie,
    table_children,
    toy_decoder,
    toy_params,
)

DOCIDS = [
    (2, 1, 0, 0, 0),
    (2, 3, 1, 0, 0),
    (2, 3, 4, 1, 0),
    (4, 2, 5, 6, 1),
    (4, 2, 5, 5, 1),
    (4, 2, 6, 1, 0),
    (5, 1, 0, 0, 0),
    (6, 6, 6, 6, 1),
]
SAMPLES = 8_000
PARAMS = {name: 0.5 * value for name, value in toy_params(11).items()}
# By the 99.99th percentile of chi-square with 7 degrees of freedom; the seed is fixed.
CHI_SQUARE = 29.9


@functools.partial(jax.jit, static_argnames=("num_samples", "temperature", "renormalize"))
def sample(constraint, key, *, num_samples, temperature=1.0, renormalize=False):
    return sample_docids(
        toy_decoder(PARAMS),
        PARAMS["memory"],
        jnp.ones((B, 1), bool),
        constraint=constraint,
        num_samples=num_samples,
        key=key,
        temperature=temperature,
        renormalize=renormalize,
    )


@functools.partial(jax.jit, static_argnames=("decoding", "beam_size"))
def decoded(decoding, constraint, beam_size, draw=0):
    queries = strategies.Queries(toy_decoder(PARAMS), PARAMS["memory"], jnp.ones((B, 1), bool))
    return decoding(queries, constraint, beam_size, draw)


def probabilities(query, docids, temperature):
    """Of each docid: the product of its children's shares among their siblings."""
    toy, children = UncachedToy(PARAMS, query), table_children(docids)
    result = []
    for docid in docids:
        total = 0.0
        for level, token in enumerate(docid):
            prefix = docid[:level]
            if 1 in prefix:
                break
            logits = toy.logits(prefix) / temperature
            total += logits[token] - math.log(sum(math.exp(logits[c]) for c in children(prefix)))
        result.append(math.exp(total))
    assert math.isclose(sum(result), 1.0, rel_tol=1e-9)
    return np.array(result)


def assert_distribution(counts, expected):
    assert counts.sum() == SAMPLES
    chi_square = ((counts - SAMPLES * expected) ** 2 / (SAMPLES * expected)).sum()
    assert chi_square < CHI_SQUARE
    # A wrong distribution would be far from it, so that the bound above means something.
    assert ((counts - SAMPLES / len(counts)) ** 2 / (SAMPLES / len(counts))).sum() > 10 * CHI_SQUARE


@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_samples_follow_the_distribution(temperature, depth):
    constraint = TrieConstraint(make_trie(DOCIDS, depth=depth))
    found = sample(constraint, jax.random.key(0), num_samples=SAMPLES, temperature=temperature)
    for query in range(B):
        counts = np.bincount(found.place[query], minlength=len(DOCIDS))
        # Places are those of the sorted docids.
        expected = probabilities(query, sorted(DOCIDS), temperature)
        assert_distribution(counts, expected)
        toy = UncachedToy(PARAMS, query)
        totals = np.array([toy.total(docid) for docid in sorted(DOCIDS)])
        np.testing.assert_allclose(found.scores[query], totals[found.place[query]], atol=1e-4)
    first, second = np.asarray(found.place)
    assert 0.05 < (first == second).mean() < 0.95  # queries are drawn apart


def test_samples_among_many_children_are_drawn_by_groups(monkeypatch):
    """One beam with 50,000 children, of which the model likes some groups better than others."""
    count, samples = 50_000, 20_000
    logits = np.random.default_rng(0).normal(size=count).astype(np.float32)
    logits += 3 * np.sin(np.arange(count) / 5_000)
    logits[::7] = -np.inf
    draws = sampling._draws_of_groups(jax.random.key(5), jnp.asarray(logits)[None], samples)
    expected = np.exp(logits.astype(np.float64))
    expected *= samples / expected.sum()
    # In 40 runs of candidates, and by their remainders, of which one is never drawn.
    for cell in (np.arange(count) // 1250, np.arange(count) % 7):
        found = np.bincount(cell[np.asarray(draws[0])], minlength=cell.max() + 1)
        share = np.bincount(cell, weights=expected)
        assert (found[share == 0] == 0).all()
        chi_square = ((found - share)[share > 0] ** 2 / share[share > 0]).sum()
        assert chi_square < 85  # the 99.99th percentile with 40 degrees of freedom

    constraint = TrieConstraint(make_trie(DOCIDS))
    monkeypatch.setattr(sampling, "_WIDE", 2)
    # No other test has this temperature, whose program would be taken.
    found = sample(constraint, jax.random.key(9), num_samples=SAMPLES, temperature=1.5)
    for query in range(B):
        counts = np.bincount(found.place[query], minlength=len(DOCIDS))
        assert_distribution(counts, probabilities(query, sorted(DOCIDS), 1.5))


def test_renormalized_scores_are_the_probabilities_of_being_drawn():
    constraint = TrieConstraint(make_trie(DOCIDS))
    found = sample(constraint, jax.random.key(1), num_samples=64, renormalize=True)
    for query in range(B):
        expected = np.log(probabilities(query, sorted(DOCIDS), 1.0))
        np.testing.assert_allclose(found.scores[query], expected[found.place[query]], atol=1e-4)


def test_samples_heed_lists_of_allowed_documents():
    trie = make_trie(DOCIDS)
    allowed = np.zeros((2, len(DOCIDS)), bool)
    allowed[0, [1, 4, 5]] = True  # and nothing for the second query
    constraint = TrieConstraint(trie, document_sets(trie, allowed), np.arange(2))
    found = sample(constraint, jax.random.key(2), num_samples=SAMPLES)
    own = sorted(DOCIDS[row] for row in (1, 4, 5))
    tokens, counts = np.unique(found.tokens[0], axis=0, return_counts=True)
    assert [tuple(docid) for docid in tokens.tolist()] == own
    expected = SAMPLES * probabilities(0, own, 1.0)
    assert ((counts - expected) ** 2 / expected).sum() < CHI_SQUARE
    assert found.live[0].all() and not found.live[1].any()


def test_free_samples_follow_the_model():
    """L = 5 and V = 7 are too many sequences: their first tokens are counted."""
    found = sample(Free(make_trie(DOCIDS)), jax.random.key(3), num_samples=SAMPLES)
    for query in range(B):
        logits = UncachedToy(PARAMS, query).logits(())
        expected = SAMPLES * np.exp(logits) / np.exp(logits).sum()
        counts = np.bincount(found.tokens[query, :, 0], minlength=len(logits))
        assert ((counts - expected) ** 2 / expected).sum() < CHI_SQUARE


def test_equal_keys_draw_the_same_and_others_do_not():
    constraint = TrieConstraint(make_trie(DOCIDS))
    draws = [sample(constraint, jax.random.key(k), num_samples=64).place for k in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any()


def test_sampling_ranks_what_it_drew_once():
    """Documents that share a docid follow each other; empty slots come last."""
    shared = [DOCIDS[0], DOCIDS[3], DOCIDS[0], DOCIDS[7]]
    constraint = TrieConstraint(make_trie(shared, tie_seed=0))
    results = [decoded(strategies.Sampling(), constraint, 16, draw) for draw in (0, 0, 1)]
    for result in results:
        for query in range(B):
            toy = UncachedToy(PARAMS, query)
            valid = np.asarray(result.valid[query])
            rows, scores = np.asarray(result.rows[query]), np.asarray(result.scores[query])
            count = valid.sum()
            assert valid[:count].all() and len(set(rows[:count].tolist())) == count
            assert (rows[count:] == -1).all() and np.isneginf(scores[count:]).all()
            expected = [toy.total(shared[row]) for row in rows[:count]]
            np.testing.assert_allclose(scores[:count], expected, atol=1e-4)
            assert (np.diff(scores[:count]) <= 0).all()
            assert (0 in rows) == (2 in rows)
    np.testing.assert_array_equal(results[0].rows, results[1].rows)


def test_distinct_keeps_the_best_place_of_each():
    constraint = TrieConstraint(make_trie(DOCIDS))
    drawn = sample(constraint, jax.random.key(0), num_samples=64)
    kept = distinct(drawn)
    for query in range(B):
        live = np.asarray(kept.live[query])
        places = np.asarray(kept.place[query])[live]
        assert sorted(places.tolist()) == np.unique(drawn.place[query]).tolist()
        assert live[: live.sum()].all()


def test_greedy_takes_the_best_child_and_all_documents_of_its_docid():
    shared = [*DOCIDS, *DOCIDS]
    result = decoded(strategies.Greedy(), TrieConstraint(make_trie(shared, tie_seed=1)), 6)
    children = table_children(DOCIDS)
    for query in range(B):
        toy, docid = UncachedToy(PARAMS, query), ()
        while len(docid) < 5:
            docid += (max(children(docid), key=lambda c, d=docid, t=toy: t.log_prob(d, c)),)
        rows = np.asarray(result.rows[query])
        assert sorted(rows[:2] % len(DOCIDS)) == [DOCIDS.index(docid)] * 2
        assert rows[2:].tolist() == [-1] * 4
        np.testing.assert_allclose(result.scores[query, :2], toy.total(docid), atol=1e-4)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_none_is_named(temperature):
    with pytest.raises(ValueError, match=r"temperature is .*; expected it above 0"):
        strategies.Sampling(temperature=temperature)
    with pytest.raises(ValueError, match=r"temperature is .*; expected it above 0"):
        sample(
            TrieConstraint(make_trie(DOCIDS)),
            jax.random.key(0),
            num_samples=1,
            temperature=temperature,
        )


@pytest.mark.parametrize("early_stopping", [1, None, "always"])
def test_early_stopping_is_one_of_three(early_stopping):
    with pytest.raises(ValueError, match=f"early_stopping is {early_stopping!r}; expected True"):
        AsGenerate(early_stopping=early_stopping)
