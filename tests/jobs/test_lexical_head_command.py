"""A run with a lexical head: trained, saved, resumed, searched, lent; and what it refuses."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from dsi_jax import train
from dsi_jax.data.readers.load import load_corpus
from dsi_jax.inputs.encoder_inputs import Inputs
from dsi_jax.inputs.lexical_vocabulary import LexicalVocabulary
from dsi_jax.models.dsi import FIRST_DOCUMENT, DSIConfig, DSIModel
from dsi_jax.prepare import lexical_head
from dsi_jax.retriever import Retriever
from dsi_jax.storage.lexical_index import LexicalIndex
from dsi_jax.storage.model_dir import ModelDir
from dsi_jax.training import checkpoints, lexical_weights
from tests.fixtures.small_corpus import write_corpus
from tests.jobs import test_train_command

HEAD = ["--gin_file=lexical/head.gin", "--gin.LEXICAL_LANGUAGE=None"]
UNEVALUATED = "--gin.train_config.TrainConfig.evaluation=None"


def arguments(corpus, model_dir, *more):
    mixed = ["--gin.CHUNK_RATIO=1", "--gin.INDEXING_RATIO=0.5"]
    return test_train_command.arguments(corpus, model_dir, *HEAD, *mixed, *more)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(corpus, MODEL_DIR) after a short run that was resumed once."""
    base = tmp_path_factory.mktemp("lexical")
    corpus, model_dir = write_corpus(base / "corpus_of_lexical"), base / "model"
    assert train.main(arguments(corpus, model_dir, "--gin.TRAIN_STEPS=2", UNEVALUATED)) == 0
    assert train.main(arguments(corpus, model_dir, "--gin.TRAIN_STEPS=4")) == 0
    return corpus, model_dir


def head_of(model_dir):
    directory = checkpoints.latest_checkpoint(model_dir)
    return checkpoints.load_params(directory)["lexical_head"]


def test_the_frozen_head_of_a_checkpoint_is_the_fitted_one(trained):
    _, model_dir = trained
    index = LexicalIndex.load(ModelDir(model_dir).lexical_index)
    table = Retriever.load(model_dir).collection.table
    head = head_of(model_dir)
    np.testing.assert_array_equal(head["indptr"], index.indptr)
    np.testing.assert_array_equal(head["weights"], index.weights)
    tokens = table.tokens[index.rows, 0].astype(int)
    np.testing.assert_array_equal(head["documents"], tokens - FIRST_DOCUMENT)
    assert "lexical head: " in (model_dir / "model-info.txt").read_text()


def test_the_report_shows_the_head_alone(trained):
    corpus, model_dir = trained
    report = json.loads((model_dir / "report.json").read_text())
    queries = load_corpus(str(corpus)).queries["test"]
    scores = LexicalIndex.load(ModelDir(model_dir).lexical_index).scores(list(queries.texts))
    right = [s.argmax() in rows for s, rows in zip(scores, queries.relevant, strict=True)]
    assert report["lexical_head"]["hits@1"] == pytest.approx(np.mean(right))
    assert "lexical head alone" in (model_dir / "report.txt").read_text()


def test_a_search_ranks_by_decoder_and_head_together(trained):
    corpus, model_dir = trained
    retriever = Retriever.load(model_dir)
    index = LexicalIndex.load(ModelDir(model_dir).lexical_index)
    table, queries = retriever.collection.table, load_corpus(str(corpus)).queries["test"].texts
    queries = [*queries[:6], "nothing known", "number7 number7"]
    config = DSIConfig.from_json(retriever.metadata["model"])
    params = checkpoints.load_params(checkpoints.latest_checkpoint(model_dir))
    del params["lexical_head"]
    plain = DSIModel(dataclasses.replace(config, lexical_head=None))
    stream = Inputs(retriever.collection.tokenizer, retriever.collection.lengths).texts(queries)
    batch = {"text": stream, "decoder": {"inputs": np.zeros((len(queries), 1), np.int32)}}
    logits = np.array(plain.apply({"params": params}, batch, deterministic=True)[:, 0])
    tokens = table.tokens[:, 0].astype(int)
    logits[:, tokens] += index.scores(queries)
    expected = np.array(jax.nn.log_softmax(logits))[:, tokens]
    for scores, hits in zip(expected, retriever.search_batch(queries, k=5), strict=True):
        assert [hit.row for hit in hits] == np.argsort(-scores, kind="stable")[:5].tolist()
        np.testing.assert_allclose([hit.score for hit in hits], -np.sort(-scores)[:5], atol=1e-4)


