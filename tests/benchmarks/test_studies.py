"""The studies: which runs they are made of, and how their figures are summed up."""

import json

import pytest

from benchmarks import studies, study_plots
from dsi_jax.cli import gin_utils
from dsi_jax.data.readers import load
from tests.fixtures.small_corpus import write_corpus


def test_ablations_vary_one_factor_with_every_seed_and_cross_them_once(tmp_path):
    runs = studies.ablations(tmp_path / "c", tmp_path / "v", seeds=2, steps=10)
    assert [run.name for run in runs[:2]] == ["dual_encoder-0", "dual_encoder-1"]
    runs = runs[2:]
    cells = [tuple(run.labels[name] for name in ("strategy", "form", "docids")) for run in runs]
    crossed = {
        (strategy, form, kind)
        for strategy in studies.STRATEGIES
        for form in studies.FORMS
        for kind in studies.KINDS
        if strategy != "none" or form == "first"
    }
    assert set(cells) == crossed
    assert len({run.name for run in runs}) == len(runs) == len(crossed) + 7 * 3
    twice = {cell for cell in cells if cells.count(cell) == 2}
    assert twice == {c for c in crossed if c[0] == "inputs2targets" or c[1] == "first"}


@pytest.mark.parametrize("study", [studies.kinds, studies.image_kinds])
def test_every_docid_kind_is_trained(study, tmp_path):
    runs = study(tmp_path / "c", tmp_path / "d", seeds=1, steps=10)
    shipped = {file.stem for file in (gin_utils.shipped_directory() / "docids").glob("*.gin")}
    pictures = study is studies.image_kinds
    assert {run.labels["docids"] for run in runs} == shipped - ({"title"} if pictures else set())


def test_documents_asked_twice_are_seen_unless_added(tmp_path):
    source = write_corpus(tmp_path / "source", num_documents=30)
    # Documents 5, 11, ... have two test questions, the others one of train and one of dev.
    corpus = load.load_corpus(str(studies.asked_twice(source, tmp_path, num_unseen=0)))
    assert len(corpus) == 30
    assert {split: len(queries) for split, queries in corpus.queries.items()} == {
        "train": 25,
        "test": 35,
    }
    assert corpus.seen("test").sum() == 25


@pytest.fixture
def finished(tmp_path):
    """MODEL_DIR as a run leaves it, of the files that are read here."""
    directory = tmp_path / "inputs2targets-first-naive-0"
    curve = [{"step": s, "hits@1": s / 40, "hits@10": 0.5, "hits@10/unseen": 0.4} for s in (10, 20)]
    files = {
        "inference_eval/c_indexing_train-metrics.jsonl": curve,
        "inference_eval/c_retrieval_dev-metrics.jsonl": curve,
        "inference_eval_free/c_retrieval_test-metrics.jsonl": [
            {"step": 20, "hits@1": 0.25, "hits@1/seen": 0.5, "invalid_rate": 0.125}
        ],
    }
    for name, lines in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = {
        "train_seconds": 7.04,
        "test": {"c_retrieval_test": {"hits@1": 0.3, "hits@1/unseen": 0.1}},
        "bm25": {"hits@1": 0.8},
    }
    (directory / "report.json").write_text(json.dumps(report))
    return directory


def test_figures_of_a_finished_run_are_percent(finished, capsys):
    assert studies.results(finished) == {
        "train_seconds": 7.0,
        "trie_hits@1": 30.0,
        "trie_hits@1/unseen": 10.0,
        "free_hits@1": 25.0,
        "free_hits@1/seen": 50.0,
        "bm25_hits@1": 80.0,
        "invalid": 12.5,
        "memorised": 50.0,
    }
    (run,) = studies.ablations(finished, finished, seeds=1, steps=20)[2:3]
    assert run.name == finished.name
    (found,) = studies.run_all([run], finished.parent, jobs=1)  # found, not run again
    assert found["memorised"] == 50.0
    assert json.loads(capsys.readouterr().out) == found


def test_table_gives_mean_and_deviation():
    found = [{"docids": "naive", "memorised": value} for value in (90.0, 94.0)]
    found.append({"docids": "atomic", "memorised": 99.0})
    assert studies.table(found, ["docids"], ["memorised", "invalid"]).splitlines() == [
        "| docids | seeds | memorised | invalid |",
        "|---|---|---|---|",
        "| naive | 2 | 92.0 ± 2.8 |  |",
        "| atomic | 1 | 99.0 |  |",
    ]


def test_curves_are_drawn(finished, tmp_path):
    pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")
    for study in ("report", "forgetting"):
        path = tmp_path / f"{study}.png"
        assert study_plots.curves(study, {"naive": finished}, path) == f"plot: {path}"
        assert path.read_bytes()[:4] == b"\x89PNG"
