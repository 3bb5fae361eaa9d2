"""The learning quantizer beneath rqvae and irgen, and the two kinds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsi_jax.docids.clustering import residual_vq
from dsi_jax.docids.clustering.neighbours import nearest_rows
from dsi_jax.docids.clustering.residual_vq import Codebooks
from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.health.oracle_recall import oracle_recall
from dsi_jax.docids.kinds import learned
from dsi_jax.docids.kinds.learned import RQVAE, IRGen
from dsi_jax.docids.kinds.quantized import ResidualQuantized

SMALL = {"levels": 2, "codes": 8, "epochs": 3, "batch_size": 32, "hidden": 16, "embedder": None}
L, K, N, D = 3, 5, 16, 4


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def books_of(vectors, count=4.0):
    vectors = jnp.asarray(vectors)
    counts = jnp.full(vectors.shape[:2], count)
    return Codebooks(vectors, counts, vectors * count)


def build(kind, embeddings, seed=0, **more):
    return kind.build(documents(embeddings, **more), seed)


def documents(embeddings, **more):
    keys = [f"key {i}" for i in range(len(embeddings))]
    return DocumentColumns(keys, "c", embeddings=embeddings, **more)


def topics(count=256, dimension=12, groups=16, seed=0):
    """Points around a few centres, and whose each is."""
    rng = np.random.default_rng(seed)
    group = rng.integers(groups, size=count)
    points = rng.normal(size=(groups, dimension))[group] + 0.4 * rng.normal(size=(count, dimension))
    return points.astype(np.float32), group


# --- the quantizer -------------------------------------------------------------------------------


def test_rounding_takes_the_nearest_of_what_is_left():
    vectors, points = normal(L, K, D), normal(N, D, seed=1)
    rounded = residual_vq.round_residuals(jnp.asarray(vectors), jnp.asarray(points))
    for row, point in enumerate(points):
        rest, prefix = point.copy(), np.zeros(D)
        for level in range(L):
            np.testing.assert_allclose(rounded.rests[level, row], rest, atol=1e-5)
            code = ((vectors[level] - rest) ** 2).sum(-1).argmin()
            assert int(rounded.codes[level, row]) == code
            rest = rest - vectors[level, code]
            prefix = prefix + vectors[level, code]
            np.testing.assert_allclose(rounded.prefixes[level, row], prefix, atol=1e-5)


def test_gradients_pass_straight_through():
    points, target = jnp.asarray(normal(N, D)), jnp.asarray(normal(N, D, seed=1))
    vectors = jnp.asarray(normal(L, K, D, seed=2))

    def loss(points):
        rounded = residual_vq.round_residuals(vectors, jax.lax.stop_gradient(points))
        passed = residual_vq.straight_through(points, rounded.prefixes[-1])
        return ((passed - target) ** 2).sum(), rounded.prefixes[-1]

    (value, rounded), gradient = jax.value_and_grad(loss, has_aux=True)(points)
    np.testing.assert_allclose(value, ((rounded - target) ** 2).sum(), rtol=1e-6)
    np.testing.assert_allclose(gradient, 2 * (rounded - target), atol=1e-5)


def test_averages_follow_the_formula():
    books = Codebooks(*(jnp.asarray(x) for x in (normal(L, K, D), normal(L, K) ** 2 + 1,
                                                 normal(L, K, D, seed=3))))  # fmt: skip
    rounded = residual_vq.round_residuals(books.vectors, jnp.asarray(normal(N, D, seed=1)))
    moved = residual_vq.follow(books, rounded, decay=0.9)
    for level in range(L):
        for code in range(K):
            chosen = np.asarray(rounded.codes[level]) == code
            count = 0.9 * float(books.counts[level, code]) + 0.1 * chosen.sum()
            batch = np.asarray(rounded.rests[level])[chosen].sum(axis=0)
            total = 0.9 * np.asarray(books.sums[level, code]) + 0.1 * batch
            np.testing.assert_allclose(moved.counts[level, code], count, rtol=1e-5)
            np.testing.assert_allclose(moved.sums[level, code], total, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(
                moved.vectors[level, code], total / count, rtol=1e-4, atol=1e-5
            )


def test_codes_that_nobody_takes_keep_their_vectors():
    vectors = np.zeros((1, 2, D), np.float32)
    vectors[0, 1] = 100  # far from everything
    books = books_of(vectors)
    for _ in range(200):
        rounded = residual_vq.round_residuals(books.vectors, jnp.asarray(normal(N, D)))
        books = residual_vq.follow(books, rounded, decay=0.5)
    np.testing.assert_allclose(books.vectors[0, 1], 100, rtol=1e-4)
    assert float(books.counts[0, 1]) < 1e-6


def test_dead_codes_are_revived():
    vectors = normal(2, K, D)
    vectors[1, 2] = 100  # dead: never the nearest
    books = books_of(vectors, count=N / K)
    points = jnp.asarray(normal(N, D, seed=1))
    for _ in range(100):
        rounded = residual_vq.round_residuals(books.vectors, points)
        books = residual_vq.follow(books, rounded, decay=0.9)
    assert (np.asarray(rounded.codes[1]) != 2).all()
    alive, restarted = residual_vq.restart_dead(books, rounded, jax.random.key(0), 0.1)
    dead = np.asarray(books.counts) < 0.1 * N / K
    assert dead[1, 2] and int(restarted) == dead.sum()
    rests = np.asarray(rounded.rests[1])
    assert (np.abs(rests - np.asarray(alive.vectors[1, 2])).max(axis=1) < 1e-6).any()
    np.testing.assert_allclose(alive.counts[1, 2], N / K)
    np.testing.assert_allclose(alive.sums[1, 2], alive.vectors[1, 2] * N / K, rtol=1e-6)
    np.testing.assert_array_equal(
        np.asarray(alive.vectors)[~dead], np.asarray(books.vectors)[~dead]
    )
    after = residual_vq.round_residuals(alive.vectors, points)
    assert (np.asarray(after.codes[1]) == 2).any()  # it is used again


def test_codebooks_start_as_residual_kmeans():
    points, _ = topics()
    books = residual_vq.fit_codebooks(points, 2, 8, batch_size=64, seed=0, engine="numpy")
    assert books.vectors.shape == (2, 8, 12)
    np.testing.assert_allclose(books.counts, 8.0)
    np.testing.assert_allclose(books.sums, books.vectors * 8, rtol=1e-6)
    rounded = residual_vq.round_residuals(books.vectors, jnp.asarray(points))
    error = float(((rounded.prefixes[-1] - points) ** 2).sum())
    assert error < 0.6 * ((points - points.mean(axis=0)) ** 2).sum()


# --- losses --------------------------------------------------------------------------------------


def test_classification_is_a_softmax_over_the_classes_of_the_batch():
    classes = np.array([3, 1, 3, 7, 1, 3])
    table, features = normal(9, D), normal(6, D, seed=1)
    found = learned._classification(
        jnp.asarray(table[classes]), jnp.asarray(features), targets_B=jnp.asarray(classes)
    )
    losses = []
    for feature, own in zip(features, classes, strict=True):
        logits = {other: feature @ table[other] for other in set(classes.tolist())}
        losses.append(np.log(sum(np.exp(list(logits.values())))) - logits[own])
    np.testing.assert_allclose(found, np.mean(losses), rtol=1e-5)


def test_rqvae_decodes_every_prefix_or_the_last():
    points, _ = topics(count=20)
    kind = RQVAE(**SMALL)
    params = kind.params(jnp.asarray(points), None, jax.random.key(0))
    np.testing.assert_array_equal(kind.features(params, points), points)  # starts as the identity
    prefixes = normal(2, 20, 12, seed=1)
    errors = ((prefixes - points) ** 2).sum(-1).mean(-1)  # so does the decoder
    for every_prefix, expected in ((True, errors.mean()), (False, errors[-1])):
        kind = dataclasses.replace(kind, every_prefix=every_prefix)
        loss = kind.loss(params, None, jnp.asarray(prefixes), jnp.asarray(points), None)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_classifiers_start_at_the_classes_mean_directions():
    points, group = topics(count=60, groups=4)
    kind = IRGen(**SMALL, temperature=0.5)
    params = kind.params(jnp.asarray(points), group[:, None].astype(np.int32), jax.random.key(0))
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    for label in range(4):
        mean = unit[group == label].sum(axis=0)
        for name in ("of_feature", "of_prefix"):
            np.testing.assert_allclose(
                params[name][label], mean / np.linalg.norm(mean) / 0.5, rtol=1e-4, atol=1e-5
            )
    np.testing.assert_allclose(np.linalg.norm(kind.features(params, points), axis=1), 1, rtol=1e-5)


# --- the kinds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [RQVAE(**SMALL), IRGen(**SMALL)], ids=lambda kind: kind.kind)
def test_tables_are_valid_and_a_function_of_the_seed(kind):
    points, _ = topics(count=100)
    first, again, other = (build(kind, points, seed) for seed in (1, 1, 2))
    first.validate()
    assert first.hash == again.hash
    assert (first.tokens[:, :2] != other.tokens[:, :2]).any()
    parameters = first.parameters
    assert parameters["restarted"] >= 0 and parameters["engine"] == "numpy"
    for name in ("epochs", "batch_size", "learning_rate", "hidden", "commitment", "decay"):
        assert parameters[name] == getattr(kind, name)


@pytest.mark.parametrize("kind", [RQVAE, IRGen])
def test_scale_and_place_of_embeddings_do_not_matter(kind):
    points, _ = topics(count=100)
    kind = kind(**SMALL)
    # A power of two scales without rounding, so that training is the same to the last bit.
    np.testing.assert_array_equal(build(kind, points).tokens, build(kind, 16 * points).tokens)
    moved = learned._centred(16 * points + 3)
    np.testing.assert_allclose(learned._centred(points), moved, atol=1e-5)
    np.testing.assert_allclose(moved.mean(axis=0), 0, atol=1e-6)
    assert (moved**2).sum(axis=1).mean() == pytest.approx(1)


@pytest.mark.parametrize("kind", [RQVAE, IRGen])
def test_features_of_all_documents_are_made_in_blocks(kind, monkeypatch):
    """Else the hidden layer of all of them would be held at once."""
    whole = kind(**SMALL).quantize(documents(topics(count=100)[0]), 0).points
    lengths = set()

    class Recording(kind):
        def features(self, params, points_BxD):
            lengths.add(len(points_BxD))
            return super().features(params, points_BxD)

    monkeypatch.setattr(learned, "_ROWS", 40)
    found = Recording(**SMALL).quantize(documents(topics(count=100)[0]), 0).points
    assert lengths == {20, 32, 40}  # the last block, a batch of training, the other blocks
    np.testing.assert_allclose(found, whole, atol=1e-5)


def test_few_documents_and_equal_ones():
    for kind in (RQVAE(**SMALL), IRGen(**SMALL)):
        for embeddings in (normal(1, 3), normal(3, 3), np.ones((40, 3), np.float32)):
            table = build(kind, embeddings)
            table.validate()
            assert table.num_documents == len(embeddings)


def test_irgen_learns_given_classes():
    """Classes that are orthogonal to what k-means sees: the sign of a small dimension."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(400, 6)).astype(np.float32)
    classes = np.array(["no", "yes"])[(points[:, 5] > 0).astype(int)]
    points[:, 5] = 0.3 * np.sign(points[:, 5])
    options = {"levels": 1, "codes": 4, "embedder": None, "collisions": "ties"}
    kind = IRGen(**options, supervision="classes", epochs=60, batch_size=100, hidden=32)

    def purity(table):
        shares = [
            (classes[table.tokens[:, 0] == token] == "yes").mean()
            for token in set(table.tokens[:, 0].tolist())
        ]
        counts = [(table.tokens[:, 0] == t).sum() for t in set(table.tokens[:, 0].tolist())]
        return np.average([max(share, 1 - share) for share in shares], weights=counts)

    assert purity(build(ResidualQuantized(**options), points)) < 0.8
    assert purity(build(kind, points, classes=classes)) > 0.95


