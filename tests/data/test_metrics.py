"""Retrieval metrics, run files and the BM25 baseline."""

import numpy as np
import pytest

from dsi_jax.data.corpora import corpus as corpus_lib
from dsi_jax.data.readers import load
from dsi_jax.data.seqio_tasks import metrics
from dsi_jax.evaluation import bm25, tables, trec


def relevance(rows, grades=None, seen=None):
    grades = np.ones(len(rows)) if grades is None else grades
    return metrics.Relevance(np.array(rows, np.int32), np.array(grades, np.float32), seen)


def test_hand_computed_ranking():
    targets = [relevance([3], seen=True), relevance([5, 6], seen=False), relevance([9], seen=False)]
    ranked = np.array([[3, 1, 2, 4, 0, 7], [0, -1, 6, 1, 2, 5], [0, 1, 2, 3, 4, 5]])
    result = metrics.retrieval_metrics(targets, ranked, {})
    assert result["queries"] == 3
    assert result["hits@1"] == pytest.approx(1 / 3)
    assert result["hits@5"] == pytest.approx(2 / 3)
    assert result["mrr@10"] == pytest.approx((1 + 1 / 3 + 0) / 3)
    ndcg = (1 / np.log2(4) + 1 / np.log2(7)) / (1 + 1 / np.log2(3))
    assert result["ndcg@10"] == pytest.approx((1 + ndcg + 0) / 3)
    assert (result["queries/seen"], result["hits@1/seen"]) == (1, 1.0)
    assert (result["queries/unseen"], result["hits@5/unseen"]) == (2, 0.5)
    # Six documents were ranked: nothing is known of the first ten.
    assert "hits@10" not in result
    assert "invalid_rate" not in result


def test_grades_are_linear_gains():
    result = metrics.retrieval_metrics([relevance([1, 2], [3.0, 1.0])], [[2, 1]], {})
    expected = (1 + 3 / np.log2(3)) / (3 + 1 / np.log2(3))
    assert result["ndcg@10"] == pytest.approx(expected)


def test_row_minus_one_is_a_miss_and_counts_as_invalid_where_it_has_a_score():
    scores = np.array([[-0.1, -0.2, -np.inf], [-0.1, -0.2, -0.3]])
    ranked = [[-1, 4, -1], [7, -1, -1]]
    result = metrics.retrieval_metrics([[4], [7]], ranked, {"scores": scores})
    assert result["hits@1"] == 0.5
    assert result["mrr@10"] == pytest.approx(0.75)
    assert result["invalid_rate"] == pytest.approx(3 / 5)
    assert not [name for name in result if name.endswith("seen")]


def test_group_without_queries_has_its_count_alone():
    result = metrics.retrieval_metrics([relevance([0], seen=True)], [[0]], {})
    assert result["queries/unseen"] == 0
    assert [name for name in result if name.endswith("/unseen")] == ["queries/unseen"]


def random_judgements(seed: int):
    """60 queries with 1 to 4 graded documents of 40, and a ranking of 25 with misses."""
    rng = np.random.default_rng(seed)
    targets, ranked = [], []
    for _ in range(60):
        count = rng.integers(1, 5)
        rows = rng.choice(40, count, replace=False)
        targets.append(relevance(rows, rng.integers(1, 4, count), seen=bool(rng.integers(2))))
        ranking = rng.permutation(40)[:25]
        ranking[rng.random(25) < 0.1] = -1
        ranked.append(ranking)
    return targets, np.array(ranked)


@pytest.mark.parametrize("group", ["", "/seen", "/unseen"])
def test_agrees_with_ir_measures(group):
    ir_measures = pytest.importorskip("ir_measures")
    targets, ranked = random_judgements(seed=len(group))
    ours = metrics.retrieval_metrics(targets, ranked, {})
    chosen = [
        i for i, target in enumerate(targets) if group == "" or target.seen == (group == "/seen")
    ]
    qrels = [
        ir_measures.Qrel(str(i), f"d{row}", int(grade))
        for i in chosen
        for row, grade in zip(targets[i].rows, targets[i].grades, strict=True)
    ]
    # A slot without a document is a document that nobody judged.
    run = [
        ir_measures.ScoredDoc(str(i), f"d{row}" if row >= 0 else f"none{rank}", -float(rank))
        for i in chosen
        for rank, row in enumerate(ranked[i])
    ]
    measures = {f"hits@{k}": ir_measures.Success @ k for k in (1, 5, 10, 20)}
    measures |= {"mrr@10": ir_measures.RR @ 10, "ndcg@10": ir_measures.nDCG @ 10}
    theirs = ir_measures.calc_aggregate(list(measures.values()), qrels, run)
    for name, measure in measures.items():
        assert ours[name + group] == pytest.approx(theirs[measure], abs=1e-6), name


