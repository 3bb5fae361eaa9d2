"""Fitted word weights against dense brute force."""

import math
import random

import numpy as np
import pytest
import scipy.sparse as sp

from dsi_jax.inputs.lexical_vocabulary import LexicalVocabulary
from dsi_jax.storage.lexical_index import LexicalIndex
from dsi_jax.training import lexical_weights

WORDS = [f"w{i}" for i in range(14)]


def corpus(seed: int, num_documents: int = 9):
    """Titles and texts of skewed random words, so that some words are common."""
    rng = random.Random(seed)
    skewed = [1 / (i + 1) for i in range(len(WORDS))]
    titles = [" ".join(rng.choices(WORDS, k=rng.randint(0, 3))) for _ in range(num_documents)]
    texts = [" ".join(rng.choices(WORDS, skewed, k=rng.randint(1, 9))) for _ in titles]
    return titles, texts


def features_of(seed: int):
    titles, texts = corpus(seed)
    pairs = [f"{title} {text}" for title, text in zip(titles, texts, strict=True)]
    vocabulary = LexicalVocabulary.of_documents(pairs, None)
    return vocabulary, lexical_weights.document_features(vocabulary, titles, texts), titles, texts


def questions(vocabulary, texts, rows, num_documents):
    return lexical_weights.questions_of(
        vocabulary, texts, [np.array(r) for r in rows], num_documents
    )


@pytest.mark.parametrize("seed", range(5))
def test_features_equal_the_formula(seed):
    vocabulary, features, titles, texts = features_of(seed)
    bodies = [f"{a} {b}".split() for a, b in zip(titles, texts, strict=True)]
    mean = sum(map(len, bodies)) / len(bodies)
    parts = features.parts.toarray()
    assert not parts[[0, vocabulary.size]].any()
    for i, stem in enumerate(vocabulary.stems, start=1):
        frequency = sum(stem in body for body in bodies)
        n = len(bodies)
        assert features.idf[i] == pytest.approx(
            math.log(1 + (n - frequency + 0.5) / (frequency + 0.5))
        )
        assert features.group[i] == (frequency > 0.1 * n)
        for row, body in enumerate(bodies):
            count = body.count(stem)
            expected = count / (count + 1.2 * (0.4 + 0.6 * len(body) / mean)) if count else 0
            assert parts[i, row] == pytest.approx(expected)
            title = titles[row].split()
            expected = 1 / math.sqrt(len(title)) if stem in title else 0
            assert parts[vocabulary.size + i, row] == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_index_scores_equal_the_dense_sum(seed):
    vocabulary, features, _, _ = features_of(seed)
    weights = np.random.default_rng(seed).gamma(1.0, size=2 * vocabulary.size)
    index = lexical_weights.lexical_index(vocabulary, features, weights, most_postings=100)
    dense = (weights[:, None] * features.parts.toarray()).reshape(2, vocabulary.size, -1).sum(0)
    texts = ["w0 w3 w0 unknown w5", "", "nothing", "w1 w2"]
    expected = [dense[sorted(set(vocabulary.ids(text)))].sum(0) for text in texts]
    np.testing.assert_allclose(index.scores(texts), expected, rtol=1e-5, atol=1e-6)
    few = lexical_weights.lexical_index(vocabulary, features, weights, most_postings=2)
    assert few.most_postings <= 2
    for i in range(vocabulary.size):
        own = slice(few.indptr[i], few.indptr[i + 1])
        best = sorted(((-w, row) for row, w in enumerate(dense[i]) if w > 0))[:2]
        assert few.rows[own].tolist() == [row for _, row in best]
        np.testing.assert_allclose(few.weights[own], [-w for w, _ in best], rtol=1e-6)


def test_bm25_weights_give_bm25():
    vocabulary, features, titles, texts = features_of(3)
    index = lexical_weights.lexical_index(
        vocabulary, features, lexical_weights.bm25_weights(features), most_postings=100
    )
    bodies = [f"{a} {b}".split() for a, b in zip(titles, texts, strict=True)]
    mean = sum(map(len, bodies)) / len(bodies)
    expected = np.zeros(len(bodies))
    for word in ("w0", "w2", "w4"):
        frequency = sum(word in body for body in bodies)
        for row, body in enumerate(bodies):
            if n := body.count(word):
                idf = math.log(1 + (len(bodies) - frequency + 0.5) / (frequency + 0.5))
                expected[row] += idf * n / (n + 1.2 * (0.4 + 0.6 * len(body) / mean))
    np.testing.assert_allclose(index.scores(["w4 w2 w0 w2"])[0], expected, rtol=1e-5)