def test_irgen_by_neighbours_beats_where_it_starts():
    rng = np.random.default_rng(0)
    # Unit vectors of a few words each, like those of TF-IDF: k-means alone finds poor clusters.
    words = np.sqrt(rng.dirichlet(0.05 / np.sqrt(np.arange(1, 65)), size=600))
    points = (words / np.linalg.norm(words, axis=1, keepdims=True)).astype(np.float32)
    options = {"levels": 2, "codes": 16, "embedder": None}
    rq, irgen = ResidualQuantized(**options), IRGen(**options, batch_size=200, hidden=64)
    gains = [
        oracle_recall(build(irgen, points, seed), points).by_prefix
        - oracle_recall(build(rq, points, seed), points).by_prefix
        for seed in range(3)
    ]
    assert np.mean(gains) > 0.02, gains


def test_labels_are_checked():
    kind = IRGen(**SMALL, supervision="classes")
    points, _ = topics(count=20)
    with pytest.raises(ValueError, match="need classes of the documents, found none"):
        build(kind, points)
    with pytest.raises(ValueError, match=r"each of the 20 documents, found the shape \(19,\)"):
        build(kind, points, classes=np.zeros(19, int))


def test_irgen_refuses_more_documents_than_it_can_compare(monkeypatch):
    monkeypatch.setattr(learned, "MOST_BY_NEIGHBOURS", 19)
    monkeypatch.setattr(learned, "nearest_rows", None)  # refused before they are sought
    points, group = topics(count=20)
    with pytest.raises(
        ValueError, match=r"at most 19 documents, found 20.*'classes', or the kind rqvae or rq"
    ):
        build(IRGen(**SMALL), points)
    build(IRGen(**SMALL, supervision="classes"), points, classes=group).validate()