def test_weights_are_trained_where_asked_and_a_checkpoint_lends_all_but_the_head(trained, tmp_path):
    corpus, model_dir = trained
    lent = [f"--gin.INITIAL_CHECKPOINT_PATH={model_dir}", f"--gin.VOCABULARY={model_dir}"]
    options = ["--gin.TRAIN_STEPS=1", "--gin.LEXICAL_TRAIN_WEIGHTS=True", UNEVALUATED]
    assert train.main(arguments(corpus, tmp_path / "tuned", *options, *lent)) == 0
    fitted, tuned = head_of(model_dir), head_of(tmp_path / "tuned")
    for name in ("indptr", "documents"):
        np.testing.assert_array_equal(tuned[name], fitted[name])
    changed = tuned["weights"] != fitted["weights"]
    assert changed.any()
    np.testing.assert_allclose(tuned["weights"], fitted["weights"], rtol=0.5, atol=0.1)


def refuses(capsys, pattern, *argv):
    capsys.readouterr()
    assert train.main(list(argv)) == 2
    (line,) = [s for s in capsys.readouterr().err.splitlines() if "dsi-jax: error: " in s]
    assert re.search(pattern, line), line


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (["--gin_file=docids/naive.gin"], r"DOCIDS are 'naive'; it is for atomic docids so far"),
        (["--gin.DOCID_SPACE=text"], r"DOCID_SPACE is 'text'; it is for atomic docids so far"),
        (["--gin.LEXICAL_HEAD=None"], r"SOFT_TARGETS is True, and LEXICAL_HEAD, .* is None"),
        (["--gin.LABEL_SMOOTHING=0.1"], r"LABEL_SMOOTHING is 0\.1; expected 0\.0 with"),
        (["--gin.LEXICAL_POSTINGS=0"], r"most_postings is 0"),
        (["--gin_file=methods/dual_encoder.gin"], r"METHOD is a dual encoder; expected a DSI"),
    ],
)
def test_impossible_configurations_are_one_clear_error(trained, tmp_path, capsys, options, pattern):
    corpus, _ = trained
    refuses(capsys, pattern, *arguments(corpus, tmp_path / "m", *options))
    assert not (tmp_path / "m").exists()


def test_weights_of_another_configuration_are_refused(trained, capsys):
    corpus, model_dir = trained
    pattern = r'lexical_index\.npz was made of .*"most_postings": 512.* expects .*: 3,'
    refuses(capsys, pattern, *arguments(corpus, model_dir, "--gin.LEXICAL_POSTINGS=3"))


def test_without_training_questions_the_weights_are_those_of_bm25(trained, tmp_path):
    corpus = load_corpus(str(trained[0]))
    head = lexical_head.LexicalHead(language=None)
    unasked = dataclasses.replace(corpus, queries={"test": corpus.queries["test"]})
    index = lexical_head.existing_or_fitted(
        head, unasked, tmp_path / "index.npz", seed=1, write=False
    )
    assert not (tmp_path / "index.npz").exists()
    vocabulary = LexicalVocabulary.of_documents(corpus.document_texts(), None)
    features = lexical_weights.document_features(vocabulary, corpus.titles, corpus.texts)
    expected = lexical_weights.lexical_index(
        vocabulary, features, lexical_weights.bm25_weights(features), most_postings=512
    )
    np.testing.assert_array_equal(index.weights, expected.weights)
    fitted = lexical_head.existing_or_fitted(
        head, corpus, tmp_path / "index.npz", seed=1, write=True
    )
    assert not np.array_equal(index.weights, fitted.weights)
    again = lexical_head.existing_or_fitted(
        head, corpus, tmp_path / "index.npz", seed=1, write=True
    )
    np.testing.assert_array_equal(again.weights, fitted.weights)