def dense_loss(features, log_w, batch) -> float:
    """The mean cross entropy of a batch, from dense arrays."""
    size = len(features.idf)
    words = np.tile(batch.words.toarray(), 2)
    scores = (words * np.exp(log_w)) @ features.parts.toarray()
    assert words.shape[1] == 2 * size
    log_probs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    return -(batch.relevant.toarray() * log_probs).sum() / len(words)


def test_gradient_is_that_of_the_softmax(monkeypatch):
    vocabulary, features, _, _ = features_of(1)
    batch = questions(
        vocabulary, ["w0 w1", "w3 w5 w0", "w2", "unknown"], [[1], [2, 4], [0], [8]], 9
    )
    state = lexical_weights._State.begin(features, lexical_weights.Fit())
    state.params["r"] += np.random.default_rng(0).normal(0, 0.3, state.params["r"].shape)
    log_w, step = np.log(state.weights()), 1e-5
    expected = np.zeros_like(log_w)
    for i in range(len(log_w)):
        up, down = log_w.copy(), log_w.copy()
        up[i] += step
        down[i] -= step
        change = dense_loss(features, up, batch) - dense_loss(features, down, batch)
        expected[i] = change / (2 * step)
    np.testing.assert_allclose(state._gradient(batch), expected, atol=1e-8)
    monkeypatch.setattr(lexical_weights, "_DENSE", 10)  # a question at a time
    np.testing.assert_allclose(state._gradient(batch), expected, atol=1e-8)


def test_fit_finds_the_word_that_tells_and_is_deterministic():
    texts = [f"key{i} junk{i} junk{i} " + " ".join(WORDS[:5]) for i in range(40)]
    titles = [""] * 40
    vocabulary = LexicalVocabulary.of_documents(texts, None)
    features = lexical_weights.document_features(vocabulary, titles, texts)
    # Counts speak for the neighbour, whose junk stands there twice.
    asked = [f"w1 key{i} junk{(i + 1) % 40}" for i in range(40)]
    train = questions(vocabulary, asked, [[i] for i in range(40)], 40)
    fit = lexical_weights.Fit(batch_size=8)
    first = lexical_weights.fitted_weights(features, train, train, fit)
    np.testing.assert_array_equal(
        first, lexical_weights.fitted_weights(features, train, train, fit)
    )
    begun = lexical_weights._State.begin(features, fit).weights()
    assert not np.array_equal(first, begun)
    reached = lexical_weights.mean_reciprocal_rank(features, first, train)
    assert lexical_weights.mean_reciprocal_rank(features, begun, train) == pytest.approx(0.5)
    assert reached == 1
    # Without validation questions a tenth is held out, seeded as well.
    held_out = lexical_weights.fitted_weights(features, train, None, fit)
    np.testing.assert_array_equal(
        held_out, lexical_weights.fitted_weights(features, train, None, fit)
    )


def test_reciprocal_rank_counts_ties_and_the_cut():
    features = lexical_weights.Features(
        sp.csr_matrix(np.vstack([np.zeros((2, 12)), [np.arange(12.0), np.zeros(12)]])),
        np.ones(2),
        np.zeros(2, int),
    )
    weights = np.array([0.0, 0.0, 1.0, 0.0])
    words = sp.csr_matrix(np.array([[1.0, 0.0]] * 3))
    relevant = sp.csr_matrix((np.ones(3), ([0, 1, 2], [11, 9, 0])), (3, 12))
    found = lexical_weights.mean_reciprocal_rank(
        features, weights, lexical_weights.Questions(words, relevant)
    )
    assert found == pytest.approx((1 + 1 / 3 + 0) / 3)


def test_index_file_round_trip(tmp_path):
    vocabulary, features, _, _ = features_of(2)
    weights = lexical_weights.bm25_weights(features)
    index = lexical_weights.lexical_index(
        vocabulary, features, weights, most_postings=3, origin="somewhere"
    )
    index.save(tmp_path / "index.npz")
    again = LexicalIndex.load(tmp_path / "index.npz")
    assert again.vocabulary.hash == vocabulary.hash
    assert (again.num_documents, again.origin) == (9, "somewhere")
    for name in ("indptr", "rows", "weights"):
        np.testing.assert_array_equal(getattr(again, name), getattr(index, name))
    (tmp_path / "index.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"index\.npz is no lexical index"):
        LexicalIndex.load(tmp_path / "index.npz")
