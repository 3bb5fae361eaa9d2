"""Runs with docids in text tokens: trained, resumed, evaluated without a trie, searched."""

import json

import pytest

from dsi_jax import eval as eval_command
from dsi_jax import train
from dsi_jax.docids.table import DocidTable
from dsi_jax.retriever import Retriever
from dsi_jax.training import checkpoints
from tests.fixtures.small_corpus import write_corpus
from tests.fixtures.small_images import write_clip_tokenizer


def arguments(corpus, model_dir, *more):
    return [
        "--gin_file=experiments/own_text.gin",
        "--gin_file=models/t5_tiny.gin",
        f"--gin.CORPUS={corpus}",
        f"--gin.MODEL_DIR={model_dir}",
        "--gin.BATCH_SIZE=16",
        "--gin.TASK_FEATURE_LENGTHS={'inputs': 16}",
        "--gin.VOCABULARY=bytes",
        "--gin.BEAM_SIZE=4",
        "--gin.CHUNK_RATIO=0",
        "--gin.EVAL_PERIOD=1000",
        "--gin.config.Evaluation.num_documents=8",
        *more,
    ]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(
        tmp_path_factory.mktemp("strategies") / "corpus_of_strategies", num_documents=24
    )


def test_a_strategy_is_one_gin_line(corpus, tmp_path):
    options = ["--gin_file=docids/naive.gin", "--gin.INDEXING_STRATEGY=bidirectional"]
    model_dir = tmp_path / "m"
    assert train.main(arguments(corpus, model_dir, *options, "--gin.TRAIN_STEPS=3")) == 0
    assert train.main(arguments(corpus, model_dir, *options, "--gin.TRAIN_STEPS=5")) == 0

    compact, text = (DocidTable.load(model_dir / name) for name in ("docids", "docids_text"))
    assert text.parameters["compact"] == compact.hash
    metadata = checkpoints.load_metadata(model_dir / "checkpoint_5")
    assert metadata["model"]["docid_space"] == "text"
    assert metadata["docid_table_hash"] == text.hash
    assert metadata["model"]["t5"]["vocab_size"] == text.vocab_size
    report = json.loads((model_dir / "report.json").read_text())
    (figures,) = report["test"].values()
    assert 0 <= figures["hits@1"] <= 1

    retriever = Retriever.load(model_dir)
    assert sorted(hit.row for hit in retriever.search("number7", k=24)) == list(range(24))
    free = ["--gin_file=runs/eval.gin", f"--gin.CORPUS={corpus}", f"--gin.MODEL_DIR={model_dir}"]
    assert eval_command.main([*free, "--gin.CONSTRAINT=free", "--gin.BEAM_SIZE=4"]) == 0


def test_atomic_docids_in_text_space_grow_the_vocabulary(corpus, tmp_path):
    options = ["--gin_file=docids/atomic.gin", "--gin.DOCID_SPACE=text", "--gin.TRAIN_STEPS=1"]
    options.append("--gin.train_config.TrainConfig.evaluation=None")
    model_dir = tmp_path / "m"
    assert train.main(arguments(corpus, model_dir, *options)) == 0
    params = checkpoints.load_params(model_dir / "checkpoint_1")
    assert params["token_embedder"]["embedding"].shape[0] == 259 + 100 + 24
    assert "docid_embedder" not in params
    hits = Retriever.load(model_dir).search("number7", k=24)
    assert sorted(hit.row for hit in hits) == list(range(24))


def test_a_t5_reads_no_vocabulary_of_clip(corpus, tmp_path, capsys):
    write_clip_tokenizer(tmp_path)
    options = ["--gin_file=docids/atomic.gin", f"--gin.VOCABULARY={tmp_path}", "--dry_run"]
    assert train.main(arguments(corpus, tmp_path / "m", *options)) == 2
    assert "VOCABULARY pads texts by token 513, as CLIP's do" in capsys.readouterr().err


def test_a_strategy_and_a_space_that_exclude_each_other(corpus, tmp_path, capsys):
    options = ["--gin.INDEXING_STRATEGY=targets2inputs", "--gin.DOCID_SPACE=compact"]
    assert train.main(arguments(corpus, tmp_path / "m", *options)) == 2
    error = capsys.readouterr().err
    assert "'targets2inputs', which needs docids in text tokens; DOCID_SPACE is 'compact'" in error
    assert not (tmp_path / "m").exists()
