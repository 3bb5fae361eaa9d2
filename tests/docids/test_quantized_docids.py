"""K-means, the kinds pq and rq, and the rules that make docids of colliding codes."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from dsi_jax.docids.clustering import kmeans as kmeans_lib
from dsi_jax.docids.clustering import kmeans_jax, kmeans_numpy
from dsi_jax.docids.clustering.kmeans import kmeans, residual_kmeans
from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.embedders.text import TfidfSvd
from dsi_jax.docids.kinds.quantized import ProductQuantized, ResidualQuantized
from dsi_jax.docids.kinds.quantized_base import Quantized, nearest_free, numbered
from dsi_jax.docids.table import DocidTable

ENGINES = kmeans_lib.ENGINES


def normal(count, dimension, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)


def squared_distances(points, centroids):
    """By the book, in float64: [N, K]."""
    difference = points[:, None].astype(np.float64) - centroids[None].astype(np.float64)
    return (difference**2).sum(-1)


def build(kind, embeddings, seed=0):
    return kind.build(documents(embeddings), seed)


def documents(embeddings):
    keys = [f"key {i}" for i in range(len(embeddings))]
    return DocumentColumns(keys, "corpus", embeddings=embeddings)


def codes_of(table):
    return np.asarray(table.tokens, np.int64) - 2


# --- k-means -------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("count", "clusters"), [(200, 7), (50, 50), (5, 8), (1, 3)])
def test_labels_are_the_nearest_centroids(engine, count, clusters):
    points = normal(count, 3)
    found = kmeans(points, clusters, seed=1, engine=engine)
    assert found.centroids.shape == (min(clusters, count), 3)
    assert found.labels.dtype == np.int32
    distances = squared_distances(points, found.centroids)
    chosen = distances[np.arange(count), found.labels]
    np.testing.assert_allclose(chosen, distances.min(axis=1), atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_well_separated_groups_are_found(engine):
    groups = np.random.default_rng(0).integers(4, size=300)
    points = 10 * np.eye(4, dtype=np.float32)[groups] + 0.01 * normal(300, 4)
    found = kmeans(points, 4, seed=0, engine=engine)
    for group in range(4):
        (label,) = set(found.labels[groups == group].tolist())
        mean = points[groups == group].mean(axis=0)
        np.testing.assert_allclose(found.centroids[label], mean, atol=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_centroids_are_means_once_iterations_change_nothing(engine):
    points = normal(60, 2)
    found = kmeans(points, 3, seed=0, iterations=100, engine=engine)
    again = kmeans(points, 3, seed=0, iterations=1, start=found.centroids, engine=engine)
    for label in range(3):
        mean = points[found.labels == label].mean(axis=0)
        np.testing.assert_allclose(again.centroids[label], mean, atol=0.05)
    first, last = (
        squared_distances(points, result.centroids).min(axis=1).sum() for result in (found, again)
    )
    assert last <= first * (1 + 1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_more_restarts_are_no_worse(engine):
    points = normal(300, 4)

    def error(restarts):
        found = kmeans(points, 12, seed=3, restarts=restarts, engine=engine)
        return squared_distances(points, found.centroids).min(axis=1).sum()

    assert error(6) <= error(1) * (1 + 1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_empty_clusters_are_filled(engine):
    points = np.concatenate([normal(40, 2), normal(40, 2) + 50])
    start = np.array([[0, 0], [1000, 1000], [-1000, 0]], np.float32)  # two that nobody is near
    found = kmeans(points, 3, seed=0, iterations=10, start=start, engine=engine)
    assert set(found.labels.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("engine", ENGINES)
def test_all_join_the_nearest_of_what_some_have_taught(engine, monkeypatch):
    monkeypatch.setattr(kmeans_lib, "_ROWS", 64)
    points, rows = normal(500, 3), np.arange(40, 440)
    found = kmeans(points, 6, seed=1, rows=rows, most=100, engine=engine)
    distances = squared_distances(points[rows], found.centroids)
    chosen = distances[np.arange(len(rows)), found.labels]
    np.testing.assert_allclose(chosen, distances.min(axis=1), atol=1e-5)
    # A hundred of these points are learned from, and they alone.
    sample = rows[kmeans_lib.drawn(len(rows), 100, seed=1)]
    assert len(set(sample.tolist())) == 100
    again = kmeans(points[sample], 6, seed=1, engine=engine)
    np.testing.assert_array_equal(found.centroids, again.centroids)
    assert kmeans_lib.drawn(100, 100, seed=1) is None


def test_growing_samples_end_where_lloyds_algorithm_does(monkeypatch):
    points = normal(3000, 4)
    errors = []
    for first in (10, 10_000):
        monkeypatch.setattr(kmeans_numpy, "_FIRST_POINTS", first)
        found = kmeans(points, 5, seed=0, iterations=100)
        errors.append(squared_distances(points, found.centroids).min(axis=1).sum())
        for label in range(5):
            mean = points[found.labels == label].mean(axis=0)
            np.testing.assert_allclose(found.centroids[label], mean, atol=0.05)
    assert errors[0] == pytest.approx(errors[1], rel=0.02)


def test_sums_follow_the_points_that_move():
    points, centroids = normal(300, 3), normal(4, 3, seed=1)
    labels, sums, counts = np.full(300, -1, np.int32), np.zeros((4, 3)), np.zeros(4)
    for _ in range(4):
        before = labels.copy()
        moved = kmeans_numpy._assign(points, centroids, labels, sums, counts)
        assert moved == (labels != before).sum() > 0
        for label in range(4):
            of_label = points[labels == label]
            assert counts[label] == len(of_label)
            np.testing.assert_allclose(sums[label], of_label.sum(axis=0), atol=1e-4)
        centroids = (sums / counts[:, None]).astype(np.float32)


def test_sums_are_made_in_one_thread():
    def threads():
        found = kmeans_numpy._controller().info()
        return [lib["num_threads"] for lib in found if lib["user_api"] == "blas"]

    with threadpool_limits(limits=3):
        with kmeans_numpy.one_thread():
            assert set(threads()) == {1}
        assert 3 in threads()


def test_clusters_far_from_zero_are_told_apart():
    points = normal(400, 8) + np.float32(3000)
    found = kmeans(points, 5, seed=0)
    distances = squared_distances(points, found.centroids)
    chosen = distances[np.arange(400), found.labels]
    np.testing.assert_allclose(chosen, distances.min(axis=1), atol=0.01)
    spread = ((points - points.mean(axis=0)) ** 2).sum()
    assert distances.min(axis=1).sum() < 0.8 * spread


def test_assignment_in_blocks_equals_assignment_at_once(monkeypatch):
    points, centroids = normal(103, 5), normal(6, 5, seed=1)
    whole = kmeans_jax._assign(points, centroids)
    monkeypatch.setattr(kmeans_jax, "_BLOCK", 10)
    blocks = kmeans_jax._assign(points, centroids)
    np.testing.assert_array_equal(whole[0], blocks[0])
    np.testing.assert_allclose(whole[1], blocks[1], rtol=1e-5, atol=1e-5)


def test_engines_are_named():
    with pytest.raises(ValueError, match="engine is 'torch'; expected one of"):
        kmeans(normal(5, 2), 2, seed=0, engine="torch")
    assert kmeans_lib.default_engine() == "numpy"  # tests run on CPUs


@pytest.mark.parametrize("engine", ENGINES)
def test_each_level_clusters_what_the_levels_before_left(engine):
    points = normal(150, 4)
    codes, books = residual_kmeans(points, 3, 8, seed=2, engine=engine)
    assert codes.shape == (150, 3) and books.shape == (3, 8, 4)
    rest = points.astype(np.float64)
    for level in range(3):
        distances = squared_distances(rest, books[level])
        chosen = distances[np.arange(150), codes[:, level]]
        np.testing.assert_allclose(chosen, distances.min(axis=1), atol=1e-5)
        before = (rest**2).sum()
        rest = rest - books[level][codes[:, level]]
        assert (rest**2).sum() < before


@pytest.mark.parametrize("engine", ENGINES)
def test_residuals_of_a_mapped_file_take_the_nearest_codes(engine, monkeypatch, tmp_path):
    monkeypatch.setattr(kmeans_lib, "_ROWS", 64)
    points = normal(300, 4)
    np.save(tmp_path / "points.npy", points)
    mapped = np.load(tmp_path / "points.npy", mmap_mode="r")
    codes, books = residual_kmeans(mapped, 3, 8, seed=2, most=100, engine=engine)
    sample = kmeans_lib.drawn(300, 100, seed=2)
    of_sample, same_books = residual_kmeans(points[sample], 3, 8, seed=2, engine=engine)
    np.testing.assert_array_equal(books, same_books)
    np.testing.assert_array_equal(codes[sample], of_sample)
    rest = points.astype(np.float64)
    for level in range(3):
        distances = squared_distances(rest, books[level])
        chosen = distances[np.arange(300), codes[:, level]]
        np.testing.assert_allclose(chosen, distances.min(axis=1), atol=1e-5)
        rest -= books[level][codes[:, level]]


# --- pq and rq -----------------------------------------------------------------------------------


def test_product_quantization_clusters_runs_of_dimensions():
    points = normal(120, 7)
    kind = ProductQuantized(levels=3, codes=6, embedder=None)
    found = kind.quantize(documents(points), seed=0)
    for level, part in enumerate(([0, 1, 2], [3, 4], [5, 6])):  # 7 dimensions in 3 runs
        book = found.books[level]
        outside = [i for i in range(7) if i not in part]
        assert not book[:, outside].any()
        distances = squared_distances(points[:, part], book[:, part])
        chosen = distances[np.arange(120), found.codes[:, level]]
        np.testing.assert_allclose(chosen, distances.min(axis=1), atol=1e-5)
    with pytest.raises(ValueError, match=r"pq of 3 levels needs .* as many dimensions, found 2"):
        kind.quantize(documents(normal(9, 2)), seed=0)


OPTIONS = st.fixed_dictionaries(
    {
        "levels": st.integers(1, 3),
        "codes": st.integers(2, 6),
        "vocabulary": st.sampled_from(["per_level", "shared"]),
        "collisions": st.sampled_from(["extra_level", "nearest", "ties"]),
    }
)


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from([ProductQuantized, ResidualQuantized]),
    options=OPTIONS,
    count=st.integers(1, 40),
    distinct=st.integers(1, 40),
    seed=st.integers(0, 3),
)
def test_tables_follow_their_rules(kind, options, count, distinct, seed):
    embeddings = normal(distinct, 4)[np.arange(count) % distinct]
    kind = kind(embedder=None, **options)
    levels, codes = kind.levels, kind.codes
    if kind.collisions == "nearest" and codes**levels < count:
        with pytest.raises(ValueError, match=f"the corpus has {count} documents; .*extra_level"):
            build(kind, embeddings, seed)
        return
    table = build(kind, embeddings, seed)
    assert table.hash == build(kind, embeddings, seed).hash
    table.validate()
    assert not table.variable_length
    raw = kind.quantize(documents(embeddings), seed).codes
    found = codes_of(table)
    if kind.vocabulary == "per_level":
        assert (found // codes == np.arange(table.length)).all()
        assert table.vocab_size >= 2 + levels * codes
        found = found % codes
    else:
        assert table.vocab_size == 2 + codes
    groups = {}
    for row, code in enumerate(raw.tolist()):
        groups.setdefault(tuple(code), []).append(row)
    assert table.parameters["collided"] == count - len(groups)
    assert table.parameters["seed"] == seed and table.parameters["engine"] == "numpy"
    ties = {tuple(docid) for docid in found.tolist()}
    if kind.collisions == "ties":
        np.testing.assert_array_equal(found, raw)
        assert len(ties) == len(groups)
        return
    assert len(ties) == count
    np.testing.assert_array_equal(np.sort(table.rows_of(table.docids(range(count)))), range(count))
    if kind.collisions == "extra_level":
        np.testing.assert_array_equal(found[:, :levels], raw)
        width = table.length - levels
        assert (width == 0) == (len(groups) == count)
        largest = max(map(len, groups.values()))
        assert width == 0 or codes ** (width - 1) < largest <= codes**width
        place = codes ** np.arange(width - 1, -1, -1)
        for rows in groups.values():
            numbers = (found[rows, levels:] @ place).tolist() if width else [0]
            assert sorted(numbers) == list(range(len(rows)))
    else:
        kept = (found == raw).all(axis=1)
        assert all(kept[rows].sum() <= 1 for rows in groups.values())


def nearest_by_force(quantized, num_codes):
    """The rule "nearest", read off its description: every free docid is looked at."""
    levels = len(quantized.books)
    points = quantized.points.astype(np.float64)
    books = quantized.books.astype(np.float64)

    def rest(row, codes):
        return points[row] - sum(books[level][code] for level, code in enumerate(codes))

    order = sorted(
        range(len(points)), key=lambda row: ((rest(row, quantized.codes[row]) ** 2).sum(), row)
    )
    docids = {}
    for row in order:
        docids.setdefault(tuple(quantized.codes[row].tolist()), row)
    for row in order:
        if row in docids.values():
            continue
        own = quantized.codes[row].tolist()

        def preference(docid, row=row, own=own):
            common = next((i for i in range(levels) if docid[i] != own[i]), levels)
            choices = []
            for level in range(common, levels):
                distances = ((books[level] - rest(row, docid[:level])) ** 2).sum(-1)
                choices.append((distances[docid[level]], docid[level]))
            return (-common, choices)

        every = itertools.product(range(num_codes), repeat=levels)
        docids[min((d for d in every if d not in docids), key=preference)] = row
    found = np.empty((len(points), levels), int)
    for docid, row in docids.items():
        found[row] = docid
    return found


@settings(deadline=None, max_examples=40)
@given(
    levels=st.integers(1, 3),
    codes=st.integers(2, 4),
    share=st.floats(0.1, 1.0),
    seed=st.integers(0, 1000),
)
def test_nearest_free_codes_equal_brute_force(levels, codes, share, seed):
    rng = np.random.default_rng(seed)
    count = max(1, int(share * codes**levels))
    quantized = Quantized(
        codes=rng.integers(0, max(1, codes - 1), size=(count, levels)),
        books=rng.normal(size=(levels, codes, 3)).astype(np.float32),
        points=rng.normal(size=(count, 3)).astype(np.float32),
    )
    found = nearest_free(quantized)
    assert len({tuple(docid) for docid in found.tolist()}) == count
    np.testing.assert_array_equal(found, nearest_by_force(quantized, codes))


def test_nearest_free_codes_of_docids_wider_than_a_number():
    """Ten bytes a docid; all documents but one collide, and find room on the last level."""
    rng = np.random.default_rng(0)
    quantized = Quantized(
        codes=np.array([[7, 299, 0, 3, 5]] * 40 + [[7, 299, 0, 4, 5]]),
        books=rng.normal(size=(5, 300, 3)).astype(np.float32),
        points=rng.normal(size=(41, 3)).astype(np.float32),
    )
    found = nearest_free(quantized)
    assert len({tuple(docid) for docid in found.tolist()}) == 41
    np.testing.assert_array_equal(found[:, :4], quantized.codes[:, :4])
    rest = quantized.points[:40] - sum(
        quantized.books[level, code] for level, code in enumerate((7, 299, 0, 3))
    )
    distances = squared_distances(rest, quantized.books[4])
    free = list(range(300))
    for rank, row in enumerate(np.argsort(distances[:, 5])):
        expected = 5 if rank == 0 else min(free, key=distances[row].__getitem__)
        free.remove(expected)
        assert found[row, 4] == expected


def test_numbers_are_in_a_seeded_random_order():
    codes = np.zeros((500, 2), int)
    numbers = numbered(codes, 10, np.random.default_rng(0)) @ [100, 10, 1]
    assert sorted(numbers.tolist()) == list(range(500))
    assert abs(np.corrcoef(numbers, np.arange(500))[0, 1]) < 0.2
    again = numbered(codes, 10, np.random.default_rng(0)) @ [100, 10, 1]
    np.testing.assert_array_equal(numbers, again)


def test_documents_that_the_codes_cannot_tell_apart():
    """All equal: one group of 700, numbered with two digits of base 256."""
    table = build(ResidualQuantized(levels=2, embedder=None), np.ones((700, 4), np.float32))
    table.validate()
    assert table.length == 4 and table.parameters["collided"] == 699
    shared = build(
        ResidualQuantized(levels=2, vocabulary="shared", embedder=None),
        np.ones((700, 4), np.float32),
    )
    shared.validate()
    assert (shared.length, shared.vocab_size) == (4, 258)


def test_ties_are_declared_saved_and_ranked_by_the_seed(tmp_path):
    kind = ResidualQuantized(levels=1, codes=3, collisions="ties", embedder=None)
    embeddings = normal(50, 2)
    table = build(kind, embeddings, seed=5)
    assert table.tie_seed == 5 and table.parameters["collided"] == 47
    table.save(tmp_path / "table")
    loaded = DocidTable.load(tmp_path / "table")
    assert loaded.tie_seed == 5 and loaded.hash == table.hash
    loaded.verify()
    np.testing.assert_array_equal(loaded.order, table.order)
    # Sorted by docid; within one, by the place in the seed's permutation.
    place = np.empty(50, int)
    place[np.random.default_rng(5).permutation(50)] = np.arange(50)
    expected = sorted(range(50), key=lambda row: (table.tokens[row, 0], place[row]))
    assert table.order.tolist() == expected
    firsts = {}
    for row in expected:
        firsts.setdefault(table.tokens[row, 0], row)
    found = table.rows_of(table.docids(range(50)))
    assert found.tolist() == [firsts[token] for token in table.tokens[:, 0]]
    # Without collisions there is nothing to declare.
    assert build(ResidualQuantized(collisions="ties", embedder=None), embeddings).tie_seed is None


@pytest.mark.parametrize("kind", [ProductQuantized, ResidualQuantized])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 0}, "expected levels >= 1 and codes >= 2"),
        ({"codes": 1}, "expected levels >= 1 and codes >= 2"),
        ({"vocabulary": "own"}, r"vocabulary is 'own'; expected one of \('per_level', 'shared'\)"),
        ({"collisions": "drop"}, "collisions is 'drop'; expected one of"),
        ({"engine": "torch"}, "engine is 'torch'; expected one of"),
        ({"iterations": 0}, "expected iterations >= 1"),
    ],
)
def test_kinds_refuse_impossible_parameters(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_kinds_refuse_bad_embeddings():
    kind = ResidualQuantized(embedder=None)
    with pytest.raises(ValueError, match="docids need embeddings of the documents, found none"):
        kind.build(DocumentColumns(["a"]))
    with pytest.raises(ValueError, match="one vector for each of the 1 documents"):
        kind.build(DocumentColumns(["a"], embeddings=normal(2, 2)))
    with pytest.raises(ValueError, match="embedding of row 0 holds a value that is not finite"):
        kind.build(DocumentColumns(["a"], embeddings=np.full((1, 2), np.nan)))


def test_tables_name_embedder_and_engine():
    kind = ResidualQuantized(levels=2, codes=4, embedder=TfidfSvd(dimensions=8), engine="jax")
    parameters = build(kind, normal(20, 3)).parameters
    assert parameters["embedder"]["name"] == "tfidf_svd"
    assert parameters["engine"] == "jax"
    for name in ("levels", "codes", "vocabulary", "collisions", "iterations"):
        assert parameters[name] == getattr(kind, name)
