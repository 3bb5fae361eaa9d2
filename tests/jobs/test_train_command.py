"""The commands as a user runs them: docids, train, search, eval, infer; and being killed."""

import dataclasses
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from dsi_jax import build_docids, infer, search, train
from dsi_jax import eval as eval_command
from dsi_jax.evaluation.config import Evaluation
from dsi_jax.evaluation.predictor import Predictor
from dsi_jax.jobs import evaluate, trainer
from dsi_jax.models import t5_sizes
from dsi_jax.models.dsi import DSIConfig
from dsi_jax.models.t5 import T5Config
from dsi_jax.retriever import Retriever
from dsi_jax.training import checkpoints
from tests.fixtures.small_corpus import write_corpus

SMALL = [
    "--gin_file=experiments/own_text.gin",
    "--gin_file=models/t5_tiny.gin",
    "--gin.BATCH_SIZE=16",
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 16}",
    "--gin.VOCABULARY_SIZE=400",
    "--gin.WARMUP_STEPS=10",
    "--gin.BEAM_SIZE=10",
    "--gin.CHUNK_RATIO=0",
]


def arguments(corpus: Path, model_dir: Path, *more: str) -> list[str]:
    return [*SMALL, f"--gin.CORPUS={corpus}", f"--gin.MODEL_DIR={model_dir}", *more]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(corpus, MODEL_DIR) after the docids and the train command."""
    base = tmp_path_factory.mktemp("own")
    corpus, model_dir = write_corpus(base / "corpus_of_trained"), base / "model"
    assert build_docids.main(arguments(corpus, model_dir)) == 0
    assert train.main(arguments(corpus, model_dir, "--gin.TRAIN_STEPS=300")) == 0
    return corpus, model_dir


def test_model_dir_is_laid_out_as_promised(trained):
    _, model_dir = trained
    task = "corpus_of_trained_retrieval"
    for name in (
        "config.gin",
        "model-info.txt",
        "report.txt",
        "report.json",
        "documents.arrow",
        "docids/metadata.json",
        "train/metrics.jsonl",
        "checkpoint_300/metadata",
        f"inference_eval/{task}_dev-metrics.jsonl",
        f"inference_eval/{task}_test-metrics.jsonl",
        f"inference_eval/{task}_test-000300.trec",
    ):
        assert (model_dir / name).exists(), name
    assert list((model_dir / "train").glob("events*"))
    assert len(checkpoints._steps(checkpoints.epath.Path(model_dir))) == 3


def test_a_small_corpus_is_memorised_and_reported(trained):
    _, model_dir = trained
    report = json.loads((model_dir / "report.json").read_text())
    memorised = report["while_training"]["corpus_of_trained_indexing_train"]["last"]
    assert memorised["hits@1"] > 0.9
    figures = report["test"]["corpus_of_trained_retrieval_test"]
    assert figures["queries"] == 20
    assert figures["queries/unseen"] == 20
    text = (model_dir / "report.txt").read_text()
    assert "BM25" in text
    assert text.count("\n? ") == 5
    curve = [json.loads(line) for line in (model_dir / "train/metrics.jsonl").open()]
    assert curve[-1]["loss"] < 0.5 * curve[0]["loss"]
    assert {"loss_indexing", "loss_retrieval", "learning_rate"} <= curve[-1].keys()


def test_search_command_prints_documents_and_json(trained, capsys, monkeypatch):
    corpus, model_dir = trained
    known = json.loads((corpus / "queries.jsonl").read_text().splitlines()[0])["text"]
    assert search.main([str(model_dir), known, "-k", "3"]) == 0
    assert re.search(r"  1\. +-\d\.\d+  d0  \|  Title 0\n", capsys.readouterr().out)
    monkeypatch.setattr(sys, "stdin", io.StringIO("number3\n\nnumber4\n"))
    assert search.main([str(model_dir), "--json", "-k", "2"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["query"] for line in lines] == ["number3", "number4"]
    assert all(len(line["hits"]) == 2 for line in lines)
    assert {"key", "score", "title", "text", "row"} <= lines[0]["hits"][0].keys()


def test_search_command_heeds_lists(trained, tmp_path, capsys):
    _, model_dir = trained
    (tmp_path / "allow").write_text("d3\n\nd8\nd17\n")
    (tmp_path / "deny").write_text("d8\n")
    lists = ["--allow", str(tmp_path / "allow"), "--deny", str(tmp_path / "deny")]
    assert search.main([str(model_dir), "number8", "--json", *lists]) == 0
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert sorted(hit["key"] for hit in hits) == ["d17", "d3"]
    (tmp_path / "deny").write_text("d8\nnobody\n")
    assert search.main([str(model_dir), "number8", *lists]) == 2
    assert "deny has 1 of 2 keys that no document has, first 'nobody'" in capsys.readouterr().err
    assert search.main([str(model_dir), "a", "--deny", "nowhere"]) == 2
    assert "nowhere is no file; expected document keys" in capsys.readouterr().err


def test_retriever_returns_every_document_when_asked(trained):
    _, model_dir = trained
    retriever = Retriever.load(model_dir)
    hits = retriever.search("number7", k=100)
    assert sorted(hit.row for hit in hits) == list(range(60))
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    # Atomic docids: the scores are one softmax over all documents (and two special tokens).
    assert 0.9 < np.exp(scores).sum() <= 1.0 + 1e-5
    assert hits[0] == retriever.search_batch(["number7"], k=1)[0][0]


def test_eval_command_repeats_the_figures_of_training(trained, tmp_path):
    corpus, model_dir = trained
    status = eval_command.main(
        [
            "--gin_file=runs/eval.gin",
            f"--gin.MODEL_DIR={model_dir}",
            f"--gin.CORPUS={corpus}",
            "--gin.BEAM_SIZE=10",
            f"--gin.EVAL_OUTPUT_DIR={tmp_path}",
        ]
    )
    assert status == 0
    name = "corpus_of_trained_retrieval_test-metrics.jsonl"
    again = json.loads((tmp_path / name).read_text().splitlines()[-1])
    first = json.loads((model_dir / "inference_eval" / name).read_text().splitlines()[-1])
    assert again == first


def test_evaluation_on_four_devices_equals_that_on_one(tmp_path):
    corpus, model_dir = write_corpus(tmp_path / "corpus_of_four"), tmp_path / "model"
    command = [sys.executable, "-m", "dsi_jax.train"]
    command += arguments(
        corpus,
        model_dir,
        "--gin.TRAIN_STEPS=20",
        "--gin.EVAL_PERIOD=10",
        "--gin.config.Evaluation.batch_size=30",  # four devices make it 32
    )
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
    subprocess.run(command, env=environment, check=True)
    evaluate.evaluate(model_dir=str(model_dir), corpus=str(corpus), evaluation=Evaluation(10))
    name = "corpus_of_four_retrieval_test-metrics.jsonl"
    one, four = (
        json.loads((model_dir / folder / name).read_text().splitlines()[-1])
        for folder in ("eval", "inference_eval")
    )
    assert one == pytest.approx(four)
    curve = (model_dir / "inference_eval/corpus_of_four_retrieval_dev-metrics.jsonl").read_text()
    assert [json.loads(line)["step"] for line in curve.splitlines()] == [10, 20]


def test_infer_command_ranks_a_file_of_queries(trained, tmp_path):
    _, model_dir = trained
    (tmp_path / "mine.tsv").write_text("a\tnumber3 title 3\nb\tnumber4\n")
    status = infer.main(
        [
            "--gin_file=runs/infer.gin",
            f"--gin.MODEL_DIR={model_dir}",
            f"--gin.QUERIES={tmp_path / 'mine.tsv'}",
            f"--gin.INFER_OUTPUT_DIR={tmp_path / 'out'}",
            "--gin.NUM_RESULTS=5",
            "--gin.BEAM_SIZE=5",
        ]
    )
    assert status == 0
    lines = [json.loads(line) for line in (tmp_path / "out/mine.jsonl").open()]
    assert [line["id"] for line in lines] == ["a", "b"]
    run = (tmp_path / "out/mine.trec").read_text().splitlines()
    assert len(run) == 10
    assert re.fullmatch(r"a Q0 d\d+ 1 -?[\d.]+(e-\d+)? dsi_jax", run[0])


def test_finished_run_started_again_changes_nothing(trained):
    corpus, model_dir = trained
    before = checkpoints.load_params(model_dir / "checkpoint_300")
    report = json.loads((model_dir / "report.json").read_text())
    assert report["train_seconds"] > 0
    again = arguments(corpus, model_dir, "--gin.TRAIN_STEPS=300", "--gin.DROPOUT_RATE=0.05")
    assert train.main(again) == 0  # dropout is no part of a model's identity
    after = checkpoints.load_params(model_dir / "checkpoint_300")
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert json.loads((model_dir / "report.json").read_text()) == report


def test_sigterm_during_the_report_stops_it_between_batches(trained, monkeypatch):
    corpus, model_dir = trained
    report = (model_dir / "report.json").read_bytes()
    rank = Predictor.rank

    def rank_when_told_to_end(*args):
        signal.raise_signal(signal.SIGTERM)
        return rank(*args)

    monkeypatch.setattr(Predictor, "rank", rank_when_told_to_end)
    assert train.main(arguments(corpus, model_dir, "--gin.TRAIN_STEPS=300")) == 143
    assert (model_dir / "report.json").read_bytes() == report


def test_checkpoint_of_another_run_is_refused_before_anything_is_written(trained, capsys):
    corpus, model_dir = trained
    config = (model_dir / "config.gin").read_text()
    status = train.main(arguments(corpus, model_dir, "--gin_file=models/t5_mini.gin"))
    assert status == 2
    message = capsys.readouterr().err
    assert re.search(r"model\.t5\.emb_dim \d+, this run expects \d+", message)
    assert "dropout_rate" not in message
    assert (model_dir / "config.gin").read_text() == config


def test_checkpoint_of_before_layers_were_scanned_is_of_the_same_run():
    def identity(t5: T5Config) -> dict:
        model = DSIConfig(t5, docid_vocab_size=12, docid_length=3).to_json()
        metadata = {"method": "dsi", "tokenizer_hash": "", "docid_table_hash": "", "model": model}
        return trainer._identity(metadata)["model"]["t5"]

    assert "scan_layers" not in identity(t5_sizes.t5_tiny())
    scanned = dataclasses.replace(t5_sizes.t5_tiny(), scan_layers=True)
    assert identity(scanned) == identity(t5_sizes.t5_tiny()) | {"scan_layers": True}


def test_eval_command_refuses_queries_of_another_split(trained, tmp_path):
    corpus, model_dir = trained
    other = shutil.copytree(corpus, tmp_path / "other_queries_of_trained")
    qrels = other / "qrels" / "test.tsv"
    qrels.write_text("\n".join(qrels.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(ValueError, match=r"queries .* [0-9a-f]{16}; .*[0-9a-f]{16} with RANDOM"):
        evaluate.evaluate(model_dir=str(model_dir), corpus=str(other), dry_run=True)


def test_relative_model_dir_is_that_of_the_working_directory(tmp_path, monkeypatch, capsys):
    write_corpus(tmp_path / "corpus_of_relative")
    monkeypatch.chdir(tmp_path)
    options = ["--gin.TRAIN_STEPS=2", "--gin.train_config.TrainConfig.evaluation=None"]
    assert train.main(arguments(Path("corpus_of_relative"), Path("runs/mine"), *options)) == 0
    assert (tmp_path / "runs/mine/checkpoint_2/metadata").exists()
    assert search.main(["runs/mine", "number3", "-k", "1"]) == 0
    assert "? number3" in capsys.readouterr().out


def test_dry_run_writes_nothing(tmp_path, caplog):
    corpus = write_corpus(tmp_path / "corpus_of_dry_run")
    model_dir = tmp_path / "model"
    caplog.set_level("INFO", "dsi_jax")
    assert train.main(arguments(corpus, model_dir, "--dry_run")) == 0
    assert not model_dir.exists()
    for word in ("parameters", "FLOPs", "mixture", "mesh", "docids"):
        assert word in caplog.text


def start(corpus: Path, model_dir: Path, cache: Path) -> subprocess.Popen:
    command = [sys.executable, "-u", "-m", "dsi_jax.train"]
    command += arguments(
        corpus,
        model_dir,
        "--gin.TRAIN_STEPS=40",
        "--gin.LOG_PERIOD=1",
        "--gin.CHECKPOINT_PERIOD=4",
        "--gin.EVAL_PERIOD=1000",
        "--gin.train_config.TrainConfig.evaluation=None",
    )
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def run_until(process: subprocess.Popen, step: int, signal_number: int) -> str:
    """Sends the signal once `step` was logged; returns all that was printed."""
    printed = []
    for line in process.stdout:
        printed.append(line)
        match = re.match(r"step +([\d,]+)/", line)
        if match and int(match[1].replace(",", "")) >= step:
            process.send_signal(signal_number)
            break
    printed += process.stdout.readlines()
    process.wait()
    return "".join(printed)


def resumed_from(printed: str) -> int:
    """The step that a run said it went on from; 0 where it began anew."""
    match = re.search(r"resumed from step ([\d,]+)", printed)
    return int(match[1].replace(",", "")) if match else 0


@pytest.mark.slow
def test_killed_runs_resume_to_the_same_parameters_bit_for_bit(tmp_path):
    corpus = write_corpus(tmp_path / "corpus_of_killed")
    whole = start(corpus, tmp_path / "whole", tmp_path / "cache")
    out, _ = whole.communicate()
    assert whole.returncode == 0, out
    seed = time.time_ns()
    killed = start(corpus, tmp_path / "killed", tmp_path / "cache")
    out = run_until(killed, random.Random(seed).randrange(9, 38), signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL, (seed, out)
    terminated = start(corpus, tmp_path / "killed", tmp_path / "cache")
    out = run_until(terminated, 38, signal.SIGTERM)
    assert resumed_from(out) > 0, (seed, out)
    if terminated.returncode != 0:  # unless it was through before the signal came
        assert terminated.returncode == 143, (seed, out)
        assert re.search(r"SIGTERM: saved step \d+ of 40", out), (seed, out)
    last = start(corpus, tmp_path / "killed", tmp_path / "cache")
    out, _ = last.communicate()
    assert last.returncode == 0, (seed, out)
    assert resumed_from(out) > 0, (seed, out)
    jax.tree.map(
        np.testing.assert_array_equal,
        checkpoints.load_params(tmp_path / "whole" / "checkpoint_40"),
        checkpoints.load_params(tmp_path / "killed" / "checkpoint_40"),
    )
