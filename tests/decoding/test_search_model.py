"""Beam search of the real `DSIModel` against its own uncached decoder."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsi_jax.decoding import adapter
from dsi_jax.decoding.adapter import make_search
from dsi_jax.decoding.constraint import Free, TrieConstraint
from dsi_jax.decoding.score import score_docids
from dsi_jax.decoding.trie import build_trie
from dsi_jax.docids.table import DocidTable
from dsi_jax.models.dsi import DSIConfig, DSIModel, shift_right
from dsi_jax.models.t5 import T5Config

B, S, L, V, N = 3, 6, 4, 9, 40
CLOSE = 1e-4


@pytest.fixture(scope="module")
def table():
    """Variable lengths, one to three codes of seven, and one-child tails."""
    rng = np.random.default_rng(0)
    docids = set()
    while len(docids) < N:
        codes = rng.integers(2, V, rng.integers(1, L)).tolist()
        docids.add((*codes, 1) + (0,) * (L - 1 - len(codes)))
    docids = rng.permutation(np.array(sorted(docids), np.uint8))
    return DocidTable(
        tokens=docids,
        keys=[f"doc{row}" for row in range(N)],
        vocab_size=V,
        kind="test",
        parameters={},
        corpus_hash="none",
        variable_length=True,
    )


@pytest.fixture(scope="module", params=["tied", "untied"])
def model_and_params(request):
    config = T5Config(
        vocab_size=20,
        emb_dim=16,
        num_heads=2,
        head_dim=8,
        mlp_dim=32,
        num_encoder_layers=1,
        num_decoder_layers=2,
        tie_embeddings=request.param == "tied",
    )
    model = DSIModel(DSIConfig(config, docid_vocab_size=V, docid_length=L))
    inputs = {"inputs": jnp.zeros((B, L), jnp.int32)}
    params = model.init(jax.random.key(0), {**text_batch(), "decoder": inputs}, deterministic=True)
    return model, nn.meta.unbox(params["params"])


def text_batch():
    rng = np.random.default_rng(1)
    lengths = np.array([S, 2, 4])
    mask = np.arange(S) < lengths[:, None]
    tokens = rng.integers(2, 20, (B, S)) * mask
    return {"text": {"tokens": jnp.asarray(tokens, jnp.int32), "mask": jnp.asarray(mask)}}


@pytest.fixture(scope="module")
def reference(model_and_params):
    """(query, prefix) -> log-probabilities float64 [V] of the next token, without a cache."""
    model, params = model_and_params
    memory, mask = model.apply({"params": params}, text_batch(), method="encode")

    @jax.jit
    def logits(query, tokens):
        return model.apply(
            {"params": params}, memory[query][None], mask[query][None], tokens, method="decode"
        )[0]

    @functools.cache
    def log_probs(query, prefix):
        tokens = np.zeros((1, L), np.int32)
        tokens[0, : len(prefix)] = prefix
        last = np.asarray(logits(query, shift_right(tokens))[len(prefix)], np.float64)
        return last - np.log(np.exp(last).sum())

    return log_probs


def beams_by_the_book(log_probs, children, beam_size):
    """[(score, tokens)] best first, and the smallest gap at which a beam was cut."""
    beams, gap = [(0.0, ())], math.inf
    for _ in range(L):
        grown = []
        for score, prefix in beams:
            if 1 in prefix:
                grown.append((score, (*prefix, 0)))
                continue
            step = log_probs(prefix)
            grown += [(score + step[token], (*prefix, token)) for token in children(prefix)]
        grown.sort(key=lambda beam: -beam[0])
        if len(grown) > beam_size:
            gap = min(gap, grown[beam_size - 1][0] - grown[beam_size][0])
        beams = grown[:beam_size]
    return beams, gap


def assert_same_beams(result, query, expected):
    """Sequences and scores agree; neighbours closer than CLOSE may change places."""
    scores = np.asarray(result.scores)[query, : len(expected)]
    found = [tuple(tokens) for tokens in np.asarray(result.tokens)[query].tolist()]
    np.testing.assert_allclose(scores, [score for score, _ in expected], atol=CLOSE)
    total = {tokens: score for score, tokens in expected}
    np.testing.assert_allclose(
        [total[tokens] for tokens in found[: len(expected)]], scores, atol=CLOSE
    )
    assert len(set(found[: len(expected)])) == len(expected)


def test_all_documents_ranked_as_by_teacher_forcing(model_and_params, table):
    model, params = model_and_params
    constraint = TrieConstraint(jax.device_put(build_trie(table)))
    result = make_search(model, beam_size=N + 3)(params, text_batch(), constraint)
    memory, mask = model.apply({"params": params}, text_batch(), method="encode")
    docids = jnp.asarray(table.docids(np.arange(N)))
    for query in range(B):
        one = (memory[query][None].repeat(N, 0), mask[query][None].repeat(N, 0))
        logits = model.apply({"params": params}, *one, shift_right(docids), method="decode")
        totals = np.asarray(score_docids(logits, docids))
        rows = np.asarray(result.rows)[query]
        assert sorted(rows[:N].tolist()) == list(range(N))
        assert rows[N:].tolist() == [-1] * 3
        np.testing.assert_allclose(
            np.asarray(result.scores)[query, :N], totals[rows[:N]], atol=CLOSE
        )
        np.testing.assert_allclose(np.sort(totals)[::-1], totals[rows[:N]], atol=CLOSE)


@pytest.mark.parametrize("beam_size", [1, 5])
def test_trie_beams(model_and_params, table, reference, beam_size):
    model, params = model_and_params
    constraint = TrieConstraint(jax.device_put(build_trie(table)))
    result = make_search(model, beam_size=beam_size)(params, text_batch(), constraint)
    docids = [tuple(docid) for docid in table.tokens.tolist()]

    def children(prefix):
        return {docid[len(prefix)] for docid in docids if docid[: len(prefix)] == prefix}

    for query in range(B):
        expected, gap = beams_by_the_book(functools.partial(reference, query), children, beam_size)
        assert gap > 1e-5  # fixed weights: no cut is decided by rounding
        assert_same_beams(result, query, expected)
        rows = np.asarray(result.rows)[query]
        np.testing.assert_array_equal(table.docids(rows), np.asarray(result.tokens)[query])


@pytest.mark.parametrize("beam_size", [4, 30])
def test_free_beams(model_and_params, table, reference, beam_size):
    model, params = model_and_params
    constraint = Free(jax.device_put(build_trie(table)))
    result = make_search(model, beam_size=beam_size)(params, text_batch(), constraint)
    for query in range(B):
        expected, gap = beams_by_the_book(
            functools.partial(reference, query), lambda prefix: range(V), beam_size
        )
        assert gap > 1e-5  # fixed weights: no cut is decided by rounding
        assert_same_beams(result, query, expected)
    np.testing.assert_array_equal(result.rows, table.rows_of(np.asarray(result.tokens)))
    np.testing.assert_array_equal(result.valid, np.asarray(result.rows) >= 0)


@pytest.mark.parametrize("most_logits", [adapter._MOST_LOGITS, 1])
@pytest.mark.parametrize("ended", [False, True])
def test_known_tokens_are_scored_at_once(model_and_params, most_logits, ended, monkeypatch):
    """The first token tells all documents apart; what follows may end early."""
    monkeypatch.setattr(adapter, "_MOST_LOGITS", most_logits)
    model, params = model_and_params
    rng = np.random.default_rng(3)
    docids = np.concatenate([np.arange(2, V)[:, None], rng.integers(2, V, (V - 2, L - 1))], axis=1)
    if ended:
        docids[:, -1] = 1
        docids[:3, 1:] = [1, 0, 0]
    table = DocidTable(
        tokens=docids.astype(np.uint8),
        keys=[f"doc{row}" for row in range(len(docids))],
        vocab_size=V,
        kind="test",
        parameters={},
        corpus_hash="none",
        variable_length=ended,
    )
    trie = build_trie(table)
    assert trie.jump == 1
    found, expected = (
        make_search(model, beam_size=5)(params, text_batch(), TrieConstraint(which))
        for which in (trie, dataclasses.replace(trie, jump=None))
    )
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