def test_divergence_is_named():
    kind = RQVAE(**SMALL | {"learning_rate": 1e30})
    with pytest.raises(ValueError, match="training diverged; a learning_rate below 1e\\+30"):
        build(kind, topics(count=64)[0])


@pytest.mark.parametrize("kind", [RQVAE, IRGen])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "expected epochs, batch_size, hidden and refits >= 1"),
        ({"learning_rate": 0.0}, "expected learning_rate > 0 and commitment >= 0"),
        ({"commitment": -1.0}, "expected learning_rate > 0 and commitment >= 0"),
        ({"decay": 1.0}, r"expected decay and least_use in \[0, 1\)"),
        ({"levels": 0}, "expected levels >= 1"),
    ],
)
def test_kinds_refuse_impossible_parameters(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_irgen_refuses_impossible_parameters():
    with pytest.raises(ValueError, match="supervision is 'queries'; expected one of"):
        IRGen(supervision="queries")
    for bad in ({"neighbours": 0}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match="expected neighbours >= 1 and temperature > 0"):
            IRGen(**bad)


# --- neighbours ----------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, 1, 5, 49])
def test_neighbours_equal_a_sort(k, monkeypatch):
    monkeypatch.setattr("dsi_jax.docids.clustering.neighbours._QUERIES", 4)
    monkeypatch.setattr("dsi_jax.docids.clustering.neighbours._ROWS", 7)
    points = normal(50, 3)
    rows = np.array([4, 0, 49, 20, 7, 33])
    found = nearest_rows(points, rows, k)
    for row, near in zip(rows, found.tolist(), strict=True):
        distances = ((points - points[row]) ** 2).sum(-1)
        distances[row] = np.inf
        assert sorted(near) == sorted(np.argsort(distances)[:k].tolist())
    with pytest.raises(ValueError, match="k is 50: each of 50 points has 49 others"):
        nearest_rows(points, rows, 50)