# Metrics of classes


def test_hand_computed_class_metrics():
    targets = [relevance([3, 4, 5]), relevance([8])]
    ranked = np.array([[3, 0, 4, -1] + [1] * 6, [-1, 9, 7, 8] + [1] * 6])
    result = metrics.class_metrics(targets, ranked, {})
    assert result == {
        "p@1": pytest.approx(1 / 2),
        "p@2": pytest.approx((1 / 2 + 0) / 2),
        "p@4": pytest.approx((2 / 4 + 1 / 4) / 2),
        "p@8": pytest.approx((2 / 8 + 1 / 8) / 2),
        "p@10": pytest.approx((2 / 10 + 1 / 10) / 2),  # textbook: divided by k, not by R
        "map@10": pytest.approx(((1 + 2 / 3) / 3 + (1 / 4) / 1) / 2),
    }


def test_average_precision_is_one_if_the_first_are_all_relevant():
    ranked = np.arange(100)[None]
    few, many = ([relevance(range(count))] for count in (7, 300))
    assert metrics.class_metrics(few, ranked, {})["map@10"] == 1
    assert metrics.class_metrics(many, ranked, {})["map@100"] == 1
    assert metrics.class_metrics(few, ranked, {})["p@10"] == pytest.approx(0.7)
    assert metrics.class_metrics(few, ranked[:, ::-1], {})["map@10"] == 0


def class_judgements(seed: int):
    """50 queries of a class of 5 to 60 of 150 documents, and a ranking of 110 with misses."""
    rng = np.random.default_rng(seed)
    targets, ranked = [], []
    for _ in range(50):
        rows = rng.choice(150, rng.integers(5, 61), replace=False)
        targets.append(relevance(rows, seen=bool(rng.integers(2))))
        # Relevant documents come early more often than not.
        ranking = np.argsort(rng.normal(size=150) - np.isin(np.arange(150), rows))[:110]
        ranking[rng.random(110) < 0.05] = -1
        ranked.append(ranking)
    return targets, np.array(ranked)


@pytest.mark.parametrize("group", ["", "/seen", "/unseen"])
def test_class_metrics_equal_brute_force(group):
    targets, ranked = class_judgements(seed=0)
    ours = metrics.class_metrics(targets, ranked, {})
    chosen = [
        (set(target.rows.tolist()), ranking.tolist())
        for target, ranking in zip(targets, ranked, strict=True)
        if group == "" or target.seen == (group == "/seen")
    ]

    def precision(wanted, ranking, k):
        return sum(row in wanted for row in ranking[:k]) / k

    def average_precision(wanted, ranking, k):
        at_hits = [
            precision(wanted, ranking, i) for i in range(1, k + 1) if ranking[i - 1] in wanted
        ]
        return sum(at_hits) / min(len(wanted), k)

    expected = {f"p@{k}": [precision(*c, k) for c in chosen] for k in metrics.PRECISION_AT}
    expected |= {f"map@{k}": [average_precision(*c, k) for c in chosen] for k in metrics.MAP_AT}
    for name, values in expected.items():
        assert ours[name + group] == pytest.approx(np.mean(values)), name


def test_class_metrics_agree_with_ir_measures():
    """Its AP@k divides by R: it is ours where no class has more than k documents."""
    ir_measures = pytest.importorskip("ir_measures")
    targets, ranked = class_judgements(seed=1)
    ours = metrics.class_metrics(targets, ranked, {})
    qrels = [
        ir_measures.Qrel(str(i), f"d{row}", 1) for i, t in enumerate(targets) for row in t.rows
    ]
    run = [
        ir_measures.ScoredDoc(str(i), f"d{row}" if row >= 0 else f"none{rank}", -float(rank))
        for i in range(len(targets))
        for rank, row in enumerate(ranked[i])
    ]
    measures = {f"p@{k}": ir_measures.P @ k for k in metrics.PRECISION_AT}
    measures["map@100"] = ir_measures.AP @ 100
    theirs = ir_measures.calc_aggregate(list(measures.values()), qrels, run)
    for name, measure in measures.items():
        assert ours[name] == pytest.approx(theirs[measure], abs=1e-6), name


