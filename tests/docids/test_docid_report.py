"""Oracle recall against brute force, the report's words, and the picture."""

import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.health import plots
from dsi_jax.docids.health.oracle_recall import (
    ExpectedRecall,
    common_prefixes,
    fit_code_vectors,
    oracle_recall,
)
from dsi_jax.docids.health.report import health, report
from dsi_jax.docids.kinds.atomic import Atomic
from dsi_jax.docids.kinds.naive import NaiveString
from dsi_jax.docids.kinds.quantized import ProductQuantized, ResidualQuantized
from dsi_jax.docids.kinds.semantic import Semantic
from dsi_jax.docids.table import DocidTable


def normal(count, dimension=4, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)


def keys(count):
    return [f"key {i}" for i in range(count)]


def build(kind, embeddings, seed=0):
    return kind.build(DocumentColumns(keys(len(embeddings)), "corpus", embeddings=embeddings), seed)


def describe(table, embeddings):
    return fit_code_vectors(table, embeddings).describe(table.tokens)


def table_of(codes, lengths=None, num_codes=9):
    codes = np.asarray(codes)
    return DocidTable.from_codes(codes, lengths, num_codes=num_codes, keys=keys(len(codes)),
                                 kind="test", parameters={}, corpus_hash="")  # fmt: skip


@settings(deadline=None, max_examples=100)
@given(
    scores=st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=4),
    k=st.integers(1, 5),
    block=st.integers(1, 6),
    data=st.data(),
)
def test_expected_recall_is_the_mean_over_random_orders(scores, k, block, data):
    rows = np.arange(len(scores))
    others = [[other for other in range(6) if other != row] for row in rows]
    near = np.array([data.draw(st.permutations(other))[:k] for other in others])
    recall = ExpectedRecall(rows, near)
    for start in range(0, 6, block):
        recall.add(np.array(scores)[:, start : start + block])
    found = recall.result()
    rng = np.random.default_rng(0)
    trials = 3000
    for row in rows:
        hits = 0
        values = np.array([scores[row][other] for other in others[row]], float)
        relevant = np.isin(others[row], near[row])
        noise = rng.random((trials, len(values)))
        order = np.argsort(-(values + 0.5 * noise), axis=1)[:, :k]  # values differ by 1
        hits = relevant[order].sum() / (trials * k)
        assert abs(found[row] - hits) < 5 * 0.5 / np.sqrt(trials)


def recall_by_force(table, embeddings, k):
    """By prefix and at each depth, with ties counted one by one."""
    count = len(embeddings)
    docids = [[t for t in docid if t] for docid in table.tokens.tolist()]
    recalls = np.zeros(table.length)
    for row in range(count):
        others = [other for other in range(count) if other != row]
        distances = [((embeddings[row] - embeddings[other]) ** 2).sum() for other in others]
        near = {others[i] for i in np.argsort(distances)[:k]}
        for depth in range(1, table.length + 1):
            common = []
            for other in others:
                pairs = zip(docids[row][:depth], docids[other][:depth], strict=False)
                length = 0
                for mine, theirs in pairs:
                    if mine != theirs:
                        break
                    length += 1
                common.append(length)
            worst = sorted(common, reverse=True)[k - 1]
            sure = [o for o, c in zip(others, common, strict=True) if c > worst]
            level = [o for o, c in zip(others, common, strict=True) if c == worst]
            share = (k - len(sure)) / len(level)
            recalls[depth - 1] += (
                (len(near & set(sure)) + share * len(near & set(level))) / k / count
            )
    return recalls


