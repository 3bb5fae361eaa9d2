"""The last page of a run."""

import json
from pathlib import Path

import pytest

from dsi_jax.evaluation import final_report
from dsi_jax.evaluation.final_report import (
    BaselineResult,
    FinalReport,
    RunFacts,
    TargetHistory,
    TargetResult,
)
from dsi_jax.storage.model_dir import ModelDir
from dsi_jax.utils import atomic_files

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens/final_report.json").read_text())
METRICS = GOLDEN["text"]["json"]["test"]["c_retrieval_test"]
OWN = {"season@1": 0.25}
HISTORIES = [
    TargetHistory(
        "c_retrieval_dev",
        [
            {"step": step, "queries": 20, "hits@1": hits}
            for step, hits in ((10, 0.1), (20, 0.5), (30, 0.3), (40, 0.4))
        ],
    ),
    TargetHistory("own_dev", [{"step": 40, "season@1": 0.2}]),
    TargetHistory(
        "c_indexing_train",
        [{"step": 40, "queries": 1000, "hits@1": 0.975, "hits@10": 1.0}],
        memorizes=True,
    ),
]


def report_of_texts() -> FinalReport:
    halved = {name: v if name.startswith("q") else v / 2 for name, v in METRICS.items()}
    return FinalReport(
        facts=RunFacts(1234, 345.6, "dsi", "DSI", True, "atomic", 12_345),
        results=[
            TargetResult("c_retrieval_test", METRICS, bm25=halved),
            TargetResult("own_test", OWN),
        ],
        free={"c_retrieval_test": METRICS | {"invalid_rate": 0.0125}, "own_test": OWN},
        histories=HISTORIES,
        baselines={
            "dual encoder": BaselineResult({"c_retrieval_test": METRICS}, 90.0),
            "zero-shot": BaselineResult({"other_test": METRICS}, 0.0),
        },
        last=3,
    )


def report_of_images() -> FinalReport:
    facts = RunFacts(
        *(1234, 345.6, "dual_encoder", "dual encoder", False, "atomic", 12_345),
        protocol="karpathy_test",
    )
    results = [
        TargetResult("c_retrieval_test", METRICS, num_candidates=1000),
        TargetResult("own_test", OWN),
    ]
    return FinalReport(facts, results, {}, HISTORIES, {}, last=3)


@pytest.mark.parametrize(
    ("report", "expected"), [(report_of_texts, "text"), (report_of_images, "images")]
)
def test_text_and_json_are_those_of_earlier_runs(report, expected):
    """The stored report was made by the evaluator of before reports were a module."""
    assert report().lines() == GOLDEN[expected]["lines"]
    assert json.dumps(report().to_json()) == json.dumps(GOLDEN[expected]["json"])


def test_both_files_are_written(tmp_path):
    final_report.write(ModelDir(tmp_path), "words", {"step": 1})
    assert (tmp_path / "report.txt").read_text() == "words\n"
    assert (tmp_path / "report.json").read_text() == '{\n  "step": 1\n}\n'
    assert {path.name for path in tmp_path.iterdir()} == {"report.txt", "report.json"}


@pytest.mark.parametrize("written", [0, 1])
def test_a_kill_in_the_middle_never_leaves_half_a_report(tmp_path, monkeypatch, written):
    """A `report.json` says that the run is finished: a half one would break all that resume it."""
    sync, calls = atomic_files._sync, []

    def killed(path):
        if path.suffix == ".partial":
            calls.append(path.name)
            if len(calls) > written:
                raise KeyboardInterrupt
        sync(path)

    monkeypatch.setattr(atomic_files, "_sync", killed)
    with pytest.raises(KeyboardInterrupt):
        final_report.write(ModelDir(tmp_path), "words", {"step": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["report.txt"][:written]
    monkeypatch.setattr(atomic_files, "_sync", sync)
    final_report.write(ModelDir(tmp_path), "words", {"step": 1})
    monkeypatch.setattr(atomic_files, "_sync", killed)
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        final_report.write(ModelDir(tmp_path), "others", {"step": 2})
    assert json.loads((tmp_path / "report.json").read_text()) == {"step": 1}