def test_whole_ranking_has_scikit_learns_average_precision():
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(2)
    ranked = np.stack([rng.permutation(100) for _ in range(20)])
    rows = [rng.choice(100, rng.integers(1, 90), replace=False) for _ in range(20)]
    ours = metrics.class_metrics(rows, ranked, {})
    theirs = [
        sklearn_metrics.average_precision_score(np.isin(ranking, wanted), -np.arange(100))
        for ranking, wanted in zip(ranked, rows, strict=True)
    ]
    assert ours["map@100"] == pytest.approx(np.mean(theirs))


def test_report_of_classes():
    targets, ranked = class_judgements(seed=3)
    figures = {
        name: metrics.retrieval_metrics(targets, ranked[:, :width], {})
        | metrics.class_metrics(targets, ranked[:, :width], {})
        for name, width in (("DSI", 100), ("dense", 20))
    }
    assert tables.other_metrics(figures["DSI"]) == {}
    text = "\n".join(tables.split_lines("test", figures))
    _, retrieval, classes = text.split("queries  system")
    assert "hits@1" in retrieval and "map" not in retrieval
    lines = classes.splitlines()
    assert lines[0].split() == ["p@1", "p@10", "map@10", "map@100", "number"]
    expected = [f"{100 * figures['DSI'][name]:.1f}" for name in tables.CLASS_COLUMNS]
    assert lines[2].split() == ["all", "DSI", *expected, "50"]
    assert lines[3].split()[:2] == ["all", "dense"] and lines[3].split()[5] == "-"
    assert [line.split()[0] for line in lines[4:]] == ["seen"] * 2 + ["unseen"] * 2
    assert "p@1" not in "".join(tables.split_lines("test", {"DSI": {"queries": 3, "hits@1": 1}}))
    assert tables.split_lines("own", {"DSI": {"map@10": 0.5}}) == ["own", "DSI map@10: 0.5"]


def test_run_file_is_read_back(tmp_path):
    file = tmp_path / "run.trec"
    rows = np.array([[2, -1, 0], [1, 0, -1]])
    scores = np.array([[-0.5, -0.6, -1.5], [-0.25, -np.inf, -np.inf]], np.float32)
    trec.write_trec_run(file, ["q 1", "q2"], rows, scores, ["a", "b", "c d"], tag="mine")
    assert file.read_text().splitlines() == [
        "q%201 Q0 c%20d 1 -0.5 mine",
        "q%201 Q0 a 2 -1.5 mine",
        "q2 Q0 b 1 -0.25 mine",
    ]
    ir_measures = pytest.importorskip("ir_measures")
    read = list(ir_measures.read_trec_run(str(file)))
    assert [(r.query_id, r.doc_id, r.score) for r in read][2] == ("q2", "b", -0.25)


def test_run_file_refuses_shapes_that_disagree(tmp_path):
    with pytest.raises(ValueError, match="a run of 1 queries"):
        trec.write_trec_run(tmp_path / "r", ["q"], np.zeros([2, 1]), np.zeros([2, 1]), ["a"])


def test_bm25_ranks_shared_words_first_and_nothing_without_any():
    queries = corpus_lib.make_query_set({"q": "green apple"}, {"q": {1: 1.0}})
    texts = ["a red stone", "a pear", "the sea"]
    corpus = corpus_lib.Corpus("c", list("abc"), ["", "Green apple", ""], texts, {"test": queries})
    index = bm25.BM25(corpus)
    rows, scores = index.search(["green apple", "unheard"], num_results=10)
    np.testing.assert_array_equal(rows, [[1, -1, -1], [-1, -1, -1]])
    assert (np.isfinite(scores) == (rows >= 0)).all()
    assert index.evaluate("test")["hits@1"] == 1.0


def test_bm25_on_real_data(shared_data):
    corpus = load.load_corpus(str(shared_data / "nq_mini"))
    result = bm25.BM25(corpus).evaluate("test")
    assert result["queries/seen"] == 150
    # Its PROVENANCE.md measured .658 and .908 over all splits together.
    assert result["hits@1"] == pytest.approx(0.66, abs=0.03)
    assert result["hits@10"] == pytest.approx(0.905, abs=0.02)