@pytest.mark.parametrize(
    "kind",
    [
        NaiveString(),  # docids of several lengths
        Semantic(clusters=3, leaf_size=4, embedder=None),
        ResidualQuantized(levels=3, codes=4, embedder=None),
        ProductQuantized(levels=2, codes=4, collisions="ties", embedder=None),
    ],
    ids=lambda kind: kind.kind,
)
def test_oracle_recall_by_prefix_equals_brute_force(kind, monkeypatch):
    monkeypatch.setattr(
        "dsi_jax.docids.health.oracle_recall._BLOCK", 200
    )  # four documents at a time
    embeddings = normal(45)
    table = build(kind, embeddings)
    oracle = oracle_recall(table, embeddings, k=6, sample=45)
    expected = recall_by_force(table, embeddings, 6)
    np.testing.assert_allclose(oracle.by_depth, expected, atol=1e-6)
    assert oracle.by_prefix == oracle.by_depth[-1]
    assert (oracle.k, oracle.documents) == (6, 45)
    assert oracle.chance == pytest.approx(6 / 44)


def test_recall_of_perfect_and_of_meaningless_docids():
    groups = np.repeat(np.arange(8), 6)
    embeddings = 100 * np.eye(8, dtype=np.float32)[groups] + normal(48, 8)
    perfect = table_of(np.stack([groups, np.tile(np.arange(6), 8)], axis=1))
    oracle = oracle_recall(perfect, embeddings, k=5)
    assert oracle.by_prefix == oracle.by_depth[0] == 1.0
    atomic = oracle_recall(build(Atomic(), embeddings), embeddings, k=5)
    assert atomic.by_prefix == pytest.approx(5 / 47)  # chance
    assert atomic.by_codes == 1.0  # a vector a document describes anything


