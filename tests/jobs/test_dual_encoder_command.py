"""The dual encoder as a user runs it: train, search, eval, infer; stopped and resumed."""

import functools
import json
import re
import signal

import jax
import numpy as np
import pytest

from dsi_jax import eval as eval_command
from dsi_jax import infer, search, train
from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.kinds.semantic import Semantic
from dsi_jax.jobs.progress import Progress
from dsi_jax.methods.trained_embedders import TrainedDualEncoder
from dsi_jax.retriever import Retriever
from dsi_jax.training import checkpoints
from tests.fixtures.small_corpus import write_corpus

SMALL = [
    "--gin_file=experiments/own_text_dual.gin",
    "--gin_file=models/t5_tiny.gin",
    "--gin.BATCH_SIZE=16",
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 16, 'documents': 24}",
    "--gin.VOCABULARY_SIZE=400",
    "--gin.WARMUP_STEPS=10",
    "--gin.BEAM_SIZE=10",
    "--gin.CHUNK_RATIO=1",
]
UNEVALUATED = "--gin.train_config.TrainConfig.evaluation=None"


def arguments(corpus, model_dir, *more):
    return [*SMALL, f"--gin.CORPUS={corpus}", f"--gin.MODEL_DIR={model_dir}", *more]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(corpus, MODEL_DIR) of a dual encoder."""
    base = tmp_path_factory.mktemp("dual")
    corpus, model_dir = write_corpus(base / "corpus_of_dual"), base / "model"
    assert train.main(arguments(corpus, model_dir, "--gin.TRAIN_STEPS=150")) == 0
    return corpus, model_dir


def test_report_stands_beside_bm25_and_beats_chance(trained):
    _, model_dir = trained
    text = (model_dir / "report.txt").read_text()
    assert text.startswith("60 documents, dual encoder, 150 steps")
    assert re.search(r"^unseen +BM25 ", text, re.MULTILINE)
    report = json.loads((model_dir / "report.json").read_text())
    assert report["method"] == "dual_encoder" and report["free"] == {}
    (figures,) = report["test"].values()
    # By chance 10 of 60 documents would do; no document of the test had a training query.
    assert figures["hits@10/unseen"] > 0.5
    assert report["while_training"]["corpus_of_dual_indexing_train"]["last"]["hits@1"] > 0.9
    curve = [json.loads(line) for line in (model_dir / "train/metrics.jsonl").open()]
    assert {"loss", "scale", "in_batch_accuracy_retrieval"} <= curve[-1].keys()
    held_out = model_dir / "training_eval/corpus_of_dual_retrieval/metrics.jsonl"
    losses = [json.loads(line)["loss"] for line in held_out.open()]
    assert losses[-1] < losses[0]


def test_search_command_and_retriever(trained, capsys):
    _, model_dir = trained
    assert search.main([str(model_dir), "number7", "-k", "3"]) == 0
    assert "? number7" in capsys.readouterr().out
    assert len(list((model_dir / "embeddings").iterdir())) == 1
    retriever = Retriever.load(model_dir)
    hits = retriever.search("number7", k=100)
    assert sorted(hit.row for hit in hits) == list(range(60))
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    assert all(-1.0001 <= score <= 1.0001 for score in scores)  # cosines
    text = retriever.documents[7].text
    assert retriever.search(f"Title 7 {text}", k=1)[0].key == "d7"


def test_eval_and_infer_commands(trained, tmp_path):
    corpus, model_dir = trained
    options = [f"--gin.MODEL_DIR={model_dir}", "--gin.BEAM_SIZE=10"]
    given = [f"--gin.CORPUS={corpus}", f"--gin.EVAL_OUTPUT_DIR={tmp_path}"]
    assert eval_command.main(["--gin_file=runs/eval.gin", *options, *given]) == 0
    name = "corpus_of_dual_retrieval_test-metrics.jsonl"
    again = json.loads((tmp_path / name).read_text().splitlines()[-1])
    first = json.loads((model_dir / "inference_eval" / name).read_text().splitlines()[-1])
    assert again == first
    (tmp_path / "mine.tsv").write_text("a\tnumber3 title 3\n")
    given = [f"--gin.QUERIES={tmp_path / 'mine.tsv'}", f"--gin.INFER_OUTPUT_DIR={tmp_path}"]
    assert infer.main(["--gin_file=runs/infer.gin", *options, *given, "--gin.NUM_RESULTS=5"]) == 0
    assert len((tmp_path / "mine.trec").read_text().splitlines()) == 5


def test_stopped_run_resumes_to_the_same_parameters(trained, tmp_path, monkeypatch):
    corpus, _ = trained
    options = [UNEVALUATED, "--gin.TRAIN_STEPS=12", "--gin.CHECKPOINT_PERIOD=4"]
    assert train.main(arguments(corpus, tmp_path / "whole", *options)) == 0
    add = Progress.add

    def add_until(self, step, metrics):
        if step == 6:
            signal.raise_signal(signal.SIGTERM)
        add(self, step, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "add", add_until)
        assert train.main(arguments(corpus, tmp_path / "stopped", *options)) == 143
    assert (tmp_path / "stopped/checkpoint_6").is_dir()
    assert train.main(arguments(corpus, tmp_path / "stopped", *options)) == 0
    whole, stopped = (
        checkpoints.load_params(tmp_path / name / "checkpoint_12") for name in ("whole", "stopped")
    )
    jax.tree.map(np.testing.assert_array_equal, whole, stopped)


def test_its_embeddings_make_semantic_docids(trained, compiled):
    _, model_dir = trained
    retriever = Retriever.load(model_dir)
    texts = list(retriever.collection.texts)
    embedder = TrainedDualEncoder(str(model_dir), batch_size=7)
    vectors = embedder.embed(texts)
    assert vectors.shape == (60, 64) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)
    encode = jax.jit(functools.partial(retriever.model.apply, method="encode_document"))
    documents = retriever.collection.document_inputs(np.arange(60))
    expected = encode({"params": retriever.params}, documents)
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    keys = retriever.collection.table.keys
    compiled.clear()
    np.testing.assert_array_equal(embedder.embed(texts[:9]), vectors[:9])
    assert not compiled
    builder = Semantic(clusters=3, leaf_size=3, embedder=embedder)
    table = builder.build(DocumentColumns(keys, "hash", embeddings=vectors))
    assert table.parameters["embedder"]["checkpoint"] == "checkpoint_150"
    with pytest.raises(ValueError, match="no documents to embed"):
        embedder.embed([])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--gin.MICROBATCHES=2", "MICROBATCHES is 2; a dual encoder learns from the whole batch"),
        ("--gin.CONSTRAINT=free", "CONSTRAINT is 'free'; a dual encoder ranks documents"),
        ("--gin.POOLING=max", "POOLING is 'max'; expected one of"),
        ("--gin.SCALE=0", "SCALE is 0; expected it in"),
        ("--gin.SCALE=high", r"SCALE is 'high' \(str\); expected a number"),
        ("--gin.EMBEDDING_DIM=0", "EMBEDDING_DIM is 0"),
        ("--gin.SHARED=1", r"SHARED is 1 \(int\); expected True or False"),
    ],
)
def test_bad_choices_are_named_before_anything_is_read(option, message, tmp_path, capsys):
    assert train.main(arguments(tmp_path / "nowhere", tmp_path / "model", option)) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "model").exists()


def test_another_method_does_not_continue_the_run(trained, capsys):
    corpus, model_dir = trained
    # The rates of the mixture, which is registered in this process, are the same.
    command = arguments(corpus, model_dir, "--gin.TRAIN_STEPS=150", "--gin.INDEXING_RATIO=0")
    assert train.main(["--gin_file=experiments/own_text.gin", *command[1:]]) == 2
    assert "model.docid_vocab_size None, this run expects 62" in capsys.readouterr().err


def test_documents_must_be_there(trained, tmp_path, capsys):
    _, model_dir = trained
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved/checkpoint_150").symlink_to(model_dir / "checkpoint_150")
    assert search.main([str(tmp_path / "moved"), "number7"]) == 2
    assert "a search needs documents.arrow in MODEL_DIR" in capsys.readouterr().err
