"""`Evaluator` and `Predictor` with a small random model, and the figures they leave."""

import functools
import json

import flax.linen as nn
import jax
import numpy as np
import pytest
import seqio

from dsi_jax.data.corpora import corpus as corpus_lib
from dsi_jax.data.seqio_tasks import features, metrics
from dsi_jax.data.seqio_tasks import text as text_tasks
from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.kinds.naive import NaiveString
from dsi_jax.evaluation.config import Target
from dsi_jax.evaluation.evaluator import Evaluator, queries_hash
from dsi_jax.evaluation.history import history, mean_and_best
from dsi_jax.evaluation.predictor import Interrupted, Predictor
from dsi_jax.inputs.tokenizer import ByteTokenizer
from dsi_jax.methods.base import Collection
from dsi_jax.methods.dsi import DSI
from dsi_jax.models.dsi import DSIConfig, DSIModel
from dsi_jax.models.t5 import T5Config
from dsi_jax.ranking.docid_ranker import cap_beams
from dsi_jax.retriever import Retriever

NUM_DOCUMENTS = 12
NUM_QUERIES = 7  # with batches of 3, the last is not full
LENGTH = 8


pytestmark = pytest.mark.usefixtures("own_registries")


def make_corpus(num_queries: int = NUM_QUERIES) -> corpus_lib.Corpus:
    keys = [f"k{row}" for row in range(NUM_DOCUMENTS)]
    relevant = {f"b{row}": {row: 1.0} for row in range(num_queries)}
    queries = corpus_lib.make_query_set({name: f"find {name}" for name in relevant}, relevant)
    texts = [f"text {row}" for row in range(NUM_DOCUMENTS)]
    return corpus_lib.Corpus("tiny", keys, [""] * NUM_DOCUMENTS, texts, {"test": queries})


@pytest.fixture(scope="module")
def parts():
    """(corpus, the arguments that `Predictor` and `Retriever` share, params)."""
    corpus = make_corpus()
    table = NaiveString().build(DocumentColumns(corpus.keys, corpus.hash))
    tokenizer = ByteTokenizer()
    t5 = T5Config(
        vocab_size=tokenizer.vocab_size,
        emb_dim=16,
        num_heads=2,
        head_dim=8,
        mlp_dim=32,
        num_encoder_layers=1,
        num_decoder_layers=1,
    )
    model = DSIModel(DSIConfig(t5, docid_vocab_size=table.vocab_size, docid_length=table.length))
    tokens = np.ones([1, LENGTH], np.int32)
    batch = {
        "text": {"tokens": tokens, "mask": tokens != 0},
        "decoder": {"inputs": np.zeros([1, table.length], np.int32)},
    }
    init = jax.jit(functools.partial(model.init, deterministic=True))
    params = init(jax.random.key(0), batch)["params"]
    collection = Collection(table, corpus.document_texts(), tokenizer, {"inputs": LENGTH})
    return corpus, model, collection, nn.meta.unbox(params)


@pytest.fixture(scope="module")
def predictor(parts):
    _, model, collection, _ = parts
    return Predictor(
        DSI().new_ranker(model, collection, DSI().ranking(beam_size=5)),
        inputs=collection.inputs,
        batch_size=3,
    )


def examples(corpus) -> list[dict[str, np.ndarray]]:
    texts = corpus.queries["test"].texts
    return [{features.INPUTS: np.array([text.encode()], object)} for text in texts]


def test_predictor_ranks_as_the_retriever_whatever_the_batch(parts, predictor):
    corpus, model, collection, params = parts
    rows, scores = predictor.rank(params, examples(corpus))
    assert rows.shape == scores.shape == (NUM_QUERIES, 5)
    retriever = Retriever(model=model, collection=collection, params=params, beam_size=5)
    ranked = retriever.search_batch(corpus.queries["test"].texts, k=5)
    assert [[hit.row for hit in hits] for hits in ranked] == rows.tolist()
    np.testing.assert_allclose([[h.score for h in hits] for hits in ranked], scores, atol=1e-5)