def test_codes_are_described_by_least_squares():
    """Against the exact least-squares fit of one vector a code and level."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, size=(80, 2))
    embeddings = normal(80, 3)
    table = table_of(codes, num_codes=4)
    design = np.concatenate([np.eye(4)[codes[:, 0]], np.eye(4)[codes[:, 1]]], axis=1)
    exact = design @ np.linalg.lstsq(design, embeddings, rcond=None)[0]
    found = describe(table, embeddings)
    assert ((found - exact) ** 2).mean() < 0.01 * (exact**2).mean()
    # Centroids of rq are found again: the codes describe no worse than k-means' own.
    kind = ResidualQuantized(levels=2, codes=5, collisions="ties", embedder=None)
    quantized = kind.quantize(DocumentColumns(keys(len(embeddings)), embeddings=embeddings), 0)
    own = sum(quantized.books[level][quantized.codes[:, level]] for level in range(2))
    fitted = describe(build(kind, embeddings), embeddings)
    assert ((fitted - embeddings) ** 2).sum() <= ((own - embeddings) ** 2).sum() * (1 + 1e-5)


def test_recall_by_codes_ranks_by_distance_to_descriptions():
    embeddings = normal(30)
    table = build(ResidualQuantized(levels=2, codes=4, embedder=None), embeddings)
    described = describe(table, embeddings)
    hits = 0
    for row in range(30):
        near, found = (
            set(np.argsort([np.inf if other == row else ((embeddings[row] - vectors[other]) ** 2)
                            .sum() for other in range(30)])[:4].tolist())
            for vectors in (embeddings, described)
        )  # fmt: skip
        hits += len(near & found)
    oracle = oracle_recall(table, embeddings, k=4)
    assert oracle.by_codes == pytest.approx(hits / 30 / 4, abs=1e-6)


def test_vectors_are_fitted_to_what_all_other_levels_leave(monkeypatch):
    """Block by block, against residuals held for all documents."""
    embeddings = normal(100, 6) + 3
    table = build(Semantic(clusters=3, leaf_size=4, embedder=None), embeddings)  # padded
    left, fits = embeddings.copy(), [np.zeros_like(embeddings)] * table.length
    for level in list(range(table.length)) * 3:
        left += fits[level]
        tokens = table.tokens[:, level]
        fits[level] = np.stack(
            [left[tokens == token].mean(axis=0) * (token > 1) for token in tokens]
        )
        left -= fits[level]
    monkeypatch.setattr("dsi_jax.docids.health.oracle_recall._ROWS", 7)
    np.testing.assert_allclose(describe(table, embeddings), embeddings - left, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_mapped_embeddings_are_not_copied(dtype, tmp_path):
    count, dimension = 200_000, 32
    path = tmp_path / "vectors.npy"
    np.save(path, normal(count, dimension).astype(dtype))
    mapped = np.load(path, mmap_mode="r")
    codes = np.random.default_rng(0).integers(0, 9, size=(count, 3))
    table = table_of(codes)
    tracemalloc.start()
    try:
        oracle = oracle_recall(table, mapped, sample=20)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert oracle.documents == 20
    assert peak < count * dimension * 4 / 3  # a third of one copy in float32


def test_padding_is_nothing_in_common():
    table = table_of([[1, 0], [1, 0], [1, 2]], np.array([1, 1, 2]))
    assert table.tokens.tolist() == [[3, 1, 0], [3, 1, 0], [3, 4, 1]]
    assert common_prefixes(table.tokens, table.tokens[[0, 2]]).tolist() == [[2, 2, 1], [1, 1, 3]]


def test_oracle_recall_needs_embeddings_of_the_documents():
    table = build(NaiveString(), normal(5))
    for shape in ((4, 3), (5,)):
        with pytest.raises(ValueError, match="one for each of the table's 5; found the shape"):
            oracle_recall(table, np.zeros(shape))
    with pytest.raises(ValueError, match="at least two documents"):
        oracle_recall(build(NaiveString(), normal(1)), normal(1))


def test_report_tells_collisions_and_recall():
    embeddings = normal(200)
    table = build(ResidualQuantized(levels=2, codes=4, embedder=None), embeddings)
    oracle = oracle_recall(table, embeddings)
    text = report(table, oracle)
    collided = table.parameters["collided"]
    line = (
        f"collisions: {collided} documents beyond the first with the same codes; rule: extra_level"
    )
    assert line in text
    assert f"oracle recall@10 of 200 documents: {oracle.by_prefix:.3f} by prefix" in text
    assert "chance 0.0503" in text
    level = next(line for line in text.splitlines() if line.startswith("    1  "))
    assert level.split()[-1] == f"{oracle.by_depth[0]:.3f}"
    assert "recall" not in report(table)
    assert health(table)[0].perplexity == pytest.approx(2 ** health(table)[0].entropy)


@given(
    docids=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4).map(tuple), min_size=1),
    spare=st.integers(0, 2),
)
def test_health_counts_prefixes(docids, spare):
    """Against sets of them; some levels may be reached by no docid."""
    lengths = np.array([len(docid) for docid in docids])
    codes = [[*docid, 0, 0, 0, 0, 0][: lengths.max() + spare] for docid in docids]
    table = table_of(codes, lengths, num_codes=3)
    ended = [(*docid, "end") if table.variable_length else docid for docid in docids]
    levels = health(table)
    assert len(levels) == table.length
    for depth, level in enumerate(levels, start=1):
        reach = [docid for docid in ended if len(docid) >= depth]
        nodes, parents = ({docid[:n] for docid in reach} for n in (depth, depth - 1))
        assert level.documents == len(reach)
        assert level.tokens == len({docid[depth - 1] for docid in reach})
        assert level.nodes == len(nodes)
        assert level.branching == (len(nodes) / len(parents) if reach else 0.0)
        assert level.entropy >= 0


@pytest.mark.parametrize("kind", [Atomic(), NaiveString(), ResidualQuantized(embedder=None)])
def test_the_picture_is_drawn(kind, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra: plots)")
    embeddings = normal(150)
    table = build(kind, embeddings)
    oracle = oracle_recall(table, embeddings) if isinstance(kind, ResidualQuantized) else None
    assert plots.available()
    plots.plot_report(table, tmp_path / "report.png", oracle)
    assert [path.name for path in tmp_path.iterdir()] == ["report.png"]
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_is_no_picture(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not plots.available()