def test_beams_are_no_more_than_documents_under_the_trie_alone(parts):
    table = parts[2].table
    assert cap_beams(20, table, "trie") == NUM_DOCUMENTS
    assert cap_beams(5, table, "trie") == 5
    assert cap_beams(20, table, "free") == 20


def test_figures_and_files_of_an_evaluation(parts, predictor, tmp_path):
    corpus, _, collection, params = parts
    tasks = text_tasks.register_corpus_tasks(corpus)
    target = Target(tasks.retrieval, "test")
    evaluator = Evaluator(
        [target],
        keys=collection.table.keys,
        feature_lengths=collection.lengths,
        output_dir=tmp_path,
    )
    figures = evaluator.evaluate(predictor, params, 10)[target.name]
    assert figures["queries"] == NUM_QUERIES
    rows, scores = predictor.rank(params, examples(corpus))
    expected = [
        f"b{i} Q0 k{row} {rank} {float(score)} dsi_jax"
        for i in range(NUM_QUERIES)
        for rank, (row, score) in enumerate(zip(rows[i], scores[i], strict=True), start=1)
    ]
    assert (tmp_path / f"{target.name}-000010.trec").read_text().splitlines() == expected
    evaluator.evaluate(predictor, params, 20)
    assert [line["step"] for line in history(tmp_path, target.name, 20)] == [10, 20]
    assert history(tmp_path, target.name, 10) == [{"step": 10} | figures]


def test_evaluation_that_is_asked_to_stop_does_so_between_batches(parts, predictor):
    corpus, _, _, params = parts
    answers = iter([False, True])
    with pytest.raises(Interrupted):
        predictor.rank(params, examples(corpus), lambda: next(answers))
    assert not list(answers)


def test_metrics_that_are_no_single_number_are_left_to_the_files(parts, predictor, tmp_path):
    corpus, _, collection, params = parts
    source = seqio.TaskRegistry.get(text_tasks.register_corpus_tasks(corpus).retrieval)

    def external(targets, predictions, aux_values):
        hits = metrics.retrieval_metrics(targets, predictions, aux_values)["hits@1"]
        return {
            "text": seqio.metrics.Text("a sentence"),
            "histogram": seqio.metrics.Histogram(np.arange(3.0)),
            "scalar": seqio.metrics.Scalar(hits),
            "plain": np.float32(hits),
        }

    seqio.TaskRegistry.add(
        "foreign",
        source=source.source,
        preprocessors=[],
        output_features=source.output_features,
        postprocess_fn=metrics.postprocess,
        metric_fns=[external],
        shuffle_buffer_size=None,
    )
    evaluator = Evaluator(
        [Target("foreign", "test")],
        keys=collection.table.keys,
        feature_lengths=collection.lengths,
        output_dir=tmp_path,
    )
    figures = evaluator.evaluate(predictor, params, 1)["foreign_test"]
    assert figures.keys() == {"scalar", "plain"}
    assert figures["scalar"] == pytest.approx(figures["plain"])


def test_history_takes_the_last_line_of_a_step_and_none_beyond(tmp_path):
    lines = [(1, 0.1), (2, 0.5), (3, 0.9), (2, 0.4), (4, 0.2)]
    text = "".join(json.dumps({"step": s, "hits@1": v}) + "\n" for s, v in lines)
    (tmp_path / "t_dev-metrics.jsonl").write_text(text)
    past = history(tmp_path, "t_dev", 3)
    assert [line["hits@1"] for line in past] == [0.1, 0.4, 0.9]
    assert mean_and_best(past, "hits@1", 2) == pytest.approx((0.65, 0.9))
    assert history(tmp_path, "absent", 3) == []


def test_queries_hash_tells_splits_apart():
    corpus, fewer = make_corpus(), make_corpus(NUM_QUERIES - 1)
    assert corpus.hash == fewer.hash
    assert queries_hash(corpus) == queries_hash(make_corpus()) != queries_hash(fewer)
